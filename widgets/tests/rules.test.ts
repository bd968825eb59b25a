// @vitest-environment node
import { expect, test } from "vitest";

import { english } from "../src/i18n";
import { actionOf, BUTTONS, offer, question } from "../src/rules";
import { STATES } from "../src/wire";
import { job, running, vm } from "./samples";

const SHOWN = {
  stopped: "start edit delete",
  asleep: "start delete",
  creating: "",
  starting: "stop",
  running: "stop hibernate restart edit delete",
  stopping: "",
  broken: "start stop delete",
  gone: "",
};

test.each(STATES)("the buttons of %s", (state) => {
  const shown = BUTTONS.filter((verb) => offer(english, verb, vm({ state }), null) !== "hidden");
  expect(shown.join(" ")).toBe(SHOWN[state]);
});

test("a running VM is edited only after a stop, and says so", () => {
  expect(offer(english, "edit", vm(), null)).toEqual({
    reason: "CPUs, memory and disk can be changed only while the VM is stopped.",
  });
});

test("another job under way holds the buttons back; a kernel's start does not", () => {
  expect(offer(english, "stop", vm(), job())).toEqual({ reason: "Another change of this VM is under way." });
  expect(offer(english, "stop", vm(), job({ verb: "kernel" }))).toBeNull();
  expect(offer(english, "stop", vm(), job({ state: "done" }))).toBeNull();
});

test("only what costs something is asked about, and named", () => {
  expect(question(english, "stop", vm())).toBeNull();
  expect(question(english, "start", running())).toBeNull();
  expect(question(english, "restart", running())).toBe(
    "Restart the VM analysis? Its kernels end and their variables are lost: " +
      "notebooks/01-first-kernel.ipynb, Untitled.ipynb.",
  );
  expect(question(english, "delete", vm({ state: "stopped" }))).toBe(
    "Delete the VM default and all that is on its disk?",
  );
  expect(question(english, "hibernate", running())).toBeNull();
  expect(question(english, "delete", vm({ state: "asleep" }))).toBe(
    "Delete the VM default and all that is on its disk? The kernels that sleep in it are lost.",
  );
});

test("what was asked about is forced; nothing else is", () => {
  expect(actionOf("start", vm({ state: "stopped" }))).toEqual({ verb: "start" });
  expect(actionOf("stop", vm())).toEqual({ verb: "stop" });
  expect(actionOf("stop", running())).toEqual({ verb: "stop", force: true });
  expect(actionOf("delete", vm({ state: "stopped" }))).toEqual({ verb: "delete" });
  expect(actionOf("delete", vm({ state: "stopped", ours: false }))).toEqual({ verb: "delete", force: true });
  expect(actionOf("delete", vm())).toEqual({ verb: "delete", force: true });
  expect(actionOf("delete", vm({ state: "asleep" }))).toEqual({ verb: "delete" });
  // Nothing is lost by it.
  expect(actionOf("hibernate", running())).toEqual({ verb: "hibernate" });
});
