// The archers, their arrows and their ghosts, drawn with paths. Units are arena pixels; an archer fits a circle of 20 px.

import { streaks } from "./effects.js";

const TAU = Math.PI * 2;
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

/** An archer: cape, legs, tunic, quiver, hood and the bow drawn along its aim. */
export function drawArcher(context, player, colours, palette, t) {
  const { facing } = player;
  const speed = player.vx * facing;
  context.save();
  context.translate(player.x, player.y);
  chargeRing(context, player, palette, t);
  context.scale(facing, 1);
  context.rotate(clamp(speed / 600, -0.6, 0.6) * 0.22);
  context.lineJoin = "round";
  context.lineCap = "round";
  const breath = player.grounded ? Math.sin(t * 2.6 + player.x * 0.01) * 0.5 : 0;
  cape(context, player, speed, colours, palette, t);
  legs(context, player, colours, palette);
  context.translate(0, breath);
  quiver(context, player, colours, palette);
  torso(context, colours, palette);
  head(context, player, speed, colours, palette, t);
  bow(context, player, colours, palette);
  context.restore();
}

/** Fill with a dark outline, so that figures stand out against any background. */
function shape(context, fill, outline, width = 1.6) {
  context.strokeStyle = outline;
  context.lineWidth = width * 2;
  context.stroke();
  context.fillStyle = fill;
  context.fill();
}

function limb(context, points, width, colour, outline) {
  const path = new Path2D();
  path.moveTo(points[0][0], points[0][1]);
  path.quadraticCurveTo(points[1][0], points[1][1], points[2][0], points[2][1]);
  context.strokeStyle = outline;
  context.lineWidth = width + 2.6;
  context.stroke(path);
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke(path);
}

function cape(context, player, speed, colours, palette, t) {
  const sway = Math.sin(t * 7 + player.stride) * (1.2 + Math.abs(speed) / 260);
  const back = clamp(-speed / 34, -13, 5) - 9;
  const rise = clamp(-player.vy / 40, -15, 9);
  const tip = [back + sway * 0.6, 14 + rise + sway - Math.abs(speed) / 60];
  context.beginPath();
  context.moveTo(3, -8);
  context.quadraticCurveTo(-7, -7, -8 + back * 0.35, 1 + rise * 0.3 + sway * 0.5);
  context.quadraticCurveTo(-9 + back * 0.6, 8 + rise * 0.7, tip[0], tip[1]);
  context.quadraticCurveTo(-2 + back * 0.25, 13 + rise * 0.8 - sway * 0.4, 3, 7);
  context.closePath();
  shape(context, colours.deep, palette.outline);
}

function feet(player) {
  if (!player.grounded) return player.vy < 0 ? [[-6, 17.5], [4, 12.5]] : [[-7, 16], [6, 18.5]];
  if (Math.abs(player.vx) < 25) return [[-5, 19], [5, 19]];
  const swing = (phase) => [Math.sin(phase) * 9.5, 19 - Math.max(0, Math.cos(phase)) * 6];
  return [swing(player.stride + Math.PI), swing(player.stride)];
}

function legs(context, player, colours, palette) {
  for (const [index, foot] of feet(player).entries()) {
    const hip = [index ? 2 : -2, 6];
    const knee = [(hip[0] + foot[0]) / 2 + 3.4, (hip[1] + foot[1]) / 2];
    limb(context, [hip, knee, foot], 4.4, index ? "#5a4a48" : "#463a3d", palette.outline);
    context.beginPath();
    context.ellipse(foot[0] + 1.6, foot[1] + 0.2, 3.7, 2.2, 0, 0, TAU);
    shape(context, palette.leather, palette.outline, 0.9);
  }
}

function quiver(context, player, colours, palette) {
  context.save();
  context.translate(-6.5, -2);
  context.rotate(-0.5);
  context.lineWidth = 1.7;
  for (let i = 0; i < player.arrows; i += 1) {
    const x = -2.4 + i * 1.6;
    context.strokeStyle = palette.outline;
    context.lineWidth = 3.4;
    stroke(context, x, -6, x - 0.4, -12 - (i % 2) * 1.6);
    context.strokeStyle = colours.light;
    context.lineWidth = 1.7;
    stroke(context, x, -6, x - 0.4, -12 - (i % 2) * 1.6);
  }
  context.beginPath();
  context.roundRect(-3.6, -7, 7.2, 14, 2.4);
  shape(context, palette.leather, palette.outline, 1.2);
  context.fillStyle = "rgba(255, 255, 255, 0.22)";
  context.fillRect(-3.2, -5.4, 6.4, 1.8);
  context.restore();
}

