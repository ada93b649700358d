"""Archers drawn: JSON frames for the page, `rgb_array` (600 x 800 x 3) and `ansi` (30 lines of 40 characters)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gymcast.envs.games import archers as kernels
from gymcast.envs.games.archers_batch import ArchersBatch
from gymcast.envs.games.archers_maps import NAMES, block_rectangles, solid_grid

_SKY, _BLOCK, _EDGE = (24, 26, 38), (78, 84, 104), (112, 120, 144)
_TEAM = ((86, 180, 233), (230, 97, 70), (240, 200, 80), (120, 200, 120))
_ARROW, _LYING = (250, 240, 220), (170, 150, 110)


def scene(batch: ArchersBatch, options: Mapping[str, Any]) -> dict[str, Any]:
    """What stays the same during a match: size in px, blocks [[x, y, width, height], ...], players, rules."""
    state = batch.state[0]
    names = ["bot" if p < batch.learners else kernels.LEVELS[int(state["level"][p])] for p in range(batch.players)]
    if batch.learners > 1:
        names = ["bot", *(f"rival {p}" for p in range(1, batch.players))]
    return {
        "width": int(kernels.WIDTH),
        "height": int(kernels.HEIGHT),
        "map": NAMES[int(state["arena"])],
        "blocks": block_rectangles(NAMES[int(state["arena"])]),
        "players": [{"name": name, "colour": p} for p, name in enumerate(names)],
        "kills_to_win": int(options["kills_to_win"]),
        "max_duration_s": float(options["max_duration_s"]),
    }


def frame(batch: ArchersBatch, game: int) -> dict[str, Any]:
    """One moment: t in s; p per player [x, y, vx, vy, alive, arrows, charge, aim x, aim y, kills, respawn s];
    a per arrow outside a quiver [x, y, dx, dy, state 1 flying 2 falling 3 stuck, owner]; px, px/s."""
    s = batch.state[game]
    players = [
        [
            round(float(s["x"][p]), 1),
            round(float(s["y"][p]), 1),
            round(float(s["vx"][p])),
            round(float(s["vy"][p])),
            int(s["respawn"][p] == 0),
            int(s["quiver"][p]),
            round(float(s["charge"][p]) / kernels.FULL_CHARGE, 2),
            round(float(s["aim_x"][p]), 2),
            round(float(s["aim_y"][p]), 2),
            int(s["kills"][p]),
            round(float(s["respawn"][p]) / kernels.TICK_RATE, 2),
        ]
        for p in range(batch.players)
    ]
    arrows = []
    for a in np.flatnonzero(s["arrow_state"] != kernels.ABSENT):
        dx, dy = _direction(s, int(a))
        place = [round(float(s["arrow_x"][a]), 1), round(float(s["arrow_y"][a]), 1), round(dx, 2), round(dy, 2)]
        arrows.append([*place, int(s["arrow_state"][a]), int(s["arrow_owner"][a])])
    return {"t": round(int(s["tick"]) / kernels.TICK_RATE, 2), "p": players, "a": arrows}


def _direction(s: Any, a: int) -> tuple[float, float]:
    vx, vy = float(s["arrow_vx"][a]), float(s["arrow_vy"][a])
    speed = math.hypot(vx, vy)
    return (vx / speed, vy / speed) if speed > 0 else (0.0, 1.0)


@cache
def _background(arena: int) -> Image.Image:
    image = Image.new("RGB", (int(kernels.WIDTH), int(kernels.HEIGHT)), _SKY)
    draw = ImageDraw.Draw(image)
    for x, y, width, height in block_rectangles(NAMES[arena]):
        draw.rectangle((x, y, x + width - 1, y + height - 1), fill=_BLOCK, outline=_EDGE)
    return image


def rgb_array(batch: ArchersBatch, game: int) -> NDArray[np.uint8]:
    """The game as an image, uint8 (600, 800, 3)."""
    s = batch.state[game]
    image = _background(int(s["arena"])).copy()
    draw = ImageDraw.Draw(image)
    for a in np.flatnonzero(s["arrow_state"] != kernels.ABSENT):
        x, y = float(s["arrow_x"][a]), float(s["arrow_y"][a])
        dx, dy = _direction(s, int(a))
        flying = s["arrow_state"][a] == kernels.FLYING
        tail = (x - dx * kernels.ARROW_LENGTH, y - dy * kernels.ARROW_LENGTH)
        draw.line((x, y, *tail), fill=_ARROW if flying else _LYING, width=3)
    for p in range(batch.players):
        x, y, r = float(s["x"][p]), float(s["y"][p]), kernels.RADIUS
        if s["respawn"][p] > 0:
            continue
        draw.ellipse((x - r, y - r, x + r, y + r), fill=_TEAM[p], outline=(255, 255, 255))
        ax, ay = float(s["aim_x"][p]), float(s["aim_y"][p])
        reach = r + 14 * float(s["charge"][p]) / kernels.FULL_CHARGE
        draw.line((x, y, x + ax * reach, y + ay * reach), fill=(255, 255, 255), width=3)
        for i in range(int(s["quiver"][p])):
            draw.rectangle((x - 14 + i * 8, y - r - 9, x - 10 + i * 8, y - r - 4), fill=_ARROW)
    score = "   ".join(f"{int(s['kills'][p])}" for p in range(batch.players))
    draw.text((10, 8), f"{score}      {int(s['tick']) / kernels.TICK_RATE:5.1f} s", fill=(255, 255, 255))
    return np.asarray(image)


def ansi(batch: ArchersBatch, game: int) -> str:
    """The game as text: # block, digits archers, * deadly arrow, - arrow to pick up, and a line with the score."""
    s = batch.state[game]
    rows = [["#" if cell else "." for cell in row] for row in solid_grid(NAMES[int(s["arena"])])]
    for a in np.flatnonzero(s["arrow_state"] != kernels.ABSENT):
        mark = "*" if s["arrow_state"][a] == kernels.FLYING else "-"
        rows[int(s["arrow_y"][a] // 20)][int(s["arrow_x"][a] // 20)] = mark
    for p in range(batch.players):
        if s["respawn"][p] == 0:
            rows[int(s["y"][p] // 20)][int(s["x"][p] // 20)] = str(p + 1)
    score = " : ".join(str(int(k)) for k in s["kills"][: batch.players])
    return "\n".join("".join(row) for row in rows) + f"\n{score}   {int(s['tick']) / kernels.TICK_RATE:.1f} s\n"
