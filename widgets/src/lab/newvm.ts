import { asked, written } from "../format";
import type { Translate } from "../i18n";
import type { CreateArguments } from "../wire";
import { nameFault } from "./names";

/** What a new VM can be made of. */
export interface Source {
  kind: "template" | "environment";
  /** What the server is told: a template's name, an environment's file. */
  value: string;
  label: string;
  /** The name that a VM of it gets unless somebody chooses one. */
  wish: string;
}

/** What stands in the form's fields. */
export interface Values {
  source: Source | null;
  name: string;
  cpus: string;
  memory: string;
  disk: string;
  start: boolean;
}

export type Field = "source" | "name" | "cpus" | "memory" | "disk";
export type Faults = Partial<Record<Field, string>>;

const MOST_CPUS = 4096;

function nameText(name: string, taken: ReadonlySet<string>, t: Translate): string | undefined {
  switch (nameFault(name, taken)) {
    case null:
      return undefined;
    case "missing":
      return t("Give the VM a name.");
    case "taken":
      return t("There is a VM of this name already.");
    case "length":
      return t("A name has at most 76 characters.");
    case "form":
      return t("Use letters and digits, with single '.', '_' or '-' between, and no .yaml at the end.");
  }
}

function sizeText(text: string, t: Translate): string | undefined {
  return text === "" || asked(text) !== null ? undefined : t("Give a size such as 4GiB.");
}

/** Say for each field what is wrong with it; an empty object when nothing is. */
export function faults(values: Values, taken: ReadonlySet<string>, t: Translate): Faults {
  const cpus = Number(values.cpus);
  const isCount = values.cpus === "" || (Number.isInteger(cpus) && cpus >= 1 && cpus <= MOST_CPUS);
  const found: Record<Field, string | undefined> = {
    source: values.source === null ? t("Choose what the VM is made of.") : undefined,
    name: nameText(values.name, taken, t),
    cpus: isCount || !hasHardware(values) ? undefined : t("Give a whole number, at least 1."),
    memory: hasHardware(values) ? sizeText(values.memory, t) : undefined,
    disk: hasHardware(values) ? sizeText(values.disk, t) : undefined,
  };
  return Object.fromEntries(Object.entries(found).filter(([, text]) => text !== undefined));
}

function sized(field: "memory" | "disk", text: string): Partial<CreateArguments> {
  const bytes = asked(text);
  return bytes === null ? {} : { [field]: written(bytes) };
}

function hardware({ cpus, memory, disk }: Values): Partial<CreateArguments> {
  return { ...(cpus === "" ? {} : { cpus: Number(cpus) }), ...sized("memory", memory), ...sized("disk", disk) };
}

/** Tell whether CPUs, memory and disk may be chosen: an environment says them itself. */
export function hasHardware({ source }: Pick<Values, "source">): boolean {
  return source?.kind !== "environment";
}

/** Return what the server is asked for; what was left empty is as the template or environment says. */
export function toCreate(values: Values): CreateArguments {
  const { source } = values;
  return {
    name: values.name,
    ...(source === null ? {} : { [source.kind]: source.value }),
    ...(hasHardware(values) ? hardware(values) : {}),
    start: values.start,
  };
}
