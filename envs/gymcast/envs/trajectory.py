"""A hash of what an environment gave: two plays with the same hash went the same way, bit for bit."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np


class TrajectoryHash:
    """A running SHA-256 over the observations, rewards, ends and outcomes of one lane.

    Call `update(observation)` after a reset, `update(observation, reward, terminated, truncated, info)` after a step.
    """

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def update(
        self,
        observation: Any,
        reward: Any = 0.0,
        terminated: bool = False,
        truncated: bool = False,
        info: Mapping[str, Any] | None = None,
    ) -> None:
        """Take in one decision. Of `info` only `outcome` counts: the rest may hold wall-clock times."""
        feed(self._digest, observation)
        self._digest.update(np.float64(reward).tobytes() + bytes((bool(terminated), bool(truncated))))
        outcome = None if info is None else info.get("outcome")
        if outcome is not None:
            self._digest.update(repr(outcome).encode())

    def hexdigest(self) -> str:
        """The hash so far, 64 hexadecimal digits."""
        return self._digest.hexdigest()


def feed(digest: Any, value: Any) -> None:
    """Take an observation into a hash of hashlib: an array, a number, a text, or mappings, tuples and lists of these.

    Raises:
        TypeError: an object without bytes of its own.
    """
    if isinstance(value, Mapping):
        for key in sorted(value):
            digest.update(repr(key).encode())
            feed(digest, value[key])
    elif isinstance(value, tuple | list):
        digest.update(b"(%d" % len(value))
        for item in value:
            feed(digest, item)
    elif isinstance(value, str):
        digest.update(value.encode())
    else:
        array = np.asarray(value)
        if array.dtype.hasobject:
            raise TypeError(f"an observation of type {type(value).__name__} has no bytes to hash: give arrays.")
        digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
