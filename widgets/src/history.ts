import type { Usage } from "./wire";

/** How many looks are kept: two minutes of one look every two seconds. */
export const POINTS = 60;
/** Seconds between two looks after which they are no longer joined: nobody looked meanwhile. */
const PAUSE = 10;

/** The last looks at one VM, oldest first. */
export class History {
  #points: Usage[] = [];

  get points(): readonly Usage[] {
    return this.#points;
  }

  /** Add one look; an older one than the last is left out, and a pause begins anew. */
  add(usage: Usage): void {
    const last = this.#points.at(-1);
    if (last !== undefined && usage.time <= last.time) {
      return;
    }
    const kept = last !== undefined && usage.time - last.time > PAUSE ? [] : this.#points;
    this.#points = [...kept, usage].slice(-POINTS);
  }
}
