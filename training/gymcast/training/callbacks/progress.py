"""How far a training is: clock, counters and limits. Shared by the callbacks, independent of torch."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gymcast.training.config import TrainingConfig
from gymcast.training.episode_stats import RECENT_EPISODES, EpisodeStats

if TYPE_CHECKING:
    from gymcast.envs import Pacer

# A target is reached by the mean of at least so many episodes.
TARGET_EPISODES = 100


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
