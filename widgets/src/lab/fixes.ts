import type { Translate } from "../i18n";
import type { Action, Job, VM } from "../wire";

/** What one press of a button may do about a failure. */
export type Fix =
  | { kind: "act"; label: string; action: Action; question: string }
  | { kind: "kernel"; label: string };

/**
 * Return the fix that fits a failed job and the VM as it is now, or null when a person has to look.
 *
 * A `question` that is not empty is to be answered first: the fix costs what runs in the VM.
 */
export function fixOf(job: Job, vm: VM | undefined, t: Translate): Fix | null {
  if (vm === undefined) {
    return null;
  }
  const force = { label: t("Force stop"), question: t("Stop the VM %1 by force? What is not saved is lost.", vm.name) };
  if (vm.state === "broken") {
    return { kind: "act", action: { verb: "stop", force: true }, ...force };
  }
  switch (job.verb) {
    case "stop":
    case "restart":
      return vm.state === "stopped" || vm.state === "asleep"
        ? { kind: "act", label: t("Start VM"), action: { verb: "start" }, question: "" }
        : { kind: "act", action: { verb: job.verb, force: true }, ...force, label: forcedLabel(job.verb, t) };
    case "delete":
      return {
        kind: "act",
        label: t("Delete anyway"),
        action: { verb: "delete", force: true },
        question: t("Delete the VM %1 with its disk, though it is in use?", vm.name),
      };
    case "kernel":
      return vm.state === "running"
        ? { kind: "kernel", label: t("Restart kernel") }
        : { kind: "act", label: t("Start VM"), action: { verb: "start" }, question: "" };
    case "start":
    case "create":
      // Its state may be told a moment after its failure.
      return vm.state === "running"
        ? null
        : { kind: "act", label: t("Start VM"), action: { verb: "start" }, question: "" };
    default:
      return null;
  }
}

function forcedLabel(verb: "stop" | "restart", t: Translate): string {
  return verb === "stop" ? t("Force stop") : t("Force restart");
}
