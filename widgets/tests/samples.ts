/** One VM in each state, as the wire tells them. */
import type { Job, Usage, VM } from "../src/wire";

const GIB = 1024 ** 3;

export function vm(changes: Partial<VM> = {}): VM {
  return {
    name: "default",
    state: "running",
    status: "Running",
    phase: "",
    began: null,
    expected: null,
    cpus: 4,
    memory: 4 * GIB,
    disk: 20 * GIB,
    diskUsed: 2.1 * GIB,
    arch: "x86_64",
    vmType: "qemu",
    ours: true,
    kernels: [],
    ports: [],
    mounts: [],
    problem: null,
    ...changes,
  };
}

export function job(changes: Partial<Job> = {}): Job {
  return {
    id: "j1",
    vm: "default",
    verb: "start",
    state: "running",
    step: "booting the VM",
    began: Date.now() / 1000,
    expected: null,
    message: "",
    hint: "",
    context: [],
    cancellable: true,
    ...changes,
  };
}

/** Looks, the last of them now. */
export function looks(name: string, count: number, memory = true): Usage[] {
  const now = Date.now() / 1000;
  return Array.from({ length: count }, (_, index) => ({
    name,
    time: now - 2 * (count - 1 - index),
    cpu: 0.35 + 0.3 * Math.sin(index / 4),
    memory: memory ? (1.1 + 0.2 * Math.cos(index / 9)) * GIB : null,
  }));
}

const now = (): number => Date.now() / 1000;

export const running = (): VM =>
  vm({
    name: "analysis",
    kernels: [
      { id: "4f1c", title: "notebooks/01-first-kernel.ipynb", busy: true, user: "ann", since: now() - 4000 },
      { id: "77aa", title: "Untitled.ipynb", busy: false, user: "ann", since: now() - 65 },
    ],
    ports: [
      { host: "127.0.0.1:8080", guest: "80", url: "http://127.0.0.1:8080/" },
      { host: "/tmp/docker.sock", guest: "/run/docker.sock", url: "" },
    ],
    mounts: [
      { location: "/home/ann/notebooks", mountPoint: "/home/ann/notebooks", writable: true },
      { location: "/srv/data", mountPoint: "/data", writable: false },
    ],
  });

/** Every state that a card can have. */
export function gallery(): VM[] {
  return [
    running(),
    vm({ name: "booting", state: "starting", phase: "booting the VM", began: now() - 18, expected: 42 }),
    vm({ name: "new-one", state: "creating", phase: "creating the VM", began: now() - 75, diskUsed: null }),
    vm({ name: "stopped-vm", state: "stopped", status: "Stopped", ours: false, diskUsed: 19.2 * GIB }),
    vm({ name: "leaving", state: "stopping", phase: "shutting down", began: now() - 3, expected: 2 }),
    vm({
      name: "broken-with-a-very-long-name-that-somebody-thought-of",
      state: "broken",
      status: "Broken",
      problem: { message: "The VM's disk is missing: diffdisk.", hint: "Delete the VM and create it again." },
    }),
    vm({ name: "removed", state: "gone", status: "" }),
  ];
}
