"""Episodes as (game, version, options, seed, episode index, actions): kept in a few bytes, played again bit for bit."""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gymcast.envs.foreign_make import NO_EXTRAS, EnvExtras
from gymcast.envs.vector import OUTCOMES, GameVectorEnv

_MAGIC = b"GCRP1"
_LARGEST = 64 * 1024 * 1024  # bytes of a decompressed replay


class ReplayError(ValueError):
    """A replay that is damaged, of another version of the game, or that does not play as it says."""


@dataclass(frozen=True)
class Replay:
    """One episode.

    actions: (T, S, G) one row per decision and played seat: uint8 groups of a MultiDiscrete (wider where a group has
    more entries), or floats of a Box.
    summary: what it came to: `return`, `length` (decisions), `seconds` (game time), `outcome`, `kills`, `deaths`; of an
    episode out of a log also `returns` (of every seat, exact) and `check` (a hash of the last observations).
    extras: packages and wrappers of an environment that is not gymcast's.
    """

    env_id: str
    version: int
    options: dict[str, Any]
    seed: int
    episode: int
    actions: NDArray[Any]
    summary: dict[str, Any] = field(default_factory=dict)
    extras: EnvExtras = NO_EXTRAS

    def to_bytes(self) -> bytes:
        """A JSON header and the actions, compressed; no pickle."""
        header = {
            "env_id": self.env_id,
            "version": self.version,
            "options": self.options,
            "seed": self.seed,
            "episode": self.episode,
            "summary": self.summary,
            "dtype": self.actions.dtype.str,
            "shape": self.actions.shape,
            **({"extras": self.extras.to_json()} if self.extras else {}),
        }
        text = json.dumps(header, separators=(",", ":")).encode()
        body = len(text).to_bytes(4, "big") + text + np.ascontiguousarray(self.actions).tobytes()
        return _MAGIC + zlib.compress(body, 6)

    @staticmethod
    def from_bytes(data: bytes) -> Replay:
        """Read what `to_bytes` wrote; raises ReplayError when it is damaged or something else."""
        if data[: len(_MAGIC)] != _MAGIC:
            raise ReplayError("this is not a gymcast replay (wrong first bytes).")
        unpacker = zlib.decompressobj()
        try:
            body = unpacker.decompress(data[len(_MAGIC) :], _LARGEST)
            size = int.from_bytes(body[:4], "big")
            header = json.loads(body[4 : 4 + size])
        except (zlib.error, ValueError, RecursionError) as error:
            raise ReplayError(f"this replay is damaged ({error}).") from error
        if not unpacker.eof or unpacker.unused_data:
            raise ReplayError(f"this replay is cut off, has something behind it, or holds more than {_LARGEST} bytes.")
        return _from_header(header, body[4 + size :])


_HEADER = {
    "env_id": str,
    "version": int,
    "options": dict,
    "seed": int,
    "episode": int,
    "summary": dict,
    "dtype": str,
    "shape": list,
}
_INT64 = 1 << 63


def _from_header(header: Any, content: bytes) -> Replay:
    """A replay from its decoded header and the bytes of its actions; raises ReplayError."""
    extras = NO_EXTRAS
    if isinstance(header, dict) and isinstance(given := header.pop("extras", {}), dict):
        try:
            extras = EnvExtras.from_json(given)
        except ValueError as error:
            raise ReplayError(f"this replay is damaged: {error}.") from error
    if not isinstance(header, dict) or set(header) != set(_HEADER):
        raise ReplayError(f"this replay is damaged: its header is not an object with {', '.join(_HEADER)}.")
    for name, kind in _HEADER.items():
        if type(header[name]) is not kind:
            raise ReplayError(f"this replay is damaged: {name} is {str(header[name])[:40]!r}, not a {kind.__name__}.")
    if not (0 <= header["seed"] < _INT64 and 0 <= header["episode"] < _INT64):
        raise ReplayError("this replay is damaged: seed and episode must be whole numbers, at least 0 and below 2**63.")
    dtype, shape = header.pop("dtype"), header.pop("shape")
    if dtype not in ("|u1", "<u2", "<u4", "<f4", "<f8"):
        raise ReplayError(f"this replay is damaged: actions of type {dtype[:40]!r}.")
    whole = len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
    if not whole or math.prod(shape) * np.dtype(dtype).itemsize != len(content):
        raise ReplayError(f"this replay is damaged: {len(content)} bytes are no actions of shape {str(shape)[:40]}.")
    return Replay(actions=np.frombuffer(content, dtype).reshape(shape), extras=extras, **header)


class ReplayRecorder:
    """Keeps the actions of chosen lanes while a batch is stepped, and makes replays of the episodes that end.

    Call `finish()` after each step of the environment.

    Args:
        env: the batch.
        lanes: lanes to record; with several seats per game, the whole game of each lane is recorded.
    """

    def __init__(self, env: GameVectorEnv, lanes: Sequence[int] = (0,)) -> None:
        self._env = env
        self._games = sorted({int(lane) // env.seats for lane in lanes})
        self._actions: dict[int, list[NDArray[Any]]] = {g: [] for g in self._games}
        self._whole = dict.fromkeys(self._games, False)  # recorded from the first decision on
        self._starts: dict[int, tuple[int, int]] = {}
        self.begin()

    def begin(self) -> None:
        """Forget what was recorded; episodes that just began are recorded whole. Called after a reset."""
        state = self._env.batch.state
        for g in self._games:
            self._actions[g].clear()
            self._whole[g] = int(state["length"][g]) == 0
            self._starts[g] = (int(state["seed"][g]), int(state["episode"][g]))

    def finish(self) -> list[Replay]:
        """Note the actions that were just played; the replays of recorded episodes that ended with this step."""
        env = self._env
        seats = env.batch.learners
        done: list[Replay] = []
        for g in self._games:
            self._actions[g].append(env.inner_actions[g * seats : (g + 1) * seats].copy())
            lane = g * env.seats
            if lane in env.ended:
                if self._whole[g]:
                    done.append(self._replay(g, lane))
                self._actions[g].clear()
                self._whole[g] = True
                self._starts[g] = (int(env.lane_seed[lane]), int(env.episode_index[lane]))
        return done

    def _replay(self, g: int, lane: int) -> Replay:
        env = self._env
        seed, episode = self._starts[g]
        actions = np.stack(self._actions[g])
        actions = actions.astype(np.float32 if actions.dtype.kind == "f" else np.uint8)
        summary = {
            "return": round(float(env.episode_return[lane]), 6),
            "length": int(env.episode_length[lane]),
            "seconds": round(float(env.episode_length[lane]) * env.decision_seconds, 3),
            "outcome": OUTCOMES[int(env.outcome[lane])],
            "kills": int(env.kills[lane]),
            "deaths": int(env.deaths[lane]),
        }
        return Replay(env.game.id, env.game.version, dict(env.options), seed, episode, actions, summary)
