import { since, span } from "../format";
import type { Translate } from "../i18n";
import type { Change, Model } from "../model";
import type { Job } from "../wire";

export interface NoticeButton {
  label: string;
  run: () => void;
  /** The notification is still there after a press. */
  stays: boolean;
}

export interface Notice {
  message: string;
  type: "in-progress" | "success" | "error" | "info";
  /** Milliseconds; false: until somebody closes it; 0: in the list of notifications only. */
  autoClose: number | false;
  buttons: NoticeButton[];
  /** 0..1 where it is known how long such a job takes. */
  progress?: number;
}

/** Where notifications are shown: JupyterLab's, or a test's. */
export interface Board {
  emit(notice: Notice): string;
  /** Returns whether there was one to change. */
  update(id: string, notice: Notice): boolean;
  isShown(id: string): boolean;
  dismiss(id: string): void;
}

/** What the buttons do. */
export interface NoticeActions {
  showLog(vm: string): void;
  showDetails(job: Job): void;
  cancel(job: string): void;
  /** The button that mends a failure, where there is one. */
  fix(job: Job): NoticeButton | null;
}

/** What is kept of this tab over a reload. */
export interface Memory {
  read(): string[];
  write(ids: string[]): void;
}

export type Wanted = "all" | "failures" | "none";

/** Milliseconds between two looks at the clock: a screen reader may say each of them. */
const TICK = 5000;
const DISMISS_SUCCESS = 6000;
/** JupyterLab cuts what is longer (apputils-extension, MAX_MESSAGE_LENGTH). */
const LENGTH = 140;
/** More of the bar is never shown before the end. */
const ALMOST = 0.95;

interface Shown {
  id: string;
  wasSeen: boolean;
  /** Somebody has closed it: it comes up again only when the job fails. */
  isHidden: boolean;
}

/** One notification for each job: progress first, then what became of it. */
export class Notices {
  readonly #model: Model;
  readonly #board: Board;
  readonly #actions: NoticeActions;
  readonly #memory: Memory;
  readonly #t: Translate;
  readonly #shown = new Map<string, Shown>();
  readonly #running: Set<string>;
  readonly #unsubscribe: () => void;
  #wanted: Wanted = "all";
  #timer: ReturnType<typeof setInterval> | null = null;

