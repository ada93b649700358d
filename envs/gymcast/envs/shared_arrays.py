"""Arrays that processes share: observations, actions, rewards, ends and action masks of every lane.

The memory is an anonymous file (`memfd_create`). It has no name that could be left behind, it is not bounded by the
size of `/dev/shm`, and the kernel frees it when the last process that holds it has ended, however that happened.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from gymcast.envs.bell import WORDS

Key = str | int | None
"""Of a part of an observation: its name in a Dict, its place in a Tuple, None when the observation is one array."""

_ALIGNMENT = 64  # bytes of a cache line: lanes of two workers do not share one at the edges of an array


@dataclass(frozen=True)
class Leaf:
    """One array of an observation."""

    key: Key
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class ArraySpec:
    """What the arrays hold, enough to find them in the memory from any process."""

    lanes: int
    workers: int
    observation: tuple[Leaf, ...]
    action: Leaf | None
    """None for actions that are no array; they travel with the message of the step."""
    mask_size: int
    """Legal choices of a lane, all groups side by side; 0 without action masks."""

    def fields(self) -> list[tuple[tuple[int, ...], str]]:
        """Shape and dtype of each array, in their order in the memory."""
        observation = [((self.lanes, *leaf.shape), leaf.dtype) for leaf in self.observation]
        action = [((self.lanes, *self.action.shape), self.action.dtype)] if self.action else []
        return [
            *observation,
            *observation,
            ((self.lanes,), "float64"),
            ((self.lanes,), "bool"),
            ((self.lanes, self.mask_size), "bool"),
            ((self.workers,), "int64"),
            ((self.workers, WORDS), "int64"),
            *action,
        ]

    def nbytes(self) -> int:
        """Size of the memory in bytes."""
        return sum(_padded(shape, dtype) for shape, dtype in self.fields())


class SharedArrays:
    """Views of the shared memory behind the file descriptor `fd`, which has `spec.nbytes()` bytes."""

    def __init__(self, spec: ArraySpec, fd: int) -> None:
        memory = mmap.mmap(fd, spec.nbytes())
        arrays, offset = [], 0
        for shape, dtype in spec.fields():
            arrays.append(np.ndarray(shape, np.dtype(dtype), memory, offset))
            offset += _padded(shape, dtype)
        leaves = len(spec.observation)
        self.spec = spec
        self.observations: tuple[list[NDArray[Any]], list[NDArray[Any]]] = (
            arrays[:leaves],
            arrays[leaves : 2 * leaves],
        )
        """Two sets that steps write in turn: what a worker did not finish does not spoil the observations before."""
        rest = arrays[2 * leaves :]
        self.rewards: NDArray[np.float64] = rest[0]
        self.dones: NDArray[np.bool_] = rest[1]
        self.masks: NDArray[np.bool_] = rest[2]
        self.current: NDArray[np.int64] = rest[3]
        """The lane that each worker is busy with, for messages about workers that died or hang."""
        self.bells: NDArray[np.int64] = rest[4]
        """(workers, WORDS): see `bell`."""
        self.actions: NDArray[Any] | None = rest[5] if spec.action else None


def allocate(spec: ArraySpec, fd: int) -> SharedArrays:
    """Give the anonymous file `fd` its size and map it."""
    os.ftruncate(fd, spec.nbytes())
    return SharedArrays(spec, fd)


def observation_leaves(space: spaces.Space[Any]) -> tuple[Leaf, ...]:
    """The arrays of an observation. Raises TypeError for spaces that are not made of arrays of fixed shapes."""
    if isinstance(space, spaces.Dict):
        return tuple(_leaf(key, part) for key, part in space.spaces.items())
    if isinstance(space, spaces.Tuple):
        return tuple(_leaf(place, part) for place, part in enumerate(space.spaces))
    return (_leaf(None, space),)


def action_leaf(space: spaces.Space[Any]) -> Leaf | None:
    """The array of an action, None for an action space that is not one array."""
    return _leaf(None, space) if isinstance(space, _ARRAYS) else None


def mask_size(space: spaces.Space[Any]) -> int:
    """How many entries an action mask of this space has: one per choice; 0 where masks make no sense."""
    if isinstance(space, spaces.Discrete):
        return int(space.n)
    if isinstance(space, spaces.MultiDiscrete):
        return int(np.sum(space.nvec))
    if isinstance(space, spaces.MultiBinary):
        return 2 * int(np.prod(space.shape))
    return 0


_ARRAYS = (spaces.Box, spaces.Discrete, spaces.MultiDiscrete, spaces.MultiBinary)


def _leaf(key: Key, space: spaces.Space[Any]) -> Leaf:
    if not isinstance(space, _ARRAYS) or space.shape is None or space.dtype is None:
        where = "" if key is None else f" at {key!r}"
        raise TypeError(
            f"the observation space has {space}{where}, which has no fixed shape: allowed are Box, Discrete, "
            "MultiDiscrete and MultiBinary, or a Dict or Tuple of these. Flatten it with a gymnasium wrapper."
        )
    return Leaf(key, tuple(space.shape), np.dtype(space.dtype).name)


def _padded(shape: tuple[int, ...], dtype: str) -> int:
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return -(-size // _ALIGNMENT) * _ALIGNMENT
