// The selected session's head: name, status, progress and key figures.

import { byId, make, setText } from "./dom.js";
import { duration, fixed, percent, short, words } from "./format.js";
import { algorithmName, FINAL, sessionEnv, sessionName, tone } from "./sessions.js";

// Each: what it is, its figure, and a line below it. `p` holds the newest readings by name. An optional one is there when
// the readings have its figure: not every game is won, has a clock or a policy with an entropy.
const TILES = [
  { key: "win_rate", optional: true, label: "Win rate", value: (p) => percent(p.win_rate, 1), note: () => "last 1,000 games" },
  { key: "reward", label: "Reward", value: (p) => fixed(p.average_reward, 2), note: (p) => `average, best ${fixed(p.best_reward, 2)}` },
  { key: "episodes", label: "Episodes", value: (p) => short(p.episode), note: (p) => (p.episodes_failed ? `${short(p.episodes_per_minute)}/min, ${short(p.episodes_failed)} failed` : `${short(p.episodes_per_minute)} per minute`) },
  { key: "samples", label: "Samples/s", value: (p) => short(p.samples_per_second ?? p.actions_per_second), note: (p) => `${short(p.timesteps)} in all` },
  { key: "realtime", optional: true, label: "Game speed", value: (p) => times(p.game_seconds_per_second), note: () => "times real time" },
  { key: "entropy", optional: true, label: "Entropy", value: (p) => fixed(p.entropy, 2), note: () => "of the policy" },
];

const times = (value) => (typeof value === "number" ? `${short(value)}×` : "–");

const PHASES = { compiling: "Compiling the game", training: "Training", evaluating: "Evaluating", saving: "Saving" };

export class Overview {
  constructor() {
    this.tiles = new Map();
    for (const { key, label } of TILES) {
      const value = make("span", { text: "–" });
      const note = make("dd", { class: "tile-note" });
      this.tiles.set(key, { value, note });
      const box = make("div", { class: "tile", dataset: { key } }, make("dt", { text: label, title: label }), make("dd", { class: "tile-value" }, value), note);
      this.tiles.get(key).box = box;
      byId("tiles").append(box);
    }
  }

  /** Session facts: the REST session info, brought up to date by status messages. */
  showSession(info) {
    const name = sessionName(info);
    setText(byId("session-title"), name);
    document.title = `${name} · gymcast`;
    const facts = [sessionEnv(info), algorithmName(info), opponent(info), info.model_generation ? `generation ${info.model_generation}` : ""];
    byId("session-title").title = `session ${info.session_id}`;
    setText(byId("session-facts"), facts.filter(Boolean).join(" · "));
    const pill = byId("session-status");
    pill.dataset.tone = tone(info.status);
    setText(pill, words(info.status));
    setText(byId("stage-title"), FINAL.has(info.status) ? "Training footage" : "Live game");
    this.#progress(info);
    const reason = byId("session-reason");
    // Why a training reached its end belongs to the line below the bar; anything else deserves a box.
    const why = info.wait_reason ?? (info.status === "completed" ? null : info.reason);
    reason.hidden = !why;
    reason.dataset.tone = tone(info.status);
    setText(reason, why ?? "");
  }

  #progress(info) {
    const box = byId("progress");
    const over = FINAL.has(info.status);
    const part = Math.min(1, Math.max(0, info.progress ?? 0));
    box.dataset.tone = tone(info.status);
    box.dataset.open = String(!over && !part && !info.total_timesteps && !info.total_episodes);
    byId("progress-bar").style.transform = `scaleX(${part})`;
    byId("progress-track").setAttribute("aria-valuenow", (part * 100).toFixed(0));
    setText(byId("progress-phase"), over ? ended(info, part) : doing(info, part));
    const left = info.eta_seconds;
    setText(byId("progress-eta"), !over && info.phase !== "evaluating" && typeof left === "number" ? `${duration(left)} left` : "");
  }

  /** Key figures from the newest readings. */
  showReadings(points) {
    const known = {};
    // A reading may lack a figure (no update yet): the newest one that has it counts.
    for (let i = points.length - 1; i >= Math.max(0, points.length - 20); i -= 1) {
      for (const [name, value] of Object.entries(points[i])) known[name] ??= value;
    }
    for (const tile of TILES) {
      const { box, value, note } = this.tiles.get(tile.key);
      const text = tile.value(known);
      box.hidden = Boolean(tile.optional) && text === "–" && points.length > 0;
      setText(value, text);
      setText(note, text === "–" ? "" : tile.note(known));
    }
  }
}

function opponent(info) {
  const name = info.config?.env_kwargs?.opponent;
  return typeof name === "string" ? `against ${name}` : "";
}

function doing(info, part) {
  const what = info.status === "running" ? (PHASES[info.phase] ?? "Running") : words(info.status).replace(/^./, (c) => c.toUpperCase());
  const counts = [];
  if (part) counts.push(percent(part * 100, 0));
  if (info.timesteps) counts.push(`${short(info.timesteps)}${info.total_timesteps ? ` of ${short(info.total_timesteps)}` : ""} samples`);
  return [what, ...counts].join(" · ");
}

function ended(info, part) {
  const took = (Date.parse(info.end_time ?? "") - Date.parse(info.start_time ?? "")) / 1000;
  const parts = [words(info.status).replace(/^./, (c) => c.toUpperCase())];
  if (info.status !== "completed") parts.push(percent(part * 100, 0));
  else if (info.reason) parts.push(words(info.reason));
  if (Number.isFinite(took)) parts.push(`took ${duration(took)}`);
  if (info.timesteps) parts.push(`${short(info.timesteps)} samples`);
  return parts.join(" · ");
}
