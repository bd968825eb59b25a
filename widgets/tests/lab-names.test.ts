import { describe, expect, it } from "vitest";

import { english } from "../src/i18n";
import { freeName, nameFault } from "../src/lab/names";
import { faults, type Source, toCreate, type Values } from "../src/lab/newvm";

const TAKEN = new Set(["web", "web-2", "Data"]);
const DEBIAN: Source = { kind: "template", value: "debian-13", label: "debian-13", wish: "debian-13" };
const VALUES: Values = { source: DEBIAN, name: "new", cpus: "", memory: "", disk: "", start: true };

describe("a new VM's name", () => {
  it.each(["a", "lima-kernels", "a.b_c-d", "9lives", "x".repeat(76)])("may be %s", (name) => {
    expect(nameFault(name, TAKEN)).toBeNull();
  });

  it.each([
    ["", "missing"],
    ["-a", "form"],
    ["a-", "form"],
    ["a--b", "form"],
    ["a b", "form"],
    ["../a", "form"],
    ["ä", "form"],
    ["a.yaml", "form"],
    ["a.YML", "form"],
    ["x".repeat(77), "length"],
    ["web", "taken"],
    ["data", "taken"],
  ])("may not be '%s': %s", (name, fault) => {
    expect(nameFault(name, TAKEN)).toBe(fault);
  });

  it.each([
    ["db", "db"],
    ["web", "web-3"],
    ["experimental/vz", "experimental-vz"],
    ["-x--y.yaml", "x-y"],
    ["///", "vm"],
    ["y".repeat(100), "y".repeat(71)],
  ])("that is wished as %s is %s", (wish, name) => {
    expect(freeName(wish, TAKEN)).toBe(name);
    expect(nameFault(name, TAKEN)).toBeNull();
  });
});

describe("the values of the form", () => {
  it("are right with a name alone", () => {
    expect(faults(VALUES, TAKEN, english)).toEqual({});
  });

  it("are told wrong field by field", () => {
    const wrong: Values = { source: null, name: "web", cpus: "1.5", memory: "much", disk: "0", start: false };
    expect(faults(wrong, TAKEN, english)).toEqual({
      source: "Choose what the VM is made of.",
      name: "There is a VM of this name already.",
      cpus: "Give a whole number, at least 1.",
      memory: "Give a size such as 4GiB.",
      disk: "Give a size such as 4GiB.",
    });
  });

  it.each(["0", "-1", "5000", "two"])("have no %s CPUs", (cpus) => {
    expect(faults({ ...VALUES, cpus }, TAKEN, english)).toHaveProperty("cpus");
  });

  it("become an order without what was left empty", () => {
    expect(toCreate(VALUES)).toEqual({ name: "new", template: "debian-13", start: true });
  });

  it("become an order with sizes as Lima writes them", () => {
    expect(toCreate({ ...VALUES, cpus: "4", memory: "1.5", disk: "20 GB", start: false })).toEqual({
      name: "new",
      template: "debian-13",
      cpus: 4,
      memory: "1536MiB",
      disk: "20GiB",
      start: false,
    });
  });

  it("of an environment have no hardware: it says that itself", () => {
    const source: Source = { kind: "environment", value: "/home/me/env.yaml", label: "Env", wish: "env" };
    const values = { ...VALUES, source, cpus: "none", memory: "2GiB", disk: "much" };
    expect(faults(values, TAKEN, english)).toEqual({});
    expect(toCreate(values)).toEqual({ name: "new", environment: "/home/me/env.yaml", start: true });
  });
});
