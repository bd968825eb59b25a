import { VMCard, type CardHost, type CardOptions } from "./card";
import { h, Keyed, setText } from "./dom";
import type { Change, Model } from "./model";
import type { VM } from "./wire";

export interface ListOptions extends CardOptions {
  /** Show this VM alone; "" or none: all of them. */
  only?: string;
  /** What stands there while there is nothing to show. */
  empty?: string;
}

/** A card for each VM of a model, by name; it follows the model until it is disposed of. */
export class VMList {
  readonly element: HTMLElement;
  readonly #cards: Keyed<VM, VMCard>;
  readonly #empty = h("p", "lk-empty");
  readonly #only: string;
  readonly #unlisten: () => void;
  #frozen = "";

  constructor(
    private readonly model: Model,
    host: CardHost,
    options: ListOptions = {},
  ) {
    this.#only = options.only ?? "";
    const { t } = host;
    const cards = h("div", "lk-cards");
    this.element = h("div", "lk-list", {}, this.#empty, cards);
    const missing = this.#only === "" ? t("There are no VMs yet.") : t("There is no VM %1.", this.#only);
    setText(this.#empty, options.empty ?? missing);
    // One log is followed at a time, so opening one folds the others in.
    const single: CardHost = { ...bound(host), follow: this.#follow.bind(this, host) };
    this.#cards = new Keyed(
      cards,
      (vm) => this.#make(single, options, vm),
      (card, vm) => {
        card.update(vm);
      },
      (card) => {
        card.dispose();
      },
    );
    this.#unlisten = model.onChange((change) => {
      this.#changed(change);
    });
    this.#arrange();
  }

  /** The names that are shown now. */
  get names(): string[] {
    return [...this.#cards.rows.keys()];
  }

  /** Show what is only remembered: no action until `reason` is "" again. */
  freeze(reason: string): void {
    this.#frozen = reason;
    for (const card of this.#cards.rows.values()) {
      card.freeze(reason);
    }
  }

  dispose(): void {
    this.#unlisten();
    this.#cards.set([]);
    this.element.remove();
  }

  #make(host: CardHost, options: ListOptions, vm: VM): VMCard {
    const card = new VMCard(host, options);
    card.freeze(this.#frozen);
    card.update(vm);
    card.usage(this.model.usage(vm.name));
    card.job(this.model.jobOf(vm.name));
    return card;
  }

  #follow(host: CardHost, name: string | null): void {
    for (const [other, card] of this.#cards.rows) {
      if (name !== null && other !== name) {
        card.closeLog();
      }
    }
    host.follow(name);
  }

  #arrange(): void {
    const shown = [...this.model.vms.values()].filter((vm) => this.#only === "" || vm.name === this.#only);
    shown.sort((a, b) => a.name.localeCompare(b.name));
    this.#cards.set(shown.map((vm) => [vm.name, vm]));
    this.#empty.hidden = shown.length > 0;
  }

  #changed(change: Change): void {
    switch (change.kind) {
      case "all":
        this.#arrange();
        for (const [name, card] of this.#cards.rows) {
          card.usage(this.model.usage(name));
          card.job(this.model.jobOf(name));
        }
        break;
      case "vm":
      case "gone":
        this.#arrange();
        this.#cards.rows.get(change.name)?.usage(this.model.usage(change.name));
        break;
      case "usage":
        this.#cards.rows.get(change.name)?.usage(this.model.usage(change.name));
        break;
      case "log":
        this.#cards.rows.get(change.name)?.log(change.lines);
        break;
      case "job":
        this.#cards.rows.get(change.job.vm)?.job(this.model.jobOf(change.job.vm));
        break;
    }
  }
}

/** Return a host whose methods may be taken off it. */
function bound(host: CardHost): CardHost {
  return {
    act: host.act.bind(host),
    follow: host.follow.bind(host),
    cancel: host.cancel.bind(host),
    confirm: host.confirm.bind(host),
    ...(host.openLink && { openLink: host.openLink.bind(host) }),
    t: host.t,
  };
}
