"""Counts and moving averages of finished episodes."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECENT_EPISODES = 1000
_REWARDS_AT_ONCE = 64


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
        # Of the episodes under way: returns (N,) up to a few steps ago, the rewards (N,) of each step since then, and
        # after how many steps each began.
        self._returns_before: NDArray[np.float64] | None = None
        self._rewards: list[NDArray[Any]] = []
        self._began: NDArray[np.int64] = np.zeros(0, np.int64)
        self._steps = 0

    def update(self, rewards: NDArray[Any], dones: NDArray[np.bool_], infos: Sequence[dict[str, Any]]) -> None:
        """Take in one step: rewards (N,), dones (N,) and infos of N lanes."""
        if self._returns_before is None:
            self._returns_before, self._began = np.zeros(len(dones)), np.zeros(len(dones), np.int64)
        # This runs at every step, and arithmetic on arrays takes twenty times as long when a slow step of a game has
        # left nothing of it in the processor's caches: it waits until it is worth it.
        self._rewards.append(rewards.copy())
        self._steps += 1
        ended = dones.nonzero()[0]
        if len(ended):
            summed, counted = self._returns_so_far(), self._steps - self._began
            for lane in ended.tolist():
                self._finish(infos[lane], float(summed[lane]), int(counted[lane]))
            summed[ended] = 0.0
            self._began[ended] = self._steps
        elif len(self._rewards) == _REWARDS_AT_ONCE:
            self._returns_so_far()

    def _returns_so_far(self) -> NDArray[np.float64]:
        assert self._returns_before is not None, "there was a step"
        for rewards in self._rewards:
            self._returns_before += rewards
        self._rewards.clear()
        return self._returns_before

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
        if self._returns_before is None:
            return {}
        return {"running_return": self._returns_so_far(), "running_length": self._steps - self._began}

    def load_running(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Continue the episodes that :meth:`running` described."""
        if arrays:
            self._rewards.clear()
            self._returns_before = arrays["running_return"]
            self._began = self._steps - arrays["running_length"]

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
