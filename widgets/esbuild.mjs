// The panel of notebooks: one file with its style in it, as anywidget wants it.
import { build } from "esbuild";

await build({
  entryPoints: ["src/anywidget.ts"],
  outfile: "../lima_kernels/widget/static/panel.js",
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2022",
  plugins: [
    {
      name: "minified-style",
      setup(on) {
        on.onLoad({ filter: /\.css$/ }, async ({ path }) => {
          const { outputFiles } = await build({ entryPoints: [path], bundle: true, minify: true, write: false });
          return { contents: outputFiles[0].text.trim(), loader: "text" };
        });
      },
    },
  ],
  legalComments: "none",
  logLevel: "warning",
});
