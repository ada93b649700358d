"""The four arenas of Archers, each 40 x 30 blocks of 20 px, drawn as text and given to the kernels as tables.

`#` is a block, `s` a place to (re)appear: a spawn mark is the cell left above the archer's centre, so the archer
covers that cell, the one to its right and the two below them. Every arena wraps around on all four sides.
"""

from __future__ import annotations

import numpy as np
from numba import config
from numpy.typing import NDArray

COLUMNS, ROWS = 40, 30
BLOCK = 20.0  # px
PAD = 21  # blocks of wrapped-around margin: half the arena and an archer, so that no move and no line needs a modulo
RAYS = 8  # E, SE, S, SW, W, NW, N, NE
MAX_RAY = 20  # blocks
SPAWNS = 8

_RAY_STEPS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))

# Each arena: rectangles of blocks (column, row, width, height) of the left half, mirrored to the right; then spawns
# (column, row of the archer's upper left cell), mirrored too.
_LAYOUTS: dict[str, tuple[tuple[tuple[int, int, int, int], ...], tuple[tuple[int, int], ...]]] = {
    "open": (
        ((0, 27, 20, 3), (4, 21, 7, 1), (14, 16, 6, 1), (3, 11, 6, 1), (13, 6, 4, 1)),
        ((5, 25), (6, 19), (16, 14), (5, 9)),
    ),
    "tower": (
        (
            (0, 28, 20, 2),
            (17, 9, 3, 12),
            (12, 21, 8, 1),
            (0, 22, 6, 1),
            (10, 14, 4, 1),
            (0, 14, 5, 1),
            (9, 7, 4, 1),
            (0, 7, 3, 1),
        ),
        ((3, 26), (14, 19), (2, 12), (10, 5)),
    ),
    "gauntlet": (
        (
            (0, 28, 20, 2),
            (0, 19, 14, 1),
            (6, 23, 2, 5),
            (17, 14, 3, 2),
            (0, 9, 15, 1),
            (14, 23, 3, 1),
            (4, 14, 6, 1),
            (0, 0, 20, 1),
        ),
        ((2, 26), (10, 17), (6, 12), (3, 7)),
    ),
    "pit": (
        ((0, 25, 11, 5), (11, 28, 3, 2), (16, 21, 4, 1), (3, 18, 7, 1), (13, 13, 4, 1), (0, 10, 6, 1), (9, 6, 5, 1)),
        ((3, 23), (17, 19), (5, 16), (2, 8)),
    ),
}

NAMES: tuple[str, ...] = tuple(_LAYOUTS)


# Tables of all arenas as one record, so that kernels take them as one pointer; the leading axis is the index in NAMES.
ARENAS = np.dtype(
    [
        ("solid", np.uint8, (len(NAMES), ROWS + 2 * PAD, COLUMNS + 2 * PAD)),  # 1: block; wrapped into the margin
        # Free blocks from a cell to the first block along E, SE, S, SW, W, NW, N, NE, at most 20, scaled to [-1, 1].
        ("rays", np.float32, (len(NAMES), ROWS, COLUMNS, RAYS)),
        ("spawns", np.float64, (len(NAMES), SPAWNS, 2)),  # centres of the places to appear, px
    ],
    align=True,
)


def solid_grid(name: str) -> NDArray[np.uint8]:
    """Blocks of one arena, uint8 (30, 40), 1 where a block is."""
    grid = np.zeros((ROWS, COLUMNS), np.uint8)
    for column, row, width, height in _LAYOUTS[name][0]:
        grid[row : row + height, column : column + width] = 1
        grid[row : row + height, COLUMNS - column - width : COLUMNS - column] = 1
    return grid


def block_rectangles(name: str) -> list[list[int]]:
    """Blocks of one arena as few rectangles [x, y, width, height] in px: runs in a row, merged downwards."""
    grid = solid_grid(name)
    open_runs: dict[tuple[int, int], list[int]] = {}
    done: list[list[int]] = []
    for row in range(ROWS + 1):
        runs: set[tuple[int, int]] = set()
        if row < ROWS:
            edges = np.flatnonzero(np.diff(np.concatenate(([0], grid[row], [0])).astype(np.int8)))
            runs = {(int(a), int(b)) for a, b in edges.reshape(-1, 2)}
        for run in [run for run in open_runs if run not in runs]:
            done.append(open_runs.pop(run))
        for a, b in runs:
            rectangle = open_runs.setdefault((a, b), [a * 20, row * 20, (b - a) * 20, 0])
            rectangle[3] += 20
    return sorted(done)


def _rays(grid: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Free blocks from each cell along each of the 8 directions, 0 .. MAX_RAY, float32 (ROWS, COLUMNS, 8)."""
    free = np.full((ROWS, COLUMNS, RAYS), MAX_RAY, np.float32)
    for direction, (dx, dy) in enumerate(_RAY_STEPS):
        for distance in range(MAX_RAY, 0, -1):
            hit = np.roll(grid, (-dy * distance, -dx * distance), axis=(0, 1)) == 1
            free[hit, direction] = distance - 1
    return free


def _spawns(name: str) -> NDArray[np.float64]:
    left = [(column + 1, row + 1) for column, row in _LAYOUTS[name][1]]
    right = [(COLUMNS - column, row) for column, row in left]
    return np.array([(column * BLOCK, row * BLOCK) for column, row in left + right], np.float64)


def build_arenas() -> NDArray[np.void]:
    """The tables of all arenas, ARENAS (1,)."""
    grids = [solid_grid(name) for name in NAMES]
    arenas = np.zeros(1, ARENAS)
    arenas["solid"][0] = [np.pad(grid, PAD, mode="wrap") for grid in grids]
    arenas["rays"][0] = [_rays(grid) / (MAX_RAY / 2) - 1 for grid in grids]
    arenas["spawns"][0] = [_spawns(name) for name in NAMES]
    return arenas.view(np.recarray) if config.DISABLE_JIT else arenas  # type: ignore[attr-defined]
