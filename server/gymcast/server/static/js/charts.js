// The live charts. plotly is 4.8 MB, so it is loaded after everything else is on the screen.

import { byId, make, makeSvg, notice, setText } from "./dom.js";
import { fine, fixed, percent, short } from "./format.js";
import { cssColour, onTheme } from "./theme.js";

const PLOTLY = "/static/vendor/plotly.min.js";
const REDRAW_MS = 400;

const CHARTS = [
  {
    id: "reward",
    title: "Reward",
    ticks: ".3~g",
    format: (value) => fixed(value, 2),
    lines: [
      { key: "current_reward", name: "current", colour: "--series-quiet", width: 1 },
      { key: "average_reward", name: "average", colour: "--series-1", width: 2.4 },
      { key: "best_reward", name: "best", colour: "--series-3", width: 1.5, dash: "dot" },
    ],
  },
  {
    id: "win-rate",
    title: "Win rate",
    optional: true,
    format: (value) => percent(value, 1),
    range: [0, 100],
    suffix: " %",
    lines: [{ key: "win_rate", name: "last 1,000 games", colour: "--series-1", width: 2.4, area: true }],
  },
  {
    id: "losses",
    title: "Losses",
    ticks: ".3~g",
    format: (value) => fine(value),
    lines: [
      { key: "policy_loss", name: "policy", colour: "--series-2", width: 1.8 },
      { key: "value_loss", name: "value", colour: "--series-3", width: 1.8 },
      { key: "actor_loss", name: "actor", colour: "--series-2", width: 1.8 },
      { key: "critic_loss", name: "critic", colour: "--series-3", width: 1.8 },
      { key: "loss_value", name: "total", colour: "--series-quiet", width: 1.3, onlyWithout: "policy_loss" },
      { key: "entropy", name: "entropy (right)", colour: "--series-4", width: 1.8, dash: "dot", right: true },
    ],
  },
  {
    id: "speed",
    title: "Samples per second",
    format: (value) => short(value),
    zero: true,
    ticks: "~s",
    lines: [
      { key: "samples_per_second", name: "samples/s", colour: "--series-2", width: 2, area: true },
      { key: "actions_per_second", name: "actions/s", colour: "--series-2", width: 2, area: true, onlyWithout: "samples_per_second" },
    ],
  },
];

/** What the horizontal axis can be; `clock` axes are in seconds. */
export const AXES = {
  time: { label: "Time", key: "training_time_elapsed", clock: true },
  samples: { label: "Samples", key: "timesteps" },
  episodes: { label: "Episodes", key: "episode" },
};

let loading = null;

function loadPlotly() {
  loading ??= new Promise((resolve, reject) => {
    const script = make("script", { src: PLOTLY });
    const restore = refuseInlineStyles();
    script.onload = () => {
      restore();
      resolve(window.Plotly);
    };
    script.onerror = () => {
      restore();
      loading = null;
      reject(new Error("The chart library could not be loaded from this server."));
    };
    document.head.append(script);
  });
  return loading;
}

/**
 * While plotly loads, one of its parts (maps, unused here) writes a style sheet into the page, which the content
 * security policy forbids and the console would report. It is dropped before it gets that far.
 */
function refuseInlineStyles() {
  const { head } = document;
  head.appendChild = (node) => (node instanceof HTMLStyleElement ? node : Node.prototype.appendChild.call(head, node));
  return () => delete head.appendChild;
}

