// What does not move with the players: sky, hills and the stone of the arena, painted once per size and theme.

import { dice } from "./effects.js";
import { paletteOf } from "./palette.js";

const CELL = 20; // px, side of a block
const OVERHANG = 60; // px by which hills and clouds are wider than the arena, so that they can drift

function layer(width, height, ratio, paint) {
  const canvas = document.createElement("canvas");
  canvas.width = Math.ceil(width * ratio);
  canvas.height = Math.ceil(height * ratio);
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  paint(context);
  return canvas;
}

export class Scenery {
  /** @param {object} scene of the footage  @param {number} ratio device pixels per arena pixel */
  constructor(scene, ratio, theme) {
    this.ratio = ratio;
    this.theme = theme;
    this.width = scene.width;
    this.height = scene.height;
    const palette = paletteOf(theme);
    const wide = scene.width + 2 * OVERHANG;
    this.sky = layer(scene.width, scene.height, ratio, (context) => paintSky(context, scene, palette));
    this.clouds = layer(wide, scene.height, ratio, (context) => paintClouds(context, wide, palette));
    this.hills = palette.hills.map((colour, index) =>
      layer(wide, scene.height, ratio, (context) => paintHills(context, wide, scene.height, colour, index, palette)),
    );
    this.blocks = layer(scene.width, scene.height, ratio, (context) => paintBlocks(context, scene, palette));
    this.vignette = layer(scene.width, scene.height, ratio, (context) => paintVignette(context, scene, palette));
  }

  /** Sky, clouds and hills; the nearer a layer, the further it drifts with the time t (s). */
  drawBack(context, t) {
    const { width, height } = this;
    context.drawImage(this.sky, 0, 0, width, height);
    this.#drift(context, this.clouds, Math.sin(t * 0.045) * OVERHANG * 0.9);
    this.hills.forEach((hill, index) => this.#drift(context, hill, Math.sin(t * 0.07 + 0.6) * (6 + index * 9)));
  }

  #drift(context, image, shift) {
    context.drawImage(image, shift - OVERHANG, 0, this.width + 2 * OVERHANG, this.height);
  }

  drawBlocks(context) {
    context.drawImage(this.blocks, 0, 0, this.width, this.height);
  }

  drawVignette(context) {
    context.drawImage(this.vignette, 0, 0, this.width, this.height);
  }
}

function paintSky(context, scene, palette) {
  const gradient = context.createLinearGradient(0, 0, 0, scene.height);
  for (const [at, colour] of palette.sky) gradient.addColorStop(at, colour);
  context.fillStyle = gradient;
  context.fillRect(0, 0, scene.width, scene.height);
  if (palette.stars) paintStars(context, scene, palette);
  const { x, y, r, core, glow } = palette.orb;
  const halo = context.createRadialGradient(x, y, r * 0.6, x, y, r * 6);
  halo.addColorStop(0, `rgba(${glow}, 0.42)`);
  halo.addColorStop(0.35, `rgba(${glow}, 0.12)`);
  halo.addColorStop(1, `rgba(${glow}, 0)`);
  context.fillStyle = halo;
  context.fillRect(0, 0, scene.width, scene.height);
  context.fillStyle = core;
  context.beginPath();
  context.arc(x, y, r, 0, Math.PI * 2);
  context.fill();
}

function paintStars(context, scene, palette) {
  const random = dice(7);
  context.fillStyle = palette.stars;
  for (let i = 0; i < 110; i += 1) {
    const y = random() ** 1.5 * scene.height * 0.62;
    context.globalAlpha = (0.2 + random() * 0.7) * (1 - y / (scene.height * 0.62));
    context.beginPath();
    context.arc(random() * scene.width, y, 0.4 + random() * 0.9, 0, Math.PI * 2);
    context.fill();
  }
  context.globalAlpha = 1;
}

