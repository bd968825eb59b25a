import { h, setText } from "../dom";
import { icon } from "../icons";
import type { Translate } from "../i18n";
import type { Job, VM } from "../wire";

interface Trouble {
  readonly message: string;
  readonly hint: string;
  readonly context: readonly string[];
}

/** A VM that runs has got over the failure of these. */
const STARTS: ReadonlySet<string> = new Set(["create", "start", "restart", "kernel"]);

/** Return what went wrong: the VM's own problem, else the failure of its newest job, unless it was put away. */
export function troubleOf(vm: VM, job: Job | null, putAway: string): Trouble | null {
  if (vm.problem !== null) {
    return { ...vm.problem, context: [] };
  }
  if (job?.state !== "failed" || job.id === putAway) {
    return null;
  }
  return vm.state === "running" && STARTS.has(job.verb) ? null : job;
}

/** The one line of what went wrong, what to do about it, and more when asked. */
export class TroubleBox {
  readonly element: HTMLElement;
  readonly #message = h("p", "lk-message");
  readonly #hint = h("p", "lk-hint");
  readonly #context = h("pre", "lk-log");
  readonly #more: HTMLElement;
  readonly #dismiss: HTMLButtonElement;

  constructor(t: Translate, dismiss: () => void) {
    this.#more = h("details", "", {}, h("summary", "lk-fold", {}, t("More")), this.#context);
    this.#dismiss = h("button", "lk-button", { type: "button", "aria-label": t("Dismiss the problem") }, t("Dismiss"));
    this.#dismiss.addEventListener("click", dismiss);
    const text = h("div", "lk-trouble-text", {}, this.#message, this.#hint, this.#more);
    this.element = h("div", "lk-trouble", { role: "alert" }, icon("problem"), text, this.#dismiss);
    this.element.hidden = true;
  }

  update(vm: VM, trouble: Trouble | null): void {
    this.element.hidden = trouble === null;
    setText(this.#message, trouble?.message ?? "");
    setText(this.#hint, trouble?.hint ?? "");
    setText(this.#context, (trouble?.context ?? []).join("\n"));
    this.#hint.hidden = trouble === null || trouble.hint === "";
    this.#more.hidden = trouble === null || trouble.context.length === 0;
    // A VM's own problem stays until it is mended.
    this.#dismiss.hidden = vm.problem !== null;
  }
}
