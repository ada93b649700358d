"""How far a training is: episodes, outcomes, clock and limits. Shared by the callbacks, independent of torch."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from gymcast.training.config import TrainingConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gymcast.envs import Pacer

RECENT_EPISODES = 1000
# A target is reached by the mean of at least so many episodes.
TARGET_EPISODES = 100


class EpisodeStats:
    """Counts and recent averages of finished episodes.

    Works with any vector environment: ``infos[lane]["episode"]`` (gymcast, ``Monitor``, ``VecMonitor``) is used where
    it exists, otherwise rewards are summed here. A win is ``outcome`` > 0 or ``is_success``. An episode that ended
    because its worker process failed (``worker_restarted``) counts in ``failed`` only.
    """

    def __init__(self) -> None:
        self.episodes = 0
        self.failed = 0
        self.restarts = 0
        """Worker processes that were started again."""
        self.wins = self.losses = self.draws = 0
        self.last_return: float | None = None
        self.best_return: float | None = None
        self.worst_return: float | None = None
        self.reports: list[tuple[int, float, int, int | None]] | None = None
        """Number, return, length and sign of the outcome of each new episode, for who asks for them; else ``None``."""
        self.last_length: int | None = None
        self._returns: deque[float] = deque(maxlen=RECENT_EPISODES)
        self._lengths: deque[int] = deque(maxlen=RECENT_EPISODES)
        self._won: deque[bool] = deque(maxlen=RECENT_EPISODES)
        self._running_return: NDArray[np.float64] | None = None
        self._running_length: NDArray[np.int64] | None = None

    def update(self, rewards: NDArray[Any], dones: NDArray[np.bool_], infos: Sequence[dict[str, Any]]) -> None:
        """Take in one step: rewards (N,), dones (N,) and infos of N lanes."""
        if self._running_return is None or self._running_length is None:
            self._running_return = np.zeros(len(dones))
            self._running_length = np.zeros(len(dones), dtype=np.int64)
        self._running_return += rewards
        self._running_length += 1
        ended = np.flatnonzero(dones)
        for lane in ended:
            self._finish(infos[int(lane)], float(self._running_return[lane]), int(self._running_length[lane]))
        self._running_return[ended] = 0.0
        self._running_length[ended] = 0

    def _finish(self, info: dict[str, Any], summed: float, counted: int) -> None:
        if info.get("worker_restarted"):
            self.failed += 1
            return
        monitored = info.get("episode")
        value = float(monitored["r"]) if monitored is not None else summed
        length = int(monitored["l"]) if monitored is not None else counted
        self.episodes += 1
        self.last_return, self.last_length = value, length
        self.best_return = value if self.best_return is None else max(self.best_return, value)
        self.worst_return = value if self.worst_return is None else min(self.worst_return, value)
        self._returns.append(value)
        self._lengths.append(length)
        outcome = info.get("outcome")
        if outcome is None and "is_success" in info:
            outcome = 1 if info["is_success"] else -1
        if outcome is not None:
            self.wins += outcome > 0
            self.losses += outcome < 0
            self.draws += outcome == 0
            self._won.append(outcome > 0)
        if self.reports is not None:
            sign = None if outcome is None else (outcome > 0) - (outcome < 0)
            self.reports.append((self.episodes, value, length, sign))

    @property
    def mean_return(self) -> float | None:
        """Mean return of the last up to 1,000 episodes; ``None`` before the first."""
        return float(np.mean(self._returns)) if self._returns else None

    def mean_of_last(self, episodes: int) -> float | None:
        """Mean return of the last ``episodes`` (up to 1,000); ``None`` before there are as many."""
        if len(self._returns) < episodes:
            return None
        return float(np.mean(list(self._returns)[-episodes:]))

    @property
    def mean_length(self) -> float | None:
        """Mean length in decisions of the last up to 1,000 episodes; ``None`` before the first."""
        return float(np.mean(self._lengths)) if self._lengths else None

    @property
    def win_rate(self) -> float | None:
        """Percent of the last up to 1,000 episodes that were won; ``None`` without outcomes."""
        return 100.0 * sum(self._won) / len(self._won) if self._won else None

    def running(self) -> dict[str, NDArray[Any]]:
        """Returns and lengths so far of the episodes under way, (N,) each; empty before the first step."""
        if self._running_return is None or self._running_length is None:
            return {}
        return {"running_return": self._running_return, "running_length": self._running_length}

    def load_running(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue the episodes that :meth:`running` described."""
        self._running_return, self._running_length = arrays.get("running_return"), arrays.get("running_length")

    def to_state(self) -> dict[str, Any]:
        """Everything about finished episodes as JSON values, for a checkpoint."""
        return {
            "episodes": self.episodes,
            "failed": self.failed,
            "restarts": self.restarts,
            "outcomes": [self.wins, self.losses, self.draws],
            "last_return": self.last_return,
            "best_return": self.best_return,
            "worst_return": self.worst_return,
            "last_length": self.last_length,
            "returns": list(self._returns),
            "lengths": list(self._lengths),
            "won": list(self._won),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`to_state` returned."""
        self.episodes = state["episodes"]
        self.failed, self.restarts = state.get("failed", 0), state.get("restarts", 0)
        self.wins, self.losses, self.draws = state["outcomes"]
        self.last_return, self.best_return = state["last_return"], state["best_return"]
        self.worst_return = state.get("worst_return")  # checkpoints of the first format have none
        self.last_length = state["last_length"]
        self._returns.extend(state["returns"])
        self._lengths.extend(state["lengths"])
        self._won.extend(state["won"])


@dataclass
class RunProgress:
    """Clock, counters and limits of one run. Pauses do not count as training time."""

    config: TrainingConfig
    stats: EpisodeStats = field(default_factory=EpisodeStats)
    timesteps: int = 0
    seconds_before: float = 0.0
    """Training seconds of earlier processes of the same run."""
    pacer: Pacer | None = None
    """What holds the game to a speed, when one is asked for."""
    _started: float | None = None
    _paused_at: float | None = None
    _paused_seconds: float = 0.0
    _episodes_checked: int = 0

    def start(self) -> None:
        """Start the clock, unless it runs. Called after the first step, whose time is mostly spent compiling."""
        if self._started is None:
            self._started = time.monotonic()

    @property
    def started(self) -> bool:
        """Whether the clock has been started."""
        return self._started is not None

    def pause(self) -> None:
        """Stop the clock."""
        self._paused_at = time.monotonic()

    def resume(self) -> None:
        """Let the clock go on."""
        if self._paused_at is not None:
            self._paused_seconds += time.monotonic() - self._paused_at
            self._paused_at = None

    @property
    def seconds(self) -> float:
        """Seconds of training so far, pauses not counted, earlier processes of the run included."""
        if self._started is None:
            return self.seconds_before
        now = time.monotonic() if self._paused_at is None else self._paused_at
        return self.seconds_before + now - self._started - self._paused_seconds

    def _shares(self) -> dict[str, float]:
        limits = {
            "max_episodes": (self.stats.episodes, self.config.max_episodes),
            "total_timesteps": (self.timesteps, self.config.total_timesteps),
            "max_minutes": (self.seconds, None if self.config.max_minutes is None else 60.0 * self.config.max_minutes),
        }
        return {name: value / limit for name, (value, limit) in limits.items() if limit is not None}

    @property
    def progress(self) -> float:
        """0..1 towards the limit that is nearest; 0 without any limit."""
        return min(1.0, max(self._shares().values(), default=0.0))

    @property
    def eta_seconds(self) -> float | None:
        """Estimated seconds until the nearest limit, from the pace so far; ``None`` when nothing can be said."""
        share, seconds = self.progress, self.seconds
        if share <= 0.0 or seconds <= 0.0:
            return None
        return max(0.0, seconds / share - seconds)

    def reached(self) -> str | None:
        """The name of a limit that is reached, or ``None``.

        ``total_timesteps`` is left to the algorithm's own loop, which completes the rollout it is in.
        """
        limits = (name for name, share in self._shares().items() if share >= 1.0 and name != "total_timesteps")
        return next(limits, "target_reward" if self._target_reached() else None)

    def _target_reached(self) -> bool:
        target = self.config.target_reward
        if target is None or self.stats.episodes == self._episodes_checked:
            return False
        self._episodes_checked = self.stats.episodes
        # With many lanes the first hundred to end are the short ones, so every lane is waited for.
        window = min(RECENT_EPISODES, max(TARGET_EPISODES, self.config.parallel_episodes))
        mean = self.stats.mean_of_last(window)
        return mean is not None and mean >= target
