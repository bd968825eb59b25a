import type { AnyModel, RenderProps } from "@anywidget/types";
import { afterEach, beforeEach, expect, test, vi } from "vitest";

import widget from "../src/anywidget";
import { expectNoFaults } from "./axe";
import { settled, the } from "./host";
import { job, looks, running, vm } from "./samples";

type State = Record<"vms" | "jobs" | "only" | "notice", unknown>;
type Listener = (...args: unknown[]) => void;

/** A model as anywidget gives it, without a kernel behind it. */
class KernelSide {
  readonly sent: unknown[] = [];
  readonly state: State;
  readonly #listeners = new Map<string, Set<Listener>>();

  constructor(state: Partial<State>) {
    this.state = { vms: [], jobs: [], only: "", notice: "", ...state };
  }

  get(name: keyof State): unknown {
    return this.state[name];
  }

  on(event: string, listener: Listener): void {
    this.#listeners.set(event, (this.#listeners.get(event) ?? new Set()).add(listener));
  }

  off(event: string, listener: Listener): void {
    this.#listeners.get(event)?.delete(listener);
  }

  send(content: unknown): void {
    this.sent.push(content);
  }

  set(name: keyof State, value: unknown): void {
    this.state[name] = value;
    this.emit(`change:${name}`);
  }

  say(content: unknown): void {
    this.emit("msg:custom", content, []);
  }

  emit(event: string, ...args: unknown[]): void {
    this.#listeners.get(event)?.forEach((listener) => {
      listener(...args);
    });
  }

  get listening(): number {
    return [...this.#listeners.values()].reduce((sum, one) => sum + one.size, 0);
  }
}

/** What jsdom lacks: tells what can be seen when a test says so. */
class Sight {
  static all: Sight[] = [];
  readonly #tell: IntersectionObserverCallback;

  constructor(tell: IntersectionObserverCallback) {
    this.#tell = tell;
    Sight.all.push(this);
  }

  observe(): void {
    this.see(true);
  }

  disconnect(): void {
    Sight.all = Sight.all.filter((one) => one !== this);
  }

  see(isIntersecting: boolean): void {
    this.#tell([{ isIntersecting } as IntersectionObserverEntry], this as unknown as IntersectionObserver);
  }
}

const ends: (() => void)[] = [];

beforeEach(() => {
  vi.useFakeTimers({ toFake: ["setTimeout", "clearTimeout", "setInterval", "clearInterval"] });
  vi.stubGlobal("IntersectionObserver", Sight);
  document.body.replaceChildren();
});

afterEach(() => {
  ends.splice(0).forEach((end) => {
    end();
  });
  vi.useRealTimers();
  vi.unstubAllGlobals();
});

function shown(kernel: KernelSide, made = widget()): HTMLElement {
  const el = document.createElement("div");
  document.body.append(el);
  const model = kernel as unknown as AnyModel<State>;
  ends.push(made.render({ model, el } as unknown as RenderProps<State>));
  return el;
}

test("a panel shows what it has, and acts once its kernel has answered", () => {
  const kernel = new KernelSide({ vms: [vm({ state: "stopped" })], only: "default" });
  const el = shown(kernel);
  expect(kernel.sent).toContainEqual({ type: "visible", names: null });
  const start = the(el, "[data-verb=start]");
  start.click();
  expect(kernel.sent).not.toContainEqual(expect.objectContaining({ type: "act" }));
  kernel.say({ type: "here" });
  start.click();
  expect(kernel.sent.at(-1)).toEqual({ type: "act", vm: "default", verb: "start", arguments: {} });
  vi.advanceTimersByTime(60_000);
  expect(the(el, ".lk-notice").hidden).toBe(true);
});

test("a saved notebook shows its last state, and says that nobody answers", () => {
  const kernel = new KernelSide({ vms: [running()], only: "analysis" });
  const el = shown(kernel);
  expect(the(el, ".lk-notice").hidden).toBe(true);
  vi.advanceTimersByTime(2000);
  expect(the(el, ".lk-notice").textContent).toBe("No kernel answers: this is the last state that was known.");
  expect(the(el, ".lk-state-word").textContent).toBe("Running");
  expect(the(el, "[data-verb=stop]").getAttribute("aria-disabled")).toBe("true");
});

