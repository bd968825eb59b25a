import { h, setAttribute, setText, uniqueId } from "../dom";
import { asked, size, written } from "../format";
import type { Translate } from "../i18n";
import type { EditArguments, VM } from "../wire";

/** One input with its label, and what is wrong with it below. */
class Field {
  readonly element: HTMLElement;
  readonly input: HTMLInputElement;
  readonly #fault: HTMLElement;

  constructor(label: string, attributes: Readonly<Record<string, string>>) {
    const id = uniqueId("field");
    this.input = h("input", "lk-input", { id, "aria-describedby": `${id}-fault`, ...attributes });
    this.#fault = h("span", "lk-fault", { id: `${id}-fault` });
    this.element = h("div", "lk-field", {}, h("label", "lk-label", { for: id }, label), this.input, this.#fault);
  }

  /** Say what is wrong; "" is nothing. */
  fault(text: string): void {
    setText(this.#fault, text);
    setAttribute(this.input, "aria-invalid", String(text !== ""));
  }
}

/** What was typed, or what is wrong with it. */
export type Read<T> = { readonly value: T } | { readonly fault: string };

/** Return a number of CPUs. */
export function readCpus(t: Translate, text: string): Read<number> {
  const cpus = Number(text);
  return Number.isInteger(cpus) && cpus >= 1 ? { value: cpus } : { fault: t("A whole number of at least 1.") };
}

/** Return a size in bytes that is not less than `least`. */
export function readSize(t: Translate, text: string, least: number): Read<number> {
  const bytes = asked(text);
  if (bytes === null) {
    return { fault: t("A size such as 4GiB or 512MiB.") };
  }
  return bytes < least ? { fault: t("At least %1: a disk cannot shrink.", size(least)) } : { value: bytes };
}

/** The form for CPUs, memory and disk; it sends only what was changed. */
export class EditForm {
  readonly element: HTMLFormElement;
  readonly #cpus: Field;
  readonly #memory: Field;
  readonly #disk: Field;
  #vm: VM | null = null;

  constructor(
    private readonly t: Translate,
    private readonly send: (edit: EditArguments) => void,
    private readonly closed: () => void,
  ) {
    this.#cpus = new Field(t("CPUs"), { inputmode: "numeric", autocomplete: "off" });
    this.#memory = new Field(t("Memory"), { autocomplete: "off", spellcheck: "false" });
    this.#disk = new Field(t("Disk"), { autocomplete: "off", spellcheck: "false" });
    const cancel = h("button", "lk-button", { type: "button" }, t("Cancel"));
    cancel.addEventListener("click", () => {
      this.close();
    });
    const save = h("button", "lk-button lk-primary", { type: "submit" }, t("Save"));
    this.element = h("form", "lk-edit", { novalidate: "" });
    this.element.append(
      h("div", "lk-fields", {}, this.#cpus.element, this.#memory.element, this.#disk.element),
      h("div", "lk-form-buttons", {}, cancel, save),
    );
    this.element.hidden = true;
    this.element.addEventListener("submit", (event) => {
      event.preventDefault();
      this.#submit();
    });
    this.element.addEventListener("keydown", (event) => {
      // JupyterLab's and the notebook's own keys are not meant for what is typed here.
      event.stopPropagation();
      if (event.key === "Escape") {
        this.close();
      }
    });
  }

  open(vm: VM): void {
    this.#vm = vm;
    setAttribute(this.element, "aria-label", this.t("Edit %1", vm.name));
    this.#cpus.input.value = String(vm.cpus);
    this.#memory.input.value = written(vm.memory);
    this.#disk.input.value = written(vm.disk);
    for (const field of [this.#cpus, this.#memory, this.#disk]) {
      field.fault("");
    }
    this.element.hidden = false;
    this.#cpus.input.focus();
    this.#cpus.input.select();
  }

  close(): void {
    if (!this.element.hidden) {
      this.element.hidden = true;
      this.closed();
    }
  }

  #submit(): void {
    const vm = this.#vm;
    if (vm === null) {
      return;
    }
    const cpus = this.#read(this.#cpus, (text) => readCpus(this.t, text));
    const memory = this.#read(this.#memory, (text) => readSize(this.t, text, 0));
    const disk = this.#read(this.#disk, (text) => readSize(this.t, text, vm.disk));
    if (cpus === null || memory === null || disk === null) {
      this.element.querySelector<HTMLInputElement>("[aria-invalid=true]")?.focus();
      return;
    }
    const edit: EditArguments = {
      ...(cpus !== vm.cpus && { cpus }),
      ...(memory !== vm.memory && { memory: written(memory) }),
      ...(disk !== vm.disk && { disk: written(disk) }),
    };
    this.close();
    if (Object.keys(edit).length > 0) {
      this.send(edit);
    }
  }

  #read(field: Field, read: (text: string) => Read<number>): number | null {
    const result = read(field.input.value);
    field.fault("fault" in result ? result.fault : "");
    return "value" in result ? result.value : null;
  }
}
