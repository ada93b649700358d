// Models: fields with types, bounds and links to other models.

import { make } from "../dom.js";
import { rich } from "./text.js";

const nameOf = (reference) => decodeURIComponent(reference.split("/").pop());

/** Where a reference leads on this page, and what it is called. */
function linkTo(reference) {
  const parts = reference.split("/");
  const model = parts[3];
  return make("a", { href: `#model-${model}`, text: parts.length > 4 ? nameOf(reference) : model });
}

/** Nodes that name the type of a schema, such as `list of TrainingMetricsData or null`. */
export function typeOf(schema) {
  if (schema === true || !Object.keys(schema).length) return [text("anything")];
  if (schema.$ref) return [linkTo(schema.$ref)];
  if (schema.const !== undefined) return [text(JSON.stringify(schema.const))];
  if (schema.enum) return [text(schema.enum.map((value) => JSON.stringify(value)).join(" | "))];
  const choices = schema.oneOf ?? schema.anyOf;
  if (choices) return between(choices.map(typeOf), " or ");
  if (schema.allOf) return between(schema.allOf.filter((part) => part.$ref).map(typeOf), " and ");
  if (schema.type === "array") {
    if (schema.prefixItems) return [text("["), ...between(schema.prefixItems.map(typeOf), ", "), text("]")];
    return [text("list of "), ...typeOf(schema.items ?? true)];
  }
  if (schema.type === "object" && typeof schema.additionalProperties === "object") return [text("name → "), ...typeOf(schema.additionalProperties)];
  const types = [schema.type ?? "anything"].flat();
  return [text(types.join(" or ") + (schema.format ? ` (${schema.format})` : ""))];
}

const text = (value) => document.createTextNode(value);
const between = (lists, word) => lists.flatMap((list, index) => (index ? [text(word), ...list] : list));

/** Bounds and default of a schema in words. */
export function boundsOf(schema) {
  const own = [schema, ...(schema.anyOf ?? [])];
  const first = (name) => own.map((part) => part[name]).find((value) => value !== undefined);
  const range = (low, high, unit) => {
    if (high >= Number.MAX_SAFE_INTEGER) high = undefined;
    if (low !== undefined && high !== undefined) return `${low} to ${high}${unit}`;
    if (low !== undefined) return `at least ${low}${unit}`;
    return high === undefined ? null : `at most ${high}${unit}`;
  };
  const more = first("exclusiveMinimum");
  return [
    range(first("minimum"), first("maximum"), ""),
    more === undefined ? null : `more than ${more}`,
    range(first("minLength") > 1 || first("maxLength") ? first("minLength") : undefined, first("maxLength"), " characters"),
    range(first("minItems") > 1 || first("maxItems") ? first("minItems") : undefined, first("maxItems"), " entries"),
    schema.default === undefined || schema.default === null ? null : `default ${JSON.stringify(schema.default)}`,
  ].filter(Boolean).join(", ");
}

/** One field or parameter for a <dl>. */
export function field(name, schema, required, description) {
  const words = [description ?? schema.description, boundsOf(schema)].filter(Boolean).join("; ");
  return make("div", {},
    make("dt", {},
      make("code", { text: name }),
      make("span", { class: "docs-type" }, ...typeOf(schema)),
      required ? make("span", { class: "docs-needed", text: "required" }) : ""),
    words ? make("dd", {}, ...rich(words)) : "");
}

/** A model that shows its fields once it is opened. */
export function modelDetails(name, schema) {
  const head = make("summary", {},
    make("code", { class: "docs-path", text: name }),
    make("span", { class: "docs-what", text: (schema.description ?? "").replaceAll("`", "") }));
  const details = make("details", { id: `model-${name}` }, head);
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(modelBody(schema));
  });
  return details;
}

function modelBody(schema) {
  const required = new Set(schema.required ?? []);
  const fields = Object.entries(schema.properties ?? {}).filter(([, one]) => !isTwin(one));
  const rows = fields.map(([name, one]) => field(name, one, required.has(name)));
  const twins = Object.keys(schema.properties ?? {}).length > fields.length;
  return make("div", { class: "docs-body docs-model" },
    twins ? make("p", { class: "muted", text: "Every field may be written in camelCase as well." }) : "",
    rows.length ? make("dl", { class: "docs-fields" }, ...rows) : make("p", { class: "docs-type" }, ...typeOf(schema)));
}

/** The camelCase spelling of another field. */
const isTwin = (schema) => /^#\/components\/schemas\/[^/]+\/properties\//.test(schema.$ref ?? "");
