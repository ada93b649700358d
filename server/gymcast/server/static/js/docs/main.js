// The page of the API: everything on it comes out of /openapi.json.

import { byId, make, notice } from "../dom.js";
import { initTheme } from "../theme.js";
import { operationDetails } from "./operation.js";
import { modelDetails } from "./models.js";
import { rich } from "./text.js";

const METHODS = ["get", "post", "put", "delete"];

/** Operations of the document as {id, method, path, parameters, ...}, in its order. */
function operationsOf(api) {
  return Object.entries(api.paths).flatMap(([path, item]) =>
    METHODS.filter((method) => item[method]).map((method) => ({ ...item[method], id: item[method].operationId, method, path })),
  );
}

function showHead(api) {
  byId("title").textContent = `${api.info.title} API`;
  byId("summary").textContent = `Version ${api.info.version}. ${api.info.summary}`;
  for (const paragraph of api.info.description.split("\n\n")) byId("about").append(make("p", { class: paragraph.length > 400 ? "wide" : null }, ...rich(paragraph)));
  const open = Object.values(api.paths).flatMap(Object.values).every((one) => !one.security?.length || one.security.some((way) => !way.bearer));
  if (!open) byId("token").placeholder = "gymcast token create";
}

function showGroup(tag, operations, api) {
  const id = `group-${tag.name.toLowerCase().replaceAll(" ", "-")}`;
  const list = make("div", { class: "docs-list panel" });
  for (const operation of operations) list.append(operationDetails(operation, api, token));
  byId("groups").append(
    make("section", { class: "docs-group", "aria-labelledby": id },
      make("h2", { class: "docs-group-title", id, text: tag.name }),
      make("p", { class: "muted small", text: tag.description }),
      list),
  );
  byId("contents-list").append(
    make("div", {},
      make("h2", { text: tag.name }),
      ...operations.map((operation) =>
        make("a", { href: `#${operation.id}`, title: `${operation.method.toUpperCase()} ${operation.path}` },
          make("span", { class: "method", dataset: { method: operation.method }, text: operation.method.toUpperCase() }),
          make("span", { text: operation.summary })))),
  );
}

function showModels(api) {
  for (const [name, schema] of Object.entries(api.components.schemas)) byId("models").append(modelDetails(name, schema));
  byId("models-section").hidden = false;
}

function showProblems(api) {
  for (const [address, type] of Object.entries(api["x-problem-types"])) {
    byId("problems").append(
      make("p", { id: `problem-${address.split("/").pop()}` },
        make("b", { text: String(type.status) }),
        make("a", { href: address }, make("code", { text: address })),
        make("span", { text: type.description })),
    );
  }
  byId("problems-section").hidden = false;
}

/** Opens what the address of the page names, and shows it. */
function follow() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (!target) return;
  if (target instanceof HTMLDetailsElement) target.open = true;
  byId("contents").dataset.open = "false";
  byId("drawer-button").setAttribute("aria-expanded", "false");
  target.scrollIntoView();
}

function filter(text) {
  const words = text.trim().toLowerCase();
  for (const link of byId("contents-list").querySelectorAll("a")) {
    link.hidden = !`${link.title} ${link.textContent}`.toLowerCase().includes(words);
  }
  for (const group of byId("contents-list").children) group.hidden = !group.querySelector("a:not([hidden])");
}

function token() {
  return byId("token").value.trim();
}

async function start() {
  initTheme(byId("theme-button"));
  byId("filter").addEventListener("input", (event) => filter(event.target.value));
  byId("drawer-button").addEventListener("click", (event) => {
    const open = byId("contents").dataset.open !== "true";
    byId("contents").dataset.open = String(open);
    event.currentTarget.setAttribute("aria-expanded", String(open));
  });
  const answer = await fetch("/openapi.json");
  if (!answer.ok) throw new Error(`/openapi.json answered ${answer.status}`);
  const api = await answer.json();
  showHead(api);
  const operations = operationsOf(api);
  for (const tag of api.tags) {
    const own = operations.filter((operation) => operation.tags.includes(tag.name));
    if (own.length) showGroup(tag, own, api);
  }
  showModels(api);
  showProblems(api);
  addEventListener("hashchange", follow);
  // A link to where one is already changes nothing in the address, but has to open it again.
  document.addEventListener("click", (event) => {
    const link = event.target.closest?.("a[href^='#']");
    if (link && link.hash === location.hash) follow();
  });
  follow();
  document.documentElement.dataset.ready = "true";
}

start().catch((error) => notice("docs", `The document cannot be shown: ${error.message}.`));
