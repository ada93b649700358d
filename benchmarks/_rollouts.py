"""Timing of a training by its rollouts, for the benchmarks of samples/s."""

from __future__ import annotations

import time

from stable_baselines3.common.callbacks import BaseCallback


class RolloutClock(BaseCallback):
    """Notes when each rollout starts: after the first, collecting and training of the one before are done.

    To be given `rollouts` + 2 rollouts: the first is not counted, and the start of the last ends the measurement.
    """

    def __init__(self) -> None:
        super().__init__()
        self.starts: list[float] = []

    def _on_rollout_start(self) -> None:
        self.starts.append(time.perf_counter())

    def _on_step(self) -> bool:
        return True

    def spent(self, rollouts: int) -> float:
        """Seconds that `rollouts` rollouts took, those after the first."""
        return self.starts[rollouts + 1] - self.starts[1]
