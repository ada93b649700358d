"""The state of environments that are not gymcast's, as a pickle of everything in them, or as the episode so far.

Many environments inherit from Gymnasium's `EzPickle`, whose pickles forget the state, and wrappers hold counters of
their own. So the attributes of every level, from the outermost wrapper to the environment itself, are pickled one by
one, and put back into the live objects; links between the levels stay as they are. What is drawn is not state.
"""

from __future__ import annotations

import copyreg
import io
import pickle
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import gymnasium
from gymnasium.spaces import Space
from gymnasium.utils import EzPickle
from gymnasium.vector import VectorWrapper

from gymcast.envs.errors import SnapshotError
from gymcast.envs.sealed import Sealed
from gymcast.envs.trajectory import TrajectoryHash

Attributes = dict[str, Any]

# What ties levels together or only describes them.
LINKS = frozenset({"env", "spec", "_cached_spec", "_saved_kwargs", "gymcast_episode"})
_DRAWING = frozenset({"Surface", "Clock", "Font", "Window", "Renderer", "Texture"})
_CANNOT = (
    pickle.PickleError,
    TypeError,
    AttributeError,
    ImportError,
    NotImplementedError,
    RecursionError,
    ValueError,
    LookupError,
    RuntimeError,
    OSError,
    EOFError,
)


class _Drawing:
    """Stands for a window, surface or font: the live environment keeps its own."""


def levels(env: Any) -> list[Any]:
    """The environment's wrappers from the outside in, and last the environment itself."""
    chain = [env]
    while isinstance(chain[-1], gymnasium.Wrapper | VectorWrapper):
        chain.append(chain[-1].env)
    return chain


def level_names(chain: Iterable[Any]) -> list[str]:
    """Their classes, as module and name."""
    return [f"{type(level).__module__}.{type(level).__qualname__}" for level in chain]


def env_id(env: Any) -> str:
    """The registered id, or the class of an environment that has none."""
    return str(env.spec.id) if env.spec is not None else level_names([env.unwrapped])[0]


def attributes(level: Any) -> Attributes:
    """The attributes that make up the state of one level."""
    return {name: value for name, value in vars(level).items() if name not in LINKS}


def _set_attributes(target: Any, state: Attributes) -> None:
    vars(target).update(state)


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    def __init__(self, file: io.BytesIO, chain: Sequence[Any]) -> None:
        super().__init__(file, protocol=5)
        self._levels = {id(level): index for index, level in enumerate(chain)}

    def persistent_id(self, value: Any) -> tuple[str, int] | None:
        index = self._levels.get(id(value))
        if index is not None:
            return "level", index
        kind = type(value)
        if kind.__module__.partition(".")[0] == "pygame" and kind.__name__ in _DRAWING:
            return "drawing", 0
        return None

    def reducer_override(self, value: Any) -> Any:
        if isinstance(value, EzPickle):
            return copyreg.__newobj__, (type(value),), vars(value), None, None, _set_attributes  # type: ignore[attr-defined]
        return super().reducer_override(value)


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, chain: Sequence[Any]) -> None:
        super().__init__(file)
        self._chain = chain

    def persistent_load(self, reference: tuple[str, int]) -> Any:
        kind, index = reference
        return self._chain[index] if kind == "level" else _Drawing()


def dump(chain: Sequence[Any], value: Any) -> bytes:
    """A pickle of `value`, in which levels of the chain are references; raises SnapshotError naming what cannot."""
    file = io.BytesIO()
    try:
        _Pickler(file, chain).dump(value)
    except _CANNOT as error:
        raise SnapshotError(f"it cannot be copied ({type(error).__name__}: {error})") from error
    return file.getvalue()


def load(chain: Sequence[Any], data: bytes | memoryview, seal: Sealed) -> Any:
    """What `dump` wrote, with the levels of this chain. `data` is from a snapshot whose signature is checked first."""
    seal.require_signature()
    try:
        return _Unpickler(io.BytesIO(data), chain).load()
    except _CANNOT as error:
        raise SnapshotError(
            f"this snapshot cannot be read here ({type(error).__name__}: {error}): install what it was made with."
        ) from error


def dump_levels(chain: Sequence[Any], of: Sequence[Any]) -> bytes:
    """The whole state of the levels `of` (a part of the chain); raises SnapshotError naming what cannot be copied."""
    try:
        return dump(chain, [attributes(level) for level in of])
    except SnapshotError as error:
        for level in of:
            for name, value in attributes(level).items():
                if not _can_copy(chain, value):
                    raise SnapshotError(f"{type(level).__name__}.{name}: {error}") from error
        raise


def _can_copy(chain: Sequence[Any], value: Any) -> bool:
    try:
        dump(chain, value)
    except SnapshotError:
        return False
    return True


def put_levels(of: Sequence[Any], states: Sequence[Attributes], *, partly: bool = False) -> None:
    """Put attributes back into live levels; with `partly` those that are not given stay."""
    for level, state in zip(of, states, strict=True):
        live = vars(level)
        if not partly:
            for name in set(live) - set(state) - LINKS:
                del live[name]
        for name, value in state.items():
            old = live.get(name)
            if isinstance(value, _Drawing):
                live.setdefault(name, None)
            elif isinstance(value, Space) and type(old) is type(value):
                vars(old).update(vars(value))  # others hold this space too: its random stream moves with it
            else:
                live[name] = value


@dataclass
class Episode:
    """What an episode was made of, for environments that cannot be copied: enough to play it again."""

    before: bytes  # what could be copied of every level (random streams and counters above all) before the reset
    seed: int | None
    options: Mapping[str, Any] | None
    actions: list[Any] = field(default_factory=list)
    trajectory: TrajectoryHash = field(default_factory=TrajectoryHash)


def begin_episode(of: Sequence[Any], seed: int | None, options: Any) -> Episode:
    """An episode about to begin with a reset of `of[0]`."""
    parts = []
    for level in of:
        parts.append({name: value for name, value in attributes(level).items() if _can_copy(of, value)})
    return Episode(dump(of, parts), seed, options)


def dump_episode(of: Sequence[Any], episode: Episode) -> bytes:
    """The episode so far, and the random streams of the spaces as they are now."""
    spaces = [{name: v for name, v in attributes(level).items() if isinstance(v, Space)} for level in of]
    return dump(
        of,
        {
            "before": episode.before,
            "seed": episode.seed,
            "options": episode.options,
            "actions": episode.actions,
            "sha256": episode.trajectory.hexdigest(),
            "spaces": spaces,
        },
    )


def replay_episode(of: Sequence[Any], data: bytes | memoryview, seal: Sealed) -> Episode:
    """Play a dumped episode again on `of[0]`; raises SnapshotError when it goes another way than it did."""
    then = load(of, data, seal)
    put_levels(of, load(of, then["before"], seal), partly=True)
    episode = Episode(then["before"], then["seed"], then["options"], list(then["actions"]))
    observation, _ = of[0].reset(seed=episode.seed, options=episode.options)
    episode.trajectory.update(observation)
    for action in episode.actions:
        observation, reward, terminated, truncated, info = of[0].step(action)
        episode.trajectory.update(observation, reward, terminated, truncated, info)
    if episode.trajectory.hexdigest() != then["sha256"]:
        raise SnapshotError(
            f"{env_id(of[0])} cannot be copied, and played again its episode went another way: it is not deterministic "
            "under its seed. Reset it with a new seed."
        )
    put_levels(of, then["spaces"], partly=True)
    return episode
