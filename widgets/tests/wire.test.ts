// @vitest-environment node
import { expect, test, vi } from "vitest";

import { toJobs, toMessage, toVM, toVMs } from "../src/wire";
import { job, vm } from "./samples";

test("a message of each type is read", () => {
  const usage = { name: "default", time: 1, cpu: 0.5, memory: null };
  for (const message of [
    { type: "snapshot", vms: [vm()], jobs: [job()] },
    { type: "vm", vm: vm() },
    { type: "gone", name: "default" },
    { type: "usage", usage },
    { type: "log", name: "default", lines: ["a"] },
    { type: "job", job: job() },
  ]) {
    expect(toMessage(JSON.parse(JSON.stringify(message)))).toEqual(message);
  }
});

test("unknown fields of a newer peer are left out", () => {
  expect(toVM({ ...vm(), colour: "red" })).toEqual(vm());
});

test.each([null, 1, "text", [], {}, { type: 7 }, { type: "weather" }, { type: "toString" }])(
  "what is no message known here is left out without a word: %j",
  (data) => {
    const warn = vi.spyOn(console, "warn").mockImplementation(() => undefined);
    expect(toMessage(data)).toBeNull();
    expect(warn).not.toHaveBeenCalled();
  },
);

test("a message of wrong types is dropped and said once, with the place", () => {
  const warn = vi.spyOn(console, "warn").mockImplementation(() => undefined);
  const bad = { type: "vm", vm: { ...vm(), cpus: "four" } };
  expect(toMessage(bad)).toBeNull();
  expect(toMessage(bad)).toBeNull();
  expect(warn.mock.calls).toEqual([
    ['lima-kernels: dropped a message "vm": Invalid type: Expected number but received "four" at vm.cpus'],
  ]);
});

test("a list keeps what is right in it", () => {
  vi.spyOn(console, "warn").mockImplementation(() => undefined);
  expect(toVMs([vm(), { ...vm(), state: "dreaming" }, 5])).toEqual([vm()]);
  expect(toVMs("no list")).toEqual([]);
  const one = job();
  expect(toJobs([one, {}])).toEqual([one]);
});
