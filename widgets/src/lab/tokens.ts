import type { CommandRegistry } from "@lumino/commands";
import { Token } from "@lumino/coreutils";
import type { ISignal } from "@lumino/signaling";
import type { ApiError, Client } from "../api";
import type { CardHost } from "../card";
import type { Translate } from "../i18n";
import type { Model } from "../model";
import type { Action } from "../wire";
import type { Attention } from "./attention";
import type { CurrentVM } from "./current";
import type { Options } from "./options";

/** An action that the server refused at once. */
export interface Refusal {
  vm: string;
  action: Action;
  error: ApiError;
}

/** What the parts of the extension share: one connection, one model, one look at the settings. */
export interface IVMs {
  readonly model: Model;
  readonly client: Client;
  readonly attention: Attention;
  readonly current: CurrentVM;
  readonly host: CardHost;
  readonly commands: CommandRegistry;
  readonly options: Options;
  readonly optionsChanged: ISignal<IVMs, Options>;
  readonly refused: ISignal<IVMs, Refusal>;
  readonly isConnected: boolean;
  readonly connection: ISignal<IVMs, boolean>;
  readonly t: Translate;
  /** Ask for an action, after a question where it has one; a refusal becomes a notification. */
  act(vm: string, action: Action, question?: string): void;
  /** Ask the server for all VMs, beside what it tells by itself. */
  refresh(): Promise<void>;
}

export const IVMs = new Token<IVMs>("lima-kernels:IVMs", "The Lima VMs of the Jupyter server's machine.");

/** Every command, named once. */
export const COMMANDS = {
  open: "lima-kernels:open",
  create: "lima-kernels:create",
  refresh: "lima-kernels:refresh",
  start: "lima-kernels:start",
  stop: "lima-kernels:stop",
  forceStop: "lima-kernels:force-stop",
  hibernate: "lima-kernels:hibernate",
  restart: "lima-kernels:restart",
  remove: "lima-kernels:delete",
  log: "lima-kernels:show-log",
} as const;
