import { english } from "../src/i18n";
import type { CardHost } from "../src/card";
import type { Action } from "../src/wire";

/** A host that writes down what it is asked for. */
export class RecordingHost implements CardHost {
  readonly acts: [string, Action][] = [];
  readonly follows: (string | null)[] = [];
  readonly cancels: string[] = [];
  readonly questions: string[] = [];
  readonly links: string[] = [];
  answer = true;
  readonly t = english;

  act(vm: string, action: Action): void {
    this.acts.push([vm, action]);
  }

  follow(vm: string | null): void {
    this.follows.push(vm);
  }

  cancel(job: string): void {
    this.cancels.push(job);
  }

  confirm(question: string): Promise<boolean> {
    this.questions.push(question);
    return Promise.resolve(this.answer);
  }

  openLink(url: string): void {
    this.links.push(url);
  }
}

/** Return the one element that a selector finds. */
export function the(within: ParentNode, selector: string): HTMLElement;
export function the<T extends HTMLElement>(within: ParentNode, selector: string, kind: new () => T): T;
export function the(within: ParentNode, selector: string, kind = HTMLElement): HTMLElement {
  const [found, ...more] = within.querySelectorAll(selector);
  if (!(found instanceof kind) || more.length > 0) {
    throw new Error(`expected one ${kind.name} to be ${selector}`);
  }
  return found;
}

/** Let promises that are settled go on. */
export async function settled(): Promise<void> {
  await new Promise((resolve) => setTimeout(resolve, 0));
}