function paintClouds(context, width, palette) {
  const random = dice(23);
  context.fillStyle = palette.clouds;
  for (let i = 0; i < 7; i += 1) {
    const [x, y, size] = [random() * width, 50 + random() * 210, 34 + random() * 46];
    context.beginPath();
    for (let puff = -3; puff <= 3; puff += 1) {
      const radius = size * (0.34 - Math.abs(puff) * 0.07 + random() * 0.06);
      context.roundRect(x + puff * size * 0.42 - radius * 1.7, y - radius * 0.62, radius * 3.4, radius * 1.24, radius * 0.62);
    }
    context.fill("nonzero");
  }
}

function paintHills(context, width, height, colour, index, palette) {
  const base = height * (0.62 + index * 0.11);
  const ridge = (x) =>
    base + Math.sin(x * (0.006 + index * 0.002) + index * 2.1) * (44 - index * 9) + Math.sin(x * 0.017 + index * 4) * (15 - index * 3);
  context.fillStyle = colour;
  context.beginPath();
  context.moveTo(0, height);
  for (let x = 0; x <= width; x += 4) context.lineTo(x, ridge(x));
  context.lineTo(width, height);
  context.fill();
  if (index > 0) paintTrees(context, width, ridge, index);
  const mist = context.createLinearGradient(0, base - 10, 0, height);
  mist.addColorStop(0, "rgba(255, 255, 255, 0)");
  mist.addColorStop(1, palette.mist);
  context.globalCompositeOperation = "source-atop";
  context.fillStyle = mist;
  context.fillRect(0, 0, width, height);
}

function paintTrees(context, width, ridge, index) {
  const random = dice(50 + index);
  for (let x = random() * 20; x < width; x += 7 + random() ** 2 * 60) {
    const size = (9 + random() * 15) * (0.7 + index * 0.25);
    const foot = ridge(x) + 4;
    context.beginPath();
    for (let tier = 0; tier < 3; tier += 1) {
      const top = foot - size * (1.15 - tier * 0.3);
      const half = size * (0.17 + tier * 0.085);
      context.moveTo(x, top);
      context.lineTo(x + half, top + size * 0.5);
      context.lineTo(x - half, top + size * 0.5);
    }
    context.fill();
  }
}

/** Which cells are stone, as rows of booleans; reads outside wrap around like the arena does. */
function stoneGrid(scene) {
  const columns = Math.round(scene.width / CELL);
  const rows = Math.round(scene.height / CELL);
  const solid = new Uint8Array(columns * rows);
  for (const [x, y, w, h] of scene.blocks) {
    for (let row = Math.round(y / CELL); row < Math.round((y + h) / CELL); row += 1) {
      for (let column = Math.round(x / CELL); column < Math.round((x + w) / CELL); column += 1) {
        solid[(((row % rows) + rows) % rows) * columns + (((column % columns) + columns) % columns)] = 1;
      }
    }
  }
  const at = (column, row) => solid[((row + rows) % rows) * columns + ((column + columns) % columns)] === 1;
  return { columns, rows, at };
}

function paintBlocks(context, scene, palette) {
  const grid = stoneGrid(scene);
  const cells = [];
  for (let row = 0; row < grid.rows; row += 1) {
    for (let column = 0; column < grid.columns; column += 1) if (grid.at(column, row)) cells.push([column, row]);
  }
  context.save();
  context.shadowColor = palette.shadow;
  context.shadowBlur = 16 * context.getTransform().a;
  context.shadowOffsetY = 7 * context.getTransform().a;
  context.fillStyle = palette.stone.joint;
  context.beginPath();
  for (const [column, row] of cells) context.rect(column * CELL - 0.2, row * CELL - 0.2, CELL + 0.4, CELL + 0.4);
  context.fill();
  context.restore();
  for (const [column, row] of cells) stone(context, column, row, palette);
  for (const [column, row] of cells) rim(context, column, row, grid, palette);
  for (const [column, row] of cells) if (!grid.at(column, row - 1)) moss(context, column, row, grid, palette);
}

