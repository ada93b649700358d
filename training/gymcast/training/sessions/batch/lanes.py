"""Playing the episodes of a built-in game inside a worker: side by side, as lanes of one compiled batch."""

from __future__ import annotations

import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from gymcast.envs import GAMES, GameVectorEnv, Replay
from gymcast.envs.vector import OUTCOMES
from gymcast.training.sessions.batch.find import Setup
from gymcast.training.sessions.batch.play import (
    DROPPED,
    FAILED,
    FINISHED,
    Board,
    EnvPlayer,
    Feed,
    Played,
    Say,
    seeds_of,
    write_replay,
)
from gymcast.training.sessions.batch.policies import Policy, UnfitError, load

_SIZES: Final = (1, 8, 32, 128, 256)  # of compiled batches; a few episodes are not worth stepping many lanes


def make_player(setup: Setup) -> EnvPlayer | LanesPlayer:
    """Everything that plays the episodes of a setup. Raises :class:`UnfitError`."""
    if setup.replays is not None:
        try:
            Path(setup.replays).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UnfitError(f"cannot make the folder for replays {setup.replays}: {error.strerror}") from None
    if setup.env_id in GAMES and not setup.factory:
        return LanesPlayer(setup)
    return EnvPlayer(setup)


@dataclass(slots=True)
class _Running:
    number: int
    episode_id: str
    seed: int
    began: float
    first: int
    """The step before which it began."""


class LanesPlayer:
    """Plays episodes of a built-in game side by side, as the lanes of one compiled batch.

    What an episode comes to does not depend on how many others there are beside it.
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._batches: dict[int, tuple[GameVectorEnv, Policy]] = {}
        self._alone = setup.lanes == 1
        env, policy = self._batch(1)
        # Kernels are compiled, or loaded, here: no episode's time is spent on it.
        env.reset(seed=0)
        policy.begin(0, 0)
        env.step(policy.act(env.observation, env.action_masks()))
        self._env_seconds = env.decision_seconds
        if env._policy is not None:
            self._alone = True  # an opponent from a file draws its chance for all games together

    def play(self, feed: Feed, board: Board, say: Say) -> None:
        """Play until there are no more episodes, or all are dropped."""
        running: dict[int, _Running] = {}
        try:
            self._play(feed, board, say, running)
        except Exception as error:  # noqa: BLE001 - a policy may be anyone's function
            self._batches.clear()
            text, now = traceback.format_exc(), time.perf_counter()
            for lane, one in running.items():
                board.end(lane)
                reason = f"{type(error).__name__}: {error}"
                say(Played(one.number, FAILED, seconds=now - one.began, error=reason, traceback=text))

    def _play(self, feed: Feed, board: Board, say: Say, running: dict[int, _Running]) -> None:
        most = min(self.lanes, len(feed))
        env, policy = self._batch(next(size for size in _SIZES if size >= min(most, _SIZES[-1])))
        idle = list(range(env.num_envs))[::-1]
        history: list[NDArray[Any]] = []  # actions of the last steps
        step = kept_from = 0
        while True:
            starting = self._begin(env, policy, idle, running, feed, board, step)
            if not running:
                return
            if not starting and board.dropped():
                for lane, one in running.items():
                    board.end(lane)
                    say(Played(one.number, DROPPED, length=step - one.first, seconds=time.perf_counter() - one.began))
                return
            env.step(policy.act(env.observation, env.action_masks()))
            step += 1
            if self._setup.replays is not None:
                history.append(env.inner_actions.copy())
            for lane in env.ended.tolist():
                if lane in running:
                    one = running.pop(lane)
                    said = self._finished(env, lane, one, history[one.first - kept_from :])
                    board.end(lane)
                    idle.append(lane)
                    say(said)
            if history and step % 64 == 0:
                oldest = min((one.first for one in running.values()), default=step)
                del history[: oldest - kept_from]
                kept_from = oldest

    @property
    def lanes(self) -> int:
        """Episodes it plays side by side at most."""
        return 1 if self._alone else self._setup.lanes

    def close(self) -> None:
        """Close the batches."""
        for env, _ in self._batches.values():
            env.close()

    def _begin(
        self,
        env: GameVectorEnv,
        policy: Policy,
        idle: list[int],
        running: dict[int, _Running],
        feed: Feed,
        board: Board,
        step: int,
    ) -> bool:
        """Begin episodes on idle lanes, as far as there are any."""
        seeds: list[int | None] | None = None
        while idle and (following := feed.next()) is not None:
            if seeds is None:
                seeds, chosen = [None] * env.num_envs, np.zeros(env.num_envs, np.bool_)
            number, episode_id = following
            lane = idle.pop()
            seed, chance = seeds_of(self._setup.seed, episode_id)
            seeds[lane], chosen[lane] = seed, True
            board.begin(lane, number)
            policy.begin(lane, chance)
            if env._policy is not None and hasattr(env._policy, "random"):
                env._policy.random = np.random.default_rng(chance ^ 1)
            running[lane] = _Running(number, episode_id, seed, time.perf_counter(), step)
        if seeds is None:
            return False
        env.reset(seed=seeds, options={"reset_mask": chosen})
        return True

    def _finished(self, env: GameVectorEnv, lane: int, one: _Running, history: list[NDArray[Any]]) -> Played:
        length, outcome = int(env.episode_length[lane]), int(env.outcome[lane])
        total = float(env.episode_return[lane])
        spent = time.perf_counter() - one.began
        game_seconds = round(length * self._env_seconds, 3)
        path = error = None
        if self._setup.replays is not None:
            seats = env.batch.learners
            actions = np.stack([row[lane * seats : (lane + 1) * seats] for row in history])
            actions = actions.astype(np.float32 if actions.dtype.kind == "f" else np.uint8)
            summary = {
                "return": round(total, 6),
                "length": length,
                "seconds": game_seconds,
                "outcome": OUTCOMES[outcome],
                "kills": int(env.kills[lane]),
                "deaths": int(env.deaths[lane]),
            }
            replay = Replay(env.game.id, env.game.version, dict(env.options), one.seed, 0, actions, summary)
            path, error = write_replay(replay, self._setup.replays, one.episode_id)
        truncated = bool(env.batch.out.truncated[lane * env._inner_seats])
        return Played(
            one.number, FINISHED, total, length, outcome, outcome > 0, truncated, spent, game_seconds, path, error
        )

    def _batch(self, size: int) -> tuple[GameVectorEnv, Policy]:
        if size not in self._batches:
            setup = self._setup
            env = GameVectorEnv(setup.env_id, size, threads=1, **setup.options)
            policy = load(setup, env, size)
            if setup.policy.kind in ("checkpoint", "zip", "function"):
                self._alone = True
            self._batches[size] = env, policy
        return self._batches[size]
