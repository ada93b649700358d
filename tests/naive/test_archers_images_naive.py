"""Image observations, cell by cell, against the plain statement of what each cell shows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from archers_naive_world import Arena, around, shortest

from gymcast.envs import GameVectorEnv
from gymcast.envs.games import archers as kernels
from gymcast.envs.games.archers_maps import NAMES

BLOCK, SELF, FOE, DEADLY, OWN, FREE, GAUGE = range(7)


def arrow_cells(r: Any, a: int, x: float, y: float, cell: float, rows: int, columns: int) -> list[tuple[int, int]]:
    """Five points along the arrow, tip to tail, as cells around the archer at (x, y)."""
    vx, vy = float(r["arrow_vx"][a]), float(r["arrow_vy"][a])
    speed = math.hypot(vx, vy)
    ux, uy = (vx / speed, vy / speed) if speed else (0.0, 1.0)
    tip_x, tip_y = shortest(r["arrow_x"][a] - x, 800.0) + 400, shortest(r["arrow_y"][a] - y, 600.0) + 300
    points = [(tip_x - ux * back, tip_y - uy * back) for back in (0, 5, 10, 15, 20)]
    return [(math.floor(py / cell) % rows, math.floor(px / cell) % columns) for px, py in points]


def planes(env: GameVectorEnv, cell: float) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """What the first lane sees, bool (6, rows, columns): all but the gauges."""
    r = env.batch.state[0]
    rows, columns = round(600 / cell), round(800 / cell)
    seen = np.zeros((6, rows, columns), np.bool_)
    arena = Arena(NAMES[int(r["arena"])])
    x, y = float(r["x"][0]), float(r["y"][0])
    for row in range(rows):
        for column in range(columns):
            dx, dy = (column + 0.5) * cell - 400, (row + 0.5) * cell - 300
            there = around(x + dx, 800.0), around(y + dy, 600.0)
            seen[BLOCK, row, column] = arena.is_solid(*there)
            for p in range(int(r["players"])):
                if r["respawn"][p] == 0:
                    away = math.hypot(shortest(there[0] - r["x"][p], 800.0), shortest(there[1] - r["y"][p], 600.0))
                    seen[SELF if p == 0 else FOE, row, column] |= away < 20
    for a in np.flatnonzero(r["arrow_state"] != kernels.ABSENT):
        kind = FREE
        if r["arrow_state"][a] == kernels.FLYING:
            kind = OWN if r["arrow_owner"][a] == 0 else DEADLY
        for where in arrow_cells(r, int(a), x, y, cell, rows, columns):
            seen[(kind, *where)] = True
    return seen


def gauges(env: GameVectorEnv) -> list[float]:
    r = env.batch.state[0]
    time_left = 1 - r["tick"] / env.batch.rules.max_ticks
    kills = r["kills"][0] / env.batch.rules.kills_to_win
    return [r["quiver"][0] / 4, r["charge"][0] / 100, r["jumps"][0] / 2, kills, time_left]


@pytest.mark.parametrize("observation", ["grid", "pixels"])
def test_images_show_what_is_there(observation: str) -> None:
    env = GameVectorEnv(
        "archers", 1, observation=observation, opponent="expert", players=3, map="random", max_duration_s=10, threads=1
    )
    images, _ = env.reset(seed=3)
    random = np.random.default_rng(0)
    kinds = np.zeros(6, np.int64)
    for decision in range(90):
        if decision % 6 == 0:
            expected = planes(env, 10.0 if observation == "grid" else 5.0)
            kinds += expected.any(axis=(1, 2))
            (check_grid if observation == "grid" else check_pixels)(images[0], expected, gauges(env))
        actions = random.integers(0, (3, 3, 2, 16), (1, 4))
        actions[:, 2] = random.random() < 0.8
        images, *_ = env.step(actions)
    assert (kinds > 0).all(), "some kind of thing was never on an image"


def check_grid(image: Any, expected: Any, values: list[float]) -> None:
    assert set(np.unique(image)) <= {0, 255}
    np.testing.assert_array_equal(image[:GAUGE] == 255, expected)
    for k, value in enumerate(values):
        bar = image[GAUGE, k * 12 : (k + 1) * 12] == 255
        assert bar.sum(axis=1).tolist() == [int(value * 80)] * 12


def check_pixels(image: Any, expected: Any, values: list[float]) -> None:
    """Later kinds lie over earlier ones; two rows for each gauge at the bottom."""
    picture = np.where(expected[BLOCK][..., None], kernels.COLOURS[BLOCK], kernels.SKY)
    archers = [kind for kind in (SELF, FOE) if expected[kind].any()]
    arrows = expected[DEADLY] | expected[OWN] | expected[FREE]
    for kind in archers:
        alone = expected[kind] & ~arrows & ~expected[SELF + FOE - kind]
        picture[alone] = kernels.COLOURS[kind]
    for kind in (DEADLY, OWN, FREE):
        picture[expected[kind]] = kernels.COLOURS[kind]
    overlapping = (expected[SELF] & expected[FOE]) | (expected[[DEADLY, OWN, FREE]].sum(axis=0) > 1)
    free_rows = np.s_[:110]
    same = (image == picture).all(axis=2) | overlapping
    assert same[free_rows].all()
    for k, value in enumerate(values):
        bar = (image[110 + 2 * k : 112 + 2 * k] == kernels.COLOURS[GAUGE]).all(axis=2)
        assert bar.sum(axis=1).tolist() == [int(value * 160)] * 2
