"""Real games played for measurement."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from gymcast.envs import resolve_env_id
from gymcast.envs.foreign_make import NO_EXTRAS, EnvExtras
from gymcast.training.events import EvaluationData
from gymcast.training.hang_watch import WATCH
from gymcast.training.intervals import wilson_interval
from gymcast.training.vec_env import GameVecEnv, is_builtin, make_training_vec_env

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_LANES = 1024
MAX_LANES_OTHER = 16


class Predictor(Protocol):
    """Anything with Stable-Baselines3's ``predict``, such as an algorithm or a policy."""

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[NDArray[Any], Any]:
        """Actions (N, ...) for observations (N, ...)."""
        ...


@dataclass(frozen=True)
class EvaluationResult:
    """Outcome of ``games`` games. Percentages are 0..100; games without a winner by rule leave them ``None``."""

    opponent: str
    games: int
    wins: int
    losses: int
    draws: int
    win_rate: float | None
    ci_low: float | None
    ci_high: float | None
    mean_return: float
    mean_length: float
    seconds: float

    @property
    def summary(self) -> str:
        """One line for people."""
        games = f"{self.games:,} games"
        if self.win_rate is not None:
            games += f", {self.win_rate:.1f} % won ({self.ci_low:.1f} to {self.ci_high:.1f}), "
            games += f"{self.losses:,} lost, {self.draws:,} drawn"
        return f"{games}; mean return {self.mean_return:.4g}, mean length {self.mean_length:.4g}"

    def as_event(self) -> EvaluationData:
        """The result as an event."""
        return EvaluationData(**{name: value for name, value in vars(self).items() if name != "seconds"})


class EvaluationStopped(Exception):
    """``should_stop`` said so before all games were over."""


def evaluate(
    policy: Predictor,
    env_id: str,
    opponent: str = "",
    games: int = 1000,
    *,
    seed: int = 0,
    deterministic: bool = False,
    masked: bool = False,
    lanes: int | None = None,
    should_stop: Callable[[], bool] | None = None,
    normalize: Callable[[Any], Any] | None = None,
    workers: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
    extras: EnvExtras = NO_EXTRAS,
    **more_options: Any,
) -> EvaluationResult:
    """Play exactly ``games`` games of ``env_id`` against ``opponent`` (empty: the environment has none).

    Games run side by side, and each lane counts a number of games that is fixed beforehand: taking whichever games end
    first would favour short ones. ``masked`` hands the legal-action masks to ``policy``,
    ``normalize`` is applied to observations before it sees them. With ``workers``, arguments of
    ``GymcastSubprocVecEnv``, other games than built-in ones run in processes that are started again when they fail; a
    game that was cut short by that is played anew. ``extras`` are the environment's packages and wrappers.
    Raises ``ValueError`` for
    ``games < 1`` and :class:`EvaluationStopped` when ``should_stop`` returns true.
    """
    if games < 1:
        raise ValueError(f"games has to be at least 1, got {games}")
    env_id = resolve_env_id(env_id, extras.packages)
    chosen = {**(options or {}), **more_options}
    if opponent:
        chosen["opponent"] = opponent
    lanes = min(games, lanes or (MAX_LANES if is_builtin(env_id) else MAX_LANES_OTHER))
    env = make_training_vec_env(env_id, lanes, seed, workers=workers, options=chosen, extras=extras)
    quota = np.full(lanes, games // lanes)
    quota[: games % lanes] += 1
    returns: list[float] = []
    lengths: list[int] = []
    outcomes: list[int] = []
    started = time.monotonic()
    try:
        obs: Any = env.reset()
        state, dones = None, np.ones(lanes, dtype=np.bool_)
        while quota.any():
            if should_stop is not None and should_stop():
                raise EvaluationStopped(f"stopped after {len(returns)} of {games} games")
            extra: dict[str, Any] = {"action_masks": _masks(env)} if masked else {}
            seen = obs if normalize is None else normalize(obs)
            if state is not None:  # a recurrent policy: its state goes along, and begins anew where an episode does
                extra.update(state=state, episode_start=dones)
            WATCH.get_on()
            actions, state = policy.predict(seen, deterministic=deterministic, **extra)
            obs, _, dones, infos = env.step(actions)
            for lane in np.flatnonzero(dones & (quota > 0)):
                info = infos[lane]
                if info.get("worker_restarted"):
                    continue
                quota[lane] -= 1
                returns.append(info["episode"]["r"])
                lengths.append(info["episode"]["l"])
                if "outcome" in info:
                    outcomes.append(info["outcome"])
    finally:
        env.close()
    return _summarise(opponent, games, returns, lengths, outcomes, time.monotonic() - started)


def _masks(env: Any) -> NDArray[np.bool_]:
    if isinstance(env, GameVecEnv):
        return env.action_mask
    return np.stack(env.env_method("action_masks"))


def _summarise(
    opponent: str, games: int, returns: list[float], lengths: list[int], outcomes: list[int], seconds: float
) -> EvaluationResult:
    wins = sum(outcome > 0 for outcome in outcomes)
    low, high = wilson_interval(wins, len(outcomes))
    decided = bool(outcomes)
    return EvaluationResult(
        opponent=opponent,
        games=games,
        wins=wins,
        losses=sum(outcome < 0 for outcome in outcomes),
        draws=sum(outcome == 0 for outcome in outcomes),
        win_rate=100.0 * wins / len(outcomes) if decided else None,
        ci_low=100.0 * low if decided else None,
        ci_high=100.0 * high if decided else None,
        mean_return=float(np.mean(returns)),
        mean_length=float(np.mean(lengths)),
        seconds=seconds,
    )
