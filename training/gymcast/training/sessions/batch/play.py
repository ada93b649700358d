"""Playing the episodes of a batch inside a worker: any environment, one episode after the other."""

from __future__ import annotations

import contextlib
import hashlib
import math
import os
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from urllib.parse import quote

import gymnasium
import numpy as np
from numpy.typing import NDArray

from gymcast.envs import EnvMakeError, Replay
from gymcast.envs.action_codec import ActionCodec
from gymcast.envs.foreign_ids import import_family
from gymcast.envs.foreign_make import make_foreign
from gymcast.envs.replay_player import observation_check, outcome_of, to_codec
from gymcast.envs.vector import OUTCOMES
from gymcast.training.sessions.batch.find import Setup
from gymcast.training.sessions.batch.policies import Policy, UnfitError, load

FINISHED, FAILED, DROPPED = 0, 1, 2


class Played(NamedTuple):
    """What a worker says about one episode."""

    number: int
    """Its place in the batch."""
    kind: int
    """FINISHED, FAILED or DROPPED."""
    reward: float = 0.0
    length: int = 0
    outcome: int | None = None
    success: bool | None = None
    truncated: bool = False
    seconds: float = 0.0
    game_seconds: float | None = None
    replay: str | None = None
    error: str | None = None
    traceback: str | None = None


class Board(Protocol):
    """Memory that the parent looks at: which episode each lane plays, and since when."""

    def begin(self, lane: int, number: int) -> None:
        """An episode begins."""

    def end(self, lane: int) -> None:
        """It is over."""

    def dropped(self) -> bool:
        """Whether the parent wants everything dropped."""


class Feed(Protocol):
    """Where episodes come from."""

    def next(self) -> tuple[int, str] | None:
        """The next one, as its place in the batch and its id; ``None``: there is none now."""

    def __len__(self) -> int:
        """How many are here."""
        ...


Say = Callable[[Played], None]


class EpisodeFault(Exception):
    """An environment that breaks its contract."""


def seeds_of(batch_seed: int, episode_id: str) -> tuple[int, int]:
    """Seed of an episode's reset (31 bits) and of its policy's chance (62 bits), from the batch's seed and its id."""
    digest = hashlib.blake2b(episode_id.encode(), digest_size=16, key=batch_seed.to_bytes(8, "big")).digest()
    return int.from_bytes(digest[:4], "big") >> 1, int.from_bytes(digest[8:], "big") >> 2


def replay_path(folder: str, episode_id: str) -> Path:
    """The file of an episode's replay; ids that are no good as names of files are written in another way."""
    name = quote(episode_id, safe=" ()[]+,=@")
    if len(name) > 200 or name.startswith("."):
        name = f"{name.lstrip('.')[:100]}-{hashlib.blake2b(episode_id.encode(), digest_size=8).hexdigest()}"
    return Path(folder) / f"{name}.replay"


def write_replay(replay: Replay, folder: str, episode_id: str) -> tuple[str | None, str | None]:
    """Write a replay whole or not at all: its path, or why it could not be written."""
    path = replay_path(folder, episode_id)
    unfinished = path.with_name(f".{os.getpid()}.unfinished")
    try:
        unfinished.write_bytes(replay.to_bytes())
        unfinished.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            unfinished.unlink()
        return None, f"no replay: cannot write {path}: {error.strerror}"
    return str(path), None


