/** Lima's rule for an instance's name (lima `pkg/identifiers`), as the server checks it again. */
const NAME = /^[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*$/;
const LENGTH = 76;
const FILE_ENDING = /\.ya?ml$/i;

export type NameFault = "missing" | "form" | "length" | "taken";

/** Return what is wrong with a new VM's name, or null. */
export function nameFault(name: string, taken: ReadonlySet<string>): NameFault | null {
  if (name === "") {
    return "missing";
  }
  if (!NAME.test(name) || FILE_ENDING.test(name)) {
    return "form";
  }
  if (name.length > LENGTH) {
    return "length";
  }
  // Two directories that differ in case only are one on macOS.
  return [...taken].some((other) => other.toLowerCase() === name.toLowerCase()) ? "taken" : null;
}

/** Return the free name that is nearest to a wish: the wish itself, else with the next number. */
export function freeName(wish: string, taken: ReadonlySet<string>): string {
  const base =
    wish
      .replace(FILE_ENDING, "")
      .replace(/[^A-Za-z0-9]+/g, (between) => (/^[._-]$/.test(between) ? between : "-"))
      .replace(/^[._-]+|[._-]+$/g, "")
      .slice(0, LENGTH - 5)
      .replace(/[._-]+$/, "") || "vm";
  let name = base;
  for (let number = 2; nameFault(name, taken) === "taken"; number += 1) {
    name = `${base}-${String(number)}`;
  }
  return name;
}
