import type { JupyterFrontEnd, JupyterFrontEndPlugin } from "@jupyterlab/application";
import { Dialog, showDialog } from "@jupyterlab/apputils";
import { Widget } from "@lumino/widgets";
import { h } from "../../dom";
import type { Job } from "../../wire";
import { notificationBoard, tabMemory } from "../board";
import { fixOf } from "../fixes";
import { type NoticeButton, Notices } from "../notices";
import { COMMANDS, IVMs, type Refusal } from "../tokens";

function details(job: Job): HTMLElement {
  const lines = job.context.join("\n");
  const context = lines === "" ? [] : [h("pre", "lk-details-context", { tabindex: "0" }, lines)];
  return h("div", "lk-details", {}, h("p", "", {}, job.message), h("p", "", {}, job.hint), ...context);
}

/** Return what was refused at once in the form of a job that has failed. */
function failed({ vm, action, error }: Refusal): Job {
  return {
    id: "",
    vm,
    verb: action.verb,
    state: "failed",
    step: "",
    began: Date.now() / 1000,
    expected: null,
    message: error.message,
    hint: error.hint,
    context: [...error.context],
    cancellable: false,
  };
}

/** One notification for each job: a VM that is made or boots for a kernel, and whatever was asked for. */
export const notifications: JupyterFrontEndPlugin<void> = {
  id: "lima-kernels:notifications",
  description: "Progress and failures of Lima VMs as notifications.",
  autoStart: true,
  requires: [IVMs],
  activate: (app: JupyterFrontEnd, vms: IVMs): void => {
    const { t, model, host } = vms;
    const fix = (job: Job): NoticeButton | null => {
      const found = fixOf(job, model.vms.get(job.vm), t);
      if (found === null) {
        return null;
      }
      if (found.kind === "act") {
        const { action, question, label } = found;
        return {
          label,
          stays: false,
          run: () => {
            vms.act(job.vm, action, question);
          },
        };
      }
      const restart = vms.current.name === job.vm ? vms.current.restart : null;
      return restart === null ? null : { label: found.label, stays: false, run: () => void restart() };
    };
    const actions = {
      showLog: (vm: string) => void app.commands.execute(COMMANDS.log, { vm }),
      showDetails: (job: Job) => {
        const body = new Widget({ node: details(job) });
        void showDialog({ title: job.vm, body, buttons: [Dialog.okButton({ label: t("Close") })] });
      },
      cancel: (job: string) => {
        host.cancel(job);
      },
      fix,
    };
    const notices = new Notices(model, notificationBoard, actions, tabMemory, t);
    notices.wanted = vms.options.notifications;
    vms.optionsChanged.connect((_, { notifications: wanted }) => {
      notices.wanted = wanted;
    });
    vms.refused.connect((_, refusal) => {
      notices.refused(failed(refusal));
    });
  },
};
