import { h, uniqueId } from "./dom";
import type { Translate } from "./i18n";

/**
 * Ask a question where no application has a dialog of its own: `window.confirm` does nothing in VS Code's views.
 *
 * The browser's dialog keeps the focus in it and gives it back. Escape says no.
 */
export function confirmIn(within: HTMLElement, t: Translate, text: string, verb: string): Promise<boolean> {
  const id = uniqueId("question");
  const no = h("button", "lk-button", { type: "button", autofocus: "" }, t("Cancel"));
  const yes = h("button", "lk-button lk-danger", { type: "button" }, verb);
  const dialog = h("dialog", "lk-dialog", { role: "alertdialog", "aria-labelledby": id });
  dialog.append(h("p", "lk-question", { id }, text), h("div", "lk-form-buttons", {}, no, yes));
  within.append(dialog);
  dialog.addEventListener("keydown", (event) => {
    event.stopPropagation();
  });
  return new Promise((resolve) => {
    no.addEventListener("click", () => {
      dialog.close("no");
    });
    yes.addEventListener("click", () => {
      dialog.close("yes");
    });
    dialog.addEventListener("close", () => {
      dialog.remove();
      resolve(dialog.returnValue === "yes");
    });
    dialog.showModal();
  });
}
