"""Episodes as (game, version, options, seed, episode index, actions): kept in a few bytes, played again bit for bit."""

from __future__ import annotations

import hashlib
import json
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gymcast.envs.registry import game_spec
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
        try:
            body = zlib.decompressobj().decompress(data[len(_MAGIC) :], _LARGEST)
            size = int.from_bytes(body[:4], "big")
            header = json.loads(body[4 : 4 + size])
            dtype, shape = header.pop("dtype"), tuple(header.pop("shape"))
            if dtype not in ("|u1", "<f4"):
                raise ReplayError(f"this replay is damaged: actions of type {dtype!r}.")
            actions = np.frombuffer(body[4 + size :], dtype).reshape(shape)
            return Replay(actions=actions, **header)
        except (zlib.error, ValueError, KeyError, TypeError) as error:
            raise ReplayError(f"this replay is damaged ({error}).") from error


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

    def __init__(self, replay: Replay, frame_skip: int | None = None) -> None:
        game = game_spec(replay.env_id)
        if replay.version != game.version:
            raise ReplayError(
                f"this replay is of {replay.env_id} version {replay.version}, the game here is version {game.version}: "
                "its rules changed, so the episode cannot be had again. Use the gymcast release that recorded it."
            )
        options = game.complete_options(replay.options)
        seats = replay.actions.shape[1]
        if seats not in (1, int(options["players"])):
            raise ReplayError(f"this replay is damaged: actions of {seats} seats.")
        self.game, self.options, self.replay = game, options, replay
        self.batch = game.load_batch()(1, options, seats, autoreset=False)
        self.batch.state["seed"] = replay.seed
        self.batch.state["episode"] = replay.episode
        self.batch.reset(np.ones(1, np.bool_))

    def actions(self, step: int) -> NDArray[Any]:
        row = self.replay.actions[step]
        return row.astype(np.float64 if row.dtype.kind == "f" else np.int64)


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
