"""Built-in games in worker processes: the lanes of a worker as one native batch."""

from __future__ import annotations

import pickle
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from gymcast.envs.registry import game_spec
from gymcast.envs.shared_arrays import SharedArrays, mask_size
from gymcast.envs.subproc_lanes import Described, EnvFault, Failure, Lanes, Said, WorkerStart
from gymcast.envs.vector import GameVectorEnv

_NOTHING = pickle.dumps(({}, None))


@dataclass(frozen=True)
class GameFactory:
    """Makes a built-in game. A worker whose lanes are all made by equal ones steps them as one native batch."""

    env_id: str
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self) -> gymnasium.Env[Any, Any]:
        """One game as a Gymnasium environment."""
        env: gymnasium.Env[Any, Any] = gymnasium.make(game_spec(self.env_id).id, **self.options)
        return env


class GameLanes:
    """A native batch of a built-in game; what an ended lane says is what `GameVecEnv` of the training says."""

    def __init__(self, start: WorkerStart, factory: GameFactory) -> None:
        self._start = start
        self._factory = factory
        self.current: int | None = None
        self.failed: list[Failure] = []
        """Always empty: what a game raises ends the batch, and with it the worker."""
        self.is_fork = False
        self._began = time.monotonic()

    def make(self) -> None:
        """Make the batch."""
        if self._factory.options.get("opponent") == "self":
            raise EnvFault("opponent='self' makes a lane of every seat: use GameVecEnv, which steps them in one batch")
        lanes = len(self._start.factories)
        self.env = GameVectorEnv(self._factory.env_id, lanes, threads=1, **self._factory.options)

    def describe(self) -> list[Described]:
        """Of the first lane, which is like all others."""
        env = self.env
        action_space = env.single_action_space
        return [(self._start.first_lane, (env.single_observation_space, action_space, mask_size(action_space)))]

    def attach(self, arrays: SharedArrays) -> None:
        """Take this worker's part of the shared memory."""
        first = self._start.first_lane
        mine = slice(first, first + self.env.num_envs)
        self._rows = [turn[0][mine] for turn in arrays.observations]
        self._rewards, self._dones, self._masks = arrays.rewards[mine], arrays.dones[mine], arrays.masks[mine]
        assert arrays.actions is not None, "actions of built-in games are arrays"
        self._actions = arrays.actions[mine]

    def reset(self, turn: int, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> list[bytes | None]:
        """Begin a match in every lane; returns empty infos, pickled."""
        self._rows[turn][:], _ = self.env.reset(seed=list(seeds))
        self._put_masks()
        return [_NOTHING for _ in seeds]

    def remake(self, *_: Any) -> bytes | None:
        """Not for a batch."""
        raise NotImplementedError("lanes of a native batch cannot be made anew one by one")

    def step(self, turn: int, actions: Any) -> Said:
        """Play a decision in every lane."""
        env = self.env
        self._rows[turn][:], self._rewards[:], terminated, truncated, _ = env.step(self._actions)
        np.logical_or(terminated, truncated, out=self._dones)
        self._put_masks()
        seconds = round(time.monotonic() - self._began, 6)
        said: Said = []
        for place in env.ended:
            info = {
                "terminal_observation": env.final_obs[place].copy(),
                "episode": {"r": float(env.episode_return[place]), "l": int(env.episode_length[place]), "t": seconds},
                "TimeLimit.truncated": not bool(terminated[place]),
                "outcome": int(env.outcome[place]),
                "kills": int(env.kills[place]),
                "deaths": int(env.deaths[place]),
            }
            said.append((self._start.first_lane + int(place), pickle.dumps((info, {}), protocol=5)))
        return said

    def call(self, command: str, lane: int, *arguments: Any) -> Any:
        """has_attr, get_attr and is_wrapped for a lane, and its methods action_masks and (first lane) render."""
        self.current = lane
        place = lane - self._start.first_lane
        if command == "has_attr":
            return hasattr(self.env, arguments[0])
        if command == "get_attr":
            return getattr(self.env, arguments[0])
        if command == "is_wrapped":
            return False
        if command == "env_method" and arguments[0] == "action_masks":
            return self._masks[place].copy()
        if command == "env_method" and arguments[0] == "render" and place == 0:
            return self.env.render()
        raise AttributeError(
            f"{command} {arguments[0]!r}: lanes of a native batch are not environments of their own; they have the "
            "method action_masks, and the first lane of a worker render. Give functions that make single ones instead."
        )

    def close(self) -> None:
        """Close the batch."""
        self.env.close()

    def _put_masks(self) -> None:
        self._masks[:] = self.env.action_masks()


def choose_lanes(start: WorkerStart) -> Lanes | GameLanes:
    """A native batch where all lanes are the same built-in game, else environments one by one."""
    first = pickle.loads(start.factories[0])  # noqa: S301 - from the process that started this one
    if isinstance(first, GameFactory) and set(start.factories) == {start.factories[0]}:
        return GameLanes(start, first)
    return Lanes(start)
