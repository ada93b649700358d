// Watching one session: its facts, its history, then everything live, each reading once and none left out.
//
// How history and live readings meet: the connection is opened first. What it sends about the past ends with the newest
// reading so far; the history is then asked for up to exactly that reading, and everything later arrives live.

import { ApiError, getJson, paths, socketAddress } from "./api.js";
import { byId, clearNotice, notice, setText } from "./dom.js";
import { LiveLink } from "./live.js";
import { bucket, reading, Series } from "./series.js";
import { FINAL } from "./sessions.js";
import { guestRoom } from "./signin.js";
import { showCheckpoints, showErrors, showEvaluations } from "./tables.js";

const HISTORY_POINTS = 800;
const PATIENCE_MS = 2500; // without a connection for this long, the history is shown on its own

export class SessionWatch {
  /** @param {string} id  @param {object} page see main.js */
  constructor(id, page) {
    this.id = id;
    this.page = page;
    this.info = null;
    this.series = new Series();
    this.historyEnd = null; // time of the reading with which history ends and live readings begin (RFC 3339)
    this.boundary = -Infinity; // the same in milliseconds
    this.known = new Set(); // names of the figures that readings hold
    this.lists = { evaluations: [], checkpoints: [], errors: [] };
    this.alarms = new Set(); // keys of the messages about what the training reports
    this.stopper = new AbortController();
    this.#clear();
    this.#start();
  }

  close() {
    this.stopper.abort();
    this.link?.close();
    clearTimeout(this.patience);
    for (const key of ["history", "lists", "live", ...this.alarms]) clearNotice(key);
  }

  /** Nothing more can be read of this session: said once, whichever request or connection finds it out first. */
  gone(text = "The session was deleted, or its room has ended.") {
    this.stopper.abort();
    this.page.episodes.stop();
    this.link?.close();
    clearTimeout(this.patience);
    byId("link-state").dataset.state = "ended";
    setText(byId("link-text"), "ended");
    notice("live", text, "warning");
  }

