// The list of sessions at the side, newest first.

import { ApiError, getJson, paths } from "./api.js";
import { byId, clearNotice, make, notice, setText } from "./dom.js";
import { ago, moment, percent, short, words } from "./format.js";
import { sessionHash } from "./router.js";
import { guestRoom } from "./signin.js";

const POLL_MS = 2500;

const TONES = {
  running: "live",
  starting: "live",
  stopping: "warn",
  queued: "warn",
  paused: "warn",
  retrying: "warn",
  completed: "good",
  failed: "bad",
  cancelled: "",
};

/** Statuses after which nothing more comes. */
export const FINAL = new Set(["completed", "failed", "cancelled"]);

/** Colour family of a status. */
export const tone = (status) => TONES[status] ?? "";

/** What to call a session: its trainer's name for it, else its game and when it was started. */
export function sessionName(info) {
  const name = info.training_session_id;
  if (name && name !== info.session_id) return name;
  return [shortEnv(info) || "Training", moment(info.created_at)].filter(Boolean).join(", ");
}

/** "ppo" -> "PPO", "maskable_ppo" -> "Maskable PPO"; "" until it is chosen; other names as they are. */
export function algorithmName(info) {
  const short = { ppo: "PPO", a2c: "A2C", trpo: "TRPO", dqn: "DQN", qrdqn: "QR-DQN", sac: "SAC", td3: "TD3", ars: "ARS" };
  const name = info.algorithm ?? "";
  const [, words, last] = /^((?:maskable_|recurrent_)*)(.*)$/.exec(name);
  if (name === "auto" || !Object.hasOwn(short, last)) return name === "auto" ? "" : name;
  return `${words.replace("_", " ").replace("_", " ").replace(/^./, (letter) => letter.toUpperCase())}${short[last]}`;
}

/** The game of a session, "" if it does not say. */
export const sessionEnv = (info) => info.config?.env_id ?? info.env_id ?? "";

/** "gymcast/Archers-v0" -> "Archers". */
export const shortEnv = (info) => sessionEnv(info).replace(/^.*\//, "").replace(/-v\d+$/, "");

export class SessionList {
  /** @param {(sessions: object[]) => void} changed called with the list, newest first, after each reading */
  constructor(changed) {
    this.changed = changed;
    this.sessions = [];
    this.older = [];
    this.cursor = null;
    this.polling = false;
    this.selected = null;
    this.live = new Map(); // session id -> newer facts than the last poll
    this.list = byId("session-list");
    byId("sessions-more").addEventListener("click", () => this.#loadOlder());
    document.addEventListener("visibilitychange", () => document.hidden || this.poll());
  }

  start() {
    this.poll();
    setInterval(() => document.hidden || this.poll(), POLL_MS);
  }

  async poll() {
    if (this.polling) return; // such as while the visitor signs in
    if (guestRoom() !== null) {
      // The guest of a room sees its session only.
      [this.sessions, this.older, this.cursor] = [[], [], null];
      this.render();
      return;
    }
    this.polling = true;
    try {
      const page = await getJson(paths.sessions());
      this.sessions = page.sessions ?? page.items ?? [];
      if (!this.older.length) this.cursor = page.next_cursor ?? null;
      this.live.clear();
      clearNotice("sessions");
      this.render();
      this.changed(this.all());
    } catch (failure) {
      if (!(failure instanceof ApiError)) throw failure;
      notice("sessions", `The list of sessions could not be read. ${failure.message} Trying again.`);
    } finally {
      this.polling = false;
    }
  }

  async #loadOlder() {
    try {
      const page = await getJson(paths.sessions(this.cursor));
      this.older.push(...(page.sessions ?? page.items ?? []));
      this.cursor = page.next_cursor ?? null;
      this.render();
    } catch (failure) {
      if (!(failure instanceof ApiError)) throw failure;
      notice("sessions", `Older sessions could not be read. ${failure.message}`);
    }
  }

  /** All known sessions, newest first. */
  all() {
    const seen = new Set();
    const every = [...this.sessions, ...this.older].filter((info) => !seen.has(info.session_id) && seen.add(info.session_id));
    return every.sort((a, b) => String(b.created_at).localeCompare(String(a.created_at)) || b.session_id.localeCompare(a.session_id));
  }

  /** Facts of one session that the live connection knows earlier than the list. */
  update(id, facts) {
    this.live.set(id, { ...this.live.get(id), ...facts });
    this.render();
  }

  select(id) {
    this.selected = id;
    this.render();
  }

  render() {
    const sessions = this.all();
    while (this.list.children.length > sessions.length) this.list.lastChild.remove();
    sessions.forEach((info, index) => {
      const item = this.list.children[index] ?? this.list.appendChild(card());
      paint(item.firstChild, { ...info, ...this.live.get(info.session_id) }, info.session_id === this.selected);
    });
    setText(byId("drawer-count"), sessions.length ? String(sessions.length) : "");
    byId("sessions-more").hidden = !this.cursor;
    byId("sessions-title").hidden = !sessions.length;
  }
}

function card() {
  const top = make("span", { class: "card-top" }, make("i", { class: "card-dot", "aria-hidden": "true" }), make("span", { class: "card-name" }), make("span", { class: "card-win" }));
  const progress = make("span", { class: "card-progress", "aria-hidden": "true" }, make("span"));
  return make("li", {}, make("a", { class: "session-card" }, top, make("span", { class: "card-facts" }), progress));
}

function paint(link, info, selected) {
  link.href = sessionHash(info.session_id);
  if (selected) link.setAttribute("aria-current", "true");
  else link.removeAttribute("aria-current");
  const win = info.win_rate ?? info.last_metrics?.win_rate;
  const when = info.status === "running" ? `${short(info.current_episode)} episodes` : ago(info.end_time ?? info.created_at);
  const facts = [[shortEnv(info), algorithmName(info)], [words(info.status), when]].map((line) => line.filter(Boolean).join(" · "));
  link.title = sessionName(info);
  link.querySelector(".card-dot").dataset.tone = tone(info.status);
  setText(link.querySelector(".card-name"), sessionName(info));
  setText(link.querySelector(".card-win"), typeof win === "number" ? percent(win, 0) : "");
  link.querySelector(".card-win").title = "win rate";
  setText(link.querySelector(".card-facts"), facts.join("\n"));
  const bar = link.querySelector(".card-progress");
  bar.hidden = FINAL.has(info.status) || typeof info.progress !== "number";
  bar.firstChild.style.transform = `scaleX(${info.progress ?? 0})`;
}
