import axe from "axe-core";
import { expect } from "vitest";

// Without it axe takes no ligature for an icon, and jsdom, which draws nothing, does not complain.
HTMLCanvasElement.prototype.getContext = () => null;

/** Expect axe to find nothing; colours are looked at by the browser tests, which know them. */
export async function expectNoFaults(element: Element): Promise<void> {
  const { violations } = await axe.run(element, {
    rules: { "color-contrast": { enabled: false }, region: { enabled: false } },
  });
  expect(violations.map((fault) => `${fault.id}: ${fault.nodes.map((node) => node.html).join(" ")}`)).toEqual([]);
}
