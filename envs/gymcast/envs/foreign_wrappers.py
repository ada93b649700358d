"""Wrappers by name, and those that fit any environment to a learner."""

from __future__ import annotations

import difflib
import importlib
import inspect
from collections.abc import Mapping
from typing import Any, Final

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from gymcast.envs.errors import EnvFaultError, EnvMakeError

_GYMNASIUM: Final = "gymnasium.wrappers"
_SB3: Final = "stable_baselines3.common.atari_wrappers"
# Those that neither take code nor write files, and do not replace what gymcast does itself.
WRAPPERS: Final[dict[str, str]] = {
    **dict.fromkeys(
        (
            "AddRenderObservation", "AtariPreprocessing", "ClipAction", "ClipReward", "DelayObservation",
            "DiscretizeAction", "DiscretizeObservation", "DtypeObservation", "FilterObservation", "FlattenObservation",
            "FrameStackObservation", "GrayscaleObservation", "MaxAndSkipObservation", "NormalizeObservation",
            "NormalizeReward", "RepeatAction", "RescaleAction", "RescaleObservation", "ReshapeObservation",
            "ResizeObservation", "StickyAction", "TimeAwareObservation", "TimeLimit",
        ),
        _GYMNASIUM,
    ),
    **dict.fromkeys(
        (
            "AtariWrapper", "ClipRewardEnv", "EpisodicLifeEnv", "FireResetEnv", "MaxAndSkipEnv", "NoopResetEnv",
            "StickyActionEnv", "WarpFrame",
        ),
        _SB3,
    ),
}  # fmt: skip
"""Module of each wrapper that may be named without one."""


def wrapper_problem(name: str) -> str:
    """What is wrong with the name of a wrapper; empty when nothing is. Nothing is imported."""
    if ":" in name or name in WRAPPERS:
        return ""
    by_lower = {known.lower(): known for known in WRAPPERS}
    close = difflib.get_close_matches(name.lower(), by_lower, n=1)
    hint = f"did you mean {by_lower[close[0]]!r}?" if close else f"known: {', '.join(sorted(WRAPPERS))}."
    return f"unknown wrapper {name!r}; {hint} Any other one is named as module:Class"


def find_wrapper(name: str) -> type[gym.Wrapper[Any, Any, Any, Any]]:
    """The class of a wrapper's name or ``module:Class``. Raises :class:`EnvMakeError`."""
    if problem := wrapper_problem(name):
        raise EnvMakeError("wrappers", problem)
    module, _, attribute = name.rpartition(":")
    module = module or WRAPPERS[attribute]
    try:
        found = importlib.import_module(module)
        for part in attribute.split("."):
            found = getattr(found, part)
    except Exception as error:
        raise EnvMakeError("wrappers", f"{name} cannot be had: {type(error).__name__}: {error}") from error
    if not isinstance(found, type) or not issubclass(found, gym.Wrapper):
        raise EnvMakeError("wrappers", f"{name} is no gymnasium.Wrapper")
    return found


def wrap(env: gym.Env[Any, Any], name: str, kwargs: Mapping[str, Any]) -> gym.Env[Any, Any]:
    """``env`` in a wrapper by name. Raises :class:`EnvMakeError` with the wrapper's own error."""
    kind = find_wrapper(name)
    try:
        return kind(env, **kwargs)
    except Exception as error:
        taken = list(inspect.signature(kind).parameters)[1:]
        takes = f" It takes: {', '.join(taken)}." if isinstance(error, TypeError) and taken else ""
        said = str(error) or "it gives no reason"
        text = f"{name} does not fit here: {type(error).__name__}: {said}.{takes} It got {_spaces(env)}"
        raise EnvMakeError("wrappers", text) from error


def _spaces(env: gym.Env[Any, Any]) -> str:
    return f"observations {_brief(env.observation_space)} and actions {_brief(env.action_space)}"


def _brief(space: spaces.Space[Any]) -> str:
    text = " ".join(str(space).split())
    return text if len(text) <= 160 else f"{text[:157]}..."


# --------------------------------------------------------------------------------------------- what can be learned from


