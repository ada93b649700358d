// Plays footage: the clock, the controls, the list of episodes, the scoreboard and the timeline under the game.

import { ApiError, getJson, paths } from "./api.js";
import { announce, byId, clearNotice, make, notice, setText } from "./dom.js";
import { clock, short } from "./format.js";
import { Footage } from "./footage.js";
import { drawStrip } from "./strip.js";
import { onTheme } from "./theme.js";
import { createView, UnknownViewError } from "./views/index.js";

const HOLD_S = 1.2; // the last picture of an episode stays this long (wall clock) before the next begins
const SEEK_S = 1;
const LONG_SEEK_S = 5;
const MOST_EPISODES = 300;

export class Player {
  /**
   * @param {object} hooks
   * @param {(footage: Footage|null, t: number) => void} hooks.moment called for every picture
   * @param {(replayId: string, t: number) => string} hooks.link address of a moment
   */
  constructor(hooks) {
    this.hooks = hooks;
    this.canvas = byId("game");
    this.scrub = byId("scrub");
    this.reset();
    this.#wire();
    new ResizeObserver(() => this.#paint()).observe(byId("screen"));
    onTheme(() => this.#paint());
    requestAnimationFrame((now) => this.#tick(now));
  }

  /** Forgets everything: another session is shown. */
  reset() {
    this.episodes = []; // oldest first: {replay_id, episode, ...}
    this.broken = new Set(); // replay ids that could not be shown
    this.current = null; // replay_id
    this.footage = null;
    this.view = null;
    this.live = null; // what draws the newest picture of a game that sends no episodes
    this.t = 0;
    this.held = 0;
    this.playing = false;
    this.loading?.abort();
    this.loading = null;
    clearNotice("footage");
    byId("scoreboard").hidden = true;
    setText(byId("stage-episode"), "");
    this.#curtain("Waiting for the first episode of training footage…");
    this.#controls();
  }

  get speed() {
    return 2 ** Number(byId("speed").value);
  }

  get follow() {
    return byId("follow").checked;
  }

  set follow(value) {
    byId("follow").checked = value;
  }

  /** Adds episodes, as listed by the server or announced live; `last` says that no more will come. */
  offer(list, last = false) {
    const known = new Set(this.episodes.map((episode) => episode.replay_id));
    const fresh = list.filter((episode) => !known.has(episode.replay_id));
    this.episodes.push(...fresh);
    this.episodes.sort((a, b) => a.timesteps - b.timesteps || a.episode - b.episode || a.replay_id.localeCompare(b.replay_id));
    if (this.episodes.length > MOST_EPISODES) this.episodes.splice(0, this.episodes.length - MOST_EPISODES);
    const newest = this.#newest();
    if (newest && !this.loading && (!this.current || (!this.view && this.follow && fresh.length))) this.open(newest);
    if (last && !this.episodes.length && !this.current && !this.live) this.#curtain("No footage of this training was kept.");
    this.#controls();
  }

  /** Says what the picture of a trainer of somebody's own depends on, until there is one. */
  expectPictures() {
    if (!this.current && !this.live && !this.episodes.length) {
      this.#curtain("Pictures appear here while you watch, if the environment was made with render_mode=\"rgb_array\".");
    }
  }

  /** Shows how the game looks right now, as long as there is no episode to play. */
  async picture(data) {
    if (this.current || this.episodes.length) return;
    const view = await createView(this.canvas, { view: "pictures", env_id: data.env_id, frames: [{ t: 0, image: data.image }] });
    if (this.current || this.episodes.length) return; // an episode has come meanwhile
    byId("curtain").hidden = true;
    this.live = view;
    this.canvas.dataset.picture = String(data.timesteps);
    setText(byId("stage-episode"), `now · after ${short(data.timesteps)} samples`);
    this.#paint();
  }

  /** Loads an episode and plays it from `t` seconds. */
  async open(replayId, { t = 0, play = true } = {}) {
    this.loading?.abort();
    const loading = new AbortController();
    this.loading = loading;
    this.current = replayId;
    this.#controls();
    if (!this.view) this.#curtain("Fetching the episode…");
    try {
      const data = await getJson(paths.frames(replayId), loading.signal);
      const footage = new Footage(replayId, data);
      const view = await createView(this.canvas, data);
      if (loading.signal.aborted) return;
      this.#show(footage, view, t, play);
    } catch (failure) {
      this.#failed(failure);
    } finally {
      if (this.loading === loading) this.loading = null;
    }
  }

  #show(footage, view, t, play) {
    this.footage = footage;
    this.view = view;
    this.t = Math.min(t, view.duration);
    this.held = 0;
    this.playing = play;
    clearNotice("footage");
    byId("curtain").hidden = true;
    this.canvas.dataset.replay = footage.id;
    this.scrub.max = String(view.duration);
    setText(byId("stage-episode"), footage.caption(this.episodes.find((episode) => episode.replay_id === footage.id)));
    const board = view.board(0);
    byId("scoreboard").hidden = !board;
    if (board) buildBoard(board);
    this.#controls();
    this.#paint();
  }

  #failed(failure) {
    if (failure.name === "AbortError") return;
    this.broken.add(this.current);
    if (failure instanceof UnknownViewError) {
      this.footage = null;
      this.view = null;
      this.#curtain(failure.message);
    } else if (failure instanceof ApiError) {
      if (!this.view) this.#curtain(failure.status === 409 ? failure.message : "This episode could not be shown.");
      notice("footage", `The footage could not be fetched. ${failure.message}`);
    } else {
      throw failure;
    }
    // What was shown before goes on.
    this.current = this.footage?.id ?? this.current;
    this.playing = this.playing && this.view !== null;
    this.#controls();
  }

  #curtain(text) {
    setText(byId("curtain-text"), text);
    byId("curtain").hidden = false;
  }