export class Charts {
  constructor() {
    this.axis = "time";
    this.due = 0;
    this.visible = new Set();
    this.dirty = new Set();
    this.watcher = new IntersectionObserver((entries) => this.#seen(entries), { rootMargin: "120px" });
    this.own = CHARTS.map((spec) => this.#build(spec));
    this.extra = new Map(); // graph id -> chart
    this.#axisSwitch();
    onTheme(() => this.#all());
    new ResizeObserver(() => this.#all()).observe(byId("charts"));
  }

  get charts() {
    return [...this.own, ...this.extra.values()];
  }

  /** Whether one of the charts of the readings has a line for a metric. */
  has(metric) {
    return this.own.some(({ spec }) => spec.lines.some(({ key }) => key === metric));
  }

  /** Shows these readings (see series.js), in order of time. */
  show(points) {
    for (const chart of this.own) this.#give(chart, points);
    this.#schedule();
  }

  /** Shows a chart of its own for a graph a trainer sends (see graphs.js). */
  showGraph(spec, points) {
    const chart = this.extra.get(spec.id) ?? this.#build(spec);
    this.extra.set(spec.id, chart);
    this.#give(chart, points);
    this.#schedule();
  }

  removeGraphs() {
    for (const chart of this.extra.values()) {
      this.#give(chart, []);
      this.watcher.unobserve(chart.plot);
      this.#empty(chart);
      chart.panel.remove();
    }
    this.extra.clear();
  }

  #give(chart, points) {
    chart.points = points;
    setText(chart.empty, points.length ? "Loading the chart…" : "No readings yet");
    // A game that nobody wins has no win rate, however long it is trained.
    chart.panel.hidden = Boolean(chart.spec.optional) && points.length > 0 && !shownLines(chart.spec, points).length;
    updateLegend(chart);
    this.dirty.add(chart);
  }

  #all() {
    for (const chart of this.charts) this.dirty.add(chart);
    this.#schedule();
  }

  #build(spec) {
    const legend = make("p", { class: "chart-legend" });
    const entries = new Map();
    for (const line of spec.lines) {
      const value = make("b", { text: "" });
      const entry = make("span", { hidden: true }, swatch(line), line.name, " ", value);
      entries.set(line.key, { entry, value });
      legend.append(entry);
    }
    const empty = make("p", { text: "No readings yet" });
    const plot = make("div", { class: "chart-plot", id: `chart-${spec.id}`, role: "img", "aria-label": `${spec.title} over time` }, empty);
    const head = make("header", { class: "chart-head" }, make("h3", { class: "chart-title", text: spec.title }), legend);
    const panel = make("section", { class: "chart panel", "aria-label": spec.title }, head, plot);
    byId("charts").append(panel);
    this.watcher.observe(plot);
    return { spec, entries, plot, empty, panel, points: [], drawn: false };
  }

  #axisSwitch() {
    for (const [key, { label }] of Object.entries(AXES)) {
      const input = make("input", { type: "radio", name: "axis", value: key, checked: key === this.axis, on: { change: () => { this.axis = key; this.#all(); } } });
      byId("axis").append(make("label", {}, input, label));
    }
  }

  #seen(entries) {
    for (const { target, isIntersecting } of entries) {
      if (isIntersecting) this.visible.add(target);
      else this.visible.delete(target);
    }
    this.#schedule();
  }

  #schedule() {
    if (this.due) return;
    this.due = setTimeout(() => {
      this.due = 0;
      this.#draw();
    }, REDRAW_MS);
  }

  async #draw() {
    const due = [...this.dirty].filter((chart) => !chart.drawn || this.visible.has(chart.plot));
    for (const chart of due.filter(({ points }) => !points.length)) this.#empty(chart);
    if (!due.some(({ points }) => points.length)) return;
    try {
      await loadPlotly();
    } catch (failure) {
      notice("plotly", `Charts are missing. ${failure.message}`);
      return;
    }
    for (const chart of due.filter(({ points }) => points.length)) this.#plot(chart);
  }

  #plot(chart) {
    const axis = chart.spec.axis ?? AXES[this.axis];
    this.dirty.delete(chart);
    chart.empty.remove();
    chart.drawn = true;
    chart.plot.dataset.points = String(chart.points.length);
    window.Plotly.react(chart.plot, traces(chart, axis), layout(chart, axis), { displayModeBar: false, scrollZoom: false, doubleClick: false });
  }

  #empty(chart) {
    this.dirty.delete(chart);
    if (chart.drawn) window.Plotly.purge(chart.plot);
    chart.drawn = false;
    delete chart.plot.dataset.points;
    chart.plot.replaceChildren(chart.empty);
  }
}

function swatch(line) {
  const mark = makeSvg("line", { x1: 1, x2: 17, y1: 5, y2: 5, "stroke-width": 3, "stroke-linecap": "round", "stroke-dasharray": line.dash ? "0.1 5" : null });
  mark.style.stroke = `var(${line.colour})`;
  return makeSvg("svg", { viewBox: "0 0 18 10", width: 18, height: 10, "aria-hidden": "true" }, mark);
}