def observation_problem(space: spaces.Space[Any]) -> str:
    """Why nobody can learn from observations of a space, and the wrapper that helps; empty when one can."""
    remedy = {
        spaces.Text: "write a wrapper that turns the text into numbers and name it: --wrapper my_module:MyWrapper",
        spaces.Sequence: "its length varies; pad it to a Box in a wrapper of yours: --wrapper my_module:MyWrapper",
        spaces.Graph: "its size varies; turn it into a Box in a wrapper of yours: --wrapper my_module:MyWrapper",
        spaces.OneOf: "its kind varies; use --wrapper FlattenObservation",
    }
    for kind, text in remedy.items():
        if isinstance(space, kind):
            return f"observations are {type(space).__name__}, which no algorithm here learns from: {text}"
    if isinstance(space, spaces.Dict | spaces.Tuple):
        leaves, dropped = _leaves(space)
        if not leaves:
            return f"observations hold nothing but {', '.join(dropped) or 'empty parts'}: nothing to learn from"
        kept = [f"{key} ({problem})" for key, part in leaves.items() if (problem := observation_problem(part))]
        return f"a part of the observations cannot be learned from: {'; '.join(kept)}" if kept else ""
    plain = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)
    return "" if isinstance(space, plain) else f"observations are {type(space).__name__}, which is not known here"


def action_problem(space: spaces.Space[Any]) -> str:
    """Why no algorithm can choose actions of a space; empty when one can."""
    if isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiDiscrete | spaces.MultiBinary):
        return ""
    return (
        f"actions are {_brief(space)}, which no algorithm here can choose; Box, Discrete, MultiDiscrete and "
        "MultiBinary can be: turn them into one in a wrapper of yours, --wrapper my_module:MyWrapper"
    )


def _leaves(space: spaces.Space[Any], prefix: str = "") -> tuple[dict[str, spaces.Space[Any]], list[str]]:
    """Parts of a space by path, and the paths of texts, which are left out."""
    if prefix and _is_text(space):
        return {}, [prefix]
    if isinstance(space, spaces.Dict):
        parts = {str(key): part for key, part in space.spaces.items()}
    elif isinstance(space, spaces.Tuple):
        parts = {str(number): part for number, part in enumerate(space.spaces)}
    else:
        return {prefix: space}, []
    leaves: dict[str, spaces.Space[Any]] = {}
    dropped: list[str] = []
    for key, part in parts.items():
        more, left_out = _leaves(part, _path(prefix, key))
        leaves |= more
        dropped += left_out
    return leaves, dropped


def _is_text(space: spaces.Space[Any]) -> bool:
    return isinstance(space, spaces.Text) or (space.dtype is not None and np.dtype(space.dtype).kind in "US")


def _path(prefix: str, key: str) -> str:
    # Networks name their modules after these, which must not hold a dot.
    return (f"{prefix}_{key}" if prefix else key).replace(".", "_")


def needs_flat_dict(space: spaces.Space[Any]) -> bool:
    """Whether observations have to go through :class:`FlatDict`: tuples, nested dicts, dicts with texts in them."""
    if isinstance(space, spaces.Tuple):
        return True
    return isinstance(space, spaces.Dict) and any(
        isinstance(part, spaces.Dict | spaces.Tuple) or _is_text(part) or "." in str(key)
        for key, part in space.spaces.items()
    )


class FlatDict(gym.ObservationWrapper[Any, Any, Any]):
    """Tuples and nested dicts as one flat dict, ``{"0": ..., "goal_x": ...}``, as Stable-Baselines3 takes them.

    Texts are left out; ``dropped`` names them.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        leaves, self.dropped = _leaves(env.observation_space)
        self.observation_space = spaces.Dict(leaves)

    def observation(self, observation: Any) -> dict[str, Any]:
        """The parts of an observation by path."""
        found: dict[str, Any] = {}
        self._gather(self.env.observation_space, observation, "", found)
        return found

    def _gather(self, space: spaces.Space[Any], value: Any, prefix: str, found: dict[str, Any]) -> None:
        if isinstance(space, spaces.Dict):
            pairs = [(str(key), part, value[key]) for key, part in space.spaces.items()]
        elif isinstance(space, spaces.Tuple):
            pairs = [(str(n), part, one) for n, (part, one) in enumerate(zip(space.spaces, value, strict=True))]
        else:
            if prefix in self.observation_space.spaces:  # type: ignore[attr-defined]
                found[prefix] = value
            return
        for key, part, one in pairs:
            self._gather(part, one, _path(prefix, key), found)


def _texts_left_out(env: gym.Env[Any, Any]) -> list[str]:
    while isinstance(env, gym.Wrapper):
        if isinstance(env, FlatDict):
            return env.dropped
        env = env.env
    return []


class FrameStack(gym.Wrapper[Any, Any, Any, Any]):
    """The newest ``count`` observations side by side, the newest last; at the beginning the rest are zeros.

    Images (H, W, C) become (H, W, count x C), arrays (..., D) become (..., count x D); of a dict every ``Box``.
    """

    def __init__(self, env: gym.Env[Any, Any], count: int) -> None:
        super().__init__(env)
        space = env.observation_space
        parts = space.spaces if isinstance(space, spaces.Dict) else {"": space}
        boxes = {key: part for key, part in parts.items() if isinstance(part, spaces.Box) and part.shape}
        if not boxes:
            raise EnvMakeError("frame_stack", f"there is no Box to stack in observations {_brief(space)}")
        self._count = count
        stacked = {key: self._stacked_space(boxes[key]) if key in boxes else part for key, part in parts.items()}
        self._axes = {key: _stack_axis(box) for key, box in boxes.items()}
        self._frames: dict[str, NDArray[Any]] = {}
        self.observation_space = spaces.Dict(stacked) if isinstance(space, spaces.Dict) else stacked[""]

    def _stacked_space(self, box: spaces.Box) -> spaces.Box:
        axis = _stack_axis(box)
        low, high = (np.concatenate([bound] * self._count, axis) for bound in (box.low, box.high))
        return spaces.Box(low, high, dtype=box.dtype.type)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin with zeros before the first observation."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._frames = {}
        return self._push(observation), info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Add the newest observation."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        return self._push(observation), reward, terminated, truncated, info

    def _push(self, observation: Any) -> Any:
        parts = observation if isinstance(observation, Mapping) else {"": observation}
        found = dict(parts)
        for key, axis in self._axes.items():
            new = np.asarray(parts[key])
            old = self._frames.get(key)
            if old is None:
                old = np.concatenate([np.zeros_like(new)] * self._count, axis)
            kept = np.take(old, range(new.shape[axis], old.shape[axis]), axis)
            self._frames[key] = found[key] = np.concatenate([kept, new], axis)
        return found if isinstance(observation, Mapping) else found[""]


def _stack_axis(box: spaces.Box) -> int:
    """The axis of an image's channels, the last one of any other array."""
    return 0 if len(box.shape) == 3 and box.shape[0] < min(box.shape[1:]) else -1


