"""Counts and moving averages of finished episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECENT_EPISODES = 1000


class EpisodeStats:
    """Counts and recent averages of finished episodes.

    Works with any vector environment: ``infos[lane]["episode"]`` (gymcast, ``Monitor``, ``VecMonitor``) is used where
    it exists, otherwise rewards are summed here. A win is ``outcome`` > 0 or ``is_success``. An episode that ended
    because its worker process failed (``worker_restarted``) counts in ``failed`` only. Averages run over the last up to
    ``recent`` episodes.
    """

    def __init__(self, recent: int = RECENT_EPISODES) -> None:
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
        self._returns: deque[float] = deque(maxlen=recent)
        self._lengths: deque[int] = deque(maxlen=recent)
        self._won: deque[bool] = deque(maxlen=recent)
        self._running_return: NDArray[np.float64] | None = None
        self._running_length: NDArray[np.int64] | None = None

    def update(self, rewards: NDArray[Any], dones: NDArray[np.bool_], infos: Sequence[dict[str, Any]]) -> None:
        """Take in one step: rewards (N,), dones (N,) and infos of N lanes."""
        if self._running_return is None or self._running_length is None:
            self._running_return = np.zeros(len(dones))
            self._running_length = np.zeros(len(dones), dtype=np.int64)
        self._running_return += rewards
        self._running_length += 1
        if not dones.any():
            return  # most steps: this runs at every one
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
        outcome = info.get("outcome")
        if outcome is None and "is_success" in info:
            outcome = 1 if info["is_success"] else -1
        self.record(value, length, outcome)

    def record(self, value: float, length: int, outcome: float | None) -> None:
        """Take in one finished episode: its return, its decisions, and whether it was won (> 0), drawn or lost."""
        self.episodes += 1
        self.last_return, self.last_length = value, length
        self.best_return = value if self.best_return is None else max(self.best_return, value)
        self.worst_return = value if self.worst_return is None else min(self.worst_return, value)
        self._returns.append(value)
        self._lengths.append(length)
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
        """Mean return of recent episodes; ``None`` before the first."""
        return float(np.mean(self._returns)) if self._returns else None

    def mean_of_last(self, episodes: int) -> float | None:
        """Mean return of the last ``episodes`` (of the recent ones); ``None`` before there are as many."""
        if len(self._returns) < episodes:
            return None
        return float(np.mean(list(self._returns)[-episodes:]))

    @property
    def mean_length(self) -> float | None:
        """Mean length in decisions of recent episodes; ``None`` before the first."""
        return float(np.mean(self._lengths)) if self._lengths else None

    @property
    def win_rate(self) -> float | None:
        """Percent of recent episodes that were won; ``None`` without outcomes."""
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
