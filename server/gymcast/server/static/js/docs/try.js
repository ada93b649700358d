// A form that sends a request to this server and shows the answer.

import { announce, make } from "../dom.js";

const SHOWN = 20000;
const HEADERS = ["content-type", "etag", "location", "retry-after", "www-authenticate", "x-request-id"];

/** A form for `operation`; `token` is a function that returns the token to send, or "". */
export function tryForm(operation, token) {
  const inputs = new Map(operation.parameters.map((one) => [one, control(one)]));
  const examples = Object.entries(operation.requestBody?.content["application/json"].examples ?? {});
  const area = examples.length ? make("textarea", { "aria-label": "Body", spellcheck: "false" }) : null;
  const show = (value) => { area.value = JSON.stringify(value, null, 2); };
  const result = make("div", { class: "docs-result", role: "status" });
  const form = make("form", { class: "docs-try" },
    make("h3", { text: "Try it" }),
    ...[...inputs].map(([one, input]) => make("label", { class: "row" }, make("span", {}, make("code", { text: one.name })), input)),
    examples.length > 1 ? chooser(operation.id, examples, show) : "",
    area ?? "",
    make("div", { class: "bar" },
      make("button", { class: "send-button", text: "Send" }),
      make("button", { class: "ghost-button", type: "button", text: "Copy as curl", on: { click: (event) => copy(event.currentTarget, () => curl(request(operation, inputs, area), token())) } })),
    result);
  if (area) show(examples[0][1].value);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    result.replaceChildren(...(await send(request(operation, inputs, area), token())));
    announce(result.firstElementChild?.textContent ?? "");
  });
  return form;
}

function control(parameter) {
  const schema = parameter.schema;
  const choices = schema.enum ?? (schema.type === "boolean" ? ["true", "false"] : null);
  if (choices) {
    return make("select", {}, make("option", { value: "", text: schema.default === undefined ? "–" : `– (${schema.default})` }), ...choices.map((value) => make("option", { value, text: value })));
  }
  const hint = schema.items?.enum?.join(",") ?? schema.default ?? (schema.format === "date-time" ? "2026-01-02T03:04:05Z" : "");
  return make("input", { type: "text", autocomplete: "off", spellcheck: "false", placeholder: hint, required: parameter.required });
}

function chooser(name, examples, show) {
  return make("div", { class: "segmented", role: "radiogroup", "aria-label": "Example" },
    ...examples.map(([key, example], index) =>
      make("label", { title: example.summary },
        make("input", { type: "radio", name: `example-${name}`, checked: index === 0, on: { change: () => show(example.value) } }),
        make("span", { text: key }))));
}

/** {method, address, headers, body} from what stands in the form; what is empty is left out. */
function request(operation, inputs, area) {
  const query = new URLSearchParams();
  const headers = {};
  let address = operation.path;
  for (const [one, input] of inputs) {
    const value = input.value.trim();
    if (one.in === "path") address = address.replace(`{${one.name}}`, encodeURIComponent(value));
    else if (value && one.in === "query") query.set(one.name, value);
    else if (value) headers[one.name] = value;
  }
  if (area) headers["Content-Type"] = "application/json";
  return { method: operation.method.toUpperCase(), address: query.size ? `${address}?${query}` : address, headers, body: area?.value };
}

async function send({ method, address, headers, body }, token) {
  const begun = performance.now();
  try {
    const answer = await fetch(address, { method, headers: token ? { ...headers, Authorization: `Bearer ${token}` } : headers, body });
    const bytes = await answer.arrayBuffer();
    const took = Math.round(performance.now() - begun);
    return shown(answer, bytes, took);
  } catch (error) {
    return [make("p", { class: "status-pill", dataset: { tone: "bad" }, text: `The server cannot be reached: ${error.message}` })];
  }
}

function shown(answer, bytes, took) {
  const tone = answer.status < 400 ? "good" : "bad";
  const lines = HEADERS.filter((name) => answer.headers.has(name)).map((name) => `${name}: ${answer.headers.get(name)}`);
  const parts = [
    make("p", { class: "bar" },
      make("span", { class: "status-pill", dataset: { tone }, text: `${answer.status} ${answer.statusText}` }),
      make("span", { class: "muted small", text: `${bytes.byteLength.toLocaleString("en")} bytes in ${took} ms` })),
    make("pre", { class: "muted", tabindex: "0", text: lines.join("\n") }),
  ];
  if (bytes.byteLength) parts.push(make("pre", { tabindex: "0", text: readable(answer.headers.get("content-type") ?? "", bytes) }));
  return parts;
}

function readable(type, bytes) {
  if (!/json|text/.test(type)) return "(not text)";
  const text = new TextDecoder().decode(bytes);
  let pretty = text;
  if (type.includes("json")) {
    try {
      pretty = JSON.stringify(JSON.parse(text), null, 2);
    } catch (error) {
      if (!(error instanceof SyntaxError)) throw error;
    }
  }
  return pretty.length > SHOWN ? `${pretty.slice(0, SHOWN)}\n… ${(pretty.length - SHOWN).toLocaleString("en")} more characters` : pretty;
}

/** The request as a command; the token is named and not shown. */
function curl({ method, address, headers, body }, token) {
  const quote = (value) => `'${value.replaceAll("'", "'\\''")}'`;
  const given = token ? { ...headers, Authorization: "Bearer $GYMCAST_TOKEN" } : headers;
  const parts = Object.entries(given).map(([name, value]) => (name === "Authorization" ? `-H "${name}: ${value}"` : `-H ${quote(`${name}: ${value}`)}`));
  if (body !== undefined) parts.push(`-d ${quote(JSON.stringify(tryParse(body)))}`);
  return ["curl", method === "GET" ? "" : `-X ${method}`, ...parts, quote(location.origin + address)].filter(Boolean).join(" ");
}

function tryParse(text) {
  try {
    return JSON.parse(text);
  } catch (error) {
    if (error instanceof SyntaxError) return text;
    throw error;
  }
}

async function copy(button, text) {
  await navigator.clipboard.writeText(text());
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1500);
}
