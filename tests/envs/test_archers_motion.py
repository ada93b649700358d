"""How archers and arrows move, against closed forms. 20 px = 1 m; a tick is 1/50 s."""

from __future__ import annotations

import math

import numpy as np
import pytest
from archers_stage import DIVE, EAST, FAR, JUMP, LEFT, NORTH, RIGHT, SOUTH, WEST, Stage

from gymcast.envs.games import archers as kernels
from gymcast.envs.games.archers_maps import BLOCK, NAMES, SPAWNS, build_arenas, solid_grid

METRE = 20.0


def test_the_numbers_are_those_of_the_arena() -> None:
    assert kernels.GRAVITY == 20 * METRE and kernels.MAX_SPEED == 30 * METRE
    assert kernels.RUN_SPEED == 15 * METRE and kernels.IMPULSE == 20 * METRE
    assert pytest.approx(44.7 * METRE) == kernels.LAUNCH_SPEED and kernels.FULL_CHARGE == 2 * kernels.TICK_RATE
    assert (kernels.WIDTH, kernels.HEIGHT) == (800, 600) and kernels.RADIUS == 20 and kernels.STUCK_RADIUS == 10


def test_an_archer_falls_at_20_metres_per_square_second() -> None:
    stage = Stage()
    stage.put(0, 400, 200)
    for n in range(1, 11):
        stage.step()
        assert stage.r["vy"][0] == pytest.approx(400 * n / 50)
        assert stage.r["y"][0] == pytest.approx(200 + 400 / 50**2 * n * (n + 1) / 2)


def test_speed_is_capped_at_30_metres_per_second() -> None:
    stage = Stage(map="pit")
    stage.put(0, 400, 590, vy=590.0)  # over the hole: falls for ever
    stage.step(n=2)
    assert stage.r["vy"][0] == 600
    before = float(stage.r["y"][0])
    stage.step()
    assert stage.r["vy"][0] == 600 and stage.r["y"][0] == pytest.approx(before + 12)


@pytest.mark.parametrize(("move", "way"), [(0, 0), (LEFT, -1), (RIGHT, 1)])
def test_an_archer_runs_15_metres_per_second(move: int, way: int) -> None:
    stage = Stage()
    stage.put(0, 400, 200)
    stage.step((move, 0, 0, 0), n=10)
    assert stage.r["x"][0] == 400 + way * 15 * METRE * 10 / 50
    assert stage.r["vx"][0] == way * 300


def test_a_block_stops_an_archer_where_it_touches_it() -> None:
    stage = Stage(map="gauntlet")  # a pillar of blocks at columns 6 and 7, rows 23 to 27, on the floor
    stage.put(0, 90, 540)
    stage.step((RIGHT, 0, 0, 0), n=20)
    assert stage.r["x"][0] == 6 * BLOCK - 20 and stage.r["vx"][0] == 0
    assert stage.r["y"][0] == 28 * BLOCK - 20 and stage.r["grounded"][0] == 1
    stage.put(0, 190, 540)
    stage.step((LEFT, 0, 0, 0), n=20)
    assert stage.r["x"][0] == 8 * BLOCK + 20


def test_a_head_hits_a_ceiling() -> None:
    stage = Stage()  # open: a platform at row 16, columns 14 to 25
    stage.put(0, 400, 17 * BLOCK + 40, vy=-400.0)
    stage.step(n=4)
    assert stage.r["y"][0] >= 17 * BLOCK + 20 and stage.r["vy"][0] >= 0


def test_a_jump_rises_196_px() -> None:
    """Speed 400 px/s less 8 per tick: the sum of (400 - 8 k) / 50 over k = 1 .. 50."""
    stage = Stage()
    stage.put(0, 40, 27 * BLOCK - 20, grounded=1)
    stage.step(n=2)
    floor = float(stage.r["y"][0])
    stage.step((0, JUMP, 0, 0))
    heights = []
    for _ in range(80):
        heights.append(floor - float(stage.r["y"][0]))
        stage.step()
    assert max(heights) == pytest.approx(sum((400 - 8 * k) / 50 for k in range(1, 51)))
    assert max(heights) == pytest.approx(196)


