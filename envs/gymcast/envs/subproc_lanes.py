"""The lanes of a worker process: environments that are stepped one after the other."""

from __future__ import annotations

import contextlib
import os
import pickle
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
import gymnasium
import numpy as np
from numpy.typing import NDArray

from gymcast.envs.shared_arrays import SharedArrays, mask_size, observation_leaves

Said = list[tuple[int, bytes]]
"""(lane, pickle of its info and the info of the reset that followed) of lanes that have something to say."""

Described = tuple[int, tuple[Any, Any, int]]
"""(lane, (observation space, action space, size of action masks, which is 0 without))."""

_LARGEST_INFO = 64 << 20  # bytes


@dataclass(frozen=True)
class WorkerStart:
    """What a worker needs to begin."""

    number: int
    first_lane: int
    factories: tuple[bytes, ...]
    """For each lane the cloudpickle of a function that makes its environment."""
    episode_timeout: float | None
    spin: float
    """Seconds to look for the next step before sleeping for it."""


@dataclass(frozen=True)
class Failure:
    """Why a lane, or the process it is in, cannot go on."""

    lane: int | None
    reason: str
    traceback: str
    is_fault: bool
    """Whether the environment breaks its own contract, which making it anew would not mend."""
    output: str = ""
    """The last lines that were printed in the process."""


class EnvFault(Exception):
    """An environment that breaks its contract: a wrong shape, NaN, spaces that change."""


def described(error: BaseException, lane: int | None) -> Failure:
    """The exception being handled."""
    is_fault = isinstance(error, EnvFault)
    reason = str(error) if is_fault else f"{type(error).__name__}: {error}"
    return Failure(lane, reason, traceback.format_exc(), is_fault)


