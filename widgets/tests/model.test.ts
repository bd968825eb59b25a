// @vitest-environment node
import { expect, test } from "vitest";

import { History, POINTS } from "../src/history";
import { type Change, Model } from "../src/model";
import { job, looks, vm } from "./samples";

function recorded(model: Model): Change[] {
  const changes: Change[] = [];
  model.onChange((change) => changes.push(change));
  return changes;
}

test("messages become a state, and each is told", () => {
  const model = new Model();
  const changes = recorded(model);
  model.apply({ type: "snapshot", vms: [vm({ name: "a" })], jobs: [] });
  model.apply({ type: "vm", vm: vm({ name: "b" }) });
  model.apply({ type: "gone", name: "a" });
  model.apply({ type: "log", name: "b", lines: ["x"] });
  expect([...model.vms.keys()]).toEqual(["b"]);
  expect(changes).toEqual([
    { kind: "all" },
    { kind: "vm", name: "b" },
    { kind: "gone", name: "a" },
    { kind: "log", name: "b", lines: ["x"] },
  ]);
});

test("a new snapshot forgets what is not in it, and keeps the history of what is", () => {
  const model = new Model();
  model.apply({ type: "snapshot", vms: [vm({ name: "a" }), vm({ name: "b" })], jobs: [job()] });
  looks("a", 3).forEach((usage) => {
    model.apply({ type: "usage", usage });
  });
  model.apply({ type: "snapshot", vms: [vm({ name: "a" })], jobs: [] });
  expect([...model.vms.keys()]).toEqual(["a"]);
  expect(model.jobs.size).toBe(0);
  expect(model.usage("a")).toHaveLength(3);
});

test("usage is kept only of a VM that runs", () => {
  const model = new Model();
  const [usage] = looks("a", 1);
  if (usage === undefined) {
    throw new Error("no look");
  }
  model.apply({ type: "usage", usage });
  expect(model.usage("a")).toEqual([]);
  model.apply({ type: "vm", vm: vm({ name: "a" }) });
  model.apply({ type: "usage", usage });
  expect(model.usage("a")).toEqual([usage]);
  model.apply({ type: "vm", vm: vm({ name: "a", state: "stopping" }) });
  expect(model.usage("a")).toEqual([]);
});

test("of a VM's jobs the one under way matters, else the newest", () => {
  const model = new Model();
  model.apply({ type: "job", job: job({ id: "1", began: 10, state: "running" }) });
  model.apply({ type: "job", job: job({ id: "2", began: 20, state: "failed" }) });
  model.apply({ type: "job", job: job({ id: "3", began: 30, vm: "other" }) });
  expect(model.jobOf("default")?.id).toBe("1");
  model.apply({ type: "job", job: job({ id: "1", began: 10, state: "done" }) });
  expect(model.jobOf("default")?.id).toBe("2");
  expect(model.jobOf("nobody")).toBeNull();
});

test("who has ended listening hears nothing more", () => {
  const model = new Model();
  const changes: Change[] = [];
  const end = model.onChange((change) => changes.push(change));
  end();
  model.apply({ type: "gone", name: "a" });
  expect(changes).toEqual([]);
});

test("a history is bounded, in order, and begins anew after a pause", () => {
  const history = new History();
  looks("a", POINTS + 5).forEach((usage) => {
    history.add(usage);
  });
  expect(history.points).toHaveLength(POINTS);
  const last = history.points.at(-1);
  if (last === undefined) {
    throw new Error("no point");
  }
  history.add({ ...last, time: last.time - 1 });
  expect(history.points.at(-1)).toBe(last);
  history.add({ ...last, time: last.time + 100 });
  expect(history.points).toHaveLength(1);
});
