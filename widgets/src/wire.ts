/**
 * The wire: what server, control socket and widget tell a front end, and what it asks for.
 *
 * Times are seconds since the epoch, sizes are bytes. Unknown fields and unknown message types come from a newer
 * peer and are left out; a message of wrong types is dropped, and said once on the console.
 */
import * as v from "valibot";

export const STATES = ["stopped", "asleep", "creating", "starting", "running", "stopping", "broken", "gone"] as const;
export type State = (typeof STATES)[number];

const nullableNumber = v.nullable(v.number());

const problemSchema = v.object({ message: v.string(), hint: v.string() });
const kernelSchema = v.object({
  id: v.string(),
  title: v.string(),
  busy: v.nullable(v.boolean()),
  user: v.string(),
  since: v.number(),
});
const portSchema = v.object({ host: v.string(), guest: v.string(), url: v.string() });
const mountSchema = v.object({ location: v.string(), mountPoint: v.string(), writable: v.boolean() });

const vmSchema = v.object({
  name: v.string(),
  state: v.picklist(STATES),
  status: v.string(),
  phase: v.string(),
  began: nullableNumber,
  expected: nullableNumber,
  cpus: v.number(),
  memory: v.number(),
  disk: v.number(),
  diskUsed: nullableNumber,
  arch: v.string(),
  vmType: v.string(),
  ours: v.boolean(),
  kernels: v.nullable(v.array(kernelSchema)),
  ports: v.array(portSchema),
  mounts: v.array(mountSchema),
  problem: v.nullable(problemSchema),
});

const usageSchema = v.object({ name: v.string(), time: v.number(), cpu: nullableNumber, memory: nullableNumber });

const jobSchema = v.object({
  id: v.string(),
  vm: v.string(),
  verb: v.string(),
  state: v.picklist(["running", "done", "failed", "cancelled"]),
  step: v.string(),
  began: v.number(),
  expected: nullableNumber,
  message: v.string(),
  hint: v.string(),
  context: v.array(v.string()),
  cancellable: v.boolean(),
});

const messageSchemas = {
  snapshot: v.object({ type: v.literal("snapshot"), vms: v.array(vmSchema), jobs: v.array(jobSchema) }),
  vm: v.object({ type: v.literal("vm"), vm: vmSchema }),
  gone: v.object({ type: v.literal("gone"), name: v.string() }),
  usage: v.object({ type: v.literal("usage"), usage: usageSchema }),
  log: v.object({ type: v.literal("log"), name: v.string(), lines: v.array(v.string()) }),
  job: v.object({ type: v.literal("job"), job: jobSchema }),
};

export type Problem = Readonly<v.InferOutput<typeof problemSchema>>;
export type Kernel = Readonly<v.InferOutput<typeof kernelSchema>>;
export type Port = Readonly<v.InferOutput<typeof portSchema>>;
export type Mount = Readonly<v.InferOutput<typeof mountSchema>>;
/** One VM as it is now. */
export type VM = Readonly<v.InferOutput<typeof vmSchema>>;
/** One look at a running VM: `cpu` is the share of its CPUs (0..1), `memory` the bytes used in the guest. */
export type Usage = Readonly<v.InferOutput<typeof usageSchema>>;
/** A verb that somebody asked for, or a kernel's start that has to boot a VM (verb "kernel"). */
export type Job = Readonly<v.InferOutput<typeof jobSchema>>;
export type Message = { [K in keyof typeof messageSchemas]: v.InferOutput<(typeof messageSchemas)[K]> }[
  keyof typeof messageSchemas];

/** What a client may ask of its sender. */
export type Request =
  | { type: "visible"; names: readonly string[] | null }
  | { type: "follow"; name: string | null };

export interface EditArguments {
  cpus?: number;
  memory?: string;
  disk?: string;
}

export interface CreateArguments extends EditArguments {
  name: string;
  template?: string;
  environment?: string;
  start?: boolean;
}

/** What may be asked of a VM; sizes are text such as "4GiB". */
export type Action =
  | { verb: "start" }
  | { verb: "stop" | "hibernate" | "restart" | "delete"; force?: boolean }
  | ({ verb: "edit" } & EditArguments)
  | ({ verb: "create" } & CreateArguments);
export type Verb = Action["verb"];

const said = new Set<string>();

function guarded<S extends v.GenericSchema>(what: string, schema: S, data: unknown): v.InferOutput<S> | null {
  const result = v.safeParse(schema, data);
  if (result.success) {
    return result.output;
  }
  const [issue] = result.issues;
  const fault = `lima-kernels: dropped ${what}: ${issue.message} at ${v.getDotPath(issue) ?? "the top"}`;
  if (!said.has(fault)) {
    said.add(fault);
    console.warn(fault);
  }
  return null;
}

function typeOf(data: unknown): string | null {
  return typeof data === "object" && data !== null && "type" in data && typeof data.type === "string"
    ? data.type
    : null;
}

/** Return the message that `data` is, or null when it is none that is known here. */
export function toMessage(data: unknown): Message | null {
  const type = typeOf(data);
  if (type === null || !Object.hasOwn(messageSchemas, type)) {
    return null;
  }
  return guarded(`a message "${type}"`, messageSchemas[type as keyof typeof messageSchemas], data);
}

/** Return the VM that `data` is, or null. */
export function toVM(data: unknown): VM | null {
  return guarded("a VM", vmSchema, data);
}

/** Return the job that `data` is, or null. */
export function toJob(data: unknown): Job | null {
  return guarded("a job", jobSchema, data);
}

/** Return the VMs of a list, without those that are none. */
export function toVMs(data: unknown): VM[] {
  return Array.isArray(data) ? data.map(toVM).filter((vm) => vm !== null) : [];
}

/** Return the jobs of a list, without those that are none. */
export function toJobs(data: unknown): Job[] {
  return Array.isArray(data) ? data.map(toJob).filter((job) => job !== null) : [];
}
