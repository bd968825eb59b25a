import * as v from "valibot";

// A setting that is missing or of another type is as if nobody had said anything.
const schema = v.object({
  notifications: v.fallback(v.picklist(["all", "failures", "none"]), "all"),
  environments: v.fallback(v.boolean(), true),
  statusBar: v.fallback(v.boolean(), true),
  sampling: v.fallback(v.boolean(), true),
  logLines: v.fallback(v.pipe(v.number(), v.integer(), v.minValue(100), v.maxValue(100_000)), 2000),
});

/** What the settings say (schema/plugin.json). */
export type Options = Readonly<v.InferOutput<typeof schema>>;

/** Read the settings. */
export function toOptions(composite: Readonly<Record<string, unknown>>): Options {
  return v.parse(schema, composite);
}
