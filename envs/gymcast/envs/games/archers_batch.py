"""The Archers kernels with their arrays: what `GameVectorEnv` and `GameEnv` step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gymcast.envs.games import archers as kernels
from gymcast.envs.games.archers_maps import NAMES, build_arenas

_LEVELS = {name: level for level, name in enumerate(kernels.LEVELS)} | {"mixed": kernels.MIXED}
_IMAGES = {"vector": 0, "grid": kernels.GRID, "pixels": kernels.PIXELS}
_ARENAS = build_arenas()


class ArchersBatch:
    """A batch of Archers games; lane = game * learners + seat.

    Two sets of output arrays take turns, so that what one step wrote stays untouched by the next one.

    Args:
        games: number of games.
        options: a complete set of options (see the registry).
        learners: seats played by the caller: 1, or `players` when every seat is a lane.
        autoreset: whether a game that ended begins its next match within the same step.
    """

    def __init__(self, games: int, options: Mapping[str, Any], learners: int, autoreset: bool) -> None:
        self.games = games
        self.players = int(options["players"])
        self.learners = learners
        self.lanes = games * learners
        self.arenas = _ARENAS[0]
        image = _IMAGES[options["observation"]]
        self.rules = kernels.Rules(
            frame_skip=int(options["frame_skip"]),
            kills_to_win=int(options["kills_to_win"]),
            max_ticks=max(1, round(float(options["max_duration_s"]) * kernels.TICK_RATE)),
            reward=kernels.REWARDS.index(options["reward"]),
            arena=-1 if options["map"] == "random" else NAMES.index(options["map"]),
            learners=learners,
            opponent=_LEVELS.get(options["opponent"], kernels.RANDOM),
            image=image,
            autoreset=int(autoreset),
        )
        self.state = kernels.new_state(games, self.players)
        first = kernels.new_outputs(self.lanes, self.players, image)
        second = kernels.new_outputs(self.lanes, self.players, image)
        finals = {name: getattr(first, name) for name in first._fields if name.startswith("final_")}
        self._outputs = (first, second._replace(**finals))
        self.out = first
        self._command = np.zeros((self.lanes, 3), np.int64)
        self._aim = np.zeros((self.lanes, 2))
        self._kind = str(options["action"])

    @property
    def observation(self) -> NDArray[Any]:
        """Observations of the last step, (N, D) float32 or (N, ...) uint8."""
        return self.out.image if self.rules.image else self.out.observation

    @property
    def final_observation(self) -> NDArray[Any]:
        """Last observations of matches that ended, shaped like `observation`; rows of other lanes are old."""
        return self.out.final_image if self.rules.image else self.out.final_observation

    def reset(self, chosen: NDArray[np.bool_]) -> None:
        """Begin the matches that `state["seed"]` and `state["episode"]` determine, in the chosen games, bool (B,)."""
        kernels.reset(self.state, self.rules, self.arenas, self.out, chosen)

    def swap(self) -> None:
        """Let the next step write into the other set of output arrays."""
        self.out = self._outputs[1] if self.out is self._outputs[0] else self._outputs[0]

    def step(self, actions: NDArray[Any], start: int, stop: int) -> None:
        """Play one decision of games start .. stop - 1; `actions` has one row per lane. Releases the GIL."""
        lanes = slice(start * self.learners, stop * self.learners)
        if self._kind == "box":
            kernels.decode_box(actions[lanes], self._command[lanes], self._aim[lanes])
        else:
            kernels.decode_multidiscrete(actions[lanes], self._command[lanes], self._aim[lanes])
        kernels.step(self.state, self.rules, self.arenas, self.out, self._command, self._aim, start, stop)


def contest(first: str, second: str, games: int, seed: int, options: Mapping[str, Any]) -> tuple[int, int, int]:
    """Play `games` matches between two scripted archers, `first` on seat 0: (won, lost, drawn) seen from `first`."""
    batch = ArchersBatch(games, options, learners=0, autoreset=False)
    batch.state["seed"] = seed + np.arange(games)
    results = np.zeros((games, 2), np.int64)
    levels = np.array([_LEVELS[first]] + [_LEVELS[second]] * (batch.players - 1), np.int64)
    kernels.play_out(batch.state, batch.rules, batch.arenas, levels, results)
    won, lost = int((results[:, 0] > 0).sum()), int((results[:, 0] < 0).sum())
    return won, lost, games - won - lost
