import { h, setAttribute, setText, svg } from "../dom";
import { partOf, percent, size } from "../format";
import { POINTS } from "../history";
import type { Translate } from "../i18n";
import type { Usage, VM } from "../wire";

const HEIGHT = 16;
// The disk is nearly full: said in words too.
const FULL = 0.9;

/** Return the lines of a history, drawn to the right edge; where nothing is known a line ends. */
export function sparkPath(shares: readonly (number | null)[]): string {
  const begin = POINTS - shares.length;
  let joined = false;
  let path = "";
  shares.forEach((share, index) => {
    if (share === null) {
      joined = false;
      return;
    }
    const y = HEIGHT - 1 - Math.min(Math.max(share, 0), 1) * (HEIGHT - 2);
    path += `${joined ? "L" : "M"}${begin + index} ${y.toFixed(1)}`;
    joined = true;
  });
  return path;
}

/** One number now, with a line of what it was. */
class Meter {
  readonly element: HTMLElement;
  readonly #value = h("dd", "lk-value");
  readonly #path = svg("path", { fill: "none", "vector-effect": "non-scaling-stroke" });
  readonly #chart = svg(
    "svg",
    { viewBox: `0 0 ${POINTS - 1} ${HEIGHT}`, preserveAspectRatio: "none", class: "lk-spark", role: "img" },
    this.#path,
  );

  constructor(
    private readonly t: Translate,
    private readonly label: string,
  ) {
    this.element = h("div", "lk-meter", {}, h("dt", "lk-label", {}, label), this.#value);
  }

  update(text: string, shares: readonly (number | null)[]): void {
    setText(this.#value, text);
    const known = shares.filter((share) => share !== null);
    if (known.length < 2) {
      this.#chart.remove();
      return;
    }
    if (!this.#chart.isConnected) {
      this.#value.after(h("dd", "lk-chart", {}, this.#chart));
    }
    setAttribute(this.#path, "d", sparkPath(shares));
    const [low, high] = [Math.min(...known), Math.max(...known)];
    setAttribute(this.#chart, "aria-label", this.t("%1 of late: %2 to %3", this.label, percent(low), percent(high)));
  }
}

/** The disk: what it takes on the host, of what it may become. */
class DiskMeter {
  readonly element: HTMLElement;
  readonly #value = h("dd", "lk-value");
  readonly #bar = h("meter", "lk-disk", { min: "0", max: "1", high: String(FULL), optimum: "0" });
  readonly #chart = h("dd", "lk-chart", {}, this.#bar);

  constructor(
    private readonly t: Translate,
    private readonly label: string,
  ) {
    this.#bar.setAttribute("aria-label", label);
    this.element = h("div", "lk-meter", {}, h("dt", "lk-label", {}, label), this.#value, this.#chart);
  }

  update(vm: VM): void {
    this.#chart.hidden = vm.diskUsed === null || vm.disk <= 0;
    if (vm.diskUsed === null || vm.disk <= 0) {
      setText(this.#value, size(vm.disk));
      return;
    }
    const share = vm.diskUsed / vm.disk;
    const text = partOf(this.t, vm.diskUsed, vm.disk);
    this.#bar.value = share;
    setAttribute(this.#bar, "aria-valuetext", `${this.label}: ${text}`);
    setText(this.#value, share > FULL ? this.t("%1, nearly full", text) : text);
  }
}

/** CPU, memory and disk: what the VM has, and what it uses now. */
export class Meters {
  readonly element: HTMLElement;
  readonly #cpu: Meter;
  readonly #memory: Meter;
  readonly #disk: DiskMeter;

  constructor(private readonly t: Translate) {
    this.#cpu = new Meter(t, t("CPU"));
    this.#memory = new Meter(t, t("Memory"));
    this.#disk = new DiskMeter(t, t("Disk"));
    this.element = h("dl", "lk-meters", {}, this.#cpu.element, this.#memory.element, this.#disk.element);
  }

  /** Show what the VM has, and its last looks, oldest first. */
  update(vm: VM, points: readonly Usage[]): void {
    const last = points.at(-1);
    const cpus = vm.cpus === 1 ? this.t("1 CPU") : this.t("%1 CPUs", vm.cpus);
    const cpu = last?.cpu ?? null;
    this.#cpu.update(
      cpu === null ? cpus : this.t("%1 of %2", percent(cpu), cpus),
      points.map((point) => point.cpu),
    );
    const memory = last?.memory ?? null;
    this.#memory.update(
      memory === null ? size(vm.memory) : partOf(this.t, memory, vm.memory),
      points.map((point) => (point.memory === null ? null : point.memory / vm.memory)),
    );
    this.#disk.update(vm);
  }
}
