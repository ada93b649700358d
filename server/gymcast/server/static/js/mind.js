// What the bot considers: action probabilities per group, its aim as a rose, and the value it expects.

import { byId, make, makeSvg, setText } from "./dom.js";
import { clock, fixed, percent, words } from "./format.js";

const COMPASS = ["E", "ESE", "SE", "SSE", "S", "SSW", "SW", "WSW", "W", "WNW", "NW", "NNW", "N", "NNE", "NE", "ENE"];
const MOST_BARS = 9;
const ROSE_RADIUS = 84;

const WAITING = "Action probabilities appear here as soon as the bot plays.";
const NOT_KEPT = "What the bot considered was kept for footage only, not for every episode.";

export class Mind {
  constructor() {
    this.rows = new Map(); // "group\nlabel" -> bar row
    this.layoutKey = "";
    this.rose = null;
    this.clear();
  }

  clear() {
    this.shown = null;
    this.layoutKey = "";
    this.rows.clear();
    byId("mind-groups").replaceChildren();
    byId("mind-rose").hidden = true;
    byId("mind-empty").hidden = false;
    setText(byId("mind-empty"), WAITING);
    for (const id of ["mind-value", "mind-confidence", "mind-action"]) setText(byId(id), "–");
    setText(byId("mind-moment"), "");
  }

  /** A decision in step with the footage, t in seconds. */
  showAt(decision, t) {
    if (!decision || decision === this.shown) return;
    this.show(decision, `at ${clock(t)}`);
  }

  /** Says that nothing is known of an episode's decisions. */
  showNone() {
    if (this.shown === NOT_KEPT) return;
    this.clear();
    this.shown = NOT_KEPT;
    setText(byId("mind-empty"), NOT_KEPT);
  }

  /** Any decision; `moment` says when it was made. */
  show(decision, moment) {
    this.shown = decision;
    byId("mind-empty").hidden = true;
    setText(byId("mind-moment"), moment);
    setText(byId("mind-value"), fixed(decision.state_values, 2));
    setText(byId("mind-confidence"), confidence(decision));
    setText(byId("mind-action"), words(decision.selected_action ?? "–"));
    const { rose, groups } = arrange(decision);
    this.#layout(groups);
    const chosen = chosenLabels(decision, rose ? { ...groups, [rose.name]: rose.values } : groups);
    for (const [group, values] of Object.entries(groups)) {
      for (const [label, value] of Object.entries(values)) this.#bar(group, label, value, chosen.has(`${group}\n${label}`));
    }
    byId("mind-rose").hidden = !rose;
    if (rose) this.#petals(rose, chosen);
  }

  #layout(groups) {
    const key = JSON.stringify(Object.entries(groups).map(([group, values]) => [group, Object.keys(values)]));
    if (key === this.layoutKey) return;
    this.layoutKey = key;
    this.rows.clear();
    byId("mind-groups").replaceChildren(
      // Continuous actions have no probabilities to show.
      ...Object.entries(groups).filter(([, values]) => Object.keys(values).length).map(([group, values]) =>
        make("div", { class: "group", role: "group", "aria-label": words(group) }, make("span", { class: "group-name", text: words(group) }), ...Object.keys(values).map((label) => this.#row(group, label))),
      ),
    );
  }

  #row(group, label) {
    const fill = make("span");
    const value = make("span", { class: "bar-value" });
    const row = make("div", { class: "bar-row" }, make("span", { class: "bar-label", text: words(label), title: words(label) }), make("div", { class: "bar", "aria-hidden": "true" }, fill), value);
    this.rows.set(`${group}\n${label}`, { row, fill, value });
    return row;
  }

