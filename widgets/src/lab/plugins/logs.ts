import { ILayoutRestorer, type JupyterFrontEnd, type JupyterFrontEndPlugin } from "@jupyterlab/application";
import { WidgetTracker } from "@jupyterlab/apputils";
import { addVMCommand } from "../commands";
import { LogTab } from "../logs";
import { COMMANDS, IVMs } from "../tokens";
import { settingsOf } from "../vms";

/** Logs of VMs in the main area; open ones come back after a reload. */
export const logs: JupyterFrontEndPlugin<void> = {
  id: "lima-kernels:logs",
  description: "The log of a Lima VM in a tab of the main area.",
  autoStart: true,
  requires: [IVMs],
  optional: [ILayoutRestorer],
  activate: (app: JupyterFrontEnd, vms: IVMs, restorer: ILayoutRestorer | null): void => {
    const { t } = vms;
    const tracker = new WidgetTracker<LogTab>({ namespace: "lima-kernels-logs" });
    const show = (vm: string): void => {
      let tab = tracker.find((open) => open.vm === vm);
      if (tab === undefined) {
        tab = new LogTab(settingsOf(app), vm, vms.options.logLines, t);
        void tracker.add(tab);
        app.shell.add(tab, "main", { mode: "split-bottom", activate: false });
      }
      app.shell.activateById(tab.id);
    };
    addVMCommand(app, vms, {
      id: COMMANDS.log,
      label: t("Show Log of VM"),
      fits: (vm) => vm.state !== "gone",
      run: (vm) => {
        show(vm.name);
      },
    });
    app.commands.addCommand(RESTORE, {
      label: t("Show Log of VM"),
      execute: (args) => {
        // Before the VMs are known: a log of a VM that is no more is an empty one.
        if (typeof args.vm === "string") {
          show(args.vm);
        }
      },
    });
    if (restorer !== null) {
      void restorer.restore(tracker, {
        command: RESTORE,
        args: ({ vm }) => ({ vm }),
        name: ({ vm }) => vm,
      });
    }
  },
};

const RESTORE = "lima-kernels:restore-log";