/** One cell of masonry: courses of long stones, shifted by half a stone in every second course. */
function stone(context, column, row, palette) {
  const pair = (column + (row % 2)) >> 1;
  const left = (column + (row % 2)) % 2 === 0;
  const random = dice(pair * 131 + row * 977);
  const shade = 0.86 + random() * 0.26;
  const tint = (random() - 0.5) * 10;
  const [r, g, b] = palette.stone.base;
  const [x, y] = [column * CELL, row * CELL];
  // Half stones overlap a little, so that no seam shows when a cell is not a whole number of device pixels.
  const [from, to] = [left ? x + 0.9 : x - 0.4, left ? x + CELL : x + CELL - 0.9];
  const face = context.createLinearGradient(0, y, 0, y + CELL);
  face.addColorStop(0, `rgb(${r * shade * 1.08 + tint}, ${g * shade * 1.08}, ${b * shade * 1.08 - tint})`);
  face.addColorStop(1, `rgb(${r * shade * 0.86 + tint}, ${g * shade * 0.86}, ${b * shade * 0.86 - tint})`);
  context.fillStyle = face;
  context.fillRect(from, y + 0.9, to - from, CELL - 1.8);
  context.fillStyle = palette.stone.light;
  context.fillRect(from, y + 0.9, to - from, 1.7);
  if (left) context.fillRect(from, y + 0.9, 1.7, CELL - 1.8);
  context.fillStyle = palette.stone.dark;
  context.fillRect(from, y + CELL - 2.8, to - from, 1.9);
  if (!left) context.fillRect(to - 1.9, y + 0.9, 1.9, CELL - 1.8);
  context.globalAlpha = 0.35;
  for (let i = 0; i < 2; i += 1) {
    const [px, py] = [x + 4 + random() * 11, y + 5 + random() * 9];
    if (random() < 0.45) context.fillRect(px, py, 1.4 + random() * 2.4, 1.2);
  }
  context.globalAlpha = 1;
}

/** Light and dark edges where stone meets the air. */
function rim(context, column, row, grid, palette) {
  const [x, y] = [column * CELL, row * CELL];
  context.fillStyle = palette.stone.rim;
  if (!grid.at(column, row + 1)) context.fillRect(x, y + CELL - 2.4, CELL, 2.4);
  if (!grid.at(column + 1, row)) context.fillRect(x + CELL - 2, y, 2, CELL);
  if (!grid.at(column - 1, row)) context.fillRect(x, y, 2, CELL);
}

function moss(context, column, row, grid, palette) {
  const random = dice(column * 57 + row * 311);
  const [x, y] = [column * CELL, row * CELL];
  const [left, right] = [grid.at(column - 1, row) ? x - 0.4 : x - 1.2, grid.at(column + 1, row) ? x + CELL + 0.4 : x + CELL + 1.2];
  context.fillStyle = palette.moss.deep;
  tuft(context, left, right, y, 6.4, random);
  context.fillStyle = palette.moss.base;
  tuft(context, left, right, y, 4.6, random);
  context.fillStyle = palette.moss.light;
  context.fillRect(left, y - 1.2, right - left, 1.9);
  context.strokeStyle = palette.moss.base;
  context.lineWidth = 1.2;
  for (let i = 0; i < 3; i += 1) {
    if (random() < 0.45) continue;
    const at = x + 2 + random() * 16;
    context.beginPath();
    context.moveTo(at, y);
    context.quadraticCurveTo(at, y - 3, at + (random() - 0.5) * 4, y - 3 - random() * 3.6);
    context.stroke();
  }
}

function tuft(context, left, right, y, depth, random) {
  context.beginPath();
  context.moveTo(left, y - 1);
  context.lineTo(right, y - 1);
  const step = (right - left) / 4;
  for (let i = 0; i < 4; i += 1) {
    const from = right - i * step;
    context.quadraticCurveTo(from - step / 2, y + depth * (0.55 + random() * 0.75), from - step, y + 1.2);
  }
  context.closePath();
  context.fill();
}

function paintVignette(context, scene, palette) {
  const { width, height } = scene;
  const gradient = context.createRadialGradient(width / 2, height / 2, height * 0.42, width / 2, height / 2, height * 0.86);
  gradient.addColorStop(0, `rgba(${palette.vignette}, 0)`);
  gradient.addColorStop(1, `rgba(${palette.vignette}, ${palette.vignetteStrength})`);
  context.fillStyle = gradient;
  context.fillRect(0, 0, width, height);
}
