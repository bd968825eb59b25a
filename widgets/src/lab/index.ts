import type { JupyterFrontEndPlugin } from "@jupyterlab/application";
import { core } from "./plugins/core";
import { launcherCard } from "./plugins/launcher";
import { logs } from "./plugins/logs";
import { notifications } from "./plugins/notifications";
import { sidebar } from "./plugins/sidebar";
import { statusBar } from "./plugins/statusbar";

const plugins: JupyterFrontEndPlugin<unknown>[] = [core, sidebar, logs, launcherCard, statusBar, notifications];

export default plugins;
