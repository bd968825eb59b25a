import type { JupyterFrontEnd, JupyterFrontEndPlugin } from "@jupyterlab/application";
import { ILauncher } from "@jupyterlab/launcher";
import { ITranslator, nullTranslator } from "@jupyterlab/translation";
import { COMMANDS, IVMs } from "../tokens";

/** The launcher's card "Linux VMs"; the kernels have theirs already. */
export const launcherCard: JupyterFrontEndPlugin<void> = {
  id: "lima-kernels:launcher",
  description: "A launcher card that shows the Lima VMs.",
  autoStart: true,
  requires: [IVMs],
  // Notebook 7 has no launcher.
  optional: [ILauncher, ITranslator],
  activate: (
    _app: JupyterFrontEnd,
    _vms: IVMs,
    launcher: ILauncher | null,
    translator: ITranslator | null,
  ): void => {
    // JupyterLab's own category, in its own words.
    const category = (translator ?? nullTranslator).load("jupyterlab").__("Other");
    launcher?.add({ command: COMMANDS.open, args: { isLauncher: true }, category, rank: 10 });
  },
};
