"""Every finished episode as an event, for a session whose owner wants each of them."""

from __future__ import annotations

import math
import time
from typing import Final

from stable_baselines3.common.callbacks import BaseCallback

from gymcast.training.broadcast import Sink
from gymcast.training.episode_stats import EpisodeStats
from gymcast.training.events import MAX_REPORTED_EPISODES, EpisodesData

REPORT_SECONDS: Final = 0.25


class EpisodeReportCallback(BaseCallback):
    """Sends what ``stats.reports`` has gathered, a few times a second."""

    def __init__(self, sink: Sink, stats: EpisodeStats) -> None:
        super().__init__()
        self._sink = sink
        self._stats = stats
        self._next = 0.0

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + REPORT_SECONDS
            self._send()
        return True

    def _on_training_end(self) -> None:
        self._send()

    def _send(self) -> None:
        reports = self._stats.reports or []
        for start in range(0, len(reports), MAX_REPORTED_EPISODES):
            part = reports[start : start + MAX_REPORTED_EPISODES]
            self._sink.emit(
                EpisodesData(
                    first=part[0][0],
                    rewards=[value if math.isfinite(value) else None for _, value, _, _ in part],
                    lengths=[length for _, _, length, _ in part],
                    outcomes=[outcome for *_, outcome in part],  # type: ignore[misc]
                )
            )
        reports.clear()
