import { afterEach, beforeEach, describe, expect, it, vi } from "vitest";

import { english } from "../src/i18n";
import { type Board, fitted, type Memory, type Notice, type NoticeButton, Notices } from "../src/lab/notices";
import { Model } from "../src/model";
import type { Job } from "../src/wire";

const NOW = 1_000_000;

function aJob(change: Partial<Job> = {}): Job {
  return {
    id: "1",
    vm: "web",
    verb: "kernel",
    state: "running",
    step: "booting the VM",
    began: NOW - 12,
    expected: 40,
    message: "",
    hint: "",
    context: [],
    cancellable: true,
    ...change,
  };
}

/** A board as JupyterLab's: what is hidden there is still in its list. */
class TestBoard implements Board {
  readonly notices = new Map<string, Notice>();
  readonly hidden = new Set<string>();
  #next = 0;

  emit(notice: Notice): string {
    this.#next += 1;
    const id = `n${this.#next}`;
    this.notices.set(id, notice);
    return id;
  }

  update(id: string, notice: Notice): boolean {
    if (!this.notices.has(id)) {
      return false;
    }
    this.notices.set(id, notice);
    if (notice.autoClose !== 0) {
      this.hidden.delete(id);
    }
    return true;
  }

  isShown(id: string): boolean {
    return this.notices.has(id) && !this.hidden.has(id);
  }

  dismiss(id: string): void {
    this.notices.delete(id);
  }

  get only(): Notice {
    const [only, ...others] = this.notices.values();
    if (only === undefined || others.length > 0) {
      throw new Error(`there are ${this.notices.size} notifications`);
    }
    return only;
  }
}

class TestMemory implements Memory {
  ids: string[] = [];

  read(): string[] {
    return this.ids;
  }

  write(ids: string[]): void {
    this.ids = ids;
  }
}

const FIX: NoticeButton = { label: "Start VM", stays: false, run: () => undefined };

