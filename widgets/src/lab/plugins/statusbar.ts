import type { JupyterFrontEnd, JupyterFrontEndPlugin } from "@jupyterlab/application";
import { IStatusBar } from "@jupyterlab/statusbar";
import { StatusItem } from "../statusitem";
import { COMMANDS, IVMs } from "../tokens";

/** The status bar's item with the VM of the notebook or console in front. */
export const statusBar: JupyterFrontEndPlugin<void> = {
  id: "lima-kernels:statusbar",
  description: "The VM of the notebook in front, in the status bar.",
  autoStart: true,
  requires: [IVMs],
  // Notebook 7 has no status bar.
  optional: [IStatusBar],
  activate: (app: JupyterFrontEnd, vms: IVMs, bar: IStatusBar | null): void => {
    if (bar === null) {
      return;
    }
    const item = new StatusItem(vms, (vm) => {
      void app.commands.execute(COMMANDS.open, { vm });
    });
    bar.registerStatusItem("lima-kernels:vm", {
      item,
      align: "left",
      rank: 4,
      isActive: () => item.isWanted,
      activeStateChanged: item.wantedChanged,
    });
  },
};