def test_two_jumps_and_both_back_on_the_ground() -> None:
    stage = Stage()
    stage.put(0, 40, 27 * BLOCK - 20, grounded=1)
    stage.step((0, JUMP, 0, 0))
    assert stage.r["jumps"][0] == 1 and stage.r["vy"][0] == -392
    stage.step(n=10)
    stage.step((0, JUMP, 0, 0))
    assert stage.r["jumps"][0] == 0 and stage.r["vy"][0] == -392
    stage.step(n=10)
    falling = float(stage.r["vy"][0])
    stage.step((0, JUMP, 0, 0))
    assert stage.r["vy"][0] == falling + 8, "a third jump does nothing"
    stage.step(n=150)
    assert stage.r["grounded"][0] == 1 and stage.r["jumps"][0] == 2


@pytest.mark.parametrize(("before", "after"), [(-300.0, 408.0), (0.0, 408.0), (100.0, 508.0), (550.0, 600.0)])
def test_a_dive_adds_20_metres_per_second_downwards(before: float, after: float) -> None:
    stage = Stage()
    stage.put(0, 40, 300, vy=before)
    stage.step((0, DIVE, 0, 0))
    assert stage.r["vy"][0] == after


def test_no_dive_on_the_ground() -> None:
    stage = Stage()
    stage.put(0, 40, 27 * BLOCK - 20, grounded=1)
    stage.step((0, DIVE, 0, 0))
    assert stage.r["grounded"][0] == 1 and stage.r["y"][0] == 27 * BLOCK - 20


@pytest.mark.parametrize(
    ("map_name", "x", "y", "vy", "move"),
    [
        ("pit", 797.0, 100.0, 0.0, RIGHT),
        ("pit", 3.0, 100.0, 0.0, LEFT),
        ("pit", 400.0, 598.0, 300.0, 0),
        ("pit", 400.0, 2.0, -400.0, 0),
    ],
)
def test_an_archer_leaves_on_one_side_and_comes_in_on_the_other(
    map_name: str, x: float, y: float, vy: float, move: int
) -> None:
    stage = Stage(map=map_name)
    stage.put(0, x, y, vy=vy)
    stage.step((move, 0, 0, 0))
    way = {0: 0, LEFT: -1, RIGHT: 1}[move]
    assert stage.r["x"][0] == pytest.approx((x + 6 * way) % 800)
    assert stage.r["y"][0] == pytest.approx((y + (vy + 8) / 50) % 600)
    assert abs(stage.r["x"][0] - x) > 400 or abs(stage.r["y"][0] - y) > 300


@pytest.mark.parametrize("axis", ["x", "y"])
def test_rounding_cannot_put_anyone_on_the_seam(axis: str) -> None:
    """A tiny step over the edge from 0: 800 - 1e-14 is 800 in floating point, and 800 is 0."""
    stage = Stage(map="pit")
    if axis == "y":  # falls upwards by exactly as much as it is down, but for the last bit
        vy = -400.0
        y = -(vy + 8) / 50 * (1 - 2**-52)
        stage.put(0, 400.0, y, vy=vy)
        stage.step()
        assert (y + (vy + 8) / 50) < 0, "the case this test is about"
    else:
        x = 12.0 * (1 - 2**-53)
        slot = stage.arrow(x, 100.0, -600.0, 0.0, owner=0)
        stage.step()
        assert x - 12.0 < 0, "the case this test is about"
        assert 0 <= stage.r["arrow_x"][slot] < 800
    assert 0 <= stage.r[axis][0] < (800 if axis == "x" else 600)
    assert np.isfinite(stage.batch.out.observation).all() and (np.abs(stage.batch.out.observation) <= 1).all()


@pytest.mark.parametrize("ticks", [1, 4, 16, 36, 64, 100, 130])
@pytest.mark.parametrize("aim", [EAST, SOUTH, WEST, NORTH, 2, 9])
def test_launch_speed_grows_with_the_square_root_of_the_charge(ticks: int, aim: int) -> None:
    stage = Stage()
    stage.r["y"][1], stage.r["x"][1] = FAR[1], FAR[0]
    stage.step((0, 0, 1, aim), n=ticks)
    stage.put(0, 400.0, 200.0)
    charge = min(ticks, 100)
    assert stage.r["charge"][0] == charge and stage.r["bow"][0] == 1
    stage.step((0, 0, 0, aim))
    speed = 894 * math.sqrt(charge / 100)
    angle = 2 * math.pi * aim / 16
    expected_x = max(-600.0, min(600.0, speed * math.cos(angle)))
    expected_y = max(-600.0, min(600.0, speed * math.sin(angle)))
    assert stage.r["arrow_state"][0] == kernels.FLYING and stage.r["quiver"][0] == 3
    assert stage.r["arrow_vx"][0] == pytest.approx(expected_x, abs=1e-6)
    assert stage.r["arrow_vy"][0] == pytest.approx(min(expected_y + 8, 600), abs=1e-6)  # one tick of gravity
    start_x, start_y = 400 + 20 * math.cos(angle), 200 + 20 * math.sin(angle)
    assert stage.r["arrow_x"][0] == pytest.approx(start_x + expected_x / 50, abs=1e-6)
    assert stage.r["arrow_y"][0] == pytest.approx(start_y + min(expected_y + 8, 600) / 50, abs=1e-6)


