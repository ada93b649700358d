// Footage of one Archers episode, ready to be asked for any moment. Frames hold
//   p: [x, y, vx, vy, alive, arrows, charge, aim_x, aim_y, kills, respawn_s] per player   (px, px/s, 0..1, unit vector)
//   a: [x, y, dx, dy, state, owner] per arrow                                             (1 flying, 2 falling, 3 stuck)
// with y growing downwards. The arena is a torus: a thing that leaves on one side comes back on the other, so between
// two frames things move along the shortest way around it, and something that jumped further than it can fly stays put.

const FASTEST_PX_S = 900; // above the cap of 600 px/s per axis
const SLACK_PX = 24;
const PX_PER_STRIDE = 13; // how far a run carries per radian of the legs' swing
const JUMP_PX_S = 180; // a sudden gain of upward speed, far above what one frame of gravity can take away

export const FLYING = 1;
export const STUCK = 3;

/** Shortest signed way from `a` to `b` on a circle of length `size`. */
export function around(a, b, size) {
  const d = (b - a) % size;
  if (d > size / 2) return d - size;
  if (d < -size / 2) return d + size;
  return d;
}

const wrap = (value, size) => ((value % size) + size) % size;
const mix = (a, b, u) => a + (b - a) * u;

export class Track {
  constructor(data) {
    this.width = data.scene.width;
    this.height = data.scene.height;
    this.frames = data.frames;
    this.times = data.frames.map((frame) => frame.t);
    this.duration = this.times.at(-1) ?? 0;
    // Further than this nothing moves from one frame to the next: it was put there.
    this.leap = FASTEST_PX_S * (this.times.length > 1 ? this.times[1] - this.times[0] : 0.04) + SLACK_PX;
    this.links = data.frames.map((frame, index) => this.#link(frame, data.frames[index + 1]));
    this.gait = this.#gait();
    this.events = this.#events();
  }

  /** Index of the frame at or before t. */
  index(t) {
    let low = 0;
    let high = this.times.length - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if (this.times[middle] <= t) low = middle;
      else high = middle - 1;
    }
    return low;
  }

  /** Players and arrows at t seconds. */
  at(t) {
    const i = this.index(t);
    const frame = this.frames[i];
    const next = this.frames[i + 1];
    const u = next ? Math.min(1, Math.max(0, (t - frame.t) / (next.t - frame.t))) : 0;
    const arrows = frame.a.map((arrow, index) => this.#arrow(i, arrow, next?.a[this.links[i][index]], u));
    return {
      players: frame.p.map((player, seat) => this.#player(i, seat, player, next?.p[seat], u)),
      arrows: next ? arrows.concat(this.#launched(i, u)) : arrows,
    };
  }

  /** Way from a to b, [dx, dy] px, or null for a leap. */
  #way(a, b) {
    const way = [around(a[0], b[0], this.width), around(a[1], b[1], this.height)];
    return Math.hypot(...way) > this.leap ? null : way;
  }

  #seconds(i) {
    return this.frames[i + 1].t - this.frames[i].t;
  }

  /** Place on a smooth path from player a to b that leaves and arrives with their speeds. */
  #glide(i, a, b, u) {
    const way = this.#way(a, b);
    if (!way) return [a[0], a[1]];
    const dt = this.#seconds(i);
    const x = a[0] + hermite(way[0], a[2] * dt, b[2] * dt, u);
    const y = a[1] + hermite(way[1], a[3] * dt, b[3] * dt, u);
    return [wrap(x, this.width), wrap(y, this.height)];
  }

  /** Arrows shot between frame i and the next, on their way from the bow. */
  #launched(i, u) {
    const [frame, next] = [this.frames[i], this.frames[i + 1]];
    const known = new Set(this.links[i]);
    return next.a.flatMap((arrow, index) => {
      const owner = frame.p[arrow[5]];
      const way = owner && this.#way(owner, arrow);
      if (known.has(index) || arrow[4] !== FLYING || !way || u < 0.15) return [];
      const [x, y] = [wrap(owner[0] + way[0] * u, this.width), wrap(owner[1] + way[1] * u, this.height)];
      return [{ x, y, dx: arrow[2], dy: arrow[3], state: FLYING, owner: arrow[5], speed: Math.hypot(...way) / this.#seconds(i) }];
    });
  }

  #player(i, seat, a, b, u) {
    const steady = b && a[4] && b[4];
    const [x, y] = steady ? this.#glide(i, a, b, u) : [a[0], a[1]];
    const [ax, ay] = steady ? direction(mix(a[7], b[7], u), mix(a[8], b[8], u), a[7], a[8]) : [a[7], a[8]];
    const gait = this.gait[i][seat];
    const later = this.gait[i + 1]?.[seat] ?? gait;
    const since = this.frames[i + 1] ? (this.frames[i + 1].t - this.frames[i].t) * u : 0;
    return {
      x,
      y,
      vx: steady ? mix(a[2], b[2], u) : a[2],
      vy: steady ? mix(a[3], b[3], u) : a[3],
      alive: a[4] === 1,
      arrows: a[5],
      charge: steady && b[6] >= a[6] ? mix(a[6], b[6], u) : a[6],
      ax,
      ay,
      kills: a[9],
      respawn: Math.max(0, a[10] - since),
      facing: gait.facing,
      grounded: gait.grounded,
      stride: mix(gait.stride, later.stride, u),
    };
  }

