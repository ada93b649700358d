// Graphs that a trainer sends by itself (graph_update). Those that only repeat what the readings hold are left out.

import { short } from "./format.js";
import { millis } from "./series.js";

const COLOURS = ["--series-2", "--series-3", "--series-4", "--series-1"];
const AXIS = { key: "seconds", clock: true };

export class Graphs {
  /** @param {import("./charts.js").Charts} charts */
  constructor(charts) {
    this.charts = charts;
    this.reset();
  }

  reset() {
    this.graphs = new Map(); // id -> {metrics, rows: Map of time (ms) -> row}
    this.charts.removeGraphs();
  }

  /** Adds the points of one message; `known` tells whether the readings have a metric. */
  add(data, known) {
    if (data.metrics.every((metric) => known(metric) || this.charts.has(metric))) return;
    const graph = this.graphs.get(data.graph_id) ?? { rows: new Map() };
    this.graphs.set(data.graph_id, graph);
    for (const [metric, points] of Object.entries(data.data_points)) {
      for (const { timestamp, value } of points) {
        const at = millis(timestamp);
        const row = graph.rows.get(at) ?? {};
        if (value !== null) row[metric] = value;
        graph.rows.set(at, row);
      }
    }
    this.#show(data, graph);
  }

  #show(data, graph) {
    const times = [...graph.rows.keys()].sort((a, b) => a - b).slice(-(data.max_points ?? 1000));
    graph.rows = new Map(times.map((at) => [at, graph.rows.get(at)]));
    const points = times.map((at) => ({ seconds: (at - times[0]) / 1000, ...graph.rows.get(at) }));
    const lines = data.metrics.map((key, index) => ({ key, name: key, colour: COLOURS[index % COLOURS.length], width: 1.8 }));
    this.charts.showGraph({ id: `graph-${data.graph_id}`, title: data.title, format: short, ticks: ".3~g", axis: AXIS, lines }, points);
  }
}