  constructor(model: Model, board: Board, actions: NoticeActions, memory: Memory, t: Translate) {
    this.#model = model;
    this.#board = board;
    this.#actions = actions;
    this.#memory = memory;
    this.#t = t;
    this.#running = new Set(memory.read());
    this.#unsubscribe = model.onChange((change) => {
      this.#onChange(change);
    });
    this.#all();
  }

  /** What the settings ask for. */
  set wanted(wanted: Wanted) {
    this.#wanted = wanted;
    for (const [job, { id }] of this.#shown) {
      if (wanted !== "all" && this.#model.jobs.get(job)?.state === "running") {
        this.#board.dismiss(id);
        this.#shown.delete(job);
      }
    }
    this.#all();
  }

  /** Show a failure that never was a job of the server: it refused at once. */
  refused(job: Job): void {
    if (this.#wanted !== "none") {
      this.#board.emit(this.#end(job));
    }
  }

  dispose(): void {
    this.#unsubscribe();
    this.#setTimer(false);
  }

  #onChange(change: Change): void {
    if (change.kind === "all") {
      this.#all();
    } else if (change.kind === "job") {
      this.#look(change.job);
      this.#remember();
    }
  }

  #all(): void {
    for (const [job, { id }] of this.#shown) {
      if (this.#running.has(job) && !this.#model.jobs.has(job)) {
        // Its server is another one now; nobody knows what became of it.
        this.#board.dismiss(id);
        this.#shown.delete(job);
        this.#running.delete(job);
      }
    }
    this.#model.jobs.forEach((job) => {
      // What ended before this page was there is told by nobody, unless it began under this tab's eyes.
      if (job.state === "running" || this.#running.has(job.id)) {
        this.#look(job);
      }
    });
    this.#remember();
  }

  #look(job: Job): void {
    if (job.state === "running") {
      this.#running.add(job.id);
      if (this.#wanted === "all") {
        this.#put(job, this.#progress(job));
      }
      return;
    }
    this.#running.delete(job.id);
    const isWanted = job.state === "failed" ? this.#wanted !== "none" : this.#wanted === "all";
    if (isWanted) {
      this.#put(job, this.#end(job));
    }
    this.#shown.delete(job.id);
  }

  #put(job: Job, notice: Notice): void {
    const shown = this.#shown.get(job.id);
    if (shown === undefined) {
      this.#shown.set(job.id, { id: this.#board.emit(notice), wasSeen: false, isHidden: false });
      return;
    }
    const isShown = this.#board.isShown(shown.id);
    shown.wasSeen ||= isShown;
    shown.isHidden ||= shown.wasSeen && !isShown;
    const isQuiet = shown.isHidden && notice.type !== "error";
    const isThere = this.#board.update(shown.id, isQuiet ? { ...notice, autoClose: 0 } : notice);
    if (!isThere && notice.type === "error") {
      shown.id = this.#board.emit(notice);
    }
  }

  #remember(): void {
    const running = [...this.#running].filter((id) => this.#model.jobs.get(id)?.state === "running");
    this.#memory.write(running);
    this.#setTimer(running.length > 0);
  }

  #setTimer(isOn: boolean): void {
    if (isOn && this.#timer === null) {
      this.#timer = setInterval(() => {
        this.#tick();
      }, TICK);
    } else if (!isOn && this.#timer !== null) {
      clearInterval(this.#timer);
      this.#timer = null;
    }
  }

  #tick(): void {
    for (const job of this.#model.jobs.values()) {
      if (job.state === "running" && this.#shown.has(job.id)) {
        this.#put(job, this.#progress(job));
      }
    }
  }

  #progress(job: Job): Notice {
    const elapsed = since(job.began);
    const log = this.#button(this.#t("Show log"), () => {
      this.#actions.showLog(job.vm);
    });
    const cancel = this.#button(this.#t("Cancel"), () => {
      this.#actions.cancel(job.id);
    });
    const step = job.step === "" ? underWay(job, this.#t) : this.#t(job.step);
    return {
      message: `${job.vm}: ${step}\n${this.#clock(elapsed, job.expected)}`,
      type: "in-progress",
      autoClose: false,
      buttons: job.cancellable ? [log, cancel] : [log],
      ...(job.expected === null || job.expected <= 0 ? {} : { progress: Math.min(ALMOST, elapsed / job.expected) }),
    };
  }

  #clock(elapsed: number, expected: number | null): string {
    const now = span(this.#t, elapsed);
    if (expected === null) {
      return this.#t("%1 so far", now);
    }
    return elapsed <= expected
      ? this.#t("%1 of about %2", now, span(this.#t, expected))
      : this.#t("%1, longer than the %2 of the last times", now, span(this.#t, expected));
  }

  #button(label: string, run: () => void): NoticeButton {
    return { label, run, stays: true };
  }

  #end(job: Job): Notice {
    if (job.state !== "failed") {
      const message = job.state === "done" ? finished(job, this.#t) : this.#t("%1: cancelled.", job.vm);
      return {
        message,
        type: job.state === "done" ? "success" : "info",
        autoClose: DISMISS_SUCCESS,
        buttons: [],
      };
    }
    const fix = this.#actions.fix(job);
    const details = this.#button(this.#t("Details"), () => {
      this.#actions.showDetails(job);
    });
    const hasMore = job.context.length > 0 || job.message.length + job.hint.length >= LENGTH;
    const log = this.#button(this.#t("Show log"), () => {
      this.#actions.showLog(job.vm);
    });
    return {
      message: fitted(job.message, job.hint),
      type: "error",
      autoClose: false,
      buttons: [...(fix === null ? [] : [fix]), ...(hasMore ? [details] : []), log],
    };
  }
}

/** Return cause and hint in as many characters as are shown; the hint is kept whole where it can be. */
export function fitted(message: string, hint: string): string {
  if (hint === "" || message.length + 1 + hint.length <= LENGTH) {
    return hint === "" ? message : `${message}\n${hint}`;
  }
  const room = Math.max(LENGTH - hint.length - 2, LENGTH / 2);
  return `${message.length <= room ? message : `${message.slice(0, room).trimEnd()}…`}\n${hint}`;
}

function underWay(job: Job, t: Translate): string {
  switch (job.verb) {
    case "stop":
      return t("stopping the VM");
    case "hibernate":
      return t("saving the VM's memory");
    case "delete":
      return t("deleting the VM");
    case "edit":
      return t("changing the VM");
    case "create":
      return t("creating the VM");
    default:
      return t("starting the VM");
  }
}

function finished(job: Job, t: Translate): string {
  switch (job.verb) {
    case "stop":
      return t("The VM %1 is stopped.", job.vm);
    case "hibernate":
      return t("The VM %1 sleeps; its kernels live on.", job.vm);
    case "delete":
      return t("The VM %1 is deleted.", job.vm);
    case "edit":
      return t("The VM %1 is changed.", job.vm);
    case "create":
      return t("The VM %1 is made.", job.vm);
    case "kernel":
      return t("The VM %1 is ready for its kernel.", job.vm);
    default:
      return t("The VM %1 is running.", job.vm);
  }
}