  #bar(group, label, value, on) {
    const bar = this.rows.get(`${group}\n${label}`);
    bar.fill.style.transform = `scaleX(${Math.min(1, value).toFixed(4)})`;
    setText(bar.value, percent(value * 100, value >= 0.0995 ? 0 : 1));
    bar.row.dataset.on = String(on);
  }

  #petals({ name, values }, chosen) {
    this.rose ??= buildRose();
    const largest = Math.max(...COMPASS.map((label) => values[label] ?? 0), 1e-9);
    let best = COMPASS[0];
    COMPASS.forEach((label, index) => {
      const value = values[label] ?? 0;
      const petal = this.rose.petals[index];
      // The area of a petal, not its length, stands for the probability.
      petal.setAttribute("d", petalPath(index, 12 + (ROSE_RADIUS - 12) * Math.sqrt(value / largest)));
      petal.dataset.on = String(chosen.has(`${name}\n${label}`));
      if (value > (values[best] ?? 0)) best = label;
    });
    this.rose.svg.setAttribute("aria-label", `Aim: most likely ${best}, ${percent((values[best] ?? 0) * 100, 0)}`);
  }
}

/** Splits the groups into the compass rose, if one group is a compass, and bars for the rest. */
function arrange(decision) {
  const groups = decision.groups && Object.keys(decision.groups).length ? decision.groups : { actions: decision.action_probabilities ?? {} };
  let rose = null;
  const bars = {};
  for (const [name, values] of Object.entries(groups)) {
    const labels = Object.keys(values);
    if (!rose && labels.length === COMPASS.length && labels.every((label) => COMPASS.includes(label))) rose = { name, values };
    else bars[name] = labels.length > MOST_BARS ? largestFirst(values) : values;
  }
  return { rose, groups: bars };
}

function largestFirst(values) {
  return Object.fromEntries(Object.entries(values).sort(([, a], [, b]) => b - a).slice(0, MOST_BARS));
}

/** The labels of the selected action per group: "right + jump + hold + NE" names one label per group, in order. */
function chosenParts(decision) {
  const names = Object.keys(decision.groups ?? {});
  const parts = String(decision.selected_action ?? "").split(" + ");
  const fits = names.length > 0 && parts.length === names.length && names.every((name, index) => parts[index] in decision.groups[name]);
  return fits ? names.map((name, index) => [name, parts[index]]) : null;
}

/** The same as "group\nlabel", for a single list of actions too. */
function chosenLabels(decision, groups) {
  const parts = chosenParts(decision) ?? Object.keys(groups).map((name) => [name, decision.selected_action]);
  return new Set(parts.map(([name, label]) => `${name}\n${label}`));
}

/** How likely the selected action was; groups are drawn independently of each other, so their probabilities multiply. */
function confidence(decision) {
  const parts = chosenParts(decision);
  const likely =
    decision.confidence_score ??
    decision.action_probabilities?.[decision.selected_action] ??
    parts?.reduce((product, [name, label]) => product * decision.groups[name][label], 1);
  return typeof likely === "number" ? percent(likely * 100, likely < 0.001 ? 2 : likely < 0.1 ? 1 : 0) : "–";
}

function buildRose() {
  const rings = [0.5, 1].map((part) => makeSvg("circle", { class: "ring", r: 12 + (ROSE_RADIUS - 12) * Math.sqrt(part) }));
  const petals = COMPASS.map(() => makeSvg("path", { class: "petal" }));
  const labels = [["up", 0, -97], ["right", 108, 0], ["down", 0, 97], ["left", -105, 0]].map(([text, x, y]) => makeSvg("text", { x, y }, text));
  const svg = makeSvg("svg", { viewBox: "-124 -106 248 212", role: "img" }, ...rings, ...petals, makeSvg("circle", { class: "hub", r: 9 }), ...labels);
  byId("mind-rose").replaceChildren(svg);
  return { svg, petals };
}

function petalPath(index, radius) {
  const middle = (index / COMPASS.length) * Math.PI * 2;
  const half = (Math.PI / COMPASS.length) * 0.86;
  const point = (angle, r) => `${(Math.cos(angle) * r).toFixed(2)} ${(Math.sin(angle) * r).toFixed(2)}`;
  return `M${point(middle - half, 9)}L${point(middle - half, radius)}A${radius} ${radius} 0 0 1 ${point(middle + half, radius)}L${point(middle + half, 9)}Z`;
}
