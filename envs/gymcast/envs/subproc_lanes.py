"""The lanes of a worker process: environments that are stepped one after the other."""

from __future__ import annotations

import pickle
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from gymcast.envs.shared_arrays import SharedArrays, mask_size, observation_leaves

Said = list[tuple[int, dict[str, Any], dict[str, Any] | None]]
"""(lane, info, info of the reset that followed) of those lanes that have something to say after a step."""


@dataclass(frozen=True)
class WorkerStart:
    """What a worker needs to begin."""

    number: int
    first_lane: int
    factories: tuple[bytes, ...]
    """For each lane the cloudpickle of a function that makes its environment."""
    parent: int
    """Process id of the parent."""
    episode_timeout: float | None
    spin: float
    """Seconds to look for the next step before sleeping for it."""


class EnvFault(Exception):
    """An environment that breaks its contract: a wrong shape, NaN, spaces that change."""


class Lanes:
    """The environments of a worker, one after the other."""

    def __init__(self, start: WorkerStart) -> None:
        self._start = start
        self.current: int | None = None
        """The lane that is being worked on."""
        self.envs: list[gymnasium.Env[Any, Any]] = []
        self._has_masks = False

    def make(self) -> None:
        """Make the environments; raises what a factory raises, and EnvFault when lanes differ."""
        for lane, factory in enumerate(self._start.factories, self._start.first_lane):
            self.current = lane
            env = pickle.loads(factory)()  # noqa: S301 - from the process that started this one
            if not isinstance(env, gymnasium.Env):
                raise EnvFault(f"the factory returned {type(env).__name__}, not a gymnasium.Env")
            self.envs.append(env)
            if env.observation_space != self.envs[0].observation_space or env.action_space != self.envs[0].action_space:
                raise EnvFault(f"its spaces {_spaces(env)} are not those of other lanes, {_spaces(self.envs[0])}")
        self.current = None

    def describe(self) -> tuple[Any, Any, int]:
        """Observation space, action space, size of action masks (0 without)."""
        env = self.envs[0]
        size = mask_size(env.action_space)
        self._has_masks = size > 0 and all(_has_attribute(one, "action_masks") for one in self.envs)
        return env.observation_space, env.action_space, size if self._has_masks else 0

    def attach(self, arrays: SharedArrays) -> None:
        """Take this worker's part of the shared memory."""
        first = self._start.first_lane
        mine = slice(first, first + len(self.envs))
        self._spaces = [(env.observation_space, env.action_space) for env in self.envs]
        self._leaves = observation_leaves(self._spaces[0][0])
        self._dtypes = [np.dtype(leaf.dtype) for leaf in self._leaves]
        self._checks_nan = [index for index, dtype in enumerate(self._dtypes) if dtype.kind == "f"]
        self._rows = [[leaf[mine] for leaf in turn] for turn in arrays.observations]
        self._rewards, self._dones, self._masks = arrays.rewards[mine], arrays.dones[mine], arrays.masks[mine]
        self._actions = None if arrays.actions is None else arrays.actions[mine]
        self._busy = arrays.current[self._start.number : self._start.number + 1]
        self._busy[0] = -1
        self._began = [time.monotonic()] * len(self.envs)

    def reset(self, turn: int, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Begin an episode in every lane; returns the infos."""
        infos = []
        for place, env in enumerate(self.envs):
            self._enter(place)
            chosen = {"options": options[place]} if options[place] else {}
            observation, info = env.reset(seed=seeds[place], **chosen)
            infos.append(info)
            self._begin(place, env, turn, observation)
        self._finish(turn)
        return infos

    def step(self, turn: int, actions: Any) -> Said:
        """Step every lane. Returns (lane, info, info of the reset) for those lanes that have something to say."""
        if actions is None:
            assert self._actions is not None
            actions = self._actions.copy()
        said: Said = []
        self._dones[:] = False
        rewards, limit = self._rewards, self._start.episode_timeout
        for place, env in enumerate(self.envs):
            self._enter(place)
            observation, rewards[place], terminated, truncated, info = env.step(actions[place])
            if limit is not None and not terminated and time.monotonic() - self._began[place] > limit:
                truncated, info = True, {**info, "episode_timeout": True}
            if terminated or truncated:
                self._dones[place] = True
                self._put(place, turn, observation)
                self._refuse_nan(turn)
                end = {"TimeLimit.truncated": bool(truncated and not terminated), "terminal_observation": observation}
                observation, reset_info = env.reset()
                said.append((self._start.first_lane + place, {**info, **end}, reset_info))
                self._begin(place, env, turn, observation)
                continue
            self._put(place, turn, observation)
            if info:
                said.append((self._start.first_lane + place, {**info, "TimeLimit.truncated": False}, None))
        self._finish(turn)
        return said

    def call(self, command: str, lane: int, *arguments: Any) -> Any:
        """One of has_attr, get_attr, set_attr, env_method, is_wrapped for a lane."""
        self.current = lane
        place = lane - self._start.first_lane
        env = self.envs[place]
        if command == "has_attr":
            return _has_attribute(env, arguments[0])
        if command == "get_attr":
            return env.get_wrapper_attr(arguments[0])
        if command == "is_wrapped":
            return _is_wrapped(env, arguments[0])
        if command == "set_attr":
            value = setattr(env, *arguments)  # type: ignore[func-returns-value]
        elif command == "env_method":
            value = env.get_wrapper_attr(arguments[0])(*arguments[1], **arguments[2])
        else:
            raise NotImplementedError(f"a worker has no command {command!r}")
        if self._has_masks and arguments[0] != "render":  # what is legal may have changed
            self._put_mask(place)
        return value

    def close(self) -> None:
        """Close the environments."""
        for env in self.envs:
            env.close()

    def _enter(self, place: int) -> None:
        self.current = self._start.first_lane + place
        self._busy[0] = self.current

    def _begin(self, place: int, env: gymnasium.Env[Any, Any], turn: int, observation: Any) -> None:
        now = env.observation_space, env.action_space
        was = self._spaces[place]
        if now[0] is not was[0] or now[1] is not was[1]:  # comparing what they say takes longer than a step
            if now != was:
                raise EnvFault(f"its spaces changed from {was[0]}, {was[1]} to {now[0]}, {now[1]}")
            self._spaces[place] = now
        self._put(place, turn, observation)
        self._began[place] = time.monotonic()

    def _finish(self, turn: int) -> None:
        self._refuse_nan(turn)
        if self._has_masks:
            for place in range(len(self.envs)):
                self._put_mask(place)
        self.current = None
        self._busy[0] = -1

    def _put(self, place: int, turn: int, observation: Any) -> None:
        rows = self._rows[turn]
        for index, leaf in enumerate(self._leaves):
            part = observation if leaf.key is None else _part(observation, leaf.key)
            if type(part) is not np.ndarray or part.shape != leaf.shape or part.dtype != self._dtypes[index]:
                part = _fitting(part, leaf.key, leaf.shape, self._dtypes[index])
            rows[index][place] = part

    def _put_mask(self, place: int) -> None:
        mask = np.asarray(self.envs[place].get_wrapper_attr("action_masks")())
        if mask.size != self._masks.shape[1]:
            self.current = self._start.first_lane + place
            raise EnvFault(f"action_masks() has {mask.size} entries, its action space {self._masks.shape[1]} choices")
        self._masks[place] = mask.reshape(-1)

    def _refuse_nan(self, turn: int) -> None:
        if np.isnan(self._rewards).any():
            self._name(self._rewards)
            raise EnvFault("its reward is NaN")
        for index in self._checks_nan:
            rows: NDArray[Any] = self._rows[turn][index]
            if np.isnan(rows).any():
                self._name(rows)
                key = self._leaves[index].key
                raise EnvFault(f"its observation{'' if key is None else f' {key!r}'} has NaN")

    def _name(self, rows: NDArray[Any]) -> None:
        """Note the first lane with NaN as the current one."""
        bad = np.isnan(rows).reshape(len(rows), -1).any(axis=1)
        self.current = self._start.first_lane + int(np.argmax(bad))


def _part(observation: Any, key: str | int) -> Any:
    try:
        return observation[key]
    except (KeyError, IndexError, TypeError):
        raise EnvFault(f"its observation has no {key!r}, the space has: {str(observation)[:200]}") from None


def _fitting(value: Any, key: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
    """`value` as an array of the space's dtype; raises EnvFault for another shape or a dtype that would lose values."""
    name = "its observation" if key is None else f"its observation {key!r}"
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise EnvFault(f"{name} is no array: {error}") from None
    if array.shape != shape:
        raise EnvFault(f"{name} has shape {array.shape}, the observation space says {shape}")
    if not np.can_cast(array.dtype, dtype, "same_kind") and not (array.dtype.kind in "iu" and dtype.kind in "iu"):
        raise EnvFault(f"{name} has dtype {array.dtype}, the observation space says {dtype}")
    return array


def _has_attribute(env: gymnasium.Env[Any, Any], name: str) -> bool:
    try:
        env.get_wrapper_attr(name)
    except AttributeError:
        return False
    return True


def _is_wrapped(env: gymnasium.Env[Any, Any], wrapper: type) -> bool:
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, wrapper):
            return True
        env = env.env
    return False


def _spaces(env: gymnasium.Env[Any, Any]) -> str:
    return f"{env.observation_space}, {env.action_space}"