  #wire() {
    byId("play").addEventListener("click", () => this.toggle());
    byId("previous").addEventListener("click", () => this.step(-1));
    byId("next").addEventListener("click", () => this.step(1));
    byId("share").addEventListener("click", () => this.#share());
    byId("speed").addEventListener("input", () => this.#speedText());
    byId("follow").addEventListener("change", () => this.#followChanged());
    this.scrub.addEventListener("input", () => this.seek(Number(this.scrub.value)));
    document.addEventListener("keydown", (event) => this.#key(event));
    this.#speedText();
  }

  #speedText() {
    const text = `${Number(this.speed.toFixed(2))}×`;
    setText(byId("speed-text"), text);
    byId("speed").setAttribute("aria-valuetext", `${Number(this.speed.toFixed(2))} times`);
  }

  #followChanged() {
    const newest = this.#newest();
    if (this.follow && newest && newest !== this.current) this.open(newest);
  }

  /** Id of the newest episode that can be shown. */
  #newest() {
    return this.episodes.findLast((episode) => !this.broken.has(episode.replay_id))?.replay_id;
  }

  #key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey || !this.view) return;
    const target = event.target;
    const ownKeys = target.matches?.("input:not(#scrub), select, textarea, .table-scroll");
    if (event.key === " " && !ownKeys && !target.matches?.("button, a")) {
      event.preventDefault();
      this.toggle();
    } else if ((event.key === "ArrowLeft" || event.key === "ArrowRight") && !ownKeys) {
      event.preventDefault();
      const by = event.shiftKey ? LONG_SEEK_S : SEEK_S;
      this.seek(this.t + (event.key === "ArrowLeft" ? -by : by));
    }
  }

  toggle() {
    if (!this.view) return;
    this.playing = !this.playing;
    if (this.playing && this.t >= this.view.duration) this.t = 0;
    this.held = 0;
    this.#controls();
    announce(this.playing ? "Playing" : `Paused at ${clock(this.t)}. ${this.view.describe(this.t)}`);
  }

  /** Jumps to t seconds of the episode. */
  seek(t) {
    if (!this.view) return;
    this.t = Math.min(this.view.duration, Math.max(0, t));
    this.held = 0;
    this.#paint();
  }

  /** Goes to the episode before (-1) or after (1) this one. */
  step(by) {
    const target = this.episodes[this.#place() + by];
    if (!target) return;
    if (by < 0) this.follow = false;
    this.open(target.replay_id);
  }

  #place() {
    return this.episodes.findIndex((episode) => episode.replay_id === this.current);
  }

  async #share() {
    const hash = this.hooks.link(this.footage.id, this.t);
    history.replaceState(null, "", hash);
    try {
      await navigator.clipboard.writeText(location.href);
      notice("share", "Link to this moment copied.", "info");
    } catch (refused) {
      // Browsers keep the clipboard to themselves on plain http and without permission.
      if (!(refused instanceof DOMException || refused instanceof TypeError)) throw refused;
      notice("share", "The address bar now holds the link to this moment.", "info");
    }
  }

  #controls() {
    const place = this.#place();
    const play = byId("play");
    play.dataset.playing = String(this.playing);
    play.setAttribute("aria-label", this.playing ? "Pause" : "Play");
    play.disabled = !this.view;
    byId("share").disabled = !this.view;
    this.scrub.disabled = !this.view;
    byId("previous").disabled = place <= 0;
    byId("next").disabled = place < 0 || place >= this.episodes.length - 1;
  }

  #tick(now) {
    const elapsed = Math.min(0.1, (now - (this.before ?? now)) / 1000);
    this.before = now;
    if (this.playing && this.view) this.#advance(elapsed);
    requestAnimationFrame((next) => this.#tick(next));
  }

  #advance(elapsed) {
    if (this.t < this.view.duration) {
      this.t = Math.min(this.view.duration, this.t + elapsed * this.speed);
      this.#paint();
      return;
    }
    this.held += elapsed;
    if (this.held < HOLD_S || this.loading) return;
    const newest = this.#newest();
    if (this.follow && newest && newest !== this.current) this.open(newest);
    else this.seek(0);
  }

  #paint() {
    const { view, footage, t } = this;
    if (!view && this.live) {
      this.live.draw(0);
      return;
    }
    this.hooks.moment(footage, t);
    if (!view || !this.canvas.clientWidth) return;
    view.draw(t);
    drawStrip(byId("value-strip"), footage, view, t);
    this.scrub.value = String(t);
    this.canvas.dataset.t = t.toFixed(3);
    const text = `${clock(t)} / ${clock(view.duration)}`;
    if (byId("time").textContent !== text) {
      setText(byId("time"), text);
      this.scrub.setAttribute("aria-valuetext", `${clock(t)} of ${clock(view.duration)}`);
      this.canvas.setAttribute("aria-label", view.describe(t));
    }
    const board = view.board(t);
    if (board) updateBoard(board);
  }
}

function buildBoard(board) {
  byId("score-players").replaceChildren(
    ...board.players.map((player) =>
      make(
        "li",
        { class: "score", dataset: { seat: player.seat } },
        make("i", { class: "score-swatch", "aria-hidden": "true" }),
        make("span", { class: "score-name", text: player.name, title: player.name }),
        make("span", { class: "score-kills", role: "img" }, ...Array.from({ length: Math.min(board.target, 12) }, () => make("i"))),
        make("span", { class: "score-state" }),
      ),
    ),
  );
}

function updateBoard(board) {
  board.players.forEach((player, index) => {
    const item = byId("score-players").children[index];
    const kills = item.querySelector(".score-kills");
    const label = `${player.kills} of ${board.target} kills`;
    if (kills.getAttribute("aria-label") !== label) {
      kills.setAttribute("aria-label", label);
      [...kills.children].forEach((dot, at) => (dot.dataset.on = String(at < player.kills)));
    }
    setText(item.querySelector(".score-state"), player.state);
  });
  setText(byId("clock"), `${clock(board.time)}${board.limit ? ` / ${clock(board.limit)}` : ""}`);
}