class EnvPlayer:
    """Plays episodes of any Gymnasium environment, one after the other in one instance."""

    lanes = 1

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._env: gymnasium.Env[Any, Any] | None = None
        self._env = self._make()
        env = self._env
        self._policy: Policy = load(setup, env, 1)
        self._raw = setup.policy.kind in ("random", "function")
        fps = (env.metadata or {}).get("render_fps")
        self._decision_seconds = 1.0 / float(fps) if fps else None
        self._codec = None if setup.factory else ActionCodec.for_space(env.action_space)
        if setup.replays is not None and self._codec is None:
            which = "a function made it" if setup.factory else f"its actions are {env.action_space}"
            raise UnfitError(f"there can be no replays of {setup.env_id}: {which}.")

    def play(self, feed: Feed, board: Board, say: Say) -> None:
        """Play until there are no more episodes, or all are dropped."""
        while (following := feed.next()) is not None:
            number, episode_id = following
            began = time.perf_counter()
            board.begin(0, number)
            try:
                said = self._play_one(number, episode_id, board, began)
            except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - it may raise anything
                self._close()
                reason = str(error) if isinstance(error, EpisodeFault) else f"{type(error).__name__}: {error}"
                spent = time.perf_counter() - began
                said = Played(number, FAILED, seconds=spent, error=reason, traceback=traceback.format_exc())
            board.end(0)
            say(said)
            if said.kind == DROPPED:
                return

    def close(self) -> None:
        """Close the environment."""
        self._close()

    def _play_one(self, number: int, episode_id: str, board: Board, began: float) -> Played:
        if self._env is None:
            self._env = self._make()
        env, policy, raw = self._env, self._policy, self._raw
        seed, chance = seeds_of(self._setup.seed, episode_id)
        observation, info = env.reset(seed=seed)
        policy.begin(0, chance)
        masks = self._mask_source(info)
        kept: list[Any] | None = [] if self._setup.replays is not None else None
        total, length = 0.0, 0
        ended = terminated = truncated = False
        while not ended:
            seen = (observation,) if raw else _row(observation)
            action = policy.act(seen, None if masks is None else masks(info))[0]
            if kept is not None:
                kept.append(np.copy(action))
            observation, reward, terminated, truncated, info = env.step(action)
            total += float(reward)
            length += 1
            ended = terminated or truncated
            if board.dropped():
                return Played(number, DROPPED, length=length, seconds=time.perf_counter() - began)
        if not math.isfinite(total):
            raise EpisodeFault(f"its rewards add up to {total}")
        outcome = outcome_of(info)
        success = info.get("is_success")
        spent = time.perf_counter() - began
        game_seconds = None if self._decision_seconds is None else round(length * self._decision_seconds, 3)
        path = error = None
        if kept is not None:
            path, error = self._write(episode_id, seed, kept, total, outcome, observation)
        return Played(
            number,
            FINISHED,
            total,
            length,
            outcome if "outcome" in info else None,
            bool(success) if success is not None else None if outcome is None else outcome > 0,
            bool(truncated and not terminated),
            spent,
            game_seconds,
            path,
            error,
        )

    def _write(
        self, episode_id: str, seed: int, kept: Sequence[Any], total: float, outcome: int | None, last: Any
    ) -> tuple[str | None, str | None]:
        assert self._env is not None and self._codec is not None and self._setup.replays is not None
        rows = to_codec(np.stack(kept), self._env.action_space)
        actions = rows.reshape(len(kept), 1, -1).astype(self._codec.dtype)
        summary: dict[str, Any] = {
            "return": round(total, 6),
            "length": len(kept),
            "returns": [total],
            "check": f"{observation_check(last):016x}",
            **({} if outcome is None else {"outcome": OUTCOMES[outcome]}),
        }
        setup = self._setup
        version = gymnasium.spec(setup.env_id).version or 0
        replay = Replay(setup.env_id, version, setup.options, seed, 0, actions, summary, setup.extras)
        return write_replay(replay, str(setup.replays), episode_id)

    def _make(self) -> gymnasium.Env[Any, Any]:
        setup = self._setup
        try:
            if setup.factory:
                env = pickle.loads(setup.factory)()  # noqa: S301 - from the process that started this one
            else:
                if setup.extras and "" not in sys.path:
                    sys.path.insert(0, "")  # as with python -m: modules of the current folder count
                trained = setup.policy.kind in ("npz", "checkpoint", "zip")
                if trained or setup.extras or setup.replays is not None:
                    env = make_foreign(setup.env_id, setup.options, setup.extras)
                else:  # random actions and functions take what learners cannot, too
                    import_family(setup.env_id)
                    env = gymnasium.make(setup.env_id, **setup.options)
        except EnvMakeError as error:
            raise UnfitError(f"{setup.env_id} cannot be made: {error.field}: {error}") from error
        except Exception as error:
            missing = isinstance(error, gymnasium.error.UnregisteredEnv)
            hint = " Only the program that submits it registers it: give MODULE:ID, or a function." if missing else ""
            raise UnfitError(f"{setup.env_id} cannot be made: {type(error).__name__}: {error}{hint}") from error
        if not isinstance(env, gymnasium.Env):
            raise UnfitError(
                f"{setup.env_id} cannot be played: its factory made {type(env).__name__}, no Gymnasium Env."
            )
        return env

    def _mask_source(self, info: Any) -> Callable[[Any], NDArray[np.bool_]] | None:
        """How to ask for the legal actions now, bool (1, K); ``None``: all are legal."""
        assert self._env is not None
        try:
            ask = self._env.get_wrapper_attr("action_masks")
        except AttributeError:
            if isinstance(info, dict) and "action_mask" in info:
                return lambda latest: np.asarray(latest["action_mask"], np.bool_)[None]
            return None
        return lambda latest: np.asarray(ask(), np.bool_)[None]

    def _close(self) -> None:
        env, self._env = self._env, None
        if env is not None:
            with contextlib.suppress(Exception):  # it failed already, and a new one is made
                env.close()


def _row(observation: Any) -> Any:
    """An observation as a batch of one."""
    if isinstance(observation, dict):
        return {name: np.asarray(value)[None] for name, value in observation.items()}
    return np.asarray(observation)[None]
