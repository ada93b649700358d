"""A match of Archers whose every detail a test can set: all seats played by the test, one tick per decision."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from gymcast.envs import game_spec
from gymcast.envs.games import archers as kernels
from gymcast.envs.games.archers_batch import ArchersBatch

EAST, SOUTH, WEST, NORTH = 0, 4, 8, 12
LEFT, RIGHT = 1, 2
JUMP, DIVE = 1, 2
FAR = (700.0, 40.0)  # in the open map: in the air, away from everything


class Stage:
    """One match without autoreset; `r` is its record of state."""

    def __init__(self, players: int = 2, seed: int = 1, **options: Any) -> None:
        given = {"players": players, "opponent": "self", "frame_skip": 1, "reward": "sparse", **options}
        self.batch = ArchersBatch(1, game_spec("archers").complete_options(given), players, autoreset=False)
        self.batch.state["seed"] = seed
        self.batch.reset(np.ones(1, np.bool_))
        self.players = players

    @property
    def r(self) -> Any:
        return self.batch.state[0]

    def put(self, seat: int, x: float, y: float, **more: float) -> None:
        """Put an archer in the air at (x, y), at rest; `more` sets other fields of it."""
        for name, value in {"x": x, "y": y, "vx": 0.0, "vy": 0.0, "grounded": 0, **more}.items():
            self.r[name][seat] = value

    def arrow(self, x: float, y: float, vx: float, vy: float, owner: int, state: int = kernels.FLYING) -> int:
        """Take an arrow out of its owner's quiver and put it there; its slot."""
        slot = int(np.flatnonzero(self.r["arrow_state"] == kernels.ABSENT)[0])
        values = {"x": x, "y": y, "vx": vx, "vy": vy, "owner": owner, "state": state, "age": 0, "near": kernels.NEAR**2}
        for name, value in values.items():
            self.r[f"arrow_{name}"][slot] = value
        self.r["quiver"][owner] -= 1
        return slot

    def step(self, *actions: tuple[int, int, int, int], n: int = 1) -> None:
        """One decision, or the same one `n` times; seats without an action do nothing."""
        rows = [*actions, *[(0, 0, 0, 0)] * (self.players - len(actions))]
        for _ in range(n):
            self.batch.step(np.array(rows, np.int64), 0, 1)

    @property
    def rewards(self) -> list[float]:
        return [float(value) for value in self.batch.out.reward]

    @property
    def ended(self) -> str:
        terminated, truncated = self.batch.out.terminated, self.batch.out.truncated
        assert terminated.all() == terminated.any() and truncated.all() == truncated.any()
        assert not (terminated.any() and truncated.any())
        return "terminated" if terminated.any() else ("truncated" if truncated.any() else "")

    def arrows_in_all(self) -> int:
        present = int((self.r["arrow_state"] != kernels.ABSENT).sum())
        return present + int(self.r["quiver"].sum())


def lively_actions(random: np.random.Generator, lanes: int) -> NDArray[np.int64]:
    """Random MultiDiscrete actions with which matches happen: the bow is held for a while and then let go."""
    actions = random.integers(0, (3, 3, 2, 16), (lanes, 4))
    actions[:, 1] = np.where(random.random(lanes) < 0.7, 0, actions[:, 1])
    actions[:, 2] = random.random(lanes) < 0.85
    return actions
