// Archers on a canvas: composes scenery, arrows, archers and effects for any moment of an episode.
// Everything is a function of the game time, so that pausing, scrubbing and slow motion always show the same picture.

import { theme } from "../theme.js";
import { drawEffects, shake } from "./archers/effects.js";
import { drawArcher, drawArrow, drawGhost, drawTag } from "./archers/figures.js";
import { paletteOf } from "./archers/palette.js";
import { Scenery } from "./archers/scenery.js";
import { Track } from "./archers/track.js";

const calm = matchMedia("(prefers-reduced-motion: reduce)");

export function createView(canvas, data) {
  return new ArchersView(canvas, data);
}

class ArchersView {
  constructor(canvas, data) {
    this.canvas = canvas;
    this.context = canvas.getContext("2d");
    this.scene = data.scene;
    this.track = new Track(data);
    this.duration = this.track.duration;
    this.scenery = null;
    this.marks = this.track.events.filter((event) => event.type === "kill").map((event) => this.#mark(event));
  }

  #name(seat) {
    return this.scene.players[seat]?.name ?? `player ${seat + 1}`;
  }

  #mark(event) {
    const killer = event.killer === null ? "" : ` by ${this.#name(event.killer)}`;
    return { t: event.t, seat: event.killer ?? event.seat, label: `${this.#name(event.seat)} hit${killer}` };
  }

  board(t) {
    const moment = this.track.at(t);
    const players = moment.players.map((player, seat) => ({
      name: this.#name(seat),
      seat: this.scene.players[seat]?.colour ?? seat,
      kills: player.kills,
      state: player.alive ? `${player.arrows} ${player.arrows === 1 ? "arrow" : "arrows"}` : `back in ${Math.ceil(player.respawn)} s`,
    }));
    return { time: t, limit: this.scene.max_duration_s, target: this.scene.kills_to_win, players };
  }

  describe(t) {
    const { players } = this.board(t);
    return `Archers on the map ${this.scene.map}. ${players.map((player) => `${player.name}: ${player.kills} kills, ${player.state}`).join("; ")}.`;
  }

  draw(t) {
    const { context, scene } = this;
    const ratio = this.#fit();
    const palette = paletteOf(theme());
    const moment = this.track.at(t);
    const [sx, sy] = calm.matches ? [0, 0] : shake(this.track.events, t);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    this.scenery.drawBack(context, calm.matches ? 0 : t);
    context.setTransform(ratio, 0, 0, ratio, sx * ratio, sy * ratio);
    this.scenery.drawBlocks(context);
    for (const arrow of moment.arrows) this.#everywhere(arrow, 30, () => drawArrow(context, arrow, palette, calm.matches));
    moment.players.forEach((player, seat) => this.#player(player, seat, palette, t));
    drawEffects(context, this.track.events, t, palette, scene, calm.matches);
    this.scenery.drawVignette(context);
  }

  #player(player, seat, palette, t) {
    const colour = this.scene.players[seat]?.colour ?? seat;
    const colours = palette.seats[colour % palette.seats.length];
    this.#everywhere(player, 44, () => {
      if (player.alive) {
        drawArcher(this.context, player, colours, palette, t);
        drawTag(this.context, player, this.#name(seat), colours, palette);
      } else if (player.respawn > 0) {
        drawGhost(this.context, player, colours, palette, calm.matches ? 0 : t);
      }
    });
  }

  /** Draws at the thing's place and, near an edge, also where the arena wraps around to. */
  #everywhere(thing, margin, draw) {
    const { width, height } = this.scene;
    const xs = copies(thing.x, width, margin);
    const ys = copies(thing.y, height, margin);
    for (const dx of xs) {
      for (const dy of ys) {
        this.context.save();
        this.context.translate(dx, dy);
        draw();
        this.context.restore();
      }
    }
  }

  /** Matches the canvas to its size on the screen and the screen's density; returns device pixels per arena pixel. */
  #fit() {
    const { width, height } = this.scene;
    const density = Math.min(window.devicePixelRatio || 1, 3);
    const wide = Math.max(1, Math.round(this.canvas.clientWidth * density));
    const high = Math.round((wide * height) / width);
    if (this.canvas.width !== wide || this.canvas.height !== high) {
      this.canvas.width = wide;
      this.canvas.height = high;
    }
    const ratio = wide / width;
    if (!this.scenery || this.scenery.ratio !== ratio || this.scenery.theme !== theme()) {
      this.scenery = new Scenery(this.scene, ratio, theme());
    }
    return ratio;
  }
}

function copies(value, size, margin) {
  const shifts = [0];
  if (value < margin) shifts.push(size);
  if (value > size - margin) shifts.push(-size);
  return shifts;
}
