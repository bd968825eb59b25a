import { readFile } from "node:fs/promises";
import { defineConfig } from "vitest/config";

export default defineConfig({
  plugins: [
    {
      // As esbuild does it for the panel: a style is text.
      name: "style-as-text",
      enforce: "pre",
      async load(id) {
        return id.endsWith(".css") ? `export default ${JSON.stringify(await readFile(id, "utf8"))}` : null;
      },
    },
  ],
  // One page for all files of a worker: making one takes longer than most tests.
  test: { environment: "jsdom", include: ["tests/**/*.test.ts"], isolate: false, pool: "threads", restoreMocks: true },
});
