import { Toolbar, addIcon, refreshIcon } from "@jupyterlab/ui-components";
import type { Message } from "@lumino/messaging";
import { Panel, Widget } from "@lumino/widgets";
import { h, setText } from "../dom";
import { VMList } from "../list";
import { type ButtonOptions, ToolButton } from "./button";
import { nameElement } from "./commands";
import { EnvironmentList } from "./environments";
import { vmIcon } from "./icons";
import { COMMANDS, type IVMs } from "./tokens";

/** The sidebar: every VM of this machine, and the environments that kernels can be started in. */
export class VMPanel extends Panel {
  readonly #vms: IVMs;
  readonly #list: VMList;
  readonly #environments: EnvironmentList;
  readonly #notice = h("p", "lk-sidebar-notice", { role: "status" });
  #goal: string | null = null;

  constructor(vms: IVMs, notebook: ((kernel: string) => void) | null) {
    super();
    const { t } = vms;
    this.#vms = vms;
    this.id = "lima-kernels-panel";
    this.addClass("lk-sidebar");
    this.title.icon = vmIcon;
    this.title.caption = t("Linux VMs");
    this.node.setAttribute("role", "region");
    this.node.setAttribute("aria-label", t("Linux VMs"));
    this.#list = new VMList(vms.model, vms.host, {
      compact: true,
      empty: t("There are no VMs yet. Make one here, or start a kernel: its VM is made by itself."),
    });
    this.#environments = new EnvironmentList(vms, notebook);
    const content = new Widget({ node: h("div", "lk-sidebar-content") });
    content.node.append(
      this.#notice,
      h("h2", "lk-sidebar-heading", {}, t("Linux VMs")),
      this.#list.element,
      this.#environments.element,
    );
    this.addWidget(this.#toolbar());
    this.addWidget(content);
    vms.connection.connect(this.#onConnection, this);
    vms.optionsChanged.connect(this.#onOptions, this);
    this.#onConnection();
    this.#onOptions();
  }

  override dispose(): void {
    if (!this.isDisposed) {
      this.#vms.connection.disconnect(this.#onConnection, this);
      this.#vms.optionsChanged.disconnect(this.#onOptions, this);
      this.#vms.attention.want(this, []);
      this.#list.dispose();
    }
    super.dispose();
  }

  /** Whose card gets the focus at the next activation; null: the toolbar. */
  set goal(vm: string | null) {
    this.#goal = vm;
  }

  /** Ask the server for the environments again; the VMs come by themselves. */
  async refresh(): Promise<void> {
    await this.#environments.load();
  }

  protected override onAfterShow(message: Message): void {
    super.onAfterShow(message);
    this.#shown();
  }

  protected override onAfterAttach(message: Message): void {
    super.onAfterAttach(message);
    if (this.isVisible) {
      this.#shown();
    }
  }

  protected override onAfterHide(message: Message): void {
    super.onAfterHide(message);
    this.#vms.attention.want(this, []);
  }

  protected override onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    const cards = [...this.#list.element.querySelectorAll(".lk-card")];
    const card = cards.find((element) => nameElement(element)?.textContent === this.#goal);
    this.#goal = null;
    card?.scrollIntoView({ block: "nearest" });
    (card === undefined ? this.node.querySelector("button") : nameElement(card))?.focus();
  }

  #shown(): void {
    this.#vms.attention.want(this, null);
    void this.refresh();
  }

  #toolbar(): Toolbar {
    const { t, commands } = this.#vms;
    const toolbar = new Toolbar();
    toolbar.node.setAttribute("aria-label", t("Linux VMs"));
    const add = (name: string, command: string, options: ButtonOptions): void => {
      const press = (): void => {
        void commands.execute(command);
      };
      toolbar.addItem(name, new ToolButton(options, press));
    };
    const made = t("Make a VM from a template or an environment");
    add("create", COMMANDS.create, { icon: addIcon, label: t("New VM"), title: made });
    toolbar.addItem("spacer", Toolbar.createSpacerItem());
    const again = t("Look again");
    add("refresh", COMMANDS.refresh, { icon: refreshIcon, label: again, title: again, iconOnly: true });
    return toolbar;
  }

  #onConnection(): void {
    const { isConnected, t } = this.#vms;
    const text = isConnected ? "" : t("There is no connection to the Jupyter server's VMs now; it is tried again.");
    setText(this.#notice, text);
    this.#list.freeze(text);
  }

  #onOptions(): void {
    this.#environments.element.hidden = !this.#vms.options.environments;
  }
}
