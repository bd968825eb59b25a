import { h, setAttribute } from "../dom";
import { icon } from "../icons";
import type { Translate } from "../i18n";
import { BUTTONS, type ButtonVerb, offer, verbWord } from "../rules";
import type { Job, VM } from "../wire";

/** The row of buttons. One that may not be used now stays in place and says why: focus is not lost to it. */
export class Actions {
  readonly element: HTMLElement;
  readonly #buttons = new Map<ButtonVerb, HTMLButtonElement>();

  constructor(
    private readonly t: Translate,
    press: (verb: ButtonVerb) => void,
  ) {
    this.element = h("div", "lk-actions", { role: "group" });
    for (const verb of BUTTONS) {
      const button = h("button", "lk-button", { type: "button", "data-verb": verb }, icon(verb));
      button.append(h("span", "lk-button-word", {}, verbWord(t, verb)));
      button.addEventListener("click", () => {
        if (button.getAttribute("aria-disabled") !== "true") {
          press(verb);
        }
      });
      this.#buttons.set(verb, button);
    }
  }

  /** Return the button of a verb while it is shown. */
  button(verb: ButtonVerb): HTMLButtonElement | null {
    const button = this.#buttons.get(verb);
    return button?.isConnected ? button : null;
  }

  get first(): HTMLElement | null {
    return this.element.querySelector("button");
  }

  /** Show what may be done; `frozen` is why nothing may, or "". */
  update(vm: VM, job: Job | null, frozen: string): void {
    setAttribute(this.element, "aria-label", this.t("Actions of %1", vm.name));
    for (const [verb, button] of this.#buttons) {
      const offered = offer(this.t, verb, vm, job);
      if (offered === "hidden") {
        button.remove();
        continue;
      }
      if (!button.isConnected) {
        this.#insert(verb, button);
      }
      const reason = offered?.reason ?? frozen;
      const label = `${verbWord(this.t, verb)} ${vm.name}`;
      setAttribute(button, "aria-disabled", String(reason !== ""));
      setAttribute(button, "aria-label", label);
      setAttribute(button, "title", reason === "" ? label : `${label}: ${reason}`);
      // A label beats a title for screen readers, so the reason is said as the description.
      setAttribute(button, "aria-description", reason);
    }
    this.element.hidden = this.first === null;
  }

  #insert(verb: ButtonVerb, button: HTMLButtonElement): void {
    const after = BUTTONS.slice(BUTTONS.indexOf(verb) + 1);
    const next = after.map((other) => this.#buttons.get(other)).find((other) => other?.parentNode === this.element);
    this.element.insertBefore(button, next ?? null);
  }
}
