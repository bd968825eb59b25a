import type { LabIcon } from "@jupyterlab/ui-components";
import { Widget } from "@lumino/widgets";
import { h } from "../dom";

export interface ButtonOptions {
  label: string;
  title: string;
  icon?: LabIcon;
  /** The title says it all: the label is for screen readers alone. */
  iconOnly?: boolean;
}

/** A button of a toolbar: the browser's own, since axe finds JupyterLab's `jp-button` at fault for its `aria-label`. */
export class ToolButton extends Widget {
  constructor({ label, title, icon, iconOnly = false }: ButtonOptions, press: () => void) {
    const node = h("button", "lk-button lk-tool", { type: "button", title });
    super({ node });
    if (icon !== undefined) {
      node.append(icon.element({ tag: "span", stylesheet: "toolbarButton" }));
    }
    if (iconOnly) {
      node.setAttribute("aria-label", label);
    } else {
      node.append(h("span", "", {}, label));
    }
    node.addEventListener("click", press);
  }

  /** Say whether what the button switches is on. */
  set pressed(isPressed: boolean) {
    this.node.setAttribute("aria-pressed", String(isPressed));
  }
}
