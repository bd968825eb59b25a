import { h, setAttribute, setText } from "../dom";
import { since, span } from "../format";
import type { Translate } from "../i18n";
import type { Job, VM } from "../wire";

interface Underway {
  readonly text: string;
  readonly began: number;
  readonly expected: number | null;
}

/** Return what is under way: the VM's own phase, else the step of its job. */
export function underway(vm: VM, job: Job | null): Underway | null {
  if (vm.began !== null) {
    return { text: vm.phase, began: vm.began, expected: vm.expected };
  }
  if (job?.state === "running") {
    return { text: job.step, began: job.began, expected: job.expected };
  }
  return null;
}

/** The phase with its times; a bar only where earlier starts say how long it takes. */
export class ProgressLine {
  readonly element: HTMLElement;
  readonly #phase = h("span", "lk-phase");
  readonly #times = h("span", "lk-times");
  readonly #bar = h("progress", "lk-progress", { max: "1" });
  readonly #cancel: HTMLButtonElement;
  #now: Underway | null = null;
  #job = "";
  #timer: ReturnType<typeof setInterval> | null = null;

  constructor(
    private readonly t: Translate,
    cancel: (job: string) => void,
  ) {
    this.#cancel = h("button", "lk-button lk-cancel", { type: "button" }, t("Cancel"));
    this.#cancel.addEventListener("click", () => {
      cancel(this.#job);
    });
    const line = h("div", "lk-progress-line", {}, this.#phase, this.#times, this.#cancel);
    this.element = h("div", "lk-underway", {}, line, this.#bar);
    this.element.hidden = true;
  }

  update(vm: VM, job: Job | null, frozen: string): void {
    this.#now = underway(vm, job);
    this.element.hidden = this.#now === null;
    const cancellable = frozen === "" && job?.state === "running" && job.cancellable;
    this.#job = job?.id ?? "";
    this.#cancel.hidden = !cancellable;
    setAttribute(this.#cancel, "aria-label", this.t("Cancel what is under way for %1", vm.name));
    setAttribute(this.#bar, "aria-label", this.t("Progress of %1", vm.name));
    this.#draw();
    // What is only remembered does not go on.
    if (this.#now === null || frozen !== "") {
      this.dispose();
      this.#times.hidden = frozen !== "";
    } else {
      this.#times.hidden = false;
      this.#timer ??= setInterval(() => {
        this.#draw();
      }, 1000);
    }
  }

  /** End the clock. */
  dispose(): void {
    if (this.#timer !== null) {
      clearInterval(this.#timer);
      this.#timer = null;
    }
  }

  #draw(): void {
    if (this.#now === null) {
      return;
    }
    const { text, began, expected } = this.#now;
    const elapsed = since(began);
    setText(this.#phase, this.t(text));
    this.#bar.hidden = expected === null;
    if (expected === null) {
      setText(this.#times, span(this.t, elapsed));
      return;
    }
    this.#bar.value = Math.min(elapsed / Math.max(expected, 1), 1);
    const form = elapsed > expected ? "%1, longer than the usual %2" : "%1 of about %2";
    setText(this.#times, this.t(form, span(this.t, elapsed), span(this.t, expected)));
  }
}
