import { h } from "../dom";

/** Distance from the end, in pixels, within which somebody reads the end. */
const AT_END = 24;

/** The lines of a log: it follows its end until somebody scrolls up, and keeps no more than `most` lines. */
export class LogView {
  readonly element: HTMLElement;
  readonly #most: number;
  #isFollowing = true;
  #onFollowing: (isFollowing: boolean) => void = () => undefined;

  constructor(label: string, most: number) {
    this.#most = most;
    // A boot writes hundreds of lines: they are read when somebody goes there, not said one by one.
    this.element = h("pre", "lk-logview", { role: "log", "aria-live": "off", "aria-label": label, tabindex: "0" });
    this.element.addEventListener("scroll", () => {
      const { scrollTop, scrollHeight, clientHeight } = this.element;
      this.#follow(scrollHeight - clientHeight - scrollTop <= AT_END);
    });
  }

  get isFollowing(): boolean {
    return this.#isFollowing;
  }

  set isFollowing(isFollowing: boolean) {
    this.#follow(isFollowing);
    this.#toEnd();
  }

  /** Called when following begins or ends. */
  set onFollowing(listener: (isFollowing: boolean) => void) {
    this.#onFollowing = listener;
  }

  get lines(): number {
    return this.element.childElementCount;
  }

  add(lines: readonly string[]): void {
    this.element.append(...lines.slice(-this.#most).map((line) => h("div", "lk-logview-line", {}, line)));
    while (this.element.childElementCount > this.#most) {
      this.element.firstElementChild?.remove();
    }
    this.#toEnd();
  }

  clear(): void {
    this.element.replaceChildren();
  }

  #follow(isFollowing: boolean): void {
    if (isFollowing !== this.#isFollowing) {
      this.#isFollowing = isFollowing;
      this.#onFollowing(isFollowing);
    }
  }

  #toEnd(): void {
    if (this.#isFollowing) {
      this.element.scrollTop = this.element.scrollHeight;
    }
  }
}
