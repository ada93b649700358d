// Wires the page together: which session is shown follows from the address (see router.js).

import { byId, clearNotice, copyText, notice, setText } from "./dom.js";
import { Charts } from "./charts.js";
import { EpisodeList } from "./episodes.js";
import { Graphs } from "./graphs.js";
import { Mind } from "./mind.js";
import { Overview } from "./overview.js";
import { Player } from "./player.js";
import { Ratings } from "./ratings.js";
import { readHash, replayHash, sessionHash } from "./router.js";
import { Rooms } from "./rooms.js";
import { SessionList } from "./sessions.js";
import { initTheme } from "./theme.js";
import { SessionWatch } from "./watch.js";

const COMMAND = "gymcast train archers";

function reportFailures() {
  const show = (text) => notice("page", `Something went wrong in this page: ${text}`);
  addEventListener("error", (event) => show(event.message));
  addEventListener("unhandledrejection", (event) => show(event.reason?.message ?? String(event.reason)));
}

function initDrawer() {
  const button = byId("drawer-button");
  const list = byId("sessions");
  const open = (value) => {
    list.dataset.open = String(value);
    button.setAttribute("aria-expanded", String(value));
  };
  button.addEventListener("click", () => open(list.dataset.open !== "true"));
  list.addEventListener("click", (event) => event.target.closest("a") && open(false));
}

function initEmpty() {
  byId("empty-copy").addEventListener("click", () => copyText(byId("empty-command").querySelector("code").textContent));
}

class Page {
  constructor() {
    this.watch = null;
    this.overview = new Overview();
    this.charts = new Charts();
    this.graphs = new Graphs(this.charts);
    this.mind = new Mind();
    this.episodes = new EpisodeList(() => this.watch?.gone());
    this.player = new Player({
      moment: (footage, t) => footage && this.#considered(footage, t),
      link: (replay, t) => replayHash(this.watch.id, replay, t),
    });
    this.rooms = new Rooms(this);
    this.ratings = new Ratings(this);
    this.list = new SessionList((sessions) => this.#listed(sessions));
    addEventListener("hashchange", () => this.route());
    this.list.start();
    this.route();
  }

  /** Shows what the address names; without a session, the newest one as soon as the list is there. */
  route() {
    const { session, replay, t, room, open, ratings } = readHash();
    byId("join").hidden = true;
    if (!ratings) this.ratings.hide();
    if (!session && this.rooms.show(room, open)) return;
    if (ratings) {
      this.ratings.show();
      return;
    }
    if (!session) {
      this.#listed(this.list.all());
      return;
    }
    if (this.watch?.id !== session) this.#open(session, replay);
    if (replay) {
      this.player.follow = false;
      this.player.open(replay, { t: t ?? 0, play: t === null });
    }
  }

  /** Shows anew what the address names, to a visitor who is somebody else from now on. */
  restart() {
    this.close();
    this.list.poll();
    this.route();
  }

  /** Shows no session any more. */
  close() {
    this.watch?.close();
    this.watch = null;
    this.player.reset();
    this.list.select(null);
    byId("link-state").dataset.state = "idle";
    setText(byId("viewers"), "");
    byId("session").hidden = true;
    byId("empty").hidden = true;
  }

  #considered(footage, t) {
    if (footage.decisions.length) this.mind.showAt(footage.decisionAt(t), t);
    else this.mind.showNone();
  }

  #open(id, replay) {
    this.watch?.close();
    this.player.reset();
    this.player.follow = !replay;
    this.mind.clear();
    this.episodes.show(id);
    clearNotice("session");
    this.list.select(id);
    byId("empty").hidden = true;
    this.watch = new SessionWatch(id, this);
  }

  #listed(sessions) {
    const { session, room, ratings } = readHash();
    if (ratings) this.ratings.draw();
    if (session || room || ratings) return;
    if (sessions.length) {
      location.replace(sessionHash(sessions[0].session_id));
    } else {
      this.close();
      this.showEmpty("No training yet", "Start one in a terminal. It shows up here by itself.", COMMAND);
    }
  }

  /** Hides the session and says why there is nothing to see, and the command that changes it. */
  showEmpty(title, text, command = null) {
    byId("session").hidden = true;
    byId("empty").hidden = false;
    byId("empty-command").hidden = command === null;
    setText(byId("empty-command").querySelector("code"), command ?? "");
    setText(byId("empty-title"), title);
    setText(byId("empty-text"), text);
    document.title = "gymcast";
  }
}

reportFailures();
initTheme(byId("theme-button"));
initDrawer();
initEmpty();
new Page();
