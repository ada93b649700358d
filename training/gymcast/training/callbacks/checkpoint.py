"""Checkpoints at intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from gymcast.training.callbacks.progress import RunProgress


class CheckpointCallback(BaseCallback):
    """Calls ``save("interval")`` after the first update at which ``minutes`` of training, ``steps`` decisions or
    ``episodes`` have passed since the last time.

    It acts between rollouts, when the network has just been updated and no half-collected data is around.
    """

    def __init__(
        self,
        save: Callable[[str], Any],
        progress: RunProgress,
        *,
        minutes: float | None,
        steps: int | None,
        episodes: int | None = None,
    ) -> None:
        super().__init__()
        self._save = save
        self._progress = progress
        self._intervals = (None if minutes is None else 60.0 * minutes, steps, episodes)
        self._last = (0.0, 0, 0)

    def _now(self) -> tuple[float, int, int]:
        return self._progress.seconds, self.model.num_timesteps, self._progress.stats.episodes

    def _on_training_start(self) -> None:
        self._last = self._now()

    def _on_rollout_start(self) -> None:
        now = self._now()
        passed = zip(now, self._last, self._intervals, strict=True)
        if any(interval is not None and value - last >= interval for value, last, interval in passed):
            self._save("interval")
            # The time that saving took does not count.
            self._last = self._now()

    def _on_step(self) -> bool:
        return True