function torso(context, colours, palette) {
  context.beginPath();
  context.moveTo(-5.5, -7);
  context.quadraticCurveTo(0, -9.5, 5.5, -7);
  context.quadraticCurveTo(6.2, 0, 8.2, 8.6);
  context.lineTo(4.2, 10.4);
  context.lineTo(0.6, 8.8);
  context.lineTo(-3.4, 10.6);
  context.lineTo(-7.4, 8.6);
  context.quadraticCurveTo(-6.4, 0, -5.5, -7);
  context.closePath();
  shape(context, colours.main, palette.outline);
  context.save();
  context.clip();
  context.fillStyle = "rgba(0, 0, 0, 0.16)";
  context.fillRect(-9, -10, 6.5, 22);
  context.fillStyle = palette.leather;
  context.fillRect(-9, 2.6, 18, 3);
  context.fillStyle = "#f3d48a";
  context.fillRect(0.4, 2.5, 3.4, 3.2);
  context.restore();
}

function head(context, player, speed, colours, palette, t) {
  const flutter = Math.sin(t * 8 + 1) * (0.4 + Math.abs(speed) / 420);
  const look = clamp(player.ay, -0.8, 0.8) * 1.6;
  context.beginPath();
  context.moveTo(-6.4, -7.4);
  context.quadraticCurveTo(-9.4, -14, -7.4, -18);
  context.quadraticCurveTo(-10, -18 - flutter, -13.2 - Math.abs(speed) / 260, -16.4 + flutter * 2 - player.vy / 160);
  context.quadraticCurveTo(-8, -23.4, 0, -23);
  context.quadraticCurveTo(8.6, -22, 8.4, -13.6);
  context.quadraticCurveTo(8.6, -9, 5.4, -6.6);
  context.quadraticCurveTo(-1, -4.6, -6.4, -7.4);
  context.closePath();
  shape(context, colours.main, palette.outline);
  context.beginPath();
  context.ellipse(3.8, -13.2 + look * 0.4, 4.9, 5.5, 0, 0, TAU);
  context.fillStyle = colours.deep;
  context.fill();
  context.beginPath();
  context.ellipse(4.5, -12.9 + look * 0.5, 3.9, 4.5, 0, 0, TAU);
  context.fillStyle = palette.skin;
  context.fill();
  context.fillStyle = "#20222c";
  context.beginPath();
  context.ellipse(5.6, -13.4 + look, 0.95, 1.5, 0, 0, TAU);
  context.fill();
  context.fillStyle = "rgba(0, 0, 0, 0.2)";
  context.beginPath();
  context.ellipse(4.4, -16.6 + look * 0.4, 4, 1.5, 0, 0, TAU);
  context.fill();
}

/** Bow, both arms, and the arrow on the string while it is drawn. */
function bow(context, player, colours, palette) {
  const angle = Math.atan2(player.ay, player.ax * player.facing);
  const pull = player.charge;
  const nock = 8 - pull * 9;
  const flex = pull * 2.4;
  context.save();
  context.translate(1, -3.5);
  context.rotate(angle);
  const sleeve = colours.deep;
  limb(context, [[-1, 0], [-6 - pull * 3, 5], [nock, 0.6]], 3.8, sleeve, palette.outline);
  if (pull > 0 && player.arrows > 0) arrowShape(context, nock + 20, 20, colours, palette);
  const stave = new Path2D();
  stave.moveTo(8 - flex, -16 + flex * 0.6);
  stave.bezierCurveTo(10, -13, 17 - flex * 0.3, -7, 15.4, 0);
  stave.bezierCurveTo(17 - flex * 0.3, 7, 10, 13, 8 - flex, 16 - flex * 0.6);
  context.strokeStyle = "rgba(255, 255, 255, 0.85)";
  context.lineWidth = 0.9;
  context.beginPath();
  context.moveTo(8 - flex, -16 + flex * 0.6);
  context.lineTo(nock, 0);
  context.lineTo(8 - flex, 16 - flex * 0.6);
  context.stroke();
  context.strokeStyle = palette.outline;
  context.lineWidth = 4.6;
  context.stroke(stave);
  context.strokeStyle = palette.wood;
  context.lineWidth = 2.4;
  context.stroke(stave);
  limb(context, [[0, 0], [7, 1.8], [14.6, 0]], 3.8, sleeve, palette.outline);
  context.fillStyle = palette.skin;
  for (const [x, y] of [[15, 0], [nock, 0.6]]) {
    context.beginPath();
    context.arc(x, y, 2.1, 0, TAU);
    context.fill();
  }
  context.restore();
}

function chargeRing(context, player, palette, t) {
  if (player.charge <= 0.01) return;
  const full = player.charge >= 0.999;
  context.globalAlpha = full ? 0.75 + 0.25 * Math.sin(t * 14) : 0.9;
  context.strokeStyle = palette.charge;
  context.lineWidth = 2.6;
  context.lineCap = "round";
  context.beginPath();
  context.arc(0, 0, 25.5, -Math.PI / 2, -Math.PI / 2 + TAU * Math.min(1, player.charge));
  context.stroke();
  context.setLineDash([1, 6]);
  context.lineWidth = 1.8;
  context.globalAlpha = 0.35 + 0.4 * player.charge;
  stroke(context, player.ax * 32, player.ay * 32, player.ax * (40 + 34 * player.charge), player.ay * (40 + 34 * player.charge));
  context.setLineDash([]);
  context.globalAlpha = 1;
}