  #arrow(i, a, b, u) {
    const goal = b ?? this.#struck(i, a);
    const way = (goal && this.#way(a, goal)) ?? [0, 0];
    const [dx, dy] = b ? direction(mix(a[2], b[2], u), mix(a[3], b[3], u), a[2], a[3]) : [a[2], a[3]];
    return {
      x: wrap(a[0] + way[0] * u, this.width),
      y: wrap(a[1] + way[1] * u, this.height),
      dx,
      dy,
      state: a[4],
      owner: a[5],
      speed: goal ? Math.hypot(...way) / this.#seconds(i) : 0,
    };
  }

  /** Whom a flying arrow that is gone in the next frame has hit: the nearest player who falls, undefined if nobody does. */
  #struck(i, arrow) {
    const next = this.frames[i + 1];
    if (!next || arrow[4] !== FLYING) return undefined;
    return this.frames[i].p.find((player, seat) => player[4] && !next.p[seat][4] && seat !== arrow[5] && this.#way(arrow, player));
  }

  /** For each arrow of a frame the index of the same arrow in the next frame, -1 if it is gone. */
  #link(frame, next) {
    if (!next) return frame.a.map(() => -1);
    const taken = new Set();
    return frame.a.map((arrow) => {
      let best = -1;
      let nearest = this.leap;
      next.a.forEach((other, index) => {
        if (taken.has(index) || other[5] !== arrow[5] || (arrow[4] === STUCK && other[4] !== STUCK)) return;
        const dx = around(arrow[0], other[0], this.width);
        const dy = around(arrow[1], other[1], this.height);
        const distance = Math.hypot(dx, dy) + (1 - (arrow[2] * other[2] + arrow[3] * other[3])) * 10;
        if (distance < nearest) [best, nearest] = [index, distance];
      });
      if (best >= 0) taken.add(best);
      return best;
    });
  }

  /** Per frame and player: which way it faces, whether it stands on something, how far its legs have swung (rad). */
  #gait() {
    const state = (this.frames[0]?.p ?? []).map(() => ({ facing: 1, stride: 0 }));
    return this.frames.map((frame, i) =>
      frame.p.map((player, seat) => {
        const before = this.frames[i - 1]?.p[seat];
        const own = state[seat];
        if (Math.abs(player[7]) > 0.08) own.facing = player[7] > 0 ? 1 : -1;
        const grounded = Math.abs(player[3]) < 1;
        if (before && grounded) {
          const step = around(before[0], player[0], this.width);
          if (Math.abs(step) < this.leap) own.stride += (step * own.facing) / PX_PER_STRIDE;
        }
        return { facing: own.facing, stride: own.stride, grounded };
      }),
    );
  }

  #events() {
    const events = [];
    for (let i = 1; i < this.frames.length; i += 1) {
      const [before, frame] = [this.frames[i - 1], this.frames[i]];
      frame.p.forEach((player, seat) => events.push(...this.#playerEvents(i, seat, before.p[seat], player)));
      events.push(...this.#arrowEvents(i, before, frame));
    }
    return events.sort((a, b) => a.t - b.t);
  }

  #playerEvents(i, seat, a, b) {
    const { t } = this.frames[i];
    const event = (type, more) => ({ type, t, seed: i * 8 + seat, seat, x: b[0], y: b[1], ...more });
    if (a[4] && !b[4]) {
      const killer = this.frames[i].p.findIndex((other, index) => index !== seat && other[9] > this.frames[i - 1].p[index][9]);
      return [event("kill", { x: a[0], y: a[1], vx: a[2], vy: a[3], killer: killer < 0 ? null : killer })];
    }
    if (!a[4] && b[4]) return [event("respawn")];
    const events = [];
    if (b[4] && a[3] - b[3] > JUMP_PX_S && b[3] < -JUMP_PX_S) events.push(event("jump", { x: a[0], y: a[1] + 18 }));
    if (b[4] && b[5] > a[5]) events.push(event("pickup"));
    return events;
  }

  #arrowEvents(i, before, frame) {
    const events = [];
    const known = new Set(this.links[i - 1]);
    before.a.forEach((arrow, index) => {
      const now = frame.a[this.links[i - 1][index]];
      if (now && arrow[4] !== STUCK && now[4] === STUCK) {
        events.push({ type: "stick", t: frame.t, seed: i * 31 + index, x: now[0], y: now[1], dx: now[2], dy: now[3], seat: now[5] });
      }
    });
    frame.a.forEach((arrow, index) => {
      if (known.has(index) || arrow[4] !== FLYING) return;
      events.push({ type: "shot", t: frame.t, seed: i * 31 + index, x: arrow[0], y: arrow[1], dx: arrow[2], dy: arrow[3], seat: arrow[5] });
    });
    return events;
  }
}

/**
 * Cubic way from 0 to `goal` with slopes m0 and m1 at its ends, u in 0..1. It does not swing beyond its ends by more
 * than a pixel: whoever lands or runs into a wall between two frames stays out of the stone.
 */
function hermite(goal, m0, m1, u) {
  const value = m0 * u * (1 - u) ** 2 - m1 * u * u * (1 - u) + goal * u * u * (3 - 2 * u);
  return Math.min(Math.max(0, goal) + 1, Math.max(Math.min(0, goal) - 1, value));
}

/** The unit vector along (x, y), or the fallback when they cancel out. */
function direction(x, y, fallbackX, fallbackY) {
  const length = Math.hypot(x, y);
  return length < 0.05 ? [fallbackX, fallbackY] : [x / length, y / length];
}
