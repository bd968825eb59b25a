import { MainAreaWidget } from "@jupyterlab/apputils";
import type { Message } from "@lumino/messaging";
import { Widget } from "@lumino/widgets";
import { Client, type ClientSettings } from "../api";
import type { Translate } from "../i18n";
import { Model } from "../model";
import { ToolButton } from "./button";
import { vmIcon } from "./icons";
import { LogView } from "./logview";

/** The log of one VM, over a connection of its own: each follows one log only, and the sidebar's may be another. */
class LogWidget extends Widget {
  readonly view: LogView;
  readonly #client: Client;
  readonly #unsubscribe: () => void;

  constructor(settings: ClientSettings, vm: string, most: number, t: Translate) {
    super();
    this.addClass("lk-log-widget");
    this.view = new LogView(t("Log of %1", vm), most);
    this.node.append(this.view.element);
    const model = new Model();
    this.#unsubscribe = model.onChange((change) => {
      if (change.kind === "log" && change.name === vm) {
        this.view.add(change.lines);
      }
    });
    this.#client = new Client(settings, model);
    this.#client.onConnection((isConnected) => {
      // The last lines come again with each new connection.
      if (isConnected) {
        this.view.clear();
      }
    });
    this.#client.show([]);
    this.#client.follow(vm);
    this.#client.connect();
  }

  override dispose(): void {
    if (!this.isDisposed) {
      this.#unsubscribe();
      this.#client.dispose();
    }
    super.dispose();
  }

  protected override onActivateRequest(message: Message): void {
    super.onActivateRequest(message);
    this.view.element.focus();
  }
}

/** A tab of the main area with the log of one VM. */
export class LogTab extends MainAreaWidget {
  readonly vm: string;

  constructor(settings: ClientSettings, vm: string, most: number, t: Translate) {
    const content = new LogWidget(settings, vm, most, t);
    super({ content });
    this.vm = vm;
    this.id = `lima-kernels-log-${vm}`;
    this.title.label = t("Log of %1", vm);
    this.title.caption = t("What Lima and the VM %1 say", vm);
    this.title.icon = vmIcon;
    this.title.closable = true;
    const follow = new ToolButton({ label: t("Follow"), title: t("Stay at the newest line") }, () => {
      content.view.isFollowing = !content.view.isFollowing;
    });
    follow.pressed = true;
    content.view.onFollowing = (isFollowing) => {
      follow.pressed = isFollowing;
    };
    const clear = new ToolButton({ label: t("Clear"), title: t("Remove the lines that are shown") }, () => {
      content.view.clear();
    });
    this.toolbar.addItem("follow", follow);
    this.toolbar.addItem("clear", clear);
  }
}