  #clear() {
    this.page.charts.show([]);
    this.page.graphs.reset();
    this.page.overview.showReadings([]);
    showEvaluations([]);
    showCheckpoints([]);
    showErrors([]);
    byId("link-state").dataset.state = "idle";
    setText(byId("viewers"), "");
  }

  async #start() {
    const info = await this.#get(paths.session(this.id), "session", "The session could not be read.");
    if (!info) return;
    this.#facts(info);
    byId("session").hidden = false;
    byId("empty").hidden = true;
    this.#loadLists();
    if (info.enable_spectators === false) {
      notice("live", "This session takes no spectators: what is shown is what was stored, and nothing live.", "warning");
      this.#loadHistory(null);
      return;
    }
    this.patience = setTimeout(() => this.#loadHistory(null), PATIENCE_MS);
    this.link = new LiveLink((query) => socketAddress(this.id, query), {
      message: (message) => this.#receive(message),
      state: (state, text) => this.#linkState(state, text),
      gap: () => this.#reload(),
      spectators: (count) => setText(byId("viewers"), count > 1 ? `${count} watching` : ""),
    });
  }

  /** GET that shows its own failure; null if it failed or the session was left meanwhile. */
  async #get(path, key, what) {
    try {
      const answer = await getJson(path, this.stopper.signal);
      clearNotice(key);
      return answer;
    } catch (failure) {
      if (failure.name === "AbortError") return null;
      if (!(failure instanceof ApiError)) throw failure;
      if (key === "session" && failure.status === 404) {
        if (guestRoom() !== null) this.page.showEmpty("This room has ended", "Or it is not for this session. Leave the room to see what else there is.");
        else this.page.showEmpty("No such session", "It may have been deleted, or the link is not complete. Choose another one from the list.");
      } else if (failure.status === 404) {
        this.gone();
      } else {
        notice(key, `${what} ${failure.message}`);
        if (key === "session") this.patience = setTimeout(() => this.#start(), 3000);
      }
      return null;
    }
  }

  #facts(info) {
    this.info = { ...this.info, ...info };
    this.page.overview.showSession(this.info);
    this.page.list.update(this.id, info);
    if (this.lastLink) this.#linkState(...this.lastLink);
    if (FINAL.has(this.info.status)) this.#over();
  }

  /** A finished session sends nothing more, but its last tables may still be on their way. */
  #over() {
    if (this.ended) return;
    this.ended = true;
    setTimeout(() => this.stopper.signal.aborted || this.#loadLists(), 1500);
  }

  #linkState(state, text) {
    this.lastLink = [state, text];
    const box = byId("link-state");
    const over = this.info && FINAL.has(this.info.status);
    box.dataset.state = over ? "ended" : state;
    setText(byId("link-text"), over ? "ended" : text);
    if (state === "reconnecting" && !over) notice("live", "The connection to the server is lost. Trying again; what is shown may be old.", "warning");
    else clearNotice("live");
    if (state === "ended" && !over) this.gone(text);
  }

  /** Readings up to `end` (RFC 3339, included) or all of them. */
  async #loadHistory(end) {
    if (this.historyEnd) return;
    this.historyEnd = end;
    clearTimeout(this.patience);
    const path = paths.history(this.id, HISTORY_POINTS) + (end ? `&end_time=${encodeURIComponent(end)}` : "");
    const history = await this.#get(path, "history", "The history could not be read.");
    if (!history) return;
    this.series.setHistory(history.metrics_data.map((entry) => bucket(entry, end)));
    this.#draw();
  }

  /** After lost messages: everything anew, the connection's snapshot is on its way. */
  #reload() {
    this.historyEnd = null;
    this.series = new Series();
    this.page.graphs.reset();
    this.#loadLists();
  }

  async #loadLists() {
    const what = "The session’s lists could not be read.";
    const answers = ["replays", "evaluations", "checkpoints", "errors"].map((name) => this.#get(paths[name](this.id), "lists", what));
    this.page.episodes.refresh(true);
    const [replays, evaluations, checkpoints, errors] = await Promise.all(answers);
    if (this.stopper.signal.aborted) return;
    if (replays) this.page.player.offer(replays.replays, FINAL.has(this.info.status));
    if (this.info.kind === "external" && !FINAL.has(this.info.status)) this.page.player.expectPictures();
    if (evaluations) this.lists.evaluations = evaluations.evaluations;
    if (checkpoints) this.lists.checkpoints = checkpoints.checkpoints;
    if (errors) this.lists.errors = errors.errors;
    this.#tables();
  }

  #tables() {
    showEvaluations(this.lists.evaluations);
    showCheckpoints(this.lists.checkpoints);
    showErrors(this.lists.errors);
  }

  #draw() {
    this.page.charts.show(this.series.points);
    this.page.overview.showReadings(this.series.points);
    const win = this.series.points.findLast((point) => point.win_rate !== undefined)?.win_rate;
    if (win !== undefined) this.page.list.update(this.id, { win_rate: win });
  }

  #receive({ type, ts, data }) {
    const handler = RECEIVERS[type];
    if (handler) handler(this, data, ts);
  }

  metrics(data) {
    const point = reading(data);
    for (const name of Object.keys(point)) this.known.add(name);
    if (!this.historyEnd) {
      // The first reading of this connection: the history is asked for up to it, and holds it.
      this.boundary = point.ts;
      this.#loadHistory(data.timestamp);
    } else if (point.ts > this.boundary && this.series.add(point)) {
      this.#draw();
    }
  }

  status(data) {
    this.#facts(data);
  }

  decision(data) {
    if (!this.page.player.footage) this.page.mind.show(data, "live");
  }

  footage(data) {
    this.page.player.offer([data]);
    this.page.episodes.refresh(true);
  }

  picture(data) {
    this.page.player.picture(data);
  }

  graph(data) {
    this.page.graphs.add(data, (metric) => this.known.has(metric));
  }

  listed(name, data, ts) {
    const rows = this.lists[name];
    const entry = { timestamp: ts, ...data };
    // It may have come with the list already.
    const same = (row) => Object.keys(data).every((field) => JSON.stringify(row[field]) === JSON.stringify(data[field]));
    if (!rows.some(same)) rows.unshift(entry);
    this.#tables();
  }

  failed(data, ts) {
    this.listed("errors", data, ts);
    // One message for each kind of trouble: a new alarm must not hide another one.
    const key = `training/${data.code}`;
    this.alarms.add(key);
    notice(key, `The training reports: ${data.message ?? data.code}`, "warning");
  }
}

const RECEIVERS = {
  training_metrics: (watch, data) => watch.metrics(data),
  training_status: (watch, data) => watch.status(data),
  bot_decision: (watch, data) => watch.decision(data),
  graph_update: (watch, data) => watch.graph(data),
  frame: (watch, data) => watch.footage(data),
  picture: (watch, data) => watch.picture(data),
  checkpoint: (watch, data, ts) => watch.listed("checkpoints", data, ts),
  evaluation: (watch, data, ts) => watch.listed("evaluations", data, ts),
  error: (watch, data, ts) => watch.failed(data, ts),
};
