// Evaluation results and checkpoints, as tables.

import { byId, make } from "./dom.js";
import { ago, bytes, fixed, percent, short, whole, words } from "./format.js";

/** @param {object[]} rows evaluations, newest first; only the newest per opponent is shown, in the order they were played */
export function showEvaluations(rows) {
  const newest = new Map();
  for (const row of rows) if (!newest.has(row.opponent)) newest.set(row.opponent, row);
  byId("evaluations").hidden = newest.size === 0;
  const head = ["Opponent", "Win rate", "95 % interval", "Games", "Won, drawn, lost", "Reward"];
  fillTable("evaluations-body", head, [1, 3, 4, 5], [...newest.values()].reverse().map(evaluationCells));
}

function evaluationCells(row) {
  const known = typeof row.ci_low === "number" && typeof row.ci_high === "number";
  const text = known ? `${row.ci_low.toFixed(1)} – ${row.ci_high.toFixed(1)} %` : "–";
  const cell = make("span", {}, text);
  if (known) cell.append(intervalBar(row));
  return [words(row.opponent) || "none", make("strong", { text: percent(row.win_rate, 1) }), cell, whole(row.games), [row.wins, row.draws, row.losses].map(whole).join(" / "), fixed(row.mean_return, 2)];
}

function intervalBar(row) {
  const bar = make("span", { class: "bar" });
  bar.style.width = `${row.win_rate}%`;
  const whisker = make("span", { class: "whisker" });
  whisker.style.left = `${row.ci_low}%`;
  whisker.style.width = `${Math.max(0, row.ci_high - row.ci_low)}%`;
  return make("span", { class: "interval", "aria-hidden": "true" }, bar, whisker);
}

/** @param {object[]} rows checkpoints, newest first */
export function showCheckpoints(rows) {
  byId("checkpoints").hidden = rows.length === 0;
  fillTable(
    "checkpoints-body",
    ["Written", "Samples", "Why", "Size", "SHA-256"],
    [1, 3],
    rows.slice(0, 8).map((row) => [ago(row.timestamp ?? row.ts), short(row.timesteps), words(row.reason), bytes(row.bytes), make("code", { text: String(row.sha256 ?? "").slice(0, 8), title: row.sha256 ?? "" })]),
  );
}

/** @param {object[]} rows what the training reported to have gone wrong, newest first */
export function showErrors(rows) {
  byId("alarms").hidden = rows.length === 0;
  const after = (row) => (typeof row.detail?.timesteps === "number" ? short(row.detail.timesteps) : "–");
  fillTable("alarms-body", ["When", "After samples", "What"], [1], rows.slice(0, 20).map((row) => [ago(row.timestamp), after(row), row.message]));
}

/** Fills an element with a table, see `table`. */
export function fillTable(id, head, numeric, rows) {
  byId(id).replaceChildren(table(head, numeric, rows));
}

/** A table of texts and elements; columns in `numeric` are set to the right. */
export function table(head, numeric, rows) {
  const side = (index) => (numeric.includes(index) ? "number" : null);
  const header = make("tr", {}, ...head.map((cell, index) => make("th", { scope: "col", class: side(index) }, cell)));
  const body = rows.map((cells) => make("tr", {}, ...cells.map((cell, index) => make("td", { class: side(index) }, cell))));
  return make("table", {}, make("thead", {}, header), make("tbody", {}, ...body));
}
