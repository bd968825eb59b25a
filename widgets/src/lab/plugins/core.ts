import type { JupyterFrontEnd, JupyterFrontEndPlugin } from "@jupyterlab/application";
import { ICommandPalette } from "@jupyterlab/apputils";
import { ISettingRegistry } from "@jupyterlab/settingregistry";
import { ITranslator, nullTranslator } from "@jupyterlab/translation";
import { addVerbs } from "../commands";
import { newVM } from "../dialog";
import { toOptions } from "../options";
import { COMMANDS, IVMs } from "../tokens";
import { VMs } from "../vms";

const ID = "lima-kernels:plugin";

async function follow(settings: ISettingRegistry, vms: VMs): Promise<void> {
  const loaded = await settings.load(ID);
  const read = (): void => {
    vms.options = toOptions(loaded.composite);
  };
  loaded.changed.connect(read);
  read();
}

/** The connection to the server, the settings, and the commands that change VMs. */
export const core: JupyterFrontEndPlugin<IVMs> = {
  id: ID,
  description: "Lima VMs of the server's machine: the connection and the commands.",
  autoStart: true,
  provides: IVMs,
  optional: [ITranslator, ISettingRegistry, ICommandPalette],
  activate: (
    app: JupyterFrontEnd,
    translator: ITranslator | null,
    settings: ISettingRegistry | null,
    palette: ICommandPalette | null,
  ): IVMs => {
    const trans = (translator ?? nullTranslator).load("lima_kernels");
    const t = trans.__.bind(trans);
    const vms = new VMs(app, t);
    addVerbs(app, vms);
    app.commands.addCommand(COMMANDS.create, {
      label: t("New VM…"),
      caption: t("Make a Linux VM from a Lima template or an environment"),
      describedBy: { args: { type: "object", properties: {} } },
      execute: () => newVM(vms.client, () => new Set(vms.model.vms.keys()), t),
    });
    if (settings !== null) {
      follow(settings, vms).catch((error: unknown) => {
        console.error(`The settings ${ID} could not be read:`, error);
      });
    }
    for (const command of Object.values(COMMANDS)) {
      palette?.addItem({ command, category: t("Linux VMs") });
    }
    return vms;
  },
};
