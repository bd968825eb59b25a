import type { JupyterFrontEnd } from "@jupyterlab/application";
import { InputDialog } from "@jupyterlab/apputils";
import type { ReadonlyPartialJSONObject } from "@lumino/coreutils";
import { actionOf, type ButtonVerb, offer, question } from "../rules";
import type { VM } from "../wire";
import { COMMANDS, type IVMs } from "./tokens";

const ARGUMENTS = {
  type: "object",
  properties: {
    vm: { type: "string", description: "The VM's name; else that of the notebook in front, or one is asked for" },
    fromCard: { type: "boolean", description: "It is about the VM whose card the context menu was opened on" },
  },
};

/** A command that is about one VM. */
export interface VMCommand {
  id: string;
  label: string;
  fits: (vm: VM) => boolean;
  run: (vm: VM) => unknown;
}

/** Return where a card has its VM's name. */
export function nameElement(card: Element): HTMLElement | null {
  return card.querySelector(".lk-name");
}

function vmOf(app: JupyterFrontEnd, vms: IVMs, args: ReadonlyPartialJSONObject): VM | undefined {
  const card = args.fromCard === true ? app.contextMenuHitTest((node) => node.matches(".lk-card")) : undefined;
  const name = typeof args.vm === "string" ? args.vm : (card && nameElement(card)?.textContent) ?? vms.current.name;
  return name === null ? undefined : vms.model.vms.get(name);
}

async function choose(vms: IVMs, title: string, fits: (vm: VM) => boolean): Promise<VM | undefined> {
  const { model, t } = vms;
  const fitting = [...model.vms.values()].filter(fits);
  if (fitting.length < 2) {
    return fitting[0];
  }
  const items = fitting.map((vm) => vm.name);
  const { value } = await InputDialog.getItem({ title, label: t("VM"), items, okLabel: t("OK") });
  return value === null ? undefined : model.vms.get(value);
}

/** Register a command that takes its VM from `args.vm`, the card under the menu, the notebook in front, or asks. */
export function addVMCommand(app: JupyterFrontEnd, vms: IVMs, { id, label, fits, run }: VMCommand): void {
  app.commands.addCommand(id, {
    label,
    describedBy: { args: ARGUMENTS },
    isEnabled: (args) => {
      const vm = vmOf(app, vms, args);
      return vm === undefined ? [...vms.model.vms.values()].some(fits) : fits(vm);
    },
    execute: async (args) => {
      const vm = vmOf(app, vms, args) ?? (await choose(vms, label, fits));
      return vm === undefined ? undefined : run(vm);
    },
  });
}

/** Register the verbs; the menus and the palette show them. */
export function addVerbs(app: JupyterFrontEnd, vms: IVMs): void {
  const { t, model } = vms;
  const add = (id: string, label: string, verb: Exclude<ButtonVerb, "edit">): void => {
    addVMCommand(app, vms, {
      id,
      label,
      fits: (vm) => offer(t, verb, vm, model.jobOf(vm.name)) === null,
      run: (vm) => {
        vms.act(vm.name, actionOf(verb, vm), question(t, verb, vm) ?? "");
      },
    });
  };
  add(COMMANDS.start, t("Start VM"), "start");
  add(COMMANDS.stop, t("Stop VM"), "stop");
  add(COMMANDS.hibernate, t("Hibernate VM"), "hibernate");
  add(COMMANDS.restart, t("Restart VM"), "restart");
  add(COMMANDS.remove, t("Delete VM"), "delete");
  addVMCommand(app, vms, {
    id: COMMANDS.forceStop,
    label: t("Force Stop VM"),
    fits: (vm) => vm.state !== "stopped" && vm.state !== "asleep" && vm.state !== "gone",
    run: (vm) => {
      const asked = t("Stop the VM %1 by force? What is not saved is lost.", vm.name);
      vms.act(vm.name, { verb: "stop", force: true }, asked);
    },
  });
}