/** The lines that have values; a line that stands in for another is left out when that one is there. */
function shownLines(spec, points) {
  const has = (key) => points.some((point) => point[key] !== undefined);
  return spec.lines.filter((line) => has(line.key) && !(line.onlyWithout && has(line.onlyWithout)));
}

function updateLegend({ spec, entries, plot, points }) {
  const shown = new Set(shownLines(spec, points).map((line) => line.key));
  const parts = [];
  for (const [key, { entry, value }] of entries) {
    entry.hidden = !shown.has(key);
    if (!shown.has(key)) continue;
    const last = points.findLast((point) => point[key] !== undefined);
    setText(value, spec.format(last[key]));
    parts.push(`${spec.lines.find((line) => line.key === key).name} ${spec.format(last[key])}`);
  }
  plot.setAttribute("aria-label", `${spec.title} over time. ${parts.join(", ") || "No readings yet"}.`);
}

function traces({ spec, points }, { key }) {
  return shownLines(spec, points).map((line) => {
    const colour = cssColour(line.colour);
    const valid = points.filter((point) => point[key] !== undefined && point[line.key] !== undefined);
    return {
      type: "scatter",
      mode: valid.length === 1 ? "markers" : "lines",
      name: line.name,
      x: valid.map((point) => point[key]),
      y: valid.map((point) => point[line.key]),
      yaxis: line.right ? "y2" : "y",
      line: { color: colour, width: line.width, dash: line.dash ?? "solid" },
      marker: { color: colour, size: 6 },
      fill: line.area ? "tozeroy" : "none",
      fillcolor: line.area ? `${colour}22` : undefined,
      hovertemplate: `%{y:.4~g}${spec.suffix ?? ""}`,
    };
  });
}

function layout({ spec, plot, points }, axis) {
  const text = cssColour("--muted");
  const grid = cssColour("--grid");
  const common = { gridcolor: grid, zerolinecolor: grid, zerolinewidth: 1, linecolor: "transparent", tickfont: { color: text, size: 11 }, fixedrange: true, automargin: false };
  const right = shownLines(spec, points).some((line) => line.right);
  return {
    width: plot.clientWidth,
    height: plot.clientHeight,
    margin: { l: 46, r: right ? 40 : 12, t: 10, b: 26 },
    paper_bgcolor: "transparent",
    plot_bgcolor: "transparent",
    font: { family: cssColour("--sans"), color: text, size: 11 },
    showlegend: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: cssColour("--panel-2"), bordercolor: cssColour("--line-strong"), font: { color: cssColour("--text"), size: 12 } },
    xaxis: { ...common, showgrid: false, ...ticks(points, axis, plot.clientWidth) },
    yaxis: { ...common, range: spec.range, rangemode: spec.zero ? "tozero" : "normal", ticksuffix: spec.suffix ?? "", nticks: 6, tickformat: spec.ticks ?? "" },
    yaxis2: { ...common, overlaying: "y", side: "right", showgrid: false, tickmode: "auto", nticks: 5, tickformat: ".3~g", visible: right },
  };
}

/** Clock axes get ticks at round minutes; the others plotly's own with k and M. */
function ticks(points, axis, width) {
  if (!axis.clock) return { tickformat: "~s", nticks: Math.max(3, Math.round(width / 90)), tickvals: undefined, ticktext: undefined };
  const values = points.map((point) => point[axis.key]).filter((value) => value !== undefined);
  const low = Math.min(...values);
  const high = Math.max(...values);
  const steps = [1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400];
  const wanted = (high - low) / Math.max(3, width / 80);
  const step = steps.find((candidate) => candidate >= wanted) ?? 86400 * Math.ceil(wanted / 86400);
  const tickvals = [];
  for (let at = Math.ceil(low / step) * step; at <= high; at += step) tickvals.push(at);
  return { tickmode: "array", tickvals, ticktext: tickvals.map(clockText) };
}

function clockText(seconds) {
  const pad = (value) => String(value).padStart(2, "0");
  const [h, m, s] = [Math.floor(seconds / 3600), Math.floor((seconds % 3600) / 60), Math.floor(seconds % 60)];
  return h ? `${h}:${pad(m)}:${pad(s)}` : `${m}:${pad(s)}`;
}
