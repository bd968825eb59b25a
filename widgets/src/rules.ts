/** What may be done with a VM now, and what has to be asked before: no drawing. */
import type { Translate } from "./i18n";
import type { Action, Job, State, VM } from "./wire";

/** The verbs that have a button, in the buttons' order. */
export const BUTTONS = ["start", "stop", "hibernate", "restart", "edit", "delete"] as const;
export type ButtonVerb = (typeof BUTTONS)[number];

/** Null: may be asked for. A text: shown, but not now, and why. "hidden": makes no sense in this state. */
export type Offer = null | "hidden" | { readonly reason: string };

const SHOWN: Readonly<Record<State, readonly ButtonVerb[]>> = {
  stopped: ["start", "edit", "delete"],
  asleep: ["start", "delete"],
  creating: [],
  starting: ["stop"],
  running: ["stop", "hibernate", "restart", "edit", "delete"],
  stopping: [],
  broken: ["start", "stop", "delete"],
  gone: [],
};

/** Return the word for a state. */
export function stateWord(t: Translate, state: State): string {
  const words: Record<State, string> = {
    stopped: t("Stopped"),
    asleep: t("Asleep"),
    creating: t("Being created"),
    starting: t("Starting"),
    running: t("Running"),
    stopping: t("Stopping"),
    broken: t("Broken"),
    gone: t("Deleted"),
  };
  return words[state];
}

/** Return the label of a verb's button. */
export function verbWord(t: Translate, verb: ButtonVerb): string {
  const words: Record<ButtonVerb, string> = {
    start: t("Start"),
    stop: t("Stop"),
    hibernate: t("Hibernate"),
    restart: t("Restart"),
    edit: t("Edit"),
    delete: t("Delete"),
  };
  return words[verb];
}

/** Return whether and how a verb is offered; `job` is the VM's newest. */
export function offer(t: Translate, verb: ButtonVerb, vm: VM, job: Job | null): Offer {
  if (!SHOWN[vm.state].includes(verb)) {
    return "hidden";
  }
  // A kernel's start is no verb that somebody asked for: the VM may be stopped in its midst.
  if (job?.state === "running" && job.verb !== "kernel") {
    return { reason: t("Another change of this VM is under way.") };
  }
  if (verb === "edit" && vm.state === "running") {
    return { reason: t("CPUs, memory and disk can be changed only while the VM is stopped.") };
  }
  return null;
}

function kernelNames(vm: VM): string {
  const titles = (vm.kernels ?? []).map((kernel) => kernel.title || kernel.id);
  return titles.length > 3 ? `${titles.slice(0, 3).join(", ")}, ...` : titles.join(", ");
}

/** Return what has to be asked before the verb, or null. */
export function question(t: Translate, verb: ButtonVerb, vm: VM): string | null {
  const kernels = kernelNames(vm);
  const lost = kernels === "" ? "" : ` ${t("Its kernels end and their variables are lost: %1.", kernels)}`;
  const asleep = ` ${t("The kernels that sleep in it are lost.")}`;
  switch (verb) {
    case "stop":
      return lost === "" ? null : t("Stop the VM %1?", vm.name) + lost;
    case "restart":
      return lost === "" ? null : t("Restart the VM %1?", vm.name) + lost;
    case "delete":
      return t("Delete the VM %1 and all that is on its disk?", vm.name) + (vm.state === "asleep" ? asleep : lost);
    case "start":
    case "hibernate":
    case "edit":
      return null;
  }
}

/** Return the action of a button; forced where the question has named what it ends. */
export function actionOf(verb: Exclude<ButtonVerb, "edit">, vm: VM): Action {
  // Its kernels live on: nothing is ended that would have to be forced.
  if (verb === "start" || verb === "hibernate") {
    return { verb };
  }
  const inUse = (vm.kernels ?? []).length > 0 || vm.state === "broken";
  const force = verb === "delete" ? inUse || !vm.ours || (vm.state !== "stopped" && vm.state !== "asleep") : inUse;
  return force ? { verb, force } : { verb };
}
