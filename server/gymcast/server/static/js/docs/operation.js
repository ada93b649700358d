// One address: what it does, what it takes, what it answers.

import { make } from "../dom.js";
import { field, typeOf } from "./models.js";
import { rich } from "./text.js";
import { tryForm } from "./try.js";

const PLACES = { path: "In the path", query: "In the query", header: "Headers" };

/** An address that shows everything once it is opened. `token` is a function. */
export function operationDetails(operation, api, token) {
  const scope = operation.security?.find((way) => way.bearer)?.bearer[0];
  const head = make("summary", {},
    make("span", { class: "method", dataset: { method: operation.method }, text: operation.method.toUpperCase() }),
    make("code", { class: "docs-path" }, ...pathNodes(operation.path)),
    make("span", { class: "docs-what", text: operation.summary }),
    make("span", { class: "docs-scope", title: scope ? "the scope that a token needs" : "", text: scope ?? "open" }));
  const details = make("details", { id: operation.id }, head);
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(body(operation, api, token));
  });
  return details;
}

function pathNodes(path) {
  return path.split(/(\{\w+\})/).filter(Boolean).map((part) => (part.startsWith("{") ? make("em", { text: part }) : document.createTextNode(part)));
}

function body(operation, api, token) {
  const live = "101" in operation.responses;
  return make("div", { class: "docs-body" },
    make("div", { class: "docs-words" },
      operation.description ? make("div", {}, ...operation.description.split("\n\n").map((part) => make("p", {}, ...rich(part)))) : "",
      ...parameters(operation),
      ...requestBody(operation),
      make("div", {}, make("h3", { text: "Answers" }), make("ul", { class: "docs-answers" }, ...answers(operation, api)))),
    live
      ? make("p", { class: "muted", text: "This address speaks WebSocket, so there is no form to try it here. The page of a session uses it." })
      : tryForm(operation, token));
}

function parameters(operation) {
  return Object.entries(PLACES).flatMap(([place, title]) => {
    const own = operation.parameters.filter((one) => one.in === place);
    if (!own.length) return [];
    return [make("div", {}, make("h3", { text: title }), make("dl", { class: "docs-fields" }, ...own.map((one) => field(one.name, one.schema, one.required, one.description))))];
  });
}

function requestBody(operation) {
  const content = operation.requestBody?.content["application/json"];
  if (!content) return [];
  return [make("div", {},
    make("h3", { text: content.schema.oneOf ? "Body, one of" : "Body" }),
    make("p", { class: "docs-type" }, ...typeOf(content.schema)))];
}

function answers(operation, api) {
  return Object.entries(operation.responses).map(([status, given]) => {
    const found = given.$ref ? api.components.responses[given.$ref.split("/").pop()] : given;
    const problem = found.content?.["application/problem+json"];
    const plain = Object.entries(found.content ?? {}).find(([media]) => media !== "application/problem+json");
    const words = make("span", {});
    if (plain) words.append(...(plain[0] === "application/json" ? [make("span", { class: "docs-type" }, ...typeOf(plain[1].schema))] : [make("code", { text: plain[0] })]));
    if (problem) words.append(...problemLinks(problem.schema));
    if (!plain && !problem) words.append(found.description);
    const headers = Object.keys(found.headers ?? {}).filter((name) => name !== "X-Request-Id");
    if (headers.length) words.append(make("span", { class: "muted", text: ` with ${headers.join(", ")}` }));
    return make("li", { dataset: { tone: Number(status) < 400 ? "good" : "bad" } }, make("b", { text: status }), words);
  });
}

function problemLinks(schema) {
  const kinds = schema.allOf.flatMap((part) => part.properties?.type?.enum ?? []).map((address) => address.split("/").pop());
  return kinds.map((kind) => make("a", { class: "docs-kind", href: `#problem-${kind}`, text: kind }));
}
