import { afterEach, beforeEach, describe, expect, test, vi } from "vitest";

import { VMCard } from "../src/card";
import { linkOf } from "../src/parts/details";
import { sparkPath } from "../src/parts/meters";
import type { VM } from "../src/wire";
import { expectNoFaults } from "./axe";
import { RecordingHost, settled, the } from "./host";
import { gallery, job, looks, running, vm } from "./samples";

let host: RecordingHost;
let card: VMCard;

beforeEach(() => {
  host = new RecordingHost();
  card = new VMCard(host);
  document.body.append(card.element);
});

afterEach(() => {
  card.dispose();
  vi.useRealTimers();
});

const button = (verb: string): HTMLElement => the(card.element, `[data-verb=${verb}]`);
const shownText = (selector: string): string => the(card.element, selector).textContent;

function edit(values: Readonly<Record<string, string>>): void {
  button("edit").click();
  for (const label of card.element.querySelectorAll("label")) {
    const input = the(card.element, `#${label.htmlFor}`, HTMLInputElement);
    input.value = values[label.textContent] ?? input.value;
  }
  the(card.element, "form", HTMLFormElement).requestSubmit();
}

const stopped = (changes: Partial<VM> = {}): VM => vm({ state: "stopped", ...changes });

describe("state", () => {
  test("is a word and an icon, and said politely", () => {
    card.update(vm());
    expect(shownText(".lk-state-word")).toBe("Running");
    expect(card.element.querySelectorAll(".lk-state svg")).toHaveLength(1);
    const said = the(card.element, ".lk-said");
    expect([said.getAttribute("aria-live"), said.textContent]).toEqual(["polite", "default: Running"]);
    card.update(vm({ state: "stopping", phase: "shutting down", began: 1 }));
    expect(said.textContent).toBe("default: Stopping, shutting down");
    expect(card.element.querySelectorAll(".lk-state svg.lk-turning")).toHaveLength(1);
  });

  test("is said only when it changes", async () => {
    card.update(vm());
    const changes: MutationRecord[] = [];
    const observer = new MutationObserver((records) => changes.push(...records));
    observer.observe(the(card.element, ".lk-said"), { childList: true, characterData: true, subtree: true });
    card.update(vm({ kernels: null, diskUsed: 5 }));
    card.usage(looks("default", 5));
    await settled();
    expect(changes).toEqual([]);
    observer.disconnect();
  });

  test.each(gallery().map((one): [string, VM] => [one.state, one]))("axe finds nothing in %s", async (_, one) => {
    card.update(one);
    card.usage(looks(one.name, 20));
    await expectNoFaults(card.element);
  });

  test("what a guest says is text", () => {
    card.update(vm({ name: "<img src=x onerror=alert(1)>", problem: { message: "<b>x</b>", hint: "" } }));
    expect(card.element.querySelectorAll("img, b")).toHaveLength(0);
    expect(shownText(".lk-message")).toBe("<b>x</b>");
  });
});

describe("what is under way", () => {
  test("has a bar where earlier starts are known, and its clock goes on", () => {
    vi.useFakeTimers({ now: 1_000_000_000_000 });
    card.update(vm({ state: "starting", phase: "booting the VM", began: 1_000_000_000 - 10, expected: 40 }));
    expect(shownText(".lk-times")).toBe("10 s of about 40 s");
    const bar = the(card.element, "progress", HTMLProgressElement);
    expect([bar.hidden, bar.value]).toEqual([false, 0.25]);
    vi.advanceTimersByTime(35_000);
    expect(shownText(".lk-times")).toBe("45 s, longer than the usual 40 s");
    expect(bar.value).toBe(1);
    card.update(vm());
    expect(vi.getTimerCount()).toBe(0);
  });

  test("has no invented number where none is known", () => {
    vi.useFakeTimers({ now: 1_000_000_000_000 });
    card.update(vm({ state: "creating", phase: "creating the VM", began: 1_000_000_000 - 75 }));
    expect(shownText(".lk-times")).toBe("1 min 15 s");
    expect(the(card.element, "progress").hidden).toBe(true);
    card.dispose();
    expect(vi.getTimerCount()).toBe(0);
  });

  test("is cancelled by its button where that can be", () => {
    card.update(vm({ state: "starting", began: 1, phase: "x" }));
    const cancel = the(card.element, ".lk-cancel");
    expect(cancel.hidden).toBe(true);
    card.job(job({ id: "j7" }));
    expect(cancel.hidden).toBe(false);
    cancel.click();
    expect(host.cancels).toEqual(["j7"]);
    card.job(job({ id: "j7", cancellable: false }));
    expect(cancel.hidden).toBe(true);
  });
});

