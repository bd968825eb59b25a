import type { Translate } from "./i18n";

const UNITS = ["bytes", "KiB", "MiB", "GiB", "TiB"];
const EXPONENTS: Readonly<Record<string, number>> = { K: 1, M: 2, G: 3, T: 4 };
const SIZE = /^(\d+(?:\.\d+)?)\s*(?:([KMGT])i?B?)?$/i;
const MEBIBYTE = 1024 ** 2;

function scaled(bytes: number): [number, number] {
  const exponent = bytes < 1024 ? 0 : Math.min(Math.floor(Math.log2(bytes) / 10), UNITS.length - 1);
  return [bytes / 1024 ** exponent, exponent];
}

function rounded(value: number): string {
  return value.toFixed(1).replace(/\.0$/, "");
}

/** Return a number of bytes for a person, such as `4 GiB` or `353.6 MiB`. */
export function size(bytes: number): string {
  const [value, exponent] = scaled(bytes);
  return `${rounded(value)} ${UNITS[exponent] ?? ""}`;
}

/** Return a part of a whole, the unit said once where both have the same: `1.2 of 4 GiB`. */
export function partOf(t: Translate, used: number, whole: number): string {
  const [value, exponent] = scaled(used);
  return t("%1 of %2", exponent === scaled(whole)[1] ? rounded(value) : size(used), size(whole));
}

/** Return a size as Lima reads it, such as `4GiB`, without loss of whole MiB. */
export function written(bytes: number): string {
  const mebibytes = Math.floor(bytes / MEBIBYTE);
  return mebibytes % 1024 === 0 ? `${mebibytes / 1024}GiB` : `${mebibytes}MiB`;
}

/** Return the size that a person asks for, in bytes; a bare number is GiB. Null: no size, or less than one MiB. */
export function asked(text: string): number | null {
  const match = SIZE.exec(text.trim());
  if (match?.[1] === undefined) {
    return null;
  }
  const exponent = EXPONENTS[(match[2] ?? "G").toUpperCase()] ?? 3;
  const bytes = Math.floor((Number(match[1]) * 1024 ** exponent) / MEBIBYTE) * MEBIBYTE;
  return bytes > 0 ? bytes : null;
}

/** Return a share of one for a person, such as `12 %`. */
export function percent(share: number): string {
  return `${Math.round(Math.max(share, 0) * 100)} %`;
}

/** Return a time span in seconds for a person: its two greatest units at most. */
export function span(t: Translate, seconds: number): string {
  const whole = Math.max(Math.round(seconds), 0);
  if (whole < 60) {
    return t("%1 s", whole);
  }
  const minutes = Math.floor(whole / 60);
  if (minutes < 60) {
    return t("%1 min %2 s", minutes, whole % 60);
  }
  const hours = Math.floor(minutes / 60);
  return hours < 48 ? t("%1 h %2 min", hours, minutes % 60) : t("%1 days", Math.floor(hours / 24));
}

/** Return the seconds that have passed since a time of the sender; never less than none. */
export function since(time: number): number {
  return Math.max(Date.now() / 1000 - time, 0);
}
