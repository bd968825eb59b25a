import { describe, expect, it } from "vitest";

import { english } from "../src/i18n";
import { Attention, type Wish } from "../src/lab/attention";
import { vmOfSpec } from "../src/lab/current";
import { fixOf } from "../src/lab/fixes";
import { LogView } from "../src/lab/logview";
import { toOptions } from "../src/lab/options";
import type { Job, State, VM } from "../src/wire";

function aVM(state: State): VM {
  return {
    name: "web",
    state,
    status: "",
    phase: "",
    began: null,
    expected: null,
    cpus: 2,
    memory: 4,
    disk: 8,
    diskUsed: null,
    arch: "x86_64",
    vmType: "qemu",
    ours: true,
    kernels: [],
    ports: [],
    mounts: [],
    problem: null,
  };
}

function failed(verb: string): Job {
  const times = { began: 0, expected: null };
  const words = { step: "", message: "m", hint: "h", context: [] };
  return { id: "1", vm: "web", verb, state: "failed", cancellable: false, ...times, ...words };
}

describe("what is asked of the server", () => {
  it("is what all parts of the page show together, told when it changes", () => {
    const told: Wish[] = [];
    const attention = new Attention((names) => told.push(names));
    const [sidebar, status] = [{}, {}];
    attention.want(status, ["web"]);
    attention.want(status, ["web"]);
    attention.want(sidebar, null);
    attention.want(status, ["db"]);
    attention.want(sidebar, []);
    attention.want(status, []);
    expect(told).toEqual([["web"], null, ["db"], []]);
  });

  it("is nothing while the settings forbid it", () => {
    const told: Wish[] = [];
    const attention = new Attention((names) => told.push(names));
    attention.isOn = false;
    attention.want({}, null);
    expect(told).toEqual([]);
    attention.isOn = true;
    expect(told).toEqual([null]);
  });
});

describe("a failure's button", () => {
  it.each([
    ["kernel", "stopped", "Start VM"],
    ["kernel", "running", "Restart kernel"],
    ["kernel", "broken", "Force stop"],
    ["start", "stopped", "Start VM"],
    ["start", "starting", "Start VM"],
    ["start", "running", undefined],
    ["start", "broken", "Force stop"],
    ["stop", "running", "Force stop"],
    ["restart", "running", "Force restart"],
    ["restart", "stopped", "Start VM"],
    ["delete", "running", "Delete anyway"],
    ["edit", "stopped", undefined],
  ] as const)("after %s of a VM that is %s is %s", (verb, state, label) => {
    expect(fixOf(failed(verb), aVM(state), english)?.label).toBe(label);
  });

  it("asks before it costs anything", () => {
    for (const verb of ["stop", "restart", "delete"]) {
      const fix = fixOf(failed(verb), aVM("running"), english);
      expect(fix).toMatchObject({ kind: "act", action: { verb, force: true } });
      expect(fix?.kind === "act" && fix.question).toContain("web");
    }
  });

  it("is missing where the VM is", () => {
    expect(fixOf(failed("start"), undefined, english)).toBeNull();
  });
});

describe("a kernel spec", () => {
  it("of ours names its VM", () => {
    const stanza = { provisioner_name: "lima-provisioner", config: { instance: "mine" } };
    expect(vmOfSpec({ debugger: true, kernel_provisioner: stanza })).toBe("mine");
    expect(vmOfSpec({ kernel_provisioner: { provisioner_name: "lima-provisioner" } })).toBe("lima-kernels");
  });

  it.each([undefined, {}, { kernel_provisioner: { provisioner_name: "local-provisioner" } }])(
    "of others names none: %j",
    (metadata) => {
      expect(vmOfSpec(metadata)).toBeNull();
    },
  );
});

describe("the log", () => {
  it("keeps the newest lines, and text is text", () => {
    const view = new LogView("Log of web", 3);
    view.add(["one", "two"]);
    view.add(["three", "<b>four</b>"]);
    expect([...view.element.children].map((line) => line.textContent)).toEqual(["two", "three", "<b>four</b>"]);
    view.add(Array.from({ length: 50 }, (_, number) => `line ${number}`));
    expect(view.lines).toBe(3);
    view.clear();
    expect(view.lines).toBe(0);
  });

  it("follows until somebody scrolls up", () => {
    const view = new LogView("Log of web", 10);
    const told: boolean[] = [];
    view.onFollowing = (isFollowing) => told.push(isFollowing);
    const sizes = { scrollHeight: 500, clientHeight: 100 };
    for (const [name, value] of Object.entries(sizes)) {
      Object.defineProperty(view.element, name, { value });
    }
    view.element.scrollTop = 100;
    view.element.dispatchEvent(new Event("scroll"));
    view.add(["a line"]);
    expect(view.element.scrollTop).toBe(100);
    view.isFollowing = true;
    expect(view.element.scrollTop).toBe(500);
    expect(told).toEqual([false, true]);
  });
});

describe("the settings", () => {
  it("are as usual where they say nothing, or nonsense", () => {
    const usual = { notifications: "all", environments: true, statusBar: true, sampling: true, logLines: 2000 };
    expect(toOptions({})).toEqual(usual);
    expect(toOptions({ notifications: "loud", statusBar: "no", logLines: -1 })).toEqual(usual);
    expect(toOptions({ notifications: "none", logLines: 100 })).toEqual({
      ...usual,
      notifications: "none",
      logLines: 100,
    });
  });
});
