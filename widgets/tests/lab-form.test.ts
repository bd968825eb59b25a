import { beforeEach, describe, expect, it } from "vitest";

import { english } from "../src/i18n";
import { NewVMForm } from "../src/lab/form";
import type { Source } from "../src/lab/newvm";

const SOURCES: Source[] = [
  { kind: "environment", value: "/e.yaml", label: "Science", wish: "science" },
  { kind: "template", value: "debian-13", label: "debian-13", wish: "debian-13" },
];

function labelled(form: NewVMForm, text: string): HTMLInputElement {
  const label = [...form.element.querySelectorAll("label")].find((one) => one.textContent === text);
  const field = form.element.querySelector<HTMLInputElement>(`#${label?.htmlFor ?? "none"}`);
  if (field === null) {
    throw new Error(`there is no field ${text}`);
  }
  return field;
}

function type(field: HTMLInputElement, text: string): void {
  field.value = text;
  field.dispatchEvent(new Event("input", { bubbles: true }));
}

function choose(form: NewVMForm, place: number): void {
  const source = form.element.querySelector("select");
  if (source === null) {
    throw new Error("there is nothing to choose from");
  }
  source.selectedIndex = place;
  source.dispatchEvent(new Event("input", { bubbles: true }));
}

function said(form: NewVMForm, field: HTMLInputElement): string {
  const ids = field.getAttribute("aria-describedby")?.split(" ") ?? [];
  return form.element.querySelector(`#${ids.at(-1) ?? "none"}`)?.textContent ?? "";
}

describe("the form of a new VM", () => {
  const taken = new Set(["science"]);
  let form: NewVMForm;

  beforeEach(() => {
    form = new NewVMForm(english, SOURCES, () => taken);
    document.body.replaceChildren(form.element);
  });

  it("offers the environments first, and the nearest free name", () => {
    expect([...form.element.querySelectorAll("optgroup")].map((group) => group.label)).toEqual([
      "Environments",
      "Lima templates",
    ]);
    expect(form.values).toMatchObject({ source: SOURCES[0], name: "science-2", start: true });
  });

  it("offers another name with another source, but keeps one that was typed", () => {
    choose(form, 1);
    expect(form.values.name).toBe("debian-13");
    type(labelled(form, "Name"), "mine");
    choose(form, 0);
    expect(form.values.name).toBe("mine");
  });

  it("says at the name what is wrong while it is typed", () => {
    const name = labelled(form, "Name");
    type(name, "science");
    expect(name.getAttribute("aria-invalid")).toBe("true");
    expect(said(form, name)).toBe("There is a VM of this name already.");
    type(name, "science-x");
    expect(name.getAttribute("aria-invalid")).toBe("false");
    expect(said(form, name)).toBe("");
  });

  it("leaves the hardware to an environment", () => {
    expect(labelled(form, "Memory").disabled).toBe(true);
    choose(form, 1);
    expect(labelled(form, "Memory").disabled).toBe(false);
  });

  it("calls a size wrong only when its field is left", () => {
    choose(form, 1);
    const memory = labelled(form, "Memory");
    type(memory, "lots");
    expect(said(form, memory)).toBe("");
    memory.dispatchEvent(new FocusEvent("focusout", { bubbles: true }));
    expect(said(form, memory)).toBe("Give a size such as 4GiB.");
  });

  it("goes to the first field that is wrong", () => {
    choose(form, 1);
    type(labelled(form, "Memory"), "lots");
    type(labelled(form, "CPUs"), "none");
    expect(form.check()).toBe(false);
    expect(document.activeElement).toBe(labelled(form, "CPUs"));
    type(labelled(form, "Memory"), "2GiB");
    type(labelled(form, "CPUs"), "3");
    expect(form.check()).toBe(true);
  });

  it("says why the server refused it, until something is changed", () => {
    const alert = form.element.querySelector("[role=alert]");
    form.isBusy = true;
    expect(form.element.hasAttribute("inert")).toBe(true);
    form.isBusy = false;
    form.refuse("The name is taken.", "See them all.");
    expect(alert?.textContent).toBe("The name is taken. See them all.");
    type(labelled(form, "Name"), "other");
    expect(alert?.textContent).toBe("");
  });
});
