// The strip under the game: the value estimate over the episode, a mark per kill, and where the playback is.

import { cssColour } from "./theme.js";

const PAD = 3; // px, so that the line does not touch the edge

/** Draws the strip for this moment; cheap enough for every picture. */
export function drawStrip(canvas, footage, view, t) {
  const density = window.devicePixelRatio || 1;
  const [width, height] = [canvas.clientWidth, canvas.clientHeight];
  if (!width) return;
  const [wide, high] = [Math.round(width * density), Math.round(height * density)];
  if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
  const context = canvas.getContext("2d");
  context.setTransform(density, 0, 0, density, 0, 0);
  context.clearRect(0, 0, width, height);
  const x = (seconds) => (view.duration ? (seconds / view.duration) * width : 0);
  drawValues(context, footage, x, width, height, t);
  for (const mark of view.marks) drawMark(context, x(mark.t), height, cssColour(`--seat-${mark.seat % 4}`));
  context.fillStyle = cssColour("--text");
  context.fillRect(Math.min(width - 1.5, Math.max(0, x(t) - 0.75)), 0, 1.5, height);
}

function drawValues(context, footage, x, width, height, t) {
  const { values, valueRange } = footage;
  if (values.length < 2) {
    context.fillStyle = cssColour("--line");
    context.fillRect(0, height - 1, width, 1);
    return;
  }
  const low = Math.min(0, valueRange[0]);
  const high = Math.max(0, valueRange[1]);
  const y = (value) => height - PAD - ((value - low) / (high - low || 1)) * (height - 2 * PAD);
  context.fillStyle = cssColour("--line");
  context.fillRect(0, Math.round(y(0)), width, 1);
  const line = new Path2D();
  values.forEach((decision, index) => line[index ? "lineTo" : "moveTo"](x(footage.time(decision)), y(decision.state_values)));
  const area = new Path2D(line);
  area.lineTo(x(footage.time(values.at(-1))), y(0));
  area.lineTo(x(footage.time(values[0])), y(0));
  const colour = cssColour("--series-2");
  for (const [from, to, strength] of [[0, x(t), 1], [x(t), width, 0.4]]) {
    context.save();
    context.beginPath();
    context.rect(from, 0, to - from, height);
    context.clip();
    context.globalAlpha = 0.16 * strength;
    context.fillStyle = colour;
    context.fill(area);
    context.globalAlpha = strength;
    context.strokeStyle = colour;
    context.lineWidth = 1.6;
    context.lineJoin = "round";
    context.stroke(line);
    context.restore();
  }
}

function drawMark(context, x, height, colour) {
  context.fillStyle = colour;
  context.globalAlpha = 0.35;
  context.fillRect(x - 0.5, 0, 1, height);
  context.globalAlpha = 1;
  context.beginPath();
  context.moveTo(x, 1);
  context.lineTo(x + 4.5, 5.5);
  context.lineTo(x, 10);
  context.lineTo(x - 4.5, 5.5);
  context.fill();
}
