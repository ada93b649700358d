"""Checkpoints at intervals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback

from gymcast.training.callbacks.progress import RunProgress


class CheckpointCallback(BaseCallback):
    """Calls ``save("interval")`` at the first update after ``minutes`` of training or ``steps`` decisions have passed.

    It acts between rollouts, when the network has just been updated and no half-collected data is around.
    """

    def __init__(
        self, save: Callable[[str], Any], progress: RunProgress, *, minutes: float | None, steps: int | None
    ) -> None:
        super().__init__()
        self._save = save
        self._progress = progress
        self._seconds = None if minutes is None else 60.0 * minutes
        self._steps = steps
        self._saved_seconds = 0.0
        self._saved_steps = 0

    def _on_training_start(self) -> None:
        self._saved_seconds, self._saved_steps = self._progress.seconds, self.num_timesteps

    def _on_rollout_start(self) -> None:
        timesteps = self.model.num_timesteps
        by_time = self._seconds is not None and self._progress.seconds - self._saved_seconds >= self._seconds
        by_steps = self._steps is not None and timesteps - self._saved_steps >= self._steps
        if by_time or by_steps:
            self._saved_seconds, self._saved_steps = self._progress.seconds, timesteps
            self._save("interval")

    def _on_step(self) -> bool:
        return True
