// Which module draws which kind of footage. A game's frames name their view; a new game adds one line and one module.
//
// A view module exports `createView(canvas, data)`, where `data` is the answer of /api/replays/{id}/frames, and returns
//   duration            seconds of game time
//   draw(t)             draws the moment t (seconds)
//   board(t)            {time, limit, target, players: [{name, seat, kills, state}]} for the scoreboard, or null
//   marks               [{t, seat, label}] moments worth a mark on the timeline
//   describe(t)         one sentence for people who do not see the canvas

const VIEWS = {
  archers: () => import("./archers.js"),
  pictures: () => import("./pictures.js"),
};

/** Thrown for footage this page cannot draw. */
export class UnknownViewError extends Error {}

/** @returns {Promise<object>} the view of this footage on this canvas */
export async function createView(canvas, data) {
  const load = Object.hasOwn(VIEWS, data.view) ? VIEWS[data.view] : null;
  if (!load) throw new UnknownViewError(`This page has no drawing for the view “${data.view}”. The charts and decisions still work.`);
  const module = await load();
  return module.createView(canvas, data);
}
