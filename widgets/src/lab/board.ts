import { Notification } from "@jupyterlab/apputils";
import type { Board, Memory, Notice } from "./notices";

type Options = Notification.IOptions<null> & { actions: Notification.IAction[] };

function toOptions(notice: Notice): Options {
  const actions = notice.buttons.map(({ label, run, stays }): Notification.IAction => {
    const callback = (event: MouseEvent): void => {
      // JupyterLab closes the notification after a press unless it is told not to.
      if (stays) {
        event.preventDefault();
      }
      run();
    };
    return { label, callback, displayType: stays ? "default" : "accent" };
  });
  const { progress } = notice;
  return { autoClose: notice.autoClose, actions, ...(progress === undefined ? {} : { progress }) };
}

/** JupyterLab's notifications. */
export const notificationBoard: Board = {
  emit: (notice) => Notification.emit(notice.message, notice.type, toOptions(notice)),
  update: (id, notice) =>
    Notification.update({ id, message: notice.message, type: notice.type, ...toOptions(notice) }),
  // react-toastify gives a toast its id in the DOM.
  isShown: (id) => document.getElementById(id) !== null,
  dismiss: (id) => {
    Notification.dismiss(id);
  },
};

const KEY = "lima-kernels:jobs";

/** This tab's memory of the jobs under way; it outlives a reload, and no other tab sees it. */
export const tabMemory: Memory = {
  read: () => (sessionStorage.getItem(KEY) ?? "").split(" ").filter((id) => id !== ""),
  write: (ids) => {
    sessionStorage.setItem(KEY, ids.join(" "));
  },
};
