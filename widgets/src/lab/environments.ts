import type { Environment } from "../api";
import { h, Keyed, setText } from "../dom";
import { stateWord } from "../rules";
import { COMMANDS, type IVMs } from "./tokens";

/** One environment: its name, its VM, and what can be begun in it. */
class Row {
  readonly element: HTMLElement;
  readonly #vms: IVMs;
  readonly #name = h("span", "lk-environment-name");
  readonly #vm: HTMLButtonElement;
  #environment: Environment;

  constructor(vms: IVMs, environment: Environment, notebook: ((kernel: string) => void) | null) {
    this.#vms = vms;
    this.#environment = environment;
    this.#vm = h("button", "lk-environment-vm", { type: "button" });
    this.#vm.addEventListener("click", () => {
      void vms.commands.execute(COMMANDS.open, { vm: this.#environment.instance });
    });
    this.element = h("li", "lk-environment", {}, h("div", "lk-environment-text", {}, this.#name, this.#vm));
    if (notebook !== null) {
      const begin = h("button", "lk-button", { type: "button" }, vms.t("New notebook"));
      begin.setAttribute("aria-label", vms.t("New notebook in %1", environment.displayName));
      begin.addEventListener("click", () => {
        notebook(this.#environment.name);
      });
      this.element.append(begin);
    }
  }

  update(environment: Environment): void {
    const { model, t } = this.#vms;
    this.#environment = environment;
    const vm = model.vms.get(environment.instance);
    setText(this.#name, environment.displayName);
    const word = vm === undefined ? t("made at the first kernel") : stateWord(t, vm.state);
    setText(this.#vm, `${environment.instance} · ${word}`);
    this.#vm.disabled = vm === undefined;
    this.#vm.title = t("Show the VM %1", environment.instance);
  }
}

/** The environments that kernels can be started in: our installed kernel specs. */
export class EnvironmentList {
  readonly element: HTMLElement;
  readonly #vms: IVMs;
  readonly #rows: Keyed<Environment, Row>;
  readonly #remark = h("p", "lk-empty");
  #found: readonly Environment[] = [];

  constructor(vms: IVMs, notebook: ((kernel: string) => void) | null) {
    this.#vms = vms;
    const list = h("ul", "lk-environments");
    const heading = h("h2", "lk-sidebar-heading", {}, vms.t("Environments"));
    this.element = h("section", "", { "aria-label": vms.t("Environments") }, heading, this.#remark, list);
    this.#rows = new Keyed(
      list,
      (environment) => new Row(vms, environment, notebook),
      (row, environment) => {
        row.update(environment);
      },
    );
    vms.model.onChange((change) => {
      if (change.kind === "all" || change.kind === "vm" || change.kind === "gone") {
        this.#draw();
      }
    });
  }

  /** Ask the server for them. */
  async load(): Promise<void> {
    try {
      this.#found = await this.#vms.client.environments();
      setText(this.#remark, this.#found.length === 0 ? this.#vms.t("There are none: lima-kernels install") : "");
    } catch (error) {
      setText(this.#remark, error instanceof Error ? error.message : String(error));
    }
    this.#draw();
  }

  #draw(): void {
    this.#rows.set(this.#found.map((environment) => [environment.name, environment]));
  }
}
