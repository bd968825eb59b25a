// @vitest-environment node
import { expect, test } from "vitest";

import { asked, partOf, percent, size, span, written } from "../src/format";
import { english } from "../src/i18n";

const GIB = 1024 ** 3;

test.each([
  [0, "0 bytes"],
  [1023, "1023 bytes"],
  [1024, "1 KiB"],
  [353.6 * 1024 ** 2, "353.6 MiB"],
  [4 * GIB, "4 GiB"],
  [5000 * 1024 ** 4, "5000 TiB"],
])("%d bytes are %s", (bytes, text) => {
  expect(size(bytes)).toBe(text);
});

test.each([
  ["4GiB", 4 * GIB],
  ["4", 4 * GIB],
  [" 1.5 GB ", 1.5 * GIB],
  ["512MiB", 512 * 1024 ** 2],
  ["1024m", GIB],
  ["2TiB", 2048 * GIB],
  ["", null],
  ["0", null],
  ["-1", null],
  ["1KiB", null],
  ["four", null],
  ["4GiBs", null],
])("%j is asked for as %j bytes", (text, bytes) => {
  expect(asked(text)).toBe(bytes);
});

test.each([GIB, 20 * GIB, 1536 * 1024 ** 2])("what is written of %d bytes is read as the same", (bytes) => {
  expect(asked(written(bytes))).toBe(bytes);
});

test("a part says its unit only where it is another", () => {
  expect(partOf(english, 1.2 * GIB, 4 * GIB)).toBe("1.2 of 4 GiB");
  expect(partOf(english, 353 * 1024 ** 2, 4 * GIB)).toBe("353 MiB of 4 GiB");
});

test.each([
  [-3, "0 s"],
  [59.4, "59 s"],
  [75, "1 min 15 s"],
  [4000, "1 h 6 min"],
  [47 * 3600, "47 h 0 min"],
  [50 * 3600, "2 days"],
])("%d seconds are %s", (seconds, text) => {
  expect(span(english, seconds)).toBe(text);
});

test("shares are whole percents", () => {
  expect([percent(0.126), percent(1.02), percent(-0.1)]).toEqual(["13 %", "102 %", "0 %"]);
});

test("a translator's places are filled", () => {
  expect(english("%2 before %1, %3", "a", 1)).toBe("1 before a, %3");
});