class Lanes:
    """The environments of a worker, one after the other.

    What `step` or `reset` of an environment raises ends this environment alone: it is noted in `failed`, and `remake`
    puts a new one in its place. Only EnvFault, a broken contract, is raised.
    """

    def __init__(self, start: WorkerStart) -> None:
        self._start = start
        self.current: int | None = None
        """The lane that is being worked on."""
        self.failed: list[Failure] = []
        """Of the latest step, reset or remake."""
        self.is_fork = False
        """Whether this is a process that an environment forked."""
        self.envs: list[gymnasium.Env[Any, Any]] = []
        self._has_masks = False

    def make(self) -> None:
        """Make the environments; raises what a factory raises."""
        for place in range(len(self._start.factories)):
            self.current = self._start.first_lane + place
            self.envs.append(self._made(place))
        self.current = None

    def describe(self) -> list[Described]:
        """Of the first lane, and of all that differ from it."""
        kinds = {mask_size(env.action_space) > 0 and _has_attribute(env, "action_masks") for env in self.envs}
        self._has_masks = kinds == {True}
        said: list[Described] = []
        for lane, env in enumerate(self.envs, self._start.first_lane):
            masks = mask_size(env.action_space) if self._has_masks else 0
            one = lane, (env.observation_space, env.action_space, masks)
            if not said or one[1] != said[0][1]:
                said.append(one)
        return said

    def attach(self, arrays: SharedArrays) -> None:
        """Take this worker's part of the shared memory."""
        first = self._start.first_lane
        mine = slice(first, first + len(self.envs))
        self._spaces = [(env.observation_space, env.action_space) for env in self.envs]
        self._leaves = observation_leaves(self._spaces[0][0])
        self._dtypes = [np.dtype(leaf.dtype) for leaf in self._leaves]
        self._checks_finite = [index for index, dtype in enumerate(self._dtypes) if dtype.kind == "f"]
        self._rows = [[leaf[mine] for leaf in turn] for turn in arrays.observations]
        self._rewards, self._dones, self._masks = arrays.rewards[mine], arrays.dones[mine], arrays.masks[mine]
        self._actions = None if arrays.actions is None else arrays.actions[mine]
        self._busy = arrays.current[self._start.number : self._start.number + 1]
        self._busy[0] = -1
        self._began = [time.monotonic()] * len(self.envs)

    def reset(self, turn: int, seeds: Sequence[int | None], options: Sequence[dict[str, Any]]) -> list[bytes | None]:
        """Begin an episode in every lane; returns the pickled infos, None of lanes that failed."""
        self.failed = []
        infos = [
            self._guarded(place, self._reset_lane, turn, seeds[place], options[place])
            for place in range(len(self.envs))
        ]
        self._finish(turn)
        return infos

    def step(self, turn: int, actions: Any) -> Said:
        """Step every lane. Returns what those lanes say that have something to say."""
        if actions is None:
            assert self._actions is not None
            actions = self._actions.copy()
        said: Said = []
        self.failed = []
        self._dones[:] = False
        for place, env in enumerate(self.envs):
            try:
                info = self._step_lane(place, env, turn, actions[place])
            except EnvFault:
                raise
            except BaseException as error:  # noqa: BLE001 - environments may raise anything
                self._lost(place, error)
                continue
            if info is not None:
                said.append((self._start.first_lane + place, info))
        self._finish(turn)
        return said

    def remake(
        self, turn: int, lane: int, seed: int | None, options: dict[str, Any], attributes: Mapping[str, Any]
    ) -> bytes | None:
        """Make a lane's environment anew, set `attributes` in it and begin an episode; returns the pickled info."""
        self.failed = []
        place = lane - self._start.first_lane
        info = self._guarded(place, self._remake_lane, turn, seed, options, attributes)
        self._finish(turn)
        return info

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

    def _made(self, place: int) -> gymnasium.Env[Any, Any]:
        env = pickle.loads(self._start.factories[place])()  # noqa: S301 - from the process that started this one
        if not isinstance(env, gymnasium.Env):
            raise EnvFault(f"the factory returned {type(env).__name__}, not a gymnasium.Env")
        return env

    def _guarded(self, place: int, do: Callable[..., bytes], *arguments: Any) -> bytes | None:
        try:
            return do(place, *arguments)
        except EnvFault:
            raise
        except BaseException as error:  # noqa: BLE001 - environments may raise anything
            self._lost(place, error)
            return None

    def _lost(self, place: int, error: BaseException) -> None:
        if self.is_fork:
            os._exit(1)
        self.failed.append(described(error, self._start.first_lane + place))
        self._rewards[place] = 0.0
        self._dones[place] = True

    def _enter(self, place: int) -> None:
        self.current = self._busy[0] = self._start.first_lane + place

    def _reset_lane(self, place: int, turn: int, seed: int | None, options: dict[str, Any]) -> bytes:
        self._enter(place)
        env = self.envs[place]
        observation, info = _pair(env.reset(seed=seed, options=options) if options else env.reset(seed=seed))
        self._begin(place, env, turn, observation)
        if self._has_masks:
            self._put_mask(place)
        return _pickled(info)

    def _remake_lane(
        self, place: int, turn: int, seed: int | None, options: dict[str, Any], attributes: Mapping[str, Any]
    ) -> bytes:
        self._enter(place)
        with contextlib.suppress(Exception):  # it is being thrown away
            self.envs[place].close()
        env = self.envs[place] = self._made(place)
        for name, value in attributes.items():
            setattr(env, name, value)
        return self._reset_lane(place, turn, seed, options)

    def _step_lane(self, place: int, env: gymnasium.Env[Any, Any], turn: int, action: Any) -> bytes | None:
        """Step a lane, and begin its next episode when this one has ended; returns what it says, pickled."""
        self.current = self._busy[0] = self._start.first_lane + place
        result = env.step(action)
        if self.is_fork:
            os._exit(0)
        try:
            observation, self._rewards[place], terminated, truncated, info = result
        except (TypeError, ValueError):
            raise EnvFault(_bad_step(result)) from None
        limit = self._start.episode_timeout
        if limit is not None and not terminated and time.monotonic() - self._began[place] > limit:
            truncated, info = True, {**info, "episode_timeout": True}
        self._put(place, turn, observation)
        said = None
        if terminated or truncated:
            self._dones[place] = True
            self._refuse_not_finite(turn)
            end = {"TimeLimit.truncated": bool(truncated and not terminated), "terminal_observation": observation}
            observation, reset_info = _pair(env.reset())
            said = _pickled({**info, **end}, reset_info)
            self._begin(place, env, turn, observation)
        elif info:
            said = _pickled({**info, "TimeLimit.truncated": False})
        if self._has_masks:
            self._put_mask(place)
        return said

    def _begin(self, place: int, env: gymnasium.Env[Any, Any], turn: int, observation: Any) -> None:
        if self.is_fork:
            os._exit(0)
        now = env.observation_space, env.action_space
        was = self._spaces[place]
        if now[0] is not was[0] or now[1] is not was[1]:  # comparing what they say takes longer than a step
            if now != was:
                raise EnvFault(f"its spaces changed from {was[0]}, {was[1]} to {now[0]}, {now[1]}")
            self._spaces[place] = now
        self._put(place, turn, observation)
        self._began[place] = time.monotonic()

    def _finish(self, turn: int) -> None:
        self._refuse_not_finite(turn)
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

    def _refuse_not_finite(self, turn: int) -> None:
        if not np.isfinite(self._rewards).all():
            self._refuse("its reward", self._rewards)
        for index in self._checks_finite:
            rows: NDArray[Any] = self._rows[turn][index]
            if not np.isfinite(rows).all():
                key = self._leaves[index].key
                self._refuse(f"its observation{'' if key is None else f' {key!r}'}", rows)

    def _refuse(self, name: str, rows: NDArray[Any]) -> None:
        """Raise for the first lane with a number that is not finite."""
        bad = ~np.isfinite(rows.reshape(len(rows), -1))
        place = int(np.argmax(bad.any(axis=1)))
        self.current = self._start.first_lane + place
        raise EnvFault(f"{name} has {'NaN' if np.isnan(rows[place]).any() else 'inf'}: every number must be finite")


