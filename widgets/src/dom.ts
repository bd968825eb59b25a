/** The few things that drawing needs beside the DOM itself. Text is set as text: what a guest says is never markup. */

type Child = Node | string;
type Attributes = Readonly<Record<string, string>>;

/** Make an element with a class, attributes and children. */
export function h<K extends keyof HTMLElementTagNameMap>(
  tag: K,
  className = "",
  attributes: Attributes = {},
  ...children: Child[]
): HTMLElementTagNameMap[K] {
  const element = document.createElement(tag);
  if (className !== "") {
    element.className = className;
  }
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Make an SVG element. */
export function svg<K extends keyof SVGElementTagNameMap>(
  tag: K,
  attributes: Attributes,
  ...children: Node[]
): SVGElementTagNameMap[K] {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) {
    element.setAttribute(name, value);
  }
  element.append(...children);
  return element;
}

/** Set text only where it changed: a screen reader says a live region again otherwise, and a selection is lost. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

export function setAttribute(element: Element, name: string, value: string): void {
  if (element.getAttribute(name) !== value) {
    element.setAttribute(name, value);
  }
}

/** Return the element that has the focus, in a shadow tree too. */
export function focused(within: Node): Element | null {
  const root = within.getRootNode();
  return root instanceof Document || root instanceof ShadowRoot ? root.activeElement : null;
}

let ids = 0;

/** Return an id that nothing else on the page has. */
export function uniqueId(what: string): string {
  ids += 1;
  return `lk-${what}-${ids}`;
}

/** The children of `parent`, one for each key, kept as long as their key is there: so focus and selection stay. */
export class Keyed<Item, Row extends { readonly element: HTMLElement }> {
  readonly #rows = new Map<string, Row>();

  constructor(
    private readonly parent: HTMLElement,
    private readonly make: (item: Item) => Row,
    private readonly update: (row: Row, item: Item) => void,
    private readonly drop: (row: Row) => void = () => undefined,
  ) {}

  get rows(): ReadonlyMap<string, Row> {
    return this.#rows;
  }

  /** Show these items in this order. */
  set(items: readonly (readonly [key: string, item: Item])[]): void {
    const keys = new Set(items.map(([key]) => key));
    for (const [key, row] of this.#rows) {
      if (!keys.has(key)) {
        this.#rows.delete(key);
        row.element.remove();
        this.drop(row);
      }
    }
    items.forEach(([key, item], place) => {
      const row = this.#rows.get(key) ?? this.make(item);
      this.#rows.set(key, row);
      this.update(row, item);
      // Moving an element takes its focus away, so it moves only when it must.
      if (this.parent.children[place] !== row.element) {
        this.parent.insertBefore(row.element, this.parent.children[place] ?? null);
      }
    });
  }
}
