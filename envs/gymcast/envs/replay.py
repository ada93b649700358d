"""Episodes as (game, version, options, seed, episode index, actions): kept in a few bytes, played again bit for bit."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gymcast.envs.errors import OptionValueError, UnknownEnvError, UnknownOptionError
from gymcast.envs.registry import GameSpec, game_spec
from gymcast.envs.vector import OUTCOMES, GameVectorEnv

_MAGIC = b"GCRP1"
_LARGEST = 64 * 1024 * 1024  # bytes of a decompressed replay


class ReplayError(ValueError):
    """A replay that is damaged, of another version of the game, or that does not play as it says."""


@dataclass(frozen=True)
class Replay:
    """One episode.

    actions: (T, S, ...) one row per decision and played seat: uint8 groups of a MultiDiscrete, or float32 of a Box.
    summary: what it came to: `return`, `length` (decisions), `seconds` (game time), `outcome`, `kills`, `deaths`.
    """

    env_id: str
    version: int
    options: dict[str, Any]
    seed: int
    episode: int
    actions: NDArray[Any]
    summary: dict[str, Any] = field(default_factory=dict)

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
    if not isinstance(header, dict) or set(header) != set(_HEADER):
        raise ReplayError(f"this replay is damaged: its header is not an object with {', '.join(_HEADER)}.")
    for name, kind in _HEADER.items():
        if type(header[name]) is not kind:
            raise ReplayError(f"this replay is damaged: {name} is {str(header[name])[:40]!r}, not a {kind.__name__}.")
    if not (0 <= header["seed"] < _INT64 and 0 <= header["episode"] < _INT64):
        raise ReplayError("this replay is damaged: seed and episode must be whole numbers, at least 0 and below 2**63.")
    dtype, shape = header.pop("dtype"), header.pop("shape")
    if dtype not in ("|u1", "<f4"):
        raise ReplayError(f"this replay is damaged: actions of type {dtype[:40]!r}.")
    whole = len(shape) == 3 and all(type(n) is int and n > 0 for n in shape)
    if not whole or math.prod(shape) * np.dtype(dtype).itemsize != len(content):
        raise ReplayError(f"this replay is damaged: {len(content)} bytes are no actions of shape {str(shape)[:40]}.")
    return Replay(actions=np.frombuffer(content, dtype).reshape(shape), **header)


class ReplayRecorder:
    """Keeps the actions of chosen lanes while a batch is stepped, and makes replays of the episodes that end.

    Call `record(actions)` before each step of the environment and `finish()` after it.

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

    def record(self, actions: NDArray[Any]) -> None:
        """Note the actions about to be played."""
        self._pending = actions

    def finish(self) -> list[Replay]:
        """Note that they were played; the replays of recorded episodes that ended with this step."""
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


class _Player:
    """Plays a replay again, one tick or decision at a time."""

    def __init__(self, replay: Replay) -> None:
        try:
            game = game_spec(replay.env_id)
            options = game.complete_options(replay.options)
        except (UnknownEnvError, UnknownOptionError, OptionValueError) as error:
            raise ReplayError(f"this replay cannot be played: {error}") from error
        if replay.version != game.version:
            raise ReplayError(
                f"this replay is of {replay.env_id} version {replay.version}, the game here is version {game.version}: "
                "its rules changed, so the episode cannot be had again. Use the gymcast release that recorded it."
            )
        seats = int(options["players"]) if options["opponent"] == "self" else 1
        _check_actions(replay.actions, game, options, seats)
        self.game, self.options, self.replay = game, options, replay
        self.batch = game.load_batch()(1, options, seats, autoreset=False)
        self.batch.state["seed"] = replay.seed
        self.batch.state["episode"] = replay.episode
        self.batch.reset(np.ones(1, np.bool_))

    def actions(self, step: int) -> NDArray[Any]:
        row: NDArray[Any] = self.replay.actions[step]
        return row.astype(np.float64 if row.dtype.kind == "f" else np.int64)


def _check_actions(actions: NDArray[Any], game: GameSpec, options: Mapping[str, Any], seats: int) -> None:
    """Kernels index tables with actions without looking: nothing out of range may reach them."""
    nvec = [len(labels) for _, labels in game.action_labels]
    if options["action"] == "box":
        size, fits = 5, actions.dtype == np.float32 and bool((np.abs(actions) <= 1.0).all())
    else:
        size = len(nvec)
        fits = actions.dtype == np.uint8 and actions.shape[1:] == (seats, size) and bool((actions < nvec).all())
    if not fits or actions.ndim != 3 or actions.shape[1:] != (seats, size) or len(actions) == 0:
        raise ReplayError(
            f"this replay is damaged: its actions ({actions.dtype}, shape {actions.shape}) are not those of "
            f"{seats} seat(s) of {game.id}, or out of range."
        )


def _play(player: _Player, observe: Any) -> dict[str, Any]:
    """Play the whole replay; `observe(player)` is called before each decision and at the end. Returns the summary."""
    digest = hashlib.sha256()
    length, total = 0, 0.0
    batch = player.batch
    for step in range(len(player.replay.actions)):
        observe(player)
        batch.step(player.actions(step), 0, 1)
        digest.update(batch.state.tobytes())
        length += 1
        total += float(batch.out.reward[0])
        if batch.out.terminated[0] or batch.out.truncated[0]:
            break
    observe(player)
    return {
        "return": round(total, 6),
        "length": length,
        "outcome": OUTCOMES[int(batch.out.final_outcome[0])],
        "kills": int(batch.out.final_kills[0]),
        "deaths": int(batch.out.final_deaths[0]),
        "hash": digest.hexdigest(),
    }


def verify_replay(replay: Replay) -> dict[str, Any]:
    """Play a replay again and compare with its summary; returns the summary of the new play, with its state hash.

    Raises:
        ReplayError: another version of the game, or a result that differs.
    """
    found = _play(_Player(replay), lambda player: None)
    for key, value in found.items():
        if key in replay.summary and replay.summary[key] != value:
            raise ReplayError(f"this replay says {key}={replay.summary[key]!r} and plays to {value!r}.")
    return found


def replay_observations(replay: Replay) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """What the first seat saw before each decision, (T, ...), and its masks, bool (T, K)."""
    observations: list[NDArray[Any]] = []
    masks: list[NDArray[np.bool_]] = []

    def observe(player: _Player) -> None:
        observations.append(player.batch.observation[0].copy())
        masks.append(player.batch.out.mask[0].copy())

    _play(_Player(replay), observe)
    return np.stack(observations[:-1]), np.stack(masks[:-1])


def replay_frames(replay: Replay) -> dict[str, Any]:
    """Play a replay again and draw it: {env_id, view, fps, scene, frames, summary}, a frame per decision and the last.

    The frames are what the page draws; `fps` is frames per second of game time.
    """
    player = _Player(replay)
    draw = player.game.load_draw()
    frames: list[dict[str, Any]] = []
    summary = _play(player, lambda p: frames.append(draw.frame(p.batch, 0)))
    summary["seconds"] = frames[-1]["t"]
    return {
        "env_id": replay.env_id,
        "view": player.game.name,
        "fps": player.game.tick_rate / player.options["frame_skip"],
        "scene": draw.scene(player.batch, player.options),
        "frames": frames,
        "summary": summary,
    }