def _pickled(info: dict[str, Any], reset_info: dict[str, Any] | None = None) -> bytes:
    """Both as bytes; raises EnvFault for what cannot be sent."""
    try:
        try:
            data = pickle.dumps((info, reset_info), protocol=5)
        except (pickle.PickleError, TypeError, AttributeError):
            data = cloudpickle.dumps((info, reset_info), protocol=5)
    except Exception as error:
        raise EnvFault(f"its info cannot be pickled{_culprit(info, reset_info)}: {error}") from error
    if len(data) > _LARGEST_INFO:
        raise EnvFault(
            f"its info takes {len(data):,} bytes{_culprit(info, reset_info, _LARGEST_INFO)}, more than the "
            f"{_LARGEST_INFO:,} allowed: put large arrays into the observation"
        )
    return data


def _culprit(info: Any, reset_info: Any, largest: int | None = None) -> str:
    """Which entry it is that cannot be pickled, or that takes most."""
    for place in (info, reset_info):
        for key, value in place.items() if isinstance(place, dict) else ():
            try:
                size = len(cloudpickle.dumps(value))
            except Exception:  # noqa: BLE001 - whatever reduces the value
                return f" ({key!r} is {type(value).__name__})"
            if largest is not None and size > largest / 2:
                return f" ({key!r} takes {size:,})"
    return ""


def _pair(result: Any) -> tuple[Any, Any]:
    """What `reset` returned."""
    if not isinstance(result, tuple) or len(result) != 2:
        raise EnvFault(f"its reset returned {type(result).__name__}, not (observation, info)")
    return result


def _bad_step(result: Any) -> str:
    if not isinstance(result, tuple) or len(result) != 5:
        count = f" of {len(result)}" if isinstance(result, tuple) else ""
        return (
            f"its step returned {type(result).__name__}{count}, not (observation, reward, terminated, truncated, info)"
        )
    return f"its reward is {str(result[1])[:100]!r} ({type(result[1]).__name__}), not one number"


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