test("a kernel that goes is asked again whether it is there", () => {
  const kernel = new KernelSide({ vms: [vm()], only: "default" });
  const el = shown(kernel);
  kernel.say({ type: "here" });
  const before = kernel.sent.length;
  kernel.emit("comm_live_update");
  expect(kernel.sent.slice(before)).toEqual([{ type: "visible", names: null }]);
  vi.advanceTimersByTime(2000);
  expect(the(el, ".lk-notice").hidden).toBe(false);
  kernel.say({ type: "here" });
  expect(the(el, ".lk-notice").hidden).toBe(true);
});

test("news come as traits and as messages", () => {
  const kernel = new KernelSide({ vms: [vm()], only: "default" });
  const el = shown(kernel);
  for (const usage of looks("default", 4)) {
    kernel.say({ type: "usage", usage });
  }
  expect(el.querySelectorAll(".lk-spark")).toHaveLength(2);
  kernel.set("jobs", [job({ state: "failed", verb: "stop", message: "It failed." })]);
  expect(the(el, ".lk-message").textContent).toBe("It failed.");
  kernel.set("vms", [vm({ state: "stopped" })]);
  expect(the(el, ".lk-state-word").textContent).toBe("Stopped");
  kernel.set("notice", "The VM default stops.");
  expect(the(el, ".lk-notice").textContent).toBe("The VM default stops.");
});

test("a refusal is shown until the next action", () => {
  const kernel = new KernelSide({ vms: [vm({ state: "stopped" })] });
  const el = shown(kernel);
  kernel.say({ type: "refused", message: "Not now.", hint: "Later." });
  expect(the(el, ".lk-notice").textContent).toBe("Not now. Later.");
  the(el, "[data-verb=start]").click();
  expect(the(el, ".lk-notice").hidden).toBe(true);
});

test("wrong state of a saved notebook shows nothing rather than something wrong", () => {
  vi.spyOn(console, "warn").mockImplementation(() => undefined);
  const el = shown(new KernelSide({ vms: [{ name: 5 }], jobs: "none", only: 7, notice: null }));
  expect(el.querySelectorAll("article")).toHaveLength(0);
  expect(the(el, ".lk-empty").textContent).toBe("There are no VMs yet.");
});

test("usage is wanted while any view of the panel can be seen", () => {
  const kernel = new KernelSide({ vms: [vm()] });
  const made = widget();
  shown(kernel, made);
  shown(kernel, made);
  const [first, second] = Sight.all;
  const before = kernel.sent.length;
  first?.see(false);
  expect(kernel.sent.slice(before).at(-1)).toEqual({ type: "visible", names: null });
  second?.see(false);
  expect(kernel.sent.at(-1)).toEqual({ type: "visible", names: [] });
});

test("a view that is closed leaves nothing behind", () => {
  const kernel = new KernelSide({ vms: [vm({ state: "starting", phase: "booting", began: 1 })] });
  const el = shown(kernel);
  // jsdom has a timer of its own for the event of what is unfolded.
  vi.advanceTimersByTime(0);
  ends.pop()?.();
  expect([kernel.listening, vi.getTimerCount(), Sight.all.length, el.childElementCount]).toEqual([0, 0, 0, 0]);
  expect(kernel.sent.at(-1)).toEqual({ type: "visible", names: [] });
});

test("the question is a dialog of the page itself", async () => {
  HTMLDialogElement.prototype.showModal = function (): void {
    this.open = true;
  };
  HTMLDialogElement.prototype.close = function (answer = ""): void {
    this.open = false;
    this.returnValue = answer;
    this.dispatchEvent(new Event("close"));
  };
  const kernel = new KernelSide({ vms: [running()] });
  const el = shown(kernel);
  kernel.say({ type: "here" });
  the(el, "[data-verb=stop]").click();
  vi.useRealTimers();
  await expectNoFaults(the(el, "dialog"));
  the(el, "dialog .lk-danger").click();
  await settled();
  expect(kernel.sent.at(-1)).toEqual({ type: "act", vm: "analysis", verb: "stop", arguments: { force: true } });
  expect(el.querySelectorAll("dialog")).toHaveLength(0);
});
