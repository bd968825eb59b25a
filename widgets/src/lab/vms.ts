import type { JupyterFrontEnd } from "@jupyterlab/application";
import { Dialog, showDialog } from "@jupyterlab/apputils";
import { ServerConnection } from "@jupyterlab/services";
import { type ISignal, Signal } from "@lumino/signaling";
import { ApiError, Client, type ClientSettings } from "../api";
import type { CardHost } from "../card";
import type { Translate } from "../i18n";
import { Model } from "../model";
import type { Action } from "../wire";
import { Attention } from "./attention";
import { CurrentVM } from "./current";
import { type Options, toOptions } from "./options";
import type { IVMs, Refusal } from "./tokens";

/** Return what a connection to this Jupyter server needs. */
export function settingsOf(app: JupyterFrontEnd): ClientSettings {
  const settings = app.serviceManager.serverSettings;
  const { baseUrl, wsUrl, appendToken } = settings;
  return {
    baseUrl,
    wsUrl,
    token: appendToken ? settings.token : "",
    fetch: (url, init) => ServerConnection.makeRequest(url, init, settings),
  };
}

/** The one connection of this page, and what all parts of the extension read from it. */
export class VMs implements IVMs {
  readonly model = new Model();
  readonly client: Client;
  readonly attention: Attention;
  readonly current: CurrentVM;
  readonly host: CardHost;
  readonly commands: IVMs["commands"];
  readonly t: Translate;
  readonly #refused = new Signal<IVMs, Refusal>(this);
  readonly #connection = new Signal<IVMs, boolean>(this);
  readonly #optionsChanged = new Signal<IVMs, Options>(this);
  #options = toOptions({});

  constructor(app: JupyterFrontEnd, t: Translate) {
    this.t = t;
    this.commands = app.commands;
    this.client = new Client(settingsOf(app), this.model);
    this.attention = new Attention((names) => {
      this.client.show(names);
    });
    this.current = new CurrentVM(app.shell, app.serviceManager.kernelspecs, (kernel) => this.client.kernelVM(kernel));
    this.host = {
      act: (vm, action) => {
        this.act(vm, action);
      },
      follow: (vm) => {
        this.client.follow(vm);
      },
      cancel: (job) => {
        this.cancel(job);
      },
      confirm: (question, button) => this.confirm(question, button),
      t,
    };
    this.client.onConnection((isConnected) => {
      this.#connection.emit(isConnected);
    });
    this.client.show([]);
    this.client.connect();
  }

  get options(): Options {
    return this.#options;
  }

  set options(options: Options) {
    this.#options = options;
    this.attention.isOn = options.sampling;
    this.#optionsChanged.emit(options);
  }

  get optionsChanged(): ISignal<IVMs, Options> {
    return this.#optionsChanged;
  }

  get refused(): ISignal<IVMs, Refusal> {
    return this.#refused;
  }

  get isConnected(): boolean {
    return this.client.connected;
  }

  get connection(): ISignal<IVMs, boolean> {
    return this.#connection;
  }

  act(vm: string, action: Action, question = ""): void {
    void this.#act(vm, action, question);
  }

  cancel(job: string): void {
    // A job that has ended meanwhile cannot be cancelled: its end is told by itself.
    this.client.cancel(job).catch((error: unknown) => {
      console.warn("lima-kernels:", error);
    });
  }

  async refresh(): Promise<void> {
    const found = await this.client.vms();
    for (const name of this.model.vms.keys()) {
      if (found.every((vm) => vm.name !== name)) {
        this.model.apply({ type: "gone", name });
      }
    }
    for (const vm of found) {
      this.model.apply({ type: "vm", vm });
    }
  }

  async confirm(question: string, button: string): Promise<boolean> {
    const buttons = [Dialog.cancelButton({ label: this.t("Cancel") }), Dialog.warnButton({ label: button })];
    const { button: pressed } = await showDialog({ title: this.t("Linux VMs"), body: question, buttons });
    return pressed.accept;
  }

  async #act(vm: string, action: Action, question: string): Promise<void> {
    if (question !== "" && !(await this.confirm(question, this.t("Go on")))) {
      return;
    }
    try {
      await this.client.act(vm, action);
    } catch (error) {
      const refusal = error instanceof ApiError ? error : new ApiError(String(error), "", [], 0);
      this.#refused.emit({ vm, action, error: refusal });
    }
  }
}