describe("notifications", () => {
  let model: Model;
  let board: TestBoard;
  let memory: TestMemory;
  let notices: Notices;
  const done: string[] = [];
  const actions = {
    showLog: (vm: string) => done.push(`log ${vm}`),
    showDetails: (job: Job) => done.push(`details ${job.id}`),
    cancel: (job: string) => done.push(`cancel ${job}`),
    fix: (job: Job) => (job.message.includes("boot") ? FIX : null),
  };

  function opened(): Notices {
    return new Notices(model, board, actions, memory, english);
  }

  beforeEach(() => {
    vi.useFakeTimers({ now: NOW * 1000 });
    model = new Model();
    board = new TestBoard();
    memory = new TestMemory();
    done.length = 0;
    notices = opened();
  });

  afterEach(() => {
    notices.dispose();
    expect(vi.getTimerCount()).toBe(0);
    vi.useRealTimers();
  });

  it("show one job once: its phase, its time, and what is usual", () => {
    model.apply({ type: "job", job: aJob({ step: "creating the VM" }) });
    model.apply({ type: "job", job: aJob() });
    expect(board.only).toMatchObject({
      message: "web: booting the VM\n12 s of about 40 s",
      type: "in-progress",
      autoClose: false,
      progress: 0.3,
    });
  });

  it("invent no time where none is known", () => {
    model.apply({ type: "job", job: aJob({ expected: null }) });
    expect(board.only.message).toBe("web: booting the VM\n12 s so far");
    expect(board.only).not.toHaveProperty("progress");
  });

  it("go on with the clock, and say when it takes longer", () => {
    model.apply({ type: "job", job: aJob() });
    vi.advanceTimersByTime(30_000);
    expect(board.only.message).toBe("web: booting the VM\n42 s, longer than the 40 s of the last times");
    expect(board.only.progress).toBe(0.95);
  });

  it("lead to the log and cancel, and stay meanwhile", () => {
    model.apply({ type: "job", job: aJob() });
    for (const { run, stays } of board.only.buttons) {
      run();
      expect(stays).toBe(true);
    }
    expect(done).toEqual(["log web", "cancel 1"]);
    model.apply({ type: "job", job: aJob({ cancellable: false }) });
    expect(board.only.buttons.map(({ label }) => label)).toEqual(["Show log"]);
  });

  it("of success go away by themselves", () => {
    model.apply({ type: "job", job: aJob() });
    model.apply({ type: "job", job: aJob({ state: "done" }) });
    expect(board.only).toMatchObject({ type: "success", buttons: [], message: "The VM web is ready for its kernel." });
    expect(board.only.autoClose).toBeGreaterThan(0);
  });

  it("of failure stay, with cause, hint and what mends it", () => {
    model.apply({ type: "job", job: aJob() });
    const failed = aJob({ state: "failed", message: "It did not boot.", hint: "Look.", context: ["a line"] });
    model.apply({ type: "job", job: failed });
    expect(board.only).toMatchObject({ type: "error", autoClose: false, message: "It did not boot.\nLook." });
    expect(board.only.buttons.map(({ label }) => label)).toEqual(["Start VM", "Details", "Show log"]);
    board.only.buttons[1]?.run();
    expect(done).toEqual(["details 1"]);
  });

  it("come again after a reload in mid-boot, once, and tell the end", () => {
    model.apply({ type: "job", job: aJob() });
    notices.dispose();
    [model, board] = [new Model(), new TestBoard()];
    notices = opened();
    const old = aJob({ id: "old", state: "failed", message: "long ago" });
    model.apply({ type: "snapshot", vms: [], jobs: [old, aJob()] });
    expect(board.only.type).toBe("in-progress");
    model.apply({ type: "snapshot", vms: [], jobs: [aJob({ state: "done" })] });
    expect(board.only.type).toBe("success");
  });

  it("tell what ended while the page was away, but to this tab only", () => {
    memory.ids = ["1"];
    notices.dispose();
    notices = opened();
    const jobs = [aJob({ state: "failed", message: "m" }), aJob({ id: "other", state: "failed", message: "o" })];
    model.apply({ type: "snapshot", vms: [], jobs });
    expect(board.only.message).toBe("m");
    expect(memory.ids).toEqual([]);
  });

  it("of a job that nobody knows any more go away", () => {
    model.apply({ type: "job", job: aJob() });
    model.apply({ type: "snapshot", vms: [], jobs: [] });
    expect(board.notices.size).toBe(0);
  });

  it("that somebody has hidden come up again for a failure only", () => {
    model.apply({ type: "job", job: aJob() });
    const [id] = board.notices.keys();
    vi.advanceTimersByTime(5000);
    board.hidden.add(id ?? "");
    vi.advanceTimersByTime(5000);
    model.apply({ type: "job", job: aJob({ step: "waiting for SSH" }) });
    expect(board.only.autoClose).toBe(0);
    model.apply({ type: "job", job: aJob({ state: "failed", message: "no boot" }) });
    expect(board.only.autoClose).toBe(false);
  });

  it("that were dismissed are emitted again for a failure only", () => {
    model.apply({ type: "job", job: aJob() });
    board.notices.clear();
    model.apply({ type: "job", job: aJob({ step: "waiting for SSH" }) });
    expect(board.notices.size).toBe(0);
    model.apply({ type: "job", job: aJob({ state: "failed", message: "no boot" }) });
    expect(board.only.type).toBe("error");
  });

  it("are those that the settings ask for", () => {
    notices.wanted = "failures";
    model.apply({ type: "job", job: aJob() });
    expect(board.notices.size).toBe(0);
    model.apply({ type: "job", job: aJob({ state: "failed", message: "m" }) });
    expect(board.only.type).toBe("error");
    notices.wanted = "none";
    model.apply({ type: "job", job: aJob({ id: "2" }) });
    model.apply({ type: "job", job: aJob({ id: "2", state: "failed", message: "m" }) });
    notices.refused(aJob({ id: "", state: "failed", message: "m" }));
    expect(board.notices.size).toBe(1);
  });

  it("of progress go when the settings no longer ask for them, and come when they do", () => {
    model.apply({ type: "job", job: aJob() });
    notices.wanted = "failures";
    expect(board.notices.size).toBe(0);
    notices.wanted = "all";
    expect(board.only.type).toBe("in-progress");
  });
});

describe("cause and hint", () => {
  it("are both told when there is room", () => {
    expect(fitted("It failed.", "Do this.")).toBe("It failed.\nDo this.");
    expect(fitted("It failed.", "")).toBe("It failed.");
  });

  it("are cut at the cause, so that the hint is whole", () => {
    const text = fitted("cause ".repeat(40), "Do this.");
    expect(text.length).toBeLessThanOrEqual(140);
    expect(text.endsWith("…\nDo this.")).toBe(true);
  });
});
