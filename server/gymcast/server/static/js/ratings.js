// The ladders: who plays how well, a panel for each game, with error bars on one scale.

import { ApiError, getJson, paths } from "./api.js";
import { byId, clearNotice, make, makeSvg, notice } from "./dom.js";
import { fixed, whole, words } from "./format.js";
import { sessionHash } from "./router.js";
import { sessionName } from "./sessions.js";
import { table } from "./tables.js";

const POLL_MS = 10_000;
const LEAST_SPAN = 200; // rating points
const STEPS = [25, 50, 100, 200, 500, 1000, 2000];
const MOST_TICKS = 5;
const COMMAND = "gymcast train archers";

export class Ratings {
  /** @param {object} page see main.js */
  constructor(page) {
    this.page = page;
    this.stopper = null;
    this.ladders = null; // as the server sent them
    this.shown = "";
  }

  /** Shows the ladders until `hide`, and reads them anew now and then. */
  show() {
    if (this.stopper) return;
    this.page.close();
    byId("ratings-link").setAttribute("aria-current", "page");
    this.stopper = new AbortController();
    this.timer = setInterval(() => document.hidden || this.#load(), POLL_MS);
    this.#load();
  }

  hide() {
    this.stopper?.abort();
    this.stopper = null;
    this.ladders = null;
    this.shown = "";
    clearInterval(this.timer);
    clearNotice("ratings");
    byId("ratings").hidden = true;
    byId("ratings-link").removeAttribute("aria-current");
  }

  async #load() {
    const { signal } = this.stopper;
    try {
      const { ladders } = await getJson(paths.ratings(), signal);
      clearNotice("ratings");
      this.ladders = ladders;
      this.draw();
    } catch (failure) {
      if (failure.name === "AbortError") return;
      if (!(failure instanceof ApiError)) throw failure;
      if (!signal.aborted) notice("ratings", `The ratings could not be read. ${failure.message}`);
    }
  }

  /** Draws the ladders, unless they stand there as they are; the list of sessions knows the bots' names. */
  draw() {
    const { ladders } = this;
    if (!this.stopper || ladders === null) return;
    const names = ladders.flatMap((ladder) => ladder.players.map((player) => this.#name(player)));
    const shown = JSON.stringify([ladders, names]);
    if (shown === this.shown) return;
    this.shown = shown;
    byId("ratings").hidden = ladders.length === 0;
    byId("empty").hidden = true;
    if (ladders.length) byId("ladders").replaceChildren(...ladders.map((ladder, index) => this.#panel(ladder, index)));
    else this.page.showEmpty("No ratings yet", "They come from games against scripted opponents, which a training plays when it ends.", COMMAND);
    document.title = "Ratings · gymcast";
  }

  #panel(ladder, index) {
    const id = `ladder-${index}`;
    const scale = scaleOf(ladder);
    const head = ["#", "Player", "Rating", axis(scale), "95 % interval", "Games", "Won, drawn, lost"];
    const rows = ladder.players.map((player, place) => [
      player.rating === null ? "–" : String(place + 1),
      this.#player(player),
      make("strong", { text: fixed(player.rating, 0) }),
      bar(player, scale),
      interval(player),
      whole(player.games),
      [player.wins, player.draws, player.losses].map(whole).join(" / "),
    ]);
    const heading = make("h2", { id, text: ladder.env_id });
    const facts = make("p", { class: "muted", text: `${words(ladder.anchor)} is fixed at ${whole(ladder.anchor_rating)}` });
    const scroll = make("div", { class: "table-scroll", tabindex: "0", role: "region", "aria-labelledby": id }, table(head, [0, 2, 4, 5, 6], rows));
    const panel = make("section", { class: "panel ladder", "aria-labelledby": id }, make("header", { class: "stage-head" }, heading, facts), scroll);
    if (ladder.players.some((player) => player.rating === null)) {
      panel.append(make("p", { class: "muted small", text: `Without a rating: no games connect this bot to ${words(ladder.anchor)}.` }));
    }
    return panel;
  }

  #name(player) {
    const info = player.session_id && this.page.list.all().find((session) => session.session_id === player.session_id);
    if (info) return sessionName(info);
    return player.session_id === null ? words(player.name) : player.name;
  }

  #player(player) {
    const name = this.#name(player);
    if (player.session_id === null) return make("span", { class: "player" }, make("span", { text: name }), make("span", { class: "chip", text: "scripted" }));
    return make("span", { class: "player" }, make("a", { href: sessionHash(player.session_id), title: name, text: name }));
  }
}

/** What the error bars of a ladder are drawn on: ratings as percent of the width, and round values between. */
function scaleOf(ladder) {
  const ends = ladder.players.filter((player) => player.rating !== null).flatMap((player) => [player.ci_low, player.ci_high]);
  const middle = (Math.min(...ends) + Math.max(...ends)) / 2;
  const span = 1.1 * Math.max(LEAST_SPAN, Math.max(...ends) - Math.min(...ends));
  const low = middle - span / 2;
  const step = STEPS.find((size) => span / size <= MOST_TICKS) ?? STEPS.at(-1) * Math.ceil(span / STEPS.at(-1) / MOST_TICKS);
  const ticks = [];
  for (let tick = Math.ceil(low / step) * step; tick < low + span; tick += step) ticks.push(tick);
  return { at: (rating) => `${(100 * (rating - low)) / span}%`, ticks, anchor: ladder.anchor_rating };
}

function axis({ at, ticks, anchor }) {
  const labels = ticks.map((tick) => makeSvg("text", { class: tick === anchor ? "anchor" : null, x: at(tick), y: "14" }, String(tick)));
  const drawn = makeSvg("svg", { class: "error-axis", "aria-hidden": "true" }, ...labels);
  return make("span", {}, make("span", { class: "visually-hidden", text: "Drawn" }), drawn);
}

function bar(player, { at, ticks, anchor }) {
  const upright = (rating, kind, top, bottom) => makeSvg("line", { class: kind, x1: at(rating), x2: at(rating), y1: top, y2: bottom });
  const drawn = makeSvg("svg", { class: "error-bar", "aria-hidden": "true", "data-kind": player.kind });
  drawn.append(...ticks.map((tick) => upright(tick, "tick", 0, "100%")), upright(anchor, "anchor", 0, "100%"));
  if (player.rating === null) return drawn;
  const range = makeSvg("line", { class: "range", x1: at(player.ci_low), x2: at(player.ci_high), y1: "50%", y2: "50%" });
  const caps = player.standard_error ? [player.ci_low, player.ci_high].map((end) => upright(end, "cap", "32%", "68%")) : [];
  drawn.append(range, ...caps, makeSvg("circle", { cx: at(player.rating), cy: "50%", r: 4 }));
  return drawn;
}

function interval(player) {
  if (player.rating === null) return "–";
  return player.standard_error ? `${fixed(player.ci_low, 0)} – ${fixed(player.ci_high, 0)}` : "fixed";
}
