"""The world of the slow twin: chance, the torus, the arenas with their blocks and places to appear."""

from __future__ import annotations

import math
from collections.abc import Sequence

from gymcast.envs.games.archers_maps import _LAYOUTS, NAMES, solid_grid

WIDTH, HEIGHT, CELL = 800.0, 600.0, 20.0
TICK = 0.02
MARGIN_CELLS = 21  # positions are counted from here, so that a point on an edge rounds as in the game
MARGIN = MARGIN_CELLS * CELL
DIRECTIONS = ((1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1))


# ------------------------------------------------------------------------------------------------------------- chance


class Stream:
    """sfc32 on Python's integers, started from a seed and an episode's index."""

    def __init__(self, seed: int, episode: int) -> None:
        self.a, self.b, self.c, self.counter = seed % 2**32, (seed >> 32) % 2**32, episode % 2**32, 1
        for _ in range(20):
            self.bits()

    def bits(self) -> int:
        result = (self.a + self.b + self.counter) % 2**32
        self.counter = (self.counter + 1) % 2**32
        self.a = self.b ^ (self.b >> 9)
        self.b = (self.c * 9) % 2**32
        rotated = (self.c * 2**21) % 2**32 + self.c // 2**11
        self.c = (rotated + result) % 2**32
        return result

    def unit(self) -> float:
        return self.bits() / 2**32

    def below(self, n: int) -> int:
        return self.bits() * n // 2**32


# ----------------------------------------------------------------------------------------------------------- the arena


class Arena:
    """One map: which cells are blocks, and where archers appear."""

    def __init__(self, name: str) -> None:
        grid = solid_grid(name)
        self.blocks = {(column, row) for row in range(30) for column in range(40) if grid[row, column]}
        index = NAMES.index(name)
        self.spawns = [(float(x), float(y)) for x, y in settings_spawns(index)]
        self.index = index

    def is_block(self, column: int, row: int) -> bool:
        return (column % 40, row % 30) in self.blocks

    def is_solid(self, x: float, y: float) -> bool:
        return self.is_block(cell_of(x), cell_of(y))

    def free_cells(self, x: float, y: float, direction: tuple[int, int]) -> int:
        """Cells between the cell of (x, y) and the first block that way, 20 at most."""
        column, row = cell_of(x), cell_of(y)
        for distance in range(1, 21):
            if self.is_block(column + direction[0] * distance, row + direction[1] * distance):
                return distance - 1
        return 20

    def sees(self, x: float, y: float, dx: float, dy: float) -> bool:
        """Whether no block lies on the way, looked at in equal steps of at most 20 px along either axis."""
        steps = math.floor(max(abs(dx), abs(dy)) * 0.05) + 1
        column, row = (x + MARGIN) * 0.05, (y + MARGIN) * 0.05  # products, as in `cell_of`
        for _ in range(steps - 1):
            column, row = column + dx * 0.05 / steps, row + dy * 0.05 / steps
            if self.is_block(math.floor(column) - MARGIN_CELLS, math.floor(row) - MARGIN_CELLS):
                return False
        return True


def settings_spawns(index: int) -> Sequence[Sequence[float]]:
    """Centres of the places to appear, from the drawings: the left half's as written, then mirrored."""
    left = [(column + 1, row + 1) for column, row in _LAYOUTS[NAMES[index]][1]]
    return [(20 * c, 20 * r) for c, r in left] + [(20 * (40 - c), 20 * r) for c, r in left]


def cell_of(value: float) -> int:
    """Column or row of a coordinate; a product, so that a point on an edge rounds to the side the game puts it on."""
    return math.floor(value * 0.05)


def around(value: float, size: float) -> float:
    """A coordinate brought back into [0, size); it is never more than one size off."""
    if value < 0:
        value += size
    return value - size if value >= size else value


def shortest(difference: float, size: float) -> float:
    """The shortest way between two coordinates on a ring."""
    if difference > size / 2:
        return difference - size
    return difference + size if difference < -size / 2 else difference


def clamp(value: float, low: float, high: float) -> float:
    return max(low, min(high, value))