def test_a_bow_let_go_at_once_shoots_nothing() -> None:
    stage = Stage()
    stage.step((0, 0, 0, 3), n=5)
    assert stage.r["quiver"].tolist()[:2] == [4, 4]


@pytest.mark.parametrize(
    ("x", "y", "vx", "vy"),
    [(795.0, 100.0, 600.0, 0.0), (5.0, 100.0, -600.0, 0.0), (400.0, 595.0, 0.0, 590.0), (400.0, 5.0, 0.0, -600.0)],
)
def test_an_arrow_goes_round_the_arena(x: float, y: float, vx: float, vy: float) -> None:
    stage = Stage(map="pit")
    slot = stage.arrow(x, y, vx, vy, owner=0)
    stage.step()
    assert stage.r["arrow_x"][slot] == pytest.approx((x + vx / 50) % 800)
    assert stage.r["arrow_y"][slot] == pytest.approx((y + min(vy + 8, 600) / 50) % 600)
    assert stage.r["arrow_state"][slot] == kernels.FLYING


def test_an_arrow_sticks_where_it_was_before_the_block() -> None:
    stage = Stage()
    stage.put(0, *FAR)
    slot = stage.arrow(60.0, 27 * BLOCK - 5, 0.0, 590.0, owner=0)
    stage.step()
    assert stage.r["arrow_state"][slot] == kernels.STUCK
    assert (stage.r["arrow_x"][slot], stage.r["arrow_y"][slot]) == (60.0, 27 * BLOCK - 5)
    stage.step(n=10)
    assert (stage.r["arrow_x"][slot], stage.r["arrow_y"][slot]) == (60.0, 27 * BLOCK - 5)


def test_an_arrow_shot_into_a_wall_sticks_where_the_archer_stands() -> None:
    stage = Stage(map="gauntlet")
    stage.put(0, 100.0, 540.0, grounded=1)  # against the pillar
    stage.step((0, 0, 1, EAST), n=10)
    stage.step((0, 0, 0, EAST))
    assert stage.r["shots"][0] == 1
    assert stage.r["quiver"][0] == 4, "it lies within reach and is picked up at once"


def test_an_arrow_is_spent_after_five_seconds_in_the_air() -> None:
    stage = Stage()
    slot = stage.arrow(*FAR, 0.0, 0.0, owner=1)
    stage.r["arrow_age"][slot] = 5 * 50 - 2
    stage.step()
    assert stage.r["arrow_state"][slot] == kernels.FLYING
    stage.step()
    assert stage.r["arrow_state"][slot] == kernels.FALLING


@pytest.mark.parametrize("name", NAMES)
def test_places_to_appear_are_free_and_on_the_ground(name: str) -> None:
    arenas = build_arenas()
    index, grid = NAMES.index(name), solid_grid(name)
    assert arenas["spawns"][0, index].shape == (SPAWNS, 2)
    for x, y in arenas["spawns"][0, index]:
        column, row = round(x / BLOCK), round(y / BLOCK)  # the archer covers the four cells around this corner
        assert not grid[[row - 1, row - 1, row, row], [column - 1, column % 40, column - 1, column % 40]].any()
        assert grid[row + 1, [column - 1, column % 40]].any(), f"{name}: nothing to stand on at {x}, {y}"


def test_there_are_four_different_maps_of_40_by_30_blocks() -> None:
    grids = [solid_grid(name) for name in NAMES]
    assert len(NAMES) >= 4 and len({grid.tobytes() for grid in grids}) == len(NAMES)
    assert all(grid.shape == (30, 40) and grid.any() and not grid.all() for grid in grids)