class Checked(gym.Wrapper[Any, Any, Any, Any]):
    """Raises :class:`EnvFaultError` for what an environment must not return: wrong shapes, NaN, no number as reward."""

    def __init__(self, env: gym.Env[Any, Any], name: str) -> None:
        super().__init__(env)
        self._name = name
        self.unseen: list[str] = _texts_left_out(env)
        """Names of texts in the observations that were left out."""
        space = env.observation_space
        self._parts = dict(space.spaces) if isinstance(space, spaces.Dict) else None
        self._seed: int | None = None
        self._steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self._seed, self._steps = seed, 0
        result = self.env.reset(seed=seed, options=options)
        if not isinstance(result, tuple) or len(result) != 2:
            raise self._fault(f"reset() returned {type(result).__name__}, not (observation, info)")
        self._check(result[0])
        return result

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Play one step."""
        self._steps += 1
        result = self.env.step(action)
        if not isinstance(result, tuple) or len(result) != 5:
            size = f" of {len(result)}" if isinstance(result, tuple) else ""
            what = f"{type(result).__name__}{size}, not (observation, reward, terminated, truncated, info)"
            raise self._fault(f"step() returned {what}")
        self._check(result[0])
        try:
            finite = np.isfinite(float(result[1]))
        except (TypeError, ValueError):
            finite = False
        if not finite:
            raise self._fault(f"the reward is {result[1]!r}, not a finite number")
        if not isinstance(result[4], dict):
            raise self._fault(f"info is {type(result[4]).__name__}, not a dict")
        return result

    def _check(self, observation: Any) -> None:
        if self._parts is None:
            self._check_part(self.env.observation_space, observation, "the observation")
            return
        if not isinstance(observation, Mapping) or set(observation) != set(self._parts):
            given = sorted(observation) if isinstance(observation, Mapping) else type(observation).__name__
            raise self._fault(f"the observation has {given}, its space {sorted(self._parts)}")
        for key, part in self._parts.items():
            self._check_part(part, observation[key], f"{key} of the observation")

    def _check_part(self, space: spaces.Space[Any], value: Any, what: str) -> None:
        array = np.asarray(value)
        if array.shape != space.shape:
            raise self._fault(f"{what} has shape {array.shape}, its space says {space.shape}")
        if array.dtype.kind == "f":
            if not np.isfinite(array).all():
                raise self._fault(f"{what} holds NaN or infinity: {np.array2string(array, threshold=8)[:80]}")
        elif array.dtype.kind not in "iub":
            raise self._fault(f"{what} is of type {array.dtype}, not numbers")

    def _fault(self, text: str) -> EnvFaultError:
        place = f"after reset(seed={self._seed})" + (f" and {self._steps} steps" if self._steps else "")
        return EnvFaultError(f"{self._name} broke its own rules {place}: {text}")
