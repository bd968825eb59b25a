import { History } from "./history";
import type { Job, Message, Usage, VM } from "./wire";

/** What a message changed. `all`: look at everything anew. */
export type Change =
  | { kind: "all" }
  | { kind: "vm" | "gone" | "usage"; name: string }
  | { kind: "log"; name: string; lines: readonly string[] }
  | { kind: "job"; job: Job };
export type Listener = (change: Change) => void;

/** What is known of all VMs: messages go in, changes come out. */
export class Model {
  readonly #vms = new Map<string, VM>();
  readonly #jobs = new Map<string, Job>();
  readonly #histories = new Map<string, History>();
  readonly #listeners = new Set<Listener>();

  get vms(): ReadonlyMap<string, VM> {
    return this.#vms;
  }

  /** Jobs by their id: those under way, and those that ended a short while ago. */
  get jobs(): ReadonlyMap<string, Job> {
    return this.#jobs;
  }

  /** Return the last looks at a VM, oldest first. */
  usage(name: string): readonly Usage[] {
    return this.#histories.get(name)?.points ?? [];
  }

  /** Return the job that matters for a VM: the one under way, else the newest. */
  jobOf(name: string): Job | null {
    const jobs = [...this.#jobs.values()].filter((job) => job.vm === name).sort((a, b) => b.began - a.began);
    return jobs.find((job) => job.state === "running") ?? jobs[0] ?? null;
  }

  /** Call `listener` at every change; returns what ends it. */
  onChange(listener: Listener): () => void {
    this.#listeners.add(listener);
    return () => {
      this.#listeners.delete(listener);
    };
  }

  apply(message: Message): void {
    switch (message.type) {
      case "snapshot":
        this.#begin(message.vms, message.jobs);
        this.#tell({ kind: "all" });
        break;
      case "vm":
        this.#put(message.vm);
        this.#tell({ kind: "vm", name: message.vm.name });
        break;
      case "gone":
        this.#vms.delete(message.name);
        this.#histories.delete(message.name);
        this.#tell({ kind: "gone", name: message.name });
        break;
      case "usage":
        this.#look(message.usage);
        break;
      case "log":
        this.#tell({ kind: "log", name: message.name, lines: message.lines });
        break;
      case "job":
        this.#jobs.set(message.job.id, message.job);
        this.#tell({ kind: "job", job: message.job });
        break;
    }
  }

  #begin(vms: readonly VM[], jobs: readonly Job[]): void {
    this.#vms.clear();
    this.#jobs.clear();
    vms.forEach((vm) => {
      this.#put(vm);
    });
    jobs.forEach((job) => this.#jobs.set(job.id, job));
    for (const name of this.#histories.keys()) {
      if (!this.#vms.has(name)) {
        this.#histories.delete(name);
      }
    }
  }

  #put(vm: VM): void {
    this.#vms.set(vm.name, vm);
    // What it used before it was stopped says nothing of the next boot.
    if (vm.state !== "running") {
      this.#histories.delete(vm.name);
    }
  }

  #look(usage: Usage): void {
    if (this.#vms.get(usage.name)?.state !== "running") {
      return;
    }
    const history = this.#histories.get(usage.name) ?? new History();
    history.add(usage);
    this.#histories.set(usage.name, history);
    this.#tell({ kind: "usage", name: usage.name });
  }

  #tell(change: Change): void {
    for (const listener of [...this.#listeners]) {
      listener(change);
    }
  }
}
