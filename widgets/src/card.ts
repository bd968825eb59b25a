import { focused, h, setAttribute, setText, uniqueId } from "./dom";
import { stateIcon } from "./icons";
import type { Translate } from "./i18n";
import { Actions } from "./parts/actions";
import { Details } from "./parts/details";
import { EditForm } from "./parts/edit";
import { LogTail } from "./parts/log";
import { Meters } from "./parts/meters";
import { ProgressLine, underway } from "./parts/progress";
import { TroubleBox, troubleOf } from "./parts/trouble";
import { actionOf, type ButtonVerb, question, stateWord, verbWord } from "./rules";
import type { Action, Job, State, Usage, VM } from "./wire";

/** What a card asks of the place that shows it. */
export interface CardHost {
  /** Ask for a verb; what becomes of it comes back as messages. */
  act(vm: string, action: Action): void;
  /** Want the log of one VM, of one only; null: of none. */
  follow(vm: string | null): void;
  cancel(job: string): void;
  confirm(question: string, button: string): Promise<boolean>;
  /** Open a forwarded port; without it the link opens a new tab. */
  openLink?(url: string): void;
  t: Translate;
}

export interface CardOptions {
  /** Begin with the details folded in, as in a sidebar. */
  compact?: boolean;
}

/** One VM, drawn; it keeps no state but what is open. */
export class VMCard {
  readonly element: HTMLElement;
  readonly #t: Translate;
  readonly #name = h("h3", "lk-name", { id: uniqueId("name"), tabindex: "-1" });
  readonly #word = h("span", "lk-state-word");
  readonly #state = h("span", "lk-state", {}, this.#word);
  // Said by screen readers; the drawn words change too often for that.
  readonly #said = h("span", "lk-said", { role: "status", "aria-live": "polite" });
  readonly #actions: Actions;
  readonly #progress: ProgressLine;
  readonly #trouble: TroubleBox;
  readonly #meters: Meters;
  readonly #details: Details;
  readonly #fold: HTMLDetailsElement;
  readonly #edit: EditForm;
  readonly #log: LogTail;
  #vm: VM | null = null;
  #job: Job | null = null;
  #points: readonly Usage[] = [];
  #drawn: State | null = null;
  #putAway = "";
  #frozen = "";

  constructor(
    private readonly host: CardHost,
    options: CardOptions = {},
  ) {
    const t = (this.#t = host.t);
    this.#actions = new Actions(t, (verb) => void this.#press(verb));
    this.#progress = new ProgressLine(t, (job) => {
      host.cancel(job);
    });
    this.#trouble = new TroubleBox(t, () => {
      this.#putAway = this.#job?.id ?? "";
      this.#draw();
      this.#name.focus();
    });
    this.#meters = new Meters(t);
    this.#details = new Details(t, host.openLink?.bind(host));
    this.#edit = new EditForm(
      t,
      (edit) => {
        this.#ask({ verb: "edit", ...edit });
      },
      () => {
        (this.#actions.button("edit") ?? this.#name).focus();
      },
    );
    this.#log = new LogTail(t, (open) => {
      host.follow(open ? (this.#vm?.name ?? null) : null);
    });
    this.#fold = h("details", "lk-more", {}, h("summary", "lk-fold", {}, t("Details")));
    this.#fold.append(this.#details.element, this.#log.element);
    this.#fold.open = options.compact !== true;
    this.#fold.addEventListener("toggle", () => {
      if (!this.#fold.open) {
        this.#unfollow();
      }
    });
    this.element = h("article", "lk-card", { "aria-labelledby": this.#name.id });
    this.element.append(
      h("header", "lk-head", {}, h("div", "lk-title", {}, this.#name, this.#state), this.#actions.element),
      this.#said,
      this.#progress.element,
      this.#trouble.element,
      this.#edit.element,
      this.#meters.element,
      this.#fold,
    );
  }

  update(vm: VM): void {
    this.#vm = vm;
    this.#draw();
  }

  /** Show the last looks, oldest first (Model.usage). */
  usage(points: readonly Usage[]): void {
    this.#points = points;
    if (this.#vm !== null) {
      this.#meters.update(this.#vm, points);
    }
  }

  /** Add lines of the followed log. */
  log(lines: readonly string[]): void {
    this.#log.add(lines);
  }

  job(job: Job | null): void {
    this.#job = job;
    this.#draw();
  }

  /** Show what is only remembered: no action until `reason` is "" again. */
  freeze(reason: string): void {
    this.#frozen = reason;
    this.#draw();
  }

  /** Fold the log in: its lines come no more. */
  closeLog(): void {
    this.#log.close();
  }

  dispose(): void {
    this.#progress.dispose();
    this.#unfollow();
    this.element.remove();
  }

  #unfollow(): void {
    if (this.#log.open) {
      this.#log.close();
      this.host.follow(null);
    }
  }

  #draw(): void {
    const vm = this.#vm;
    if (vm === null) {
      return;
    }
    const before = focused(this.element);
    setText(this.#name, vm.name);
    this.#drawState(vm);
    this.#actions.update(vm, this.#job, this.#frozen);
    this.#progress.update(vm, this.#job, this.#frozen);
    this.#trouble.update(vm, troubleOf(vm, this.#job, this.#putAway));
    this.#meters.element.hidden = vm.state === "gone";
    this.#meters.update(vm, this.#points);
    this.#fold.hidden = vm.state === "gone";
    this.#details.update(vm);
    this.#log.update(vm.name);
    if (vm.state !== "stopped") {
      this.#edit.close();
    }
    // A button that went away took the focus with it: the next one gets it, not the page's begin.
    if (before !== null && this.#lost(before)) {
      (this.#actions.first ?? this.#name).focus();
    }
  }

  #lost(before: Element): boolean {
    if (before.isConnected) {
      return this.element.contains(before) && before.closest("[hidden]") !== null;
    }
    return before.matches(".lk-button");
  }

  #drawState(vm: VM): void {
    const word = stateWord(this.#t, vm.state);
    const phase = underway(vm, this.#job)?.text ?? "";
    setText(this.#said, [`${vm.name}: ${word}`, this.#t(phase)].filter((part) => part !== "").join(", "));
    if (this.#drawn === vm.state) {
      return;
    }
    this.#drawn = vm.state;
    setAttribute(this.element, "data-state", vm.state);
    setText(this.#word, word);
    this.#state.querySelector("svg")?.remove();
    this.#state.prepend(stateIcon(vm.state));
  }

  async #press(verb: ButtonVerb): Promise<void> {
    const vm = this.#vm;
    if (vm === null) {
      return;
    }
    if (verb === "edit") {
      this.#edit.open(vm);
      return;
    }
    const asked = question(this.#t, verb, vm);
    if (asked === null || (await this.host.confirm(asked, verbWord(this.#t, verb)))) {
      this.#ask(actionOf(verb, vm));
    }
  }

  #ask(action: Action): void {
    if (this.#vm !== null) {
      this.host.act(this.#vm.name, action);
    }
  }
}
