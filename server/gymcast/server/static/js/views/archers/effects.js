// Particles, each a function of the time since its event. No state: the same moment always looks the same.

import { FLYING } from "./track.js";

const LIFE = { kill: 1.1, shot: 0.3, stick: 0.45, jump: 0.4, pickup: 0.5, respawn: 0.6 };
const LONGEST = Math.max(...Object.values(LIFE));
const SHAKE_S = 0.28;

/** Repeatable pseudo-random numbers in 0..1. */
export function dice(seed) {
  let state = (seed * 2654435761 + 40503) >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}

function* recent(events, t, life) {
  for (let i = firstAfter(events, t) - 1; i >= 0 && events[i].t > t - life; i -= 1) yield events[i];
}

function firstAfter(events, t) {
  let low = 0;
  let high = events.length;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (events[middle].t <= t) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** How far the picture is shaken at t, in arena pixels. */
export function shake(events, t) {
  for (const event of recent(events, t, SHAKE_S)) {
    if (event.type !== "kill") continue;
    const left = 1 - (t - event.t) / SHAKE_S;
    const swing = 5 * left * left;
    return [Math.sin((t - event.t) * 95) * swing, Math.cos((t - event.t) * 78) * swing];
  }
  return [0, 0];
}

export function drawEffects(context, events, t, palette, scene, calm) {
  for (const event of recent(events, t, LONGEST)) {
    const u = (t - event.t) / LIFE[event.type];
    if (u >= 1) continue;
    const seat = scene.players[event.seat]?.colour ?? event.seat;
    context.save();
    PAINTERS[event.type](context, event, u, palette.seats[seat % palette.seats.length], palette, { scene, calm });
    context.restore();
  }
}

const ease = (u) => 1 - (1 - u) ** 3;

const PAINTERS = {
  kill(context, event, u, colours, palette, { scene, calm }) {
    const random = dice(event.seed);
    if (!calm) {
      if (u < 0.14) disc(context, event.x, event.y, 34 * (1 - u / 0.14) + 8, palette.steel, 0.75 * (1 - u / 0.14));
      ring(context, event.x, event.y, 14 + 66 * ease(u), 5 * (1 - u), colours.light, 1 - u);
      const age = u * LIFE.kill;
      for (let i = 0; i < 26; i += 1) {
        const angle = random() * Math.PI * 2;
        const speed = 60 + random() * 230;
        const x = event.x + Math.cos(angle) * speed * age * (1 - 0.35 * u) + event.vx * 0.12 * age;
        const y = event.y + Math.sin(angle) * speed * age * (1 - 0.35 * u) + 260 * age * age;
        shard(context, x, y, (2 + random() * 4.5) * (1 - u), angle + age * (random() * 16 - 8), [colours.main, colours.light, colours.deep][i % 3], 1 - u * u);
      }
    }
    if (event.killer === null) return;
    const killer = palette.seats[(scene.players[event.killer]?.colour ?? event.killer) % palette.seats.length];
    label(context, "+1", event.x, event.y - 18 - (calm ? 0 : 34 * ease(u)), killer.main, palette, Math.min(1, 3 * (1 - u)));
  },

  shot(context, event, u, colours, palette, { calm }) {
    if (calm) return;
    const angle = Math.atan2(event.dy, event.dx);
    context.globalAlpha = 0.8 * (1 - u);
    context.strokeStyle = palette.steel;
    context.lineCap = "round";
    for (const spread of [-0.5, 0, 0.5]) {
      context.lineWidth = 1.8 * (1 - u);
      const [from, to] = [4 + 12 * u, 9 + 20 * ease(u)];
      line(context, event.x + Math.cos(angle + spread) * from, event.y + Math.sin(angle + spread) * from, event.x + Math.cos(angle + spread) * to, event.y + Math.sin(angle + spread) * to);
    }
  },

  stick(context, event, u, colours, palette, { calm }) {
    if (calm) return;
    const random = dice(event.seed);
    const [x, y] = [event.x + event.dx * 8, event.y + event.dy * 8];
    for (let i = 0; i < 7; i += 1) {
      const angle = Math.atan2(-event.dy, -event.dx) + (random() - 0.5) * 2.2;
      const reach = (5 + random() * 18) * ease(u);
      disc(context, x + Math.cos(angle) * reach, y + Math.sin(angle) * reach + 8 * u * u, (1 + random() * 2) * (1 - u), palette.moss.light, 0.8 * (1 - u));
    }
  },

  jump(context, event, u, colours, palette, { calm }) {
    if (calm) return;
    const random = dice(event.seed);
    for (let i = 0; i < 6; i += 1) {
      const side = (i / 5) * 2 - 1;
      disc(context, event.x + side * (6 + 16 * ease(u)), event.y - random() * 5 * u, (3.4 - Math.abs(side)) * (1 - u), palette.text, 0.4 * (1 - u));
    }
  },

  pickup(context, event, u, colours) {
    ring(context, event.x, event.y, 24 - 6 * u, 2.4 * (1 - u), colours.light, 1 - u);
  },

  respawn(context, event, u, colours) {
    ring(context, event.x, event.y, 20 + 30 * (1 - ease(u)), 3 * (1 - u) + 0.5, colours.main, 1 - u);
    ring(context, event.x, event.y, 20 + 14 * (1 - ease(u)), 2 * (1 - u) + 0.5, colours.light, 1 - u);
  },
};

function disc(context, x, y, radius, colour, alpha) {
  if (radius <= 0) return;
  context.globalAlpha = alpha;
  context.fillStyle = colour;
  context.beginPath();
  context.arc(x, y, radius, 0, Math.PI * 2);
  context.fill();
}

function ring(context, x, y, radius, width, colour, alpha) {
  context.globalAlpha = alpha;
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.beginPath();
  context.arc(x, y, radius, 0, Math.PI * 2);
  context.stroke();
}

function shard(context, x, y, size, angle, colour, alpha) {
  context.globalAlpha = Math.max(0, alpha);
  context.fillStyle = colour;
  context.save();
  context.translate(x, y);
  context.rotate(angle);
  context.fillRect(-size, -size * 0.45, size * 2, size * 0.9);
  context.restore();
}

function line(context, x1, y1, x2, y2) {
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}

function label(context, text, x, y, colour, palette, alpha) {
  context.globalAlpha = alpha;
  context.font = "700 18px system-ui, sans-serif";
  context.textAlign = "center";
  context.lineWidth = 4;
  context.lineJoin = "round";
  context.strokeStyle = palette.halo;
  context.strokeText(text, x, y);
  context.fillStyle = colour;
  context.fillText(text, x, y);
}

/** Whether this arrow leaves a streak. */
export const streaks = (arrow) => arrow.state === FLYING && arrow.speed > 120;
