import { h, Keyed, setAttribute, setText } from "../dom";
import { since, span } from "../format";
import type { Translate } from "../i18n";
import type { Kernel, Mount, Port, VM } from "../wire";

/** A heading with a list below it, hidden while the list is empty. */
class Section<Item, Row extends { readonly element: HTMLElement }> {
  readonly element: HTMLElement;
  readonly #rows: Keyed<Item, Row>;

  constructor(title: string, make: () => Row, update: (row: Row, item: Item) => void) {
    const list = h("ul", "lk-rows");
    this.element = h("div", "lk-section", {}, h("h4", "lk-section-title", {}, title), list);
    this.#rows = new Keyed(list, make, update);
  }

  set(items: readonly (readonly [string, Item])[]): void {
    this.element.hidden = items.length === 0;
    this.#rows.set(items);
  }
}

class KernelRow {
  readonly #title = h("span", "lk-row-main");
  readonly #state = h("span", "lk-row-more");
  readonly element = h("li", "lk-row", {}, this.#title, this.#state);

  update(t: Translate, kernel: Kernel): void {
    setText(this.#title, kernel.title || kernel.id);
    setAttribute(this.element, "title", kernel.user === "" ? kernel.id : `${kernel.id}, ${kernel.user}`);
    const busy = kernel.busy === null ? "" : `${kernel.busy ? t("busy") : t("idle")}, `;
    setText(this.#state, busy + t("for %1", span(t, since(kernel.since))));
  }
}

/** Return the address when a browser may open it: a guest's text is no address otherwise. */
export function linkOf(url: string): string | null {
  return URL.canParse(url) && ["http:", "https:"].includes(new URL(url).protocol) ? url : null;
}

class PortRow {
  readonly #link = h("a", "lk-link", { target: "_blank", rel: "noopener noreferrer" });
  readonly #plain = h("span");
  readonly element = h("li", "lk-row", {}, h("span", "lk-row-main", {}, this.#link, this.#plain));

  constructor(open: ((url: string) => void) | undefined) {
    this.#link.addEventListener("click", (event) => {
      if (open !== undefined) {
        event.preventDefault();
        open(this.#link.href);
      }
    });
  }

  update(t: Translate, port: Port): void {
    const url = linkOf(port.url);
    const text = t("%1 to %2 in the VM", port.host, port.guest);
    this.#link.hidden = url === null;
    this.#plain.hidden = url !== null;
    if (url === null) {
      setText(this.#plain, text);
    } else {
      setAttribute(this.#link, "href", url);
      setText(this.#link, text);
    }
  }
}

class MountRow {
  readonly #path = h("span", "lk-row-main lk-path");
  readonly #access = h("span", "lk-row-more");
  readonly element = h("li", "lk-row", {}, this.#path, this.#access);

  update(t: Translate, mount: Mount): void {
    const same = mount.location === mount.mountPoint;
    setText(this.#path, same ? mount.location : t("%1 at %2", mount.location, mount.mountPoint));
    setText(this.#access, mount.writable ? t("writable") : t("read only"));
  }
}

/** Kernels, ports and mounts. */
export class Details {
  readonly element: HTMLElement;
  readonly #facts = h("p", "lk-facts");
  readonly #kernels: Section<Kernel, KernelRow>;
  readonly #ports: Section<Port, PortRow>;
  readonly #mounts: Section<Mount, MountRow>;

  constructor(
    private readonly t: Translate,
    open: ((url: string) => void) | undefined,
  ) {
    this.#kernels = new Section(
      t("Kernels"),
      () => new KernelRow(),
      (row, kernel) => {
        row.update(t, kernel);
      },
    );
    this.#ports = new Section(
      t("Ports"),
      () => new PortRow(open),
      (row, port) => {
        row.update(t, port);
      },
    );
    this.#mounts = new Section(
      t("Mounts"),
      () => new MountRow(),
      (row, mount) => {
        row.update(t, mount);
      },
    );
    const sections = [this.#kernels.element, this.#ports.element, this.#mounts.element];
    this.element = h("div", "lk-details", {}, ...sections, this.#facts);
  }

  update(vm: VM): void {
    this.#kernels.set((vm.kernels ?? []).map((kernel) => [kernel.id, kernel]));
    this.#ports.set(vm.ports.map((port) => [`${port.host} ${port.guest}`, port]));
    this.#mounts.set(vm.mounts.map((mount) => [mount.mountPoint, mount]));
    const origin = vm.ours ? "" : this.t("not made by lima-kernels");
    setText(this.#facts, [vm.vmType, vm.arch, origin].filter((fact) => fact !== "").join(", "));
  }
}
