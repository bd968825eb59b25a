import { h, setAttribute, uniqueId } from "../dom";
import type { Translate } from "../i18n";

/** How many lines are kept. */
const LINES = 500;
/** Pixels from the end within which the log is taken as being read at its end. */
const NEAR = 8;

/** The log's last lines, on demand: nobody follows it while it is folded in. */
export class LogTail {
  readonly element: HTMLElement;
  readonly #button: HTMLButtonElement;
  readonly #text: HTMLPreElement;
  #lines: readonly string[] = [];

  constructor(
    private readonly t: Translate,
    private readonly toggled: (open: boolean) => void,
  ) {
    const id = uniqueId("log");
    this.#text = h("pre", "lk-log", { id, role: "log", tabindex: "0" });
    this.#button = h("button", "lk-fold", { type: "button", "aria-expanded": "false", "aria-controls": id });
    this.#button.append(t("Log"));
    this.#button.addEventListener("click", () => {
      this.#show(!this.open);
    });
    this.#text.hidden = true;
    this.element = h("div", "lk-section", {}, this.#button, this.#text);
  }

  update(name: string): void {
    setAttribute(this.#text, "aria-label", this.t("Log of %1", name));
  }

  add(lines: readonly string[]): void {
    if (!this.open) {
      return;
    }
    const { scrollTop, scrollHeight, clientHeight } = this.#text;
    const atEnd = scrollHeight - scrollTop - clientHeight < NEAR;
    this.#lines = [...this.#lines, ...lines].slice(-LINES);
    this.#text.textContent = this.#lines.join("\n");
    if (atEnd) {
      this.#text.scrollTop = this.#text.scrollHeight;
    }
  }

  /** Fold it in without a word to the follower: another card's log has been opened. */
  close(): void {
    this.#text.hidden = true;
    setAttribute(this.#button, "aria-expanded", "false");
  }

  get open(): boolean {
    return this.#button.getAttribute("aria-expanded") === "true";
  }

  #show(open: boolean): void {
    this.#lines = [];
    this.#text.textContent = open ? this.t("Nothing has been logged yet.") : "";
    this.#text.hidden = !open;
    setAttribute(this.#button, "aria-expanded", String(open));
    this.toggled(open);
  }
}
