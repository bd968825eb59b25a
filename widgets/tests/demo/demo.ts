/** The cards in all states on one page (`npm run demo`): for eyes and for axe. `?theme=dark&width=240&open=1`. */
import { confirmIn } from "../../src/confirm";
import { english } from "../../src/i18n";
import { VMList } from "../../src/list";
import { Model } from "../../src/model";
import { gallery, job, looks } from "../samples";

const asked = new URLSearchParams(location.search);
document.documentElement.dataset.jpThemeLight = String(asked.get("theme") !== "dark");
document.body.style.width = `${asked.get("width") ?? "640"}px`;

const model = new Model();
model.apply({
  type: "snapshot",
  vms: gallery(),
  jobs: [
    job({ id: "j2", vm: "booting", verb: "kernel" }),
    job({
      id: "j3",
      vm: "stopped-vm",
      state: "failed",
      message: "The VM did not start: its port 22 is not reached.",
      hint: "Look at its log.",
      context: ["limactl start stopped-vm", "exit code 1"],
    }),
  ],
});
for (const usage of looks("analysis", 45)) {
  model.apply({ type: "usage", usage });
}
const list = new VMList(model, {
  act: () => undefined,
  follow: () => undefined,
  cancel: () => undefined,
  confirm: (question, button) => confirmIn(document.body, english, question, button),
  t: english,
});
document.querySelector("main")?.append(list.element);
if (asked.has("open")) {
  list.element.querySelectorAll<HTMLButtonElement>("button.lk-fold").item(0).click();
  model.apply({ type: "log", name: "analysis", lines: ["[  0.00] Linux version 6.1.0", "[  1.20] cloud-init: done"] });
  list.element.querySelectorAll<HTMLButtonElement>("article[data-state=stopped] [data-verb=edit]").item(0).click();
}
