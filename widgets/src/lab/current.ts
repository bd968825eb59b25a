import type { JupyterFrontEnd } from "@jupyterlab/application";
import type { ISessionContext } from "@jupyterlab/apputils";
import type { KernelSpec } from "@jupyterlab/services";
import { type ISignal, Signal } from "@lumino/signaling";
import type { Widget } from "@lumino/widgets";
import * as v from "valibot";

/** What our kernel specs say of themselves (lima_kernels/kernelspec.py). */
const stanza = v.object({
  kernel_provisioner: v.object({
    provisioner_name: v.literal("lima-provisioner"),
    config: v.optional(v.object({ instance: v.optional(v.string(), "lima-kernels") }), {}),
  }),
});

/** Return the VM that a kernel spec's kernels run in; null when the spec is not ours. */
export function vmOfSpec(metadata: unknown): string | null {
  const found = v.safeParse(stanza, metadata);
  return found.success ? found.output.kernel_provisioner.config.instance : null;
}

function sessionContextOf(widget: Widget | null): ISessionContext | null {
  // Notebooks, consoles and whatever else has a kernel; no dependency on each of them.
  const context: unknown = widget !== null && "sessionContext" in widget ? widget.sessionContext : null;
  return isSessionContext(context) ? context : null;
}

function isSessionContext(context: unknown): context is ISessionContext {
  return typeof context === "object" && context !== null && "kernelChanged" in context && "startKernel" in context;
}

/** The VM of the notebook or console that is in front. */
export class CurrentVM {
  readonly #changed = new Signal<this, string | null>(this);
  readonly #specs: KernelSpec.IManager;
  readonly #ask: (kernel: string) => Promise<string | null>;
  #context: ISessionContext | null = null;
  #name: string | null = null;
  #kernel = "";
  #look = 0;

  /** @param ask the name of a kernel's VM, null when it is not ours. */
  constructor(
    shell: JupyterFrontEnd.IShell,
    specs: KernelSpec.IManager,
    ask: (kernel: string) => Promise<string | null>,
  ) {
    this.#specs = specs;
    this.#ask = ask;
    shell.currentChanged?.connect(() => {
      this.#follow(sessionContextOf(shell.currentWidget));
    });
    specs.specsChanged.connect(() => {
      void this.#find();
    });
    this.#follow(sessionContextOf(shell.currentWidget));
  }

  /** Emits the VM's name, or null when there is none. */
  get changed(): ISignal<this, string | null> {
    return this.#changed;
  }

  get name(): string | null {
    return this.#name;
  }

  /** Restart the kernel in front, or start it when its start has failed; null when nothing is in front. */
  get restart(): (() => Promise<void>) | null {
    const context = this.#context;
    return context === null
      ? null
      : async () => {
          const kernel = context.session?.kernel;
          await (kernel ? kernel.restart() : context.startKernel());
        };
  }

  #follow(context: ISessionContext | null): void {
    if (context === this.#context) {
      return;
    }
    this.#context?.kernelChanged.disconnect(this.#onKernel, this);
    this.#context?.statusChanged.disconnect(this.#onKernel, this);
    this.#context = context;
    context?.kernelChanged.connect(this.#onKernel, this);
    // While it is connecting its session has no kernel yet.
    context?.statusChanged.connect(this.#onKernel, this);
    void this.#find();
  }

  #onKernel(): void {
    const kernel = this.#context?.session?.kernel?.id ?? "";
    if (kernel !== this.#kernel || this.#name === null) {
      void this.#find();
    }
  }

  async #find(): Promise<void> {
    this.#look += 1;
    const look = this.#look;
    const name = await this.#vm();
    // A later look has overtaken this one.
    if (look === this.#look && name !== this.#name) {
      this.#name = name;
      this.#changed.emit(name);
    }
  }

  async #vm(): Promise<string | null> {
    const kernel = this.#context?.session?.kernel ?? null;
    this.#kernel = kernel?.id ?? "";
    const spec = kernel?.name ?? this.#context?.kernelPreference.name;
    const metadata = spec === undefined ? undefined : this.#specs.specs?.kernelspecs[spec]?.metadata;
    const planned = vmOfSpec(metadata);
    if (kernel === null || planned === null) {
      return planned;
    }
    return this.#ask(kernel.id).catch(() => planned);
  }
}
