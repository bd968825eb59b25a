import { beforeEach, expect, test } from "vitest";

import { VMList } from "../src/list";
import { Model } from "../src/model";
import { expectNoFaults } from "./axe";
import { RecordingHost, the } from "./host";
import { gallery, job, looks, vm } from "./samples";

let host: RecordingHost;
let model: Model;

beforeEach(() => {
  host = new RecordingHost();
  model = new Model();
  document.body.replaceChildren();
});

function shown(options: ConstructorParameters<typeof VMList>[2] = {}): VMList {
  const list = new VMList(model, host, options);
  document.body.append(list.element);
  return list;
}

const names = (list: VMList): string[] =>
  [...list.element.querySelectorAll(".lk-name")].map((name) => name.textContent);

test("cards stand by name, and stay the same over snapshots", () => {
  model.apply({ type: "snapshot", vms: [vm({ name: "b" }), vm({ name: "c" })], jobs: [] });
  const list = shown();
  const first = list.element.querySelector("article");
  the(first ?? document, "[data-verb=stop]").focus();
  model.apply({ type: "snapshot", vms: [vm({ name: "c" }), vm({ name: "a" }), vm({ name: "b" })], jobs: [] });
  expect(names(list)).toEqual(["a", "b", "c"]);
  expect(list.element.querySelectorAll("article")[1]).toBe(first);
  expect(document.activeElement).toBe(the(first ?? document, "[data-verb=stop]"));
  model.apply({ type: "gone", name: "b" });
  expect(list.names.sort()).toEqual(["a", "c"]);
});

test("what happens to a VM reaches its card", () => {
  model.apply({ type: "snapshot", vms: [vm({ name: "a" }), vm({ name: "b" })], jobs: [] });
  const list = shown();
  const card = list.element.querySelectorAll<HTMLElement>("article").item(1);
  looks("b", 5).forEach((usage) => {
    model.apply({ type: "usage", usage });
  });
  expect(card.querySelectorAll(".lk-spark")).toHaveLength(2);
  model.apply({ type: "job", job: job({ vm: "b", verb: "stop", state: "failed", message: "It failed." }) });
  expect(the(card, ".lk-message").textContent).toBe("It failed.");
  model.apply({ type: "vm", vm: vm({ name: "b", state: "stopped" }) });
  expect([card.dataset.state, card.querySelectorAll(".lk-spark").length]).toEqual(["stopped", 0]);
});

test("a card that comes late shows what was known before", () => {
  model.apply({ type: "job", job: job({ vm: "a", id: "j", state: "failed", message: "It failed." }) });
  const list = shown();
  model.apply({ type: "vm", vm: vm({ name: "a", state: "stopped" }) });
  expect(the(list.element, ".lk-message").textContent).toBe("It failed.");
});

test("one VM alone is shown when it is asked for", () => {
  model.apply({ type: "snapshot", vms: [vm({ name: "a" })], jobs: [] });
  const list = shown({ only: "b" });
  expect(the(list.element, ".lk-empty").textContent).toBe("There is no VM b.");
  model.apply({ type: "vm", vm: vm({ name: "b" }) });
  expect(names(list)).toEqual(["b"]);
  expect(the(list.element, ".lk-empty").hidden).toBe(true);
});

test("one log is followed at a time", () => {
  model.apply({ type: "snapshot", vms: [vm({ name: "a" }), vm({ name: "b" })], jobs: [] });
  const list = shown();
  const folds = list.element.querySelectorAll<HTMLElement>("button.lk-fold");
  folds.item(0).click();
  folds.item(1).click();
  expect(host.follows).toEqual(["a", "b"]);
  expect([...folds].map((fold) => fold.getAttribute("aria-expanded"))).toEqual(["false", "true"]);
  model.apply({ type: "log", name: "b", lines: ["hello"] });
  expect(list.element.querySelectorAll("[role=log]").item(1).textContent).toBe("hello");
});

test("what goes no longer listens", () => {
  const list = shown();
  list.dispose();
  model.apply({ type: "vm", vm: vm() });
  expect(names(list)).toEqual([]);
});

test("all of it is without faults for axe", async () => {
  model.apply({ type: "snapshot", vms: gallery(), jobs: [job({ vm: "booting", verb: "kernel" })] });
  await expectNoFaults(shown().element);
});
