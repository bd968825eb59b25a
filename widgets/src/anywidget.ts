/** The panel in a notebook: anywidget's model is the sender, its comm the wire. */
import type { AnyModel, RenderProps } from "@anywidget/types";

import styles from "../style/card.css";
import { confirmIn } from "./confirm";
import { h, setText } from "./dom";
import { english } from "./i18n";
import { VMList } from "./list";
import { Model } from "./model";
import { watchSeen } from "./seen";
import { toJobs, toMessage, toVMs } from "./wire";

/** Milliseconds that a kernel has to answer before the panel says that it shows what it remembers. */
const SILENCE = 1500;

/** What the kernel's side keeps; all of it may come from a saved notebook, so it is looked at before use. */
type State = Record<"vms" | "jobs" | "only" | "notice", unknown>;
/** ipywidgets' model says by a promise that a kernel is no more; its type does not tell. */
type Panel = Omit<AnyModel<State>, "send"> & { send(content: object): unknown };
/** The views of one model that can be seen: a second one that is hidden must not end what the first shows. */
type Seen = Set<View>;

function text(value: unknown): string {
  return typeof value === "string" ? value : "";
}

function fieldOf(content: unknown, name: string): string {
  return typeof content === "object" && content !== null ? text(Reflect.get(content, name)) : "";
}

/** One drawing of a panel. */
class View {
  readonly #model = new Model();
  readonly #root: HTMLElement;
  readonly #notice = h("p", "lk-notice", { role: "status" });
  readonly #list: VMList;
  readonly #ends: (() => void)[] = [];
  #answer: "waited for" | "here" | "none" = "waited for";
  #silence: ReturnType<typeof setTimeout> | undefined;
  #refused = "";

  constructor(
    private readonly panel: Panel,
    private readonly seen: Seen,
    element: HTMLElement,
  ) {
    this.#root = h("div", "lk-panel", {}, h("style", "", {}, styles), this.#notice);
    this.#list = this.#makeList();
    this.#root.append(this.#list.element);
    element.append(this.#root);
    this.#load();
    this.#listen();
    this.#hello();
  }

  dispose(): void {
    clearTimeout(this.#silence);
    for (const end of this.#ends) {
      end();
    }
    this.#show(false);
    this.#list.dispose();
    this.#root.remove();
  }

  /** Say something to the kernel; one that is no more cannot be told, and its silence is shown. */
  #send(content: object): void {
    try {
      void Promise.resolve(this.panel.send(content)).catch(() => undefined);
    } catch {
      // Where it is refused at once.
    }
  }

  #makeList(): VMList {
    const send = (content: object): void => {
      this.#send(content);
    };
    const host = {
      act: (vm: string, { verb, ...rest }: { verb: string }): void => {
        this.#refused = "";
        this.#drawNotice();
        send({ type: "act", vm, verb, arguments: rest });
      },
      follow: (name: string | null): void => {
        send({ type: "follow", name });
      },
      cancel: (job: string): void => {
        send({ type: "cancel", job });
      },
      confirm: (question: string, button: string): Promise<boolean> =>
        confirmIn(this.#root, english, question, button),
      t: english,
    };
    return new VMList(this.#model, host, { only: text(this.panel.get("only")) });
  }

  #listen(): void {
    const events: Readonly<Record<string, (content: unknown) => void>> = {
      "change:vms": () => {
        this.#load();
      },
      "change:jobs": () => {
        this.#load();
      },
      "change:notice": () => {
        this.#drawNotice();
      },
      "msg:custom": (content) => {
        this.#receive(content);
      },
      // ipywidgets says so when the kernel goes or comes back.
      comm_live_update: () => {
        this.#hello();
      },
    };
    for (const [name, listener] of Object.entries(events)) {
      this.panel.on(name, listener);
      this.#ends.push(() => {
        this.panel.off(name, listener);
      });
    }
    this.#ends.push(
      watchSeen(this.#root, (now) => {
        this.#show(now);
      }),
    );
  }

  /** Ask whether anybody is there: a saved notebook has the last state, and nobody to act on it. */
  #hello(): void {
    this.#answer = "waited for";
    this.#list.freeze(english("No kernel has answered yet."));
    clearTimeout(this.#silence);
    this.#silence = setTimeout(() => {
      this.#answer = "none";
      this.#drawNotice();
    }, SILENCE);
    this.#drawNotice();
    this.#say();
  }

  #show(seen: boolean): void {
    const before = this.seen.size;
    if (seen) {
      this.seen.add(this);
    } else {
      this.seen.delete(this);
    }
    if (this.seen.size !== before) {
      this.#say();
    }
  }

  #say(): void {
    this.#send({ type: "visible", names: this.seen.size > 0 ? null : [] });
  }

  #load(): void {
    const vms = toVMs(this.panel.get("vms"));
    this.#model.apply({ type: "snapshot", vms, jobs: toJobs(this.panel.get("jobs")) });
  }

  #receive(content: unknown): void {
    if (this.#answer !== "here") {
      this.#answer = "here";
      clearTimeout(this.#silence);
      this.#list.freeze("");
    }
    if (fieldOf(content, "type") === "refused") {
      this.#refused = `${fieldOf(content, "message")} ${fieldOf(content, "hint")}`.trim();
    }
    const message = toMessage(content);
    if (message !== null) {
      this.#model.apply(message);
    }
    this.#drawNotice();
  }

  #drawNotice(): void {
    const silent = this.#answer === "none" ? english("No kernel answers: this is the last state that was known.") : "";
    const said = text(this.panel.get("notice")) || this.#refused || silent;
    setText(this.#notice, said);
    this.#notice.hidden = said === "";
  }
}

/** Called by anywidget once for each model. */
export default function widget(): { render: (props: RenderProps<State>) => () => void } {
  const seen: Seen = new Set();
  return {
    render({ model, el }) {
      const view = new View(model, seen, el);
      return () => {
        view.dispose();
      };
    },
  };
}
