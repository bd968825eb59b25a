import { h, setText, uniqueId } from "../dom";
import type { Translate } from "../i18n";
import { freeName } from "./names";
import { type Faults, type Field, faults, hasHardware, type Source, type Values } from "./newvm";

const HARDWARE = ["cpus", "memory", "disk"] as const;

type Control = HTMLInputElement | HTMLSelectElement;

/** The fields of "New VM": it says at each field what is wrong with it, and offers a free name. */
export class NewVMForm {
  readonly element: HTMLFormElement;
  readonly #t: Translate;
  readonly #sources: readonly Source[];
  readonly #taken: () => ReadonlySet<string>;
  readonly #controls = new Map<Field, Control>();
  readonly #remarks = new Map<Field, HTMLElement>();
  readonly #source: HTMLSelectElement;
  readonly #start: HTMLInputElement;
  readonly #refusal: HTMLElement;
  #isNameChosen = false;
  /** Fields that somebody has been in: the others are not called wrong before they are tried. */
  readonly #touched = new Set<Field>();

  /** @param taken the names that are in use now. */
  constructor(t: Translate, sources: readonly Source[], taken: () => ReadonlySet<string>) {
    this.#t = t;
    this.#sources = sources;
    this.#taken = taken;
    this.#source = this.#select();
    this.#start = h("input", "", { type: "checkbox" });
    this.#start.checked = true;
    this.#refusal = h("p", "lk-form-refusal", { role: "alert" });
    const asTemplate = { placeholder: t("as it says") };
    this.element = h(
      "form",
      "lk-form",
      { "aria-label": t("New VM") },
      this.#row("source", t("Made of"), this.#source),
      this.#row("name", t("Name"), this.#input({ autocomplete: "off", spellcheck: "false" })),
      this.#row("cpus", t("CPUs"), this.#input({ inputmode: "numeric", ...asTemplate })),
      this.#row("memory", t("Memory"), this.#input(asTemplate), t("For example 4GiB")),
      this.#row("disk", t("Disk"), this.#input(asTemplate), t("For example 50GiB")),
      h("label", "lk-form-check", {}, this.#start, h("span", "", {}, t("Start it at once"))),
      this.#refusal,
    );
    // Nobody sends it: the dialog's button does.
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
    });
    this.element.addEventListener("input", (event) => {
      this.#onInput(event.target);
    });
    this.element.addEventListener("focusout", (event) => {
      this.#touch(event.target);
    });
    this.#suggest();
  }

  get values(): Values {
    const text = (field: Field): string => this.#controls.get(field)?.value.trim() ?? "";
    return {
      source: this.#sources[this.#source.selectedIndex] ?? null,
      name: text("name"),
      cpus: text("cpus"),
      memory: text("memory"),
      disk: text("disk"),
      start: this.#start.checked,
    };
  }

  /** Tell whether all fields are right; when not, say it at each and go to the first that is wrong. */
  check(): boolean {
    for (const field of this.#controls.keys()) {
      this.#touched.add(field);
    }
    const found = this.#show();
    const [first] = [...this.#controls].filter(([field]) => field in found);
    first?.[1].focus();
    return first === undefined;
  }

  /** Say why the server refused it. */
  refuse(message: string, hint: string): void {
    setText(this.#refusal, `${message} ${hint}`.trim());
  }

  /** Nothing can be changed while the server is asked. */
  set isBusy(isBusy: boolean) {
    this.element.toggleAttribute("inert", isBusy);
    this.element.setAttribute("aria-busy", String(isBusy));
    if (isBusy) {
      setText(this.#refusal, "");
    }
  }

  #select(): HTMLSelectElement {
    const option = (source: Source): HTMLOptionElement => h("option", "", { value: source.value }, source.label);
    const group = (label: string, kind: Source["kind"]): HTMLElement[] => {
      const options = this.#sources.filter((source) => source.kind === kind).map(option);
      return options.length === 0 ? [] : [h("optgroup", "", { label }, ...options)];
    };
    return h(
      "select",
      "",
      {},
      ...group(this.#t("Environments"), "environment"),
      ...group(this.#t("Lima templates"), "template"),
    );
  }

  #input(attributes: Readonly<Record<string, string>>): HTMLInputElement {
    return h("input", "jp-mod-styled", { type: "text", ...attributes });
  }

  #row(field: Field, label: string, control: Control, help = ""): HTMLElement {
    const id = uniqueId(field);
    const remark = h("span", "lk-form-fault", { id: `${id}-fault` });
    control.id = id;
    control.classList.add("jp-mod-styled");
    control.setAttribute("aria-describedby", help === "" ? remark.id : `${id}-help ${remark.id}`);
    this.#controls.set(field, control);
    this.#remarks.set(field, remark);
    const helps = help === "" ? [] : [h("span", "lk-form-help", { id: `${id}-help` }, help)];
    return h("div", "lk-form-row", {}, h("label", "", { for: id }, label), control, ...helps, remark);
  }

  #fieldOf(target: EventTarget | null): Field | undefined {
    return [...this.#controls].find(([, control]) => control === target)?.[0];
  }

  #onInput(target: EventTarget | null): void {
    const field = this.#fieldOf(target);
    if (field === "name") {
      this.#isNameChosen = this.values.name !== "";
    } else if (field === "source") {
      this.#suggest();
    }
    // A name is checked while it is typed; a size is wrong until its last letter.
    if (field === "name" || field === "source") {
      this.#touched.add(field);
    }
    setText(this.#refusal, "");
    this.#show();
  }

  #touch(target: EventTarget | null): void {
    const field = this.#fieldOf(target);
    if (field !== undefined && this.#controls.get(field)?.value !== "") {
      this.#touched.add(field);
      this.#show();
    }
  }

  #suggest(): void {
    const { source } = this.values;
    const name = this.#controls.get("name");
    for (const field of HARDWARE) {
      this.#controls.get(field)?.toggleAttribute("disabled", !hasHardware({ source }));
    }
    if (!this.#isNameChosen && source !== null && name !== undefined) {
      name.value = freeName(source.wish, this.#taken());
    }
  }

  #show(): Faults {
    const found = faults(this.values, this.#taken(), this.#t);
    for (const [field, control] of this.#controls) {
      const text = this.#touched.has(field) ? (found[field] ?? "") : "";
      control.setAttribute("aria-invalid", String(text !== ""));
      const remark = this.#remarks.get(field);
      if (remark !== undefined) {
        setText(remark, text);
      }
    }
    return found;
  }
}
