import { svg } from "./dom";
import type { State } from "./wire";

/** Each icon on a field of 16 x 16: what is filled, and what is drawn as a line. */
interface Shape {
  readonly fill?: string;
  readonly line?: string;
}

const RING = "M8 2.5a5.5 5.5 0 1 1 0 11a5.5 5.5 0 1 1 0-11z";
// Three quarters of a ring: it turns while something is under way.
const TURNING: Shape = { line: "M8 2.5a5.5 5.5 0 1 1-5.5 5.5" };

const MOON: Shape = { line: "M13 9.6A5.6 5.6 0 1 1 6.4 3a4.5 4.5 0 0 0 6.6 6.6z" };

const STATES: Readonly<Record<State, Shape>> = {
  running: { line: RING, fill: "M6.5 5.2v5.6L11 8z" },
  stopped: { line: RING, fill: "M6 6h4v4H6z" },
  asleep: MOON,
  creating: TURNING,
  starting: TURNING,
  stopping: TURNING,
  broken: { line: "M8 2.2l6.3 11.3H1.7zM8 6.5v3.4M8 11.6v.4" },
  gone: { line: "M8 2.5a5.5 5.5 0 1 1 0 11a5.5 5.5 0 1 1 0-11zM6 6l4 4M10 6l-4 4" },
};

const OTHERS = {
  start: { fill: "M4.5 2.8v10.4L13 8z" },
  stop: { fill: "M4 4h8v8H4z" },
  hibernate: MOON,
  restart: { line: "M12.8 8.5a5 5 0 1 1-1.4-4M11.8 1.8v3h-3" },
  edit: { line: "M3 13l.6-2.8 7.2-7.2 2.2 2.2-7.2 7.2zM9.3 4.5l2.2 2.2" },
  delete: { line: "M3 4.5h10M6.3 4.5V3h3.4v1.5M4.5 4.5l.6 8.5h5.8l.6-8.5M7 7v3.8M9 7v3.8" },
  problem: STATES.broken,
} satisfies Record<string, Shape>;

export type IconName = keyof typeof OTHERS;

function drawn({ fill, line }: Shape): SVGSVGElement {
  const icon = svg("svg", { viewBox: "0 0 16 16", class: "lk-icon", "aria-hidden": "true", focusable: "false" });
  if (line !== undefined) {
    icon.append(svg("path", { d: line, fill: "none", stroke: "currentColor", "stroke-width": "1.5" }));
  }
  if (fill !== undefined) {
    icon.append(svg("path", { d: fill, fill: "currentColor" }));
  }
  return icon;
}

/** Return a new drawing; words beside it say what it means, so it is hidden from screen readers. */
export function icon(name: IconName): SVGSVGElement {
  return drawn(OTHERS[name]);
}

/** Return the drawing of a state; class `lk-turning` makes it turn. */
export function stateIcon(state: State): SVGSVGElement {
  const made = drawn(STATES[state]);
  if (STATES[state] === TURNING) {
    made.classList.add("lk-turning");
  }
  return made;
}
