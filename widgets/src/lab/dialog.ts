import { Dialog } from "@jupyterlab/apputils";
import { Widget } from "@lumino/widgets";
import { ApiError, type Client } from "../api";
import type { Translate } from "../i18n";
import type { Job } from "../wire";
import { NewVMForm } from "./form";
import { type Source, toCreate } from "./newvm";

/** The dialog "New VM": it closes when the server has taken the order, and says at the fields what is wrong. */
class NewVMDialog extends Dialog<Job | null> {
  readonly #form: NewVMForm;
  readonly #create: () => Promise<Job>;
  readonly #index: number;
  #isAsking = false;

  constructor(form: NewVMForm, create: () => Promise<Job>, t: Translate) {
    const buttons = [Dialog.cancelButton({ label: t("Cancel") }), Dialog.okButton({ label: t("Create") })];
    super({ title: t("New VM"), body: new Widget({ node: form.element }), buttons, focusNodeSelector: "select" });
    this.addClass("lk-new-vm");
    this.#form = form;
    this.#create = create;
    this.#index = buttons.length - 1;
  }

  override resolve(index?: number): void {
    if ((index ?? this.#index) !== this.#index) {
      super.resolve(index);
    } else if (!this.#isAsking && this.#form.check()) {
      void this.#ask();
    }
  }

  async #ask(): Promise<void> {
    this.#isAsking = true;
    this.#form.isBusy = true;
    try {
      await this.#create();
      super.resolve(this.#index);
    } catch (error) {
      const [message, hint] = error instanceof ApiError ? [error.message, error.hint] : [String(error), ""];
      this.#form.refuse(message, hint);
    } finally {
      this.#isAsking = false;
      this.#form.isBusy = false;
    }
  }
}

/** Return what a VM can be made of, our environments first. */
export async function sources(client: Client): Promise<Source[]> {
  const [environments, templates] = await Promise.all([client.environments(), client.templates()]);
  const files = environments.filter(({ file }) => file !== "");
  return [
    ...files.map(({ name, displayName, instance, file }): Source => {
      const label = displayName === "" ? name : displayName;
      return { kind: "environment", value: file, label, wish: instance };
    }),
    ...templates.map(({ name }): Source => ({ kind: "template", value: name, label: name, wish: name })),
  ];
}

/** Ask for a new VM until it is made or given up. */
export async function newVM(
  client: Client,
  taken: () => ReadonlySet<string>,
  t: Translate,
  chosen: string | null = null,
): Promise<void> {
  const found = await sources(client);
  const first = found.filter(({ value }) => value === chosen);
  const form = new NewVMForm(t, first.length > 0 ? first : found, taken);
  const create = async (): Promise<Job> => {
    const wanted = toCreate(form.values);
    return client.act(wanted.name, { verb: "create", ...wanted });
  };
  await new NewVMDialog(form, create, t).launch();
}
