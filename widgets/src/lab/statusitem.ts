import { type ISignal, Signal } from "@lumino/signaling";
import { Widget } from "@lumino/widgets";
import { h, setText } from "../dom";
import { partOf } from "../format";
import { stateIcon } from "../icons";
import { stateWord } from "../rules";
import type { IVMs } from "./tokens";

/** The VM of the notebook in front, in the status bar; a press shows its card. */
export class StatusItem extends Widget {
  readonly #vms: IVMs;
  readonly #text = h("span", "jp-StatusBar-TextItem");
  readonly #button: HTMLButtonElement;
  readonly #symbol = h("span", "lk-status-symbol");
  readonly #unsubscribe: () => void;
  readonly #wantedChanged = new Signal<this, undefined>(this);
  #state = "";

  constructor(vms: IVMs, open: (vm: string) => void) {
    super();
    this.#vms = vms;
    this.#button = h("button", "lk-status", { type: "button" }, this.#symbol, this.#text);
    this.#button.addEventListener("click", () => {
      if (vms.current.name !== null) {
        open(vms.current.name);
      }
    });
    this.node.append(this.#button);
    this.#unsubscribe = vms.model.onChange((change) => {
      const isOfVM = change.kind === "vm" || change.kind === "gone" || change.kind === "usage";
      if (change.kind === "all" || (isOfVM && change.name === vms.current.name)) {
        this.#draw();
      }
    });
    vms.current.changed.connect(this.#onCurrent, this);
    vms.optionsChanged.connect(this.#onCurrent, this);
    this.#onCurrent();
  }

  /** Whether there is something to show: the bar hides it when not. */
  get isWanted(): boolean {
    return this.#vms.options.statusBar && this.#vms.current.name !== null;
  }

  get wantedChanged(): ISignal<this, undefined> {
    return this.#wantedChanged;
  }

  override dispose(): void {
    if (!this.isDisposed) {
      this.#unsubscribe();
      this.#vms.current.changed.disconnect(this.#onCurrent, this);
      this.#vms.optionsChanged.disconnect(this.#onCurrent, this);
      this.#vms.attention.want(this, []);
    }
    super.dispose();
  }

  #onCurrent(): void {
    const { current, attention } = this.#vms;
    attention.want(this, this.isWanted && current.name !== null ? [current.name] : []);
    this.#draw();
    this.#wantedChanged.emit(undefined);
  }

  #draw(): void {
    const { current, model, t } = this.#vms;
    const vm = current.name === null ? undefined : model.vms.get(current.name);
    const state = vm?.state ?? "gone";
    if (state !== this.#state) {
      this.#state = state;
      this.#button.dataset.state = state;
      this.#symbol.replaceChildren(stateIcon(state));
    }
    const memory = model.usage(vm?.name ?? "").at(-1)?.memory ?? null;
    const word = vm === undefined ? t("not made yet") : stateWord(t, vm.state);
    const used = vm === undefined || memory === null ? "" : ` · ${partOf(t, memory, vm.memory)}`;
    setText(this.#text, `${current.name ?? ""}: ${word}${used}`);
    this.#button.title = t("The notebook's kernel runs in the VM %1. Show it.", current.name ?? "");
  }
}