describe("buttons", () => {
  test("ask before kernels are lost, and do nothing after a no", async () => {
    card.update(running());
    host.answer = false;
    button("stop").click();
    await settled();
    expect(host.acts).toEqual([]);
    host.answer = true;
    button("stop").click();
    await settled();
    expect(host.questions).toHaveLength(2);
    expect(host.acts).toEqual([["analysis", { verb: "stop", force: true }]]);
  });

  test("that may not be used now are there, say why and do nothing", () => {
    card.update(vm());
    button("edit").click();
    expect(button("edit").getAttribute("aria-disabled")).toBe("true");
    expect(button("edit").title).toContain("only while the VM is stopped");
    expect(the(card.element, "form").hidden).toBe(true);
  });

  test("keep the focus over updates, and give it on when they go", () => {
    card.update(stopped());
    button("start").focus();
    card.update(stopped({ diskUsed: 7 }));
    expect(document.activeElement).toBe(button("start"));
    card.update(vm({ state: "starting", began: 1, phase: "booting" }));
    expect(document.activeElement).toBe(button("stop"));
    card.update(vm({ state: "stopping" }));
    expect(document.activeElement).toBe(the(card.element, ".lk-name"));
  });

  test("do nothing where the state is only remembered", () => {
    card.update(stopped());
    card.freeze("No kernel has answered yet.");
    button("start").click();
    expect(host.acts).toEqual([]);
    expect(button("start").title).toBe("Start default: No kernel has answered yet.");
    card.freeze("");
    button("start").click();
    expect(host.acts).toEqual([["default", { verb: "start" }]]);
  });
});

describe("editing", () => {
  test("sends only what was changed, as Lima writes it", () => {
    card.update(stopped());
    edit({ CPUs: "2", Memory: "4 GB", Disk: "30" });
    expect(host.acts).toEqual([["default", { verb: "edit", cpus: 2, disk: "30GiB" }]]);
    expect(document.activeElement).toBe(button("edit"));
  });

  test("sends nothing when nothing was changed", () => {
    card.update(stopped());
    edit({});
    expect(host.acts).toEqual([]);
    expect(the(card.element, "form").hidden).toBe(true);
  });

  test.each([
    [{ CPUs: "0" }, "A whole number of at least 1."],
    [{ CPUs: "1.5" }, "A whole number of at least 1."],
    [{ Memory: "much" }, "A size such as 4GiB or 512MiB."],
    [{ Disk: "5GiB" }, "At least 20 GiB: a disk cannot shrink."],
  ])("says what is wrong with %j at the field", async (values, fault) => {
    card.update(stopped());
    edit(values);
    const invalid = the(card.element, "[aria-invalid=true]", HTMLInputElement);
    expect(shownText(`#${invalid.getAttribute("aria-describedby") ?? ""}`)).toBe(fault);
    expect(document.activeElement).toBe(invalid);
    expect(host.acts).toEqual([]);
    await expectNoFaults(card.element);
  });

  test("ends with Escape, and when the VM is started meanwhile", () => {
    card.update(stopped());
    button("edit").click();
    the(card.element, "form").dispatchEvent(new KeyboardEvent("keydown", { key: "Escape" }));
    expect(the(card.element, "form").hidden).toBe(true);
    button("edit").click();
    card.update(vm({ state: "starting" }));
    expect(the(card.element, "form").hidden).toBe(true);
  });

  test("keeps what is being typed when news come", () => {
    card.update(stopped());
    button("edit").click();
    const cpus = document.activeElement as HTMLInputElement;
    cpus.value = "3";
    card.update(stopped({ diskUsed: 9 }));
    expect([cpus.value, document.activeElement]).toEqual(["3", cpus]);
  });
});