/** A loose arrow; (x, y) is the point of its 20 px line, (dx, dy) where it points. */
export function drawArrow(context, arrow, palette, calm) {
  const colours = palette.seats[arrow.owner % palette.seats.length];
  context.save();
  context.translate(arrow.x, arrow.y);
  context.rotate(Math.atan2(arrow.dy, arrow.dx));
  if (!calm && streaks(arrow)) {
    const length = Math.min(70, arrow.speed * 0.07);
    const fade = context.createLinearGradient(-18, 0, -18 - length, 0);
    fade.addColorStop(0, `${colours.light}b0`);
    fade.addColorStop(1, `${colours.light}00`);
    context.fillStyle = fade;
    context.beginPath();
    context.moveTo(-17, -2.2);
    context.lineTo(-18 - length, 0);
    context.lineTo(-17, 2.2);
    context.fill();
  }
  arrowShape(context, 0, 20, colours, palette);
  context.restore();
}

/** An arrow along +x whose point is at `tip`. */
function arrowShape(context, tip, length, colours, palette) {
  const tail = tip - length;
  context.lineCap = "round";
  context.strokeStyle = palette.outline;
  context.lineWidth = 3.6;
  stroke(context, tail + 1, 0, tip - 2, 0);
  context.strokeStyle = palette.wood;
  context.lineWidth = 1.7;
  stroke(context, tail + 1, 0, tip - 2, 0);
  context.beginPath();
  context.moveTo(tip + 1, 0);
  context.lineTo(tip - 5.6, -3);
  context.lineTo(tip - 4, 0);
  context.lineTo(tip - 5.6, 3);
  context.closePath();
  shape(context, palette.steel, palette.outline, 0.8);
  context.beginPath();
  context.moveTo(tail + 5.6, 0);
  context.lineTo(tail + 3, -3.2);
  context.lineTo(tail - 2, -3.2);
  context.lineTo(tail + 0.6, 0);
  context.lineTo(tail - 2, 3.2);
  context.lineTo(tail + 3, 3.2);
  context.closePath();
  shape(context, colours.main, palette.outline, 0.8);
}

/** Name above the head (below the feet at the upper edge), with one small mark per arrow left. */
export function drawTag(context, player, name, colours, palette) {
  context.save();
  context.translate(player.x, player.y < 48 ? player.y + 40 : player.y - 31);
  context.font = "600 11px system-ui, sans-serif";
  context.textAlign = "center";
  context.lineJoin = "round";
  context.lineWidth = 3.4;
  context.strokeStyle = palette.halo;
  const shown = name.length > 16 ? `${name.slice(0, 15)}…` : name;
  context.strokeText(shown, 0, -5);
  context.fillStyle = palette.text;
  context.fillText(shown, 0, -5);
  const width = (player.arrows - 1) * 5;
  for (let i = 0; i < player.arrows; i += 1) {
    context.lineWidth = 3.6;
    context.strokeStyle = palette.halo;
    stroke(context, -width / 2 + i * 5, -1, -width / 2 + i * 5, 3);
    context.lineWidth = 1.9;
    context.strokeStyle = colours.light;
    stroke(context, -width / 2 + i * 5, -1, -width / 2 + i * 5, 3);
  }
  context.restore();
}

/** Where a fallen archer waits: a pale ghost with the seconds left. */
export function drawGhost(context, player, colours, palette, t) {
  const bob = Math.sin(t * 3) * 2.5;
  context.save();
  context.lineJoin = "round";
  context.translate(player.x, player.y + bob - 2);
  context.globalAlpha = 0.42;
  context.beginPath();
  context.moveTo(-11, 13);
  context.lineTo(-11, -4);
  context.arc(0, -4, 11, Math.PI, 0);
  context.lineTo(11, 13);
  for (let i = 0; i < 3; i += 1) {
    const x = 11 - i * 7.33;
    context.quadraticCurveTo(x - 1.8, 7.5 + Math.sin(t * 5 + i) * 1.5, x - 3.67, 11);
    context.quadraticCurveTo(x - 5.5, 14, x - 7.33, 13);
  }
  context.closePath();
  context.fillStyle = colours.light;
  context.fill();
  context.lineWidth = 1.6;
  context.strokeStyle = colours.deep;
  context.stroke();
  context.globalAlpha = 0.85;
  context.strokeStyle = colours.main;
  context.lineWidth = 2.4;
  context.lineCap = "round";
  context.beginPath();
  context.arc(0, 0, 22, -Math.PI / 2, -Math.PI / 2 + TAU * clamp(player.respawn / 5, 0, 1));
  context.stroke();
  context.font = "700 12px system-ui, sans-serif";
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineWidth = 3;
  context.strokeStyle = palette.halo;
  context.strokeText(String(Math.ceil(player.respawn)), 0, -1);
  context.fillStyle = palette.text;
  context.fillText(String(Math.ceil(player.respawn)), 0, -1);
  context.restore();
}

function stroke(context, x1, y1, x2, y2) {
  context.beginPath();
  context.moveTo(x1, y1);
  context.lineTo(x2, y2);
  context.stroke();
}
