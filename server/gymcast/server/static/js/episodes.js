// Every episode of a training that was logged on this machine: chosen, ordered, and a link to each.

import { ApiError, getJson, paths } from "./api.js";
import { byId, clearNotice, make, notice } from "./dom.js";
import { clock, fixed, short, whole } from "./format.js";
import { replayLink } from "./router.js";
import { fillTable } from "./tables.js";

const RESULTS = { win: "won", draw: "drawn", loss: "lost" };

export class EpisodeList {
  /** @param {() => void} gone called when the session is not there any more */
  constructor(gone) {
    this.gone = gone;
    this.show(null);
    for (const id of ["episode-order", "episode-outcome"]) byId(id).addEventListener("change", () => this.refresh());
    byId("episode-more").addEventListener("click", () => this.#load(this.cursor));
  }

  /** Shows the log of a session, or nothing for null. */
  show(session) {
    this.session = session;
    this.stop();
    this.rows = [];
    this.cursor = null;
    byId("episodes").hidden = true;
    clearNotice("episodes");
  }

  /** Gives up what is being fetched. */
  stop() {
    this.stopper?.abort();
  }

  /** Fetches the first page anew; `gently`: unless the viewer has opened further pages or chosen something else. */
  refresh(gently = false) {
    const chosen = byId("episode-order").value !== "newest" || this.further;
    if (this.session && !(gently && chosen && this.rows.length)) this.#load(null);
  }

  async #load(cursor) {
    this.stop();
    const stopper = new AbortController();
    this.stopper = stopper;
    const choice = { order: byId("episode-order").value, outcome: byId("episode-outcome").value };
    try {
      const page = await getJson(paths.logged(this.session, choice, cursor), stopper.signal);
      this.rows = cursor ? [...this.rows, ...page.replays] : page.replays;
      this.further = Boolean(cursor);
      this.cursor = page.next_cursor;
      clearNotice("episodes");
      this.#draw(choice);
    } catch (failure) {
      if (failure.name === "AbortError") return;
      if (!(failure instanceof ApiError)) throw failure;
      if (failure.status === 404) this.gone();
      else notice("episodes", `The list of episodes could not be read. ${failure.message}`);
    }
  }

  #draw({ outcome }) {
    // A session without a log has no such list; one whose choice is empty has an empty one.
    byId("episodes").hidden = !this.rows.length && !outcome;
    byId("episode-more").hidden = !this.cursor;
    const head = ["Episode", "Result", "Return", "Length", "Kills : deaths", "After samples", ""];
    fillTable("episodes-body", head, [2, 3, 4, 5], this.rows.map((row) => this.#cells(row)));
  }

  #cells(row) {
    const name = `lane ${row.lane}, no. ${row.episode + 1}`;
    const length = row.seconds === null ? whole(row.length) : clock(row.seconds);
    const kills = row.kills === null ? "–" : `${row.kills} : ${row.deaths}`;
    const link = make("a", { href: replayLink(this.session, row.replay_id), text: "Watch", "aria-label": `Watch ${name}` });
    return [name, RESULTS[row.outcome] ?? "–", fixed(row.return, 2), length, kills, short(row.timesteps), link];
  }
}