describe("meters", () => {
  test("show what is used now, and what it was", () => {
    card.update(vm());
    card.usage(looks("default", 30));
    const [cpu, memory, disk] = [...card.element.querySelectorAll(".lk-value")].map((value) => value.textContent);
    expect(cpu).toMatch(/^\d+ % of 4 CPUs$/);
    expect(memory).toMatch(/ of 4 GiB$/);
    expect(disk).toBe("2.1 of 20 GiB");
    expect(card.element.querySelectorAll("svg.lk-spark")).toHaveLength(2);
  });

  test("show what the VM has where nothing more is known", () => {
    card.update(vm({ diskUsed: null, cpus: 1 }));
    card.usage(looks("default", 30, false).map((look) => ({ ...look, cpu: null })));
    const values = [...card.element.querySelectorAll(".lk-value")].map((value) => value.textContent);
    expect(values).toEqual(["1 CPU", "4 GiB", "20 GiB"]);
    expect(card.element.querySelectorAll("svg.lk-spark")).toHaveLength(0);
  });

  test("say in words that a disk is nearly full", () => {
    card.update(vm({ diskUsed: 19 * 1024 ** 3 }));
    expect(card.element.textContent).toContain("19 of 20 GiB, nearly full");
  });

  test("a line stays in its field, and ends where nothing was known", () => {
    expect(sparkPath([0, 2, null, 1])).toBe("M56 15.0L57 1.0M59 1.0");
  });
});

describe("details", () => {
  test("links go to http alone", () => {
    expect(linkOf("http://127.0.0.1:80/")).toBe("http://127.0.0.1:80/");
    expect([linkOf("javascript:alert(1)"), linkOf(""), linkOf("/x"), linkOf("file:///etc")]).toEqual([
      null,
      null,
      null,
      null,
    ]);
  });

  test("a port is opened by the host", () => {
    card.update(running());
    the(card.element, "a[href]", HTMLAnchorElement).click();
    expect(host.links).toEqual(["http://127.0.0.1:8080/"]);
  });

  test("rows are kept while their kernel is there", () => {
    card.update(running());
    const row = card.element.querySelectorAll(".lk-row")[1];
    const { kernels } = running();
    card.update({ ...running(), kernels: (kernels ?? []).slice(1) });
    expect(card.element.querySelectorAll(".lk-row")[0]).toBe(row);
  });

  test("the log is followed while it is open", () => {
    card.update(running());
    card.log(["before"]);
    const fold = the(card.element, "button.lk-fold");
    fold.click();
    expect(host.follows).toEqual(["analysis"]);
    card.log(["one", "two"]);
    card.log(["three"]);
    expect(shownText("[role=log]")).toBe("one\ntwo\nthree");
    fold.click();
    expect([host.follows.at(-1), fold.getAttribute("aria-expanded")]).toEqual([null, "false"]);
  });

  test("a card that goes follows nothing more", () => {
    card.update(running());
    the(card.element, "button.lk-fold").click();
    card.dispose();
    expect(host.follows).toEqual(["analysis", null]);
  });
});

describe("trouble", () => {
  test("of a job is shown with its hint, and put away", () => {
    card.update(stopped());
    card.job(job({ id: "1", state: "failed", message: "It failed.", hint: "Do this.", context: ["line"] }));
    const box = the(card.element, "[role=alert]");
    expect([box.hidden, shownText(".lk-message"), shownText(".lk-hint")]).toEqual([false, "It failed.", "Do this."]);
    the(box, "button").click();
    expect(box.hidden).toBe(true);
    card.job(job({ id: "2", state: "failed", message: "Again." }));
    expect(box.hidden).toBe(false);
  });

  test("of a start is over when the VM runs all the same, that of a stop is not", () => {
    const box = the(card.element, "[role=alert]");
    card.update(vm());
    card.job(job({ state: "failed", verb: "kernel", message: "It failed." }));
    expect(box.hidden).toBe(true);
    card.job(job({ state: "failed", verb: "stop", message: "It failed." }));
    expect(box.hidden).toBe(false);
  });

  test("of the VM itself stays", () => {
    card.update(vm({ state: "broken", problem: { message: "No disk.", hint: "" } }));
    const box = the(card.element, "[role=alert]");
    expect([box.hidden, the(box, "button").hidden, the(box, ".lk-hint").hidden]).toEqual([false, true, true]);
  });
});
