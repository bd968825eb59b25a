/** One way for every text that a person reads; JupyterLab's translator has the same form (`%1`, `%2`, ...). */
export type Translate = (text: string, ...args: (string | number)[]) => string;

/** English, as it is written here. */
export const english: Translate = (text, ...args) =>
  text.replace(/%(\d)/g, (place, digit: string) => String(args[Number(digit) - 1] ?? place));
