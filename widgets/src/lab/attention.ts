/** Whose usage is wanted: of these VMs, or of all (null). */
export type Wish = readonly string[] | null;

/** Joins the wishes of all parts of the page into the one that the server is told. */
export class Attention {
  readonly #tell: (names: Wish) => void;
  readonly #wishes = new Map<object, Wish>();
  #told: Wish = [];
  #isOn = true;

  constructor(tell: (names: Wish) => void) {
    this.#tell = tell;
  }

  /** Switch all of it on or off, as the settings say. */
  set isOn(isOn: boolean) {
    this.#isOn = isOn;
    this.#look();
  }

  /** Say what one part shows now; `[]` when it is hidden. */
  want(part: object, names: Wish): void {
    this.#wishes.set(part, names);
    this.#look();
  }

  #look(): void {
    const wishes = this.#isOn ? [...this.#wishes.values()] : [];
    const names = wishes.includes(null) ? null : [...new Set(wishes.flatMap((wish) => wish ?? []))].sort();
    if (names?.join("/") !== this.#told?.join("/")) {
      this.#told = names;
      this.#tell(names);
    }
  }
}
