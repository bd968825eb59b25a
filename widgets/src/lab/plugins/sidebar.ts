import { ILayoutRestorer, type JupyterFrontEnd, type JupyterFrontEndPlugin } from "@jupyterlab/application";
import { vmIcon } from "../icons";
import { VMPanel } from "../panel";
import { COMMANDS, IVMs } from "../tokens";

const NEW_NOTEBOOK = "notebook:create-new";

/** The sidebar with all VMs and environments. */
export const sidebar: JupyterFrontEndPlugin<void> = {
  id: "lima-kernels:sidebar",
  description: "A sidebar with the Lima VMs of the server's machine, and the environments.",
  autoStart: true,
  requires: [IVMs],
  optional: [ILayoutRestorer],
  activate: (app: JupyterFrontEnd, vms: IVMs, restorer: ILayoutRestorer | null): void => {
    const { t } = vms;
    const panel = new VMPanel(vms, (kernelName) => {
      void app.commands.execute(NEW_NOTEBOOK, { kernelName });
    });
    app.shell.add(panel, "left", { rank: 350, type: "Linux VMs" });
    restorer?.add(panel, panel.id);
    app.commands.addCommand(COMMANDS.open, {
      label: (args) => (args.isLauncher === true ? t("Linux VMs") : t("Show Linux VMs")),
      caption: t("Show the Linux VMs of this machine"),
      icon: (args) => (args.isLauncher === true ? vmIcon : undefined),
      describedBy: {
        args: {
          type: "object",
          properties: { vm: { type: "string", description: "The VM whose card is shown" } },
        },
      },
      execute: (args) => {
        panel.goal = typeof args.vm === "string" ? args.vm : null;
        app.shell.activateById(panel.id);
      },
    });
    app.commands.addCommand(COMMANDS.refresh, {
      label: t("Refresh Linux VMs"),
      describedBy: { args: { type: "object", properties: {} } },
      execute: async () => {
        await Promise.all([vms.refresh(), panel.refresh()]);
      },
    });
  },
};
