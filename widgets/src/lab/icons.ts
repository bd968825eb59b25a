import { LabIcon } from "@jupyterlab/ui-components";

/** A machine on its stand: a screen with a prompt in it. */
export const vmIcon = new LabIcon({
  name: "lima-kernels:vm",
  svgstr: `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 24 24">
  <g class="jp-icon3 jp-icon-selectable" fill="#616161">
    <path d="M4 4h16a2 2 0 0 1 2 2v10a2 2 0 0 1-2 2h-6v2h3v2H7v-2h3v-2H4a2 2 0 0 1-2-2V6a2 2 0 0 1 2-2zm0 2v10h16V6z"/>
    <path d="M6.4 8.4 7.8 7l4 4-4 4-1.4-1.4L9 11zM12 13h5v2h-5z"/>
  </g>
</svg>`,
});
