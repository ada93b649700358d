"""The Archers kernels with their arrays: what `GameVectorEnv` and `GameEnv` step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gymcast.envs.games import archers as kernels
from gymcast.envs.games.archers_maps import NAMES, build_arenas
from gymcast.envs.rng import seed_episode

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


class ArchersScript:
    """Scripted archers in the learners' places of a batch: policies that need no training, with their own chance.

    A level sees and does what a learner could: one decision per `frame_skip` ticks. So it is a little weaker than the
    same level as an opponent, which may act in every tick.

    Args:
        level: "beginner" to "expert".
        lanes: how many.
        options: a complete set of options (see the registry).
    """

    def __init__(self, level: str, lanes: int, options: Mapping[str, Any]) -> None:
        self._level = _LEVELS[level]
        self._players = int(options["players"])
        self._kind = str(options["action"])
        self._decision_ms = int(options["frame_skip"]) * kernels.TICK_MS
        self._now = np.zeros(lanes, np.int64)
        self._memory = np.zeros((lanes, kernels.BOT_SIZE), np.int32)
        self._streams = np.zeros((lanes, 4), np.uint32)
        self._held = np.zeros((lanes, 4), np.int64)

    def begin(self, lane: int, seed: int) -> None:
        """Begin a match on a lane, with a seed (0 .. 2**63 - 1) for the archer's own chance."""
        self._now[lane] = 0
        self._held[lane] = 0
        self._memory[lane] = 0
        self._memory[lane, kernels.BOT_QUEUE :: kernels.SLOT_SIZE] = -1
        seed_episode(self._streams[lane], seed, 0)

    def act(self, seen: NDArray[np.float32]) -> NDArray[Any]:
        """Actions (N, ...) of the game's action space, for vector observations (N, D)."""
        held = self._held
        kernels.script(seen, self._level, self._players, self._now, self._memory, self._streams, held)
        self._now += self._decision_ms
        if self._kind == "multidiscrete":
            return held.copy()
        if self._kind == "discrete":
            return ((held[:, 0] * 3 + held[:, 1]) * 2 + held[:, 2]) * 16 + held[:, 3]
        moves, verticals = np.array([0.0, -1.0, 1.0]), np.array([0.0, -1.0, 1.0])
        bow = 2.0 * held[:, 2] - 1.0
        columns = (moves[held[:, 0]], verticals[held[:, 1]], bow, kernels.AIM_X[held[:, 3]], kernels.AIM_Y[held[:, 3]])
        return np.stack(columns, axis=1).astype(np.float32)


def contest(first: str, second: str, games: int, seed: int, options: Mapping[str, Any]) -> tuple[int, int, int]:
    """Play `games` matches between two scripted archers, `first` on seat 0: (won, lost, drawn) seen from `first`."""
    batch = ArchersBatch(games, options, learners=0, autoreset=False)
    batch.state["seed"] = seed + np.arange(games)
    results = np.zeros((games, 2), np.int64)
    levels = np.array([_LEVELS[first]] + [_LEVELS[second]] * (batch.players - 1), np.int64)
    kernels.play_out(batch.state, batch.rules, batch.arenas, levels, results)
    won, lost = int((results[:, 0] > 0).sum()), int((results[:, 0] < 0).sum())
    return won, lost, games - won - lost
