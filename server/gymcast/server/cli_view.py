"""What a terminal shows of a run: the newest facts of one session, folded from its committed events."""

from __future__ import annotations

import shlex
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any, Final

from gymcast.training.events import (
    CheckpointData,
    ErrorData,
    EvaluationData,
    ReplayData,
    TrainingMetricsData,
    TrainingStatusData,
)
from gymcast.training.storage import TERMINAL, Committed

_HISTORY: Final = 4096
_SAME_WARNING_SECONDS: Final = 60.0
# Errors that end a session: its reason says the same.
_SAID_BY_THE_REASON: Final = ("training_failed", "bad_config")
_BLOCKS: Final = "▁▂▃▄▅▆▇█"
_ASCII_BLOCKS: Final = "_.-=+*#@"

PHASES: Final = {
    "queued": "waiting for a free place",
    "starting": "starting the training process",
    "compiling": "loading and compiling (longer the first time)",
    "training": "training",
    "evaluating": "playing evaluation games",
    "saving": "saving",
    "running": "running",
    "paused": "paused",
    "stopping": "stopping",
    "retrying": "trying again",
    "completed": "completed",
    "failed": "failed",
    "cancelled": "stopped",
}


@dataclass
class RunView:
    """Facts about one session. ``apply`` takes what the storage tells its listeners."""

    title: str
    page_url: str
    run_dir: str
    more: str = ""
    """Options that let a run which reached its goal go on, such as ``--minutes 3``."""
    session_id: str = ""
    status: str = "queued"
    phase: str = ""
    reason: str | None = None
    progress: float = 0.0
    eta_seconds: float | None = None
    timesteps: int = 0
    episodes: int = 0
    metrics: TrainingMetricsData | None = None
    win_rates: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    rewards: deque[float] = field(default_factory=lambda: deque(maxlen=_HISTORY))
    evaluations: dict[str, EvaluationData] = field(default_factory=dict)
    checkpoint: CheckpointData | None = None
    replay_id: str | None = None
    warnings: list[str] = field(default_factory=list)
    refused: bool = False
    """Whether it failed because of its settings, which only the training process can check in full."""
    started: float = field(default_factory=time.monotonic)
    _warned: dict[str, float] = field(default_factory=dict)

    def apply(self, committed: Committed) -> None:
        """Take over one transaction of this session."""
        for event in committed.events:
            data = event.data
            if isinstance(data, TrainingMetricsData):
                self.metrics = data
                if data.win_rate is not None:
                    self.win_rates.append(data.win_rate)
                if data.average_reward is not None:
                    self.rewards.append(data.average_reward)
            elif isinstance(data, TrainingStatusData):
                self.phase = data.phase
            elif isinstance(data, EvaluationData):
                self.evaluations[data.opponent] = data
            elif isinstance(data, CheckpointData):
                self.checkpoint = data
            elif isinstance(data, ReplayData):
                self.replay_id = data.replay_id
            elif isinstance(data, ErrorData):
                self._warn(data)
        if committed.session is not None:
            record = committed.session
            self.session_id, self.status, self.reason = record.session_id, record.status, record.reason
            self.phase = record.phase
            self.progress, self.eta_seconds = record.progress, record.eta_seconds
            self.timesteps, self.episodes = record.timesteps, record.current_episode

    def _warn(self, data: ErrorData) -> None:
        self.refused = self.refused or data.code == "bad_config"
        if data.code in _SAID_BY_THE_REASON:
            return
        self.warn(data.code, data.message)

    def warn(self, code: str, message: str) -> None:
        """Keep a warning; a disk that is full says so with every checkpoint, which is worth a line a minute."""
        last = self._warned.get(code)
        if last is None or time.monotonic() - last >= _SAME_WARNING_SECONDS:
            self._warned[code] = time.monotonic()
            self.warnings.append(message)

    @property
    def ended(self) -> bool:
        """Whether the session has reached a final status."""
        return self.status in TERMINAL

    @property
    def learning(self) -> bool:
        """Whether the bot is being trained now."""
        return self.status in ("running", "paused") and self.phase in ("training", "")

    @property
    def activity(self) -> str:
        """What is going on, in words."""
        working = self.status in ("starting", "running") and self.phase
        return PHASES.get(self.phase if working else self.status, self.status)

    @property
    def elapsed(self) -> float:
        """Seconds since the command was started."""
        return time.monotonic() - self.started

    def extra(self, name: str) -> float | None:
        """A further metric of the newest reading."""
        return None if self.metrics is None else self.metrics.extra.get(name)

    def facts(self) -> list[tuple[str, str]]:
        """``(label, value)`` of everything known about speed and learning; unknown values are left out."""
        reading = self.metrics
        if reading is None:
            return []
        speed = self.extra("game_seconds_per_second")
        rows: list[tuple[str, str | None]] = [
            ("samples/s", _count(self.extra("samples_per_second"))),
            ("game time", None if speed is None else f"{_count(speed)} x real time"),
            ("episodes/min", _count(self.extra("episodes_per_minute"))),
            ("episodes", _count(reading.episode)),
            ("episodes failed", _count(self.extra("episodes_failed") or None)),
            ("restarts", _count(self.extra("worker_restarts") or None)),
            ("epoch", _count(self.extra("epoch"))),
            ("reward", _number(reading.average_reward)),
            ("win rate", None if reading.win_rate is None else f"{reading.win_rate:.1f} %"),
            ("W/L/D", self._outcomes()),
            ("policy loss", _number(self.extra("policy_loss"))),
            ("value loss", _number(self.extra("value_loss"))),
            ("actor loss", _number(self.extra("actor_loss"))),
            ("critic loss", _number(self.extra("critic_loss"))),
            ("entropy", _number(self.extra("entropy"))),
            ("loss", _number(reading.loss_value)),
        ]
        return [(label, value) for label, value in rows if value is not None]

    def _outcomes(self) -> str | None:
        counts = [_count(self.extra(name)) for name in ("wins", "losses", "draws")]
        return None if None in counts else " / ".join(str(count) for count in counts)

    def plain_line(self) -> str:
        """One line for a log: what is going on and, while the bot learns, the facts."""
        parts = [clock(self.elapsed), self.activity]
        if self.phase == "evaluating":
            parts[-1] += f" ({len(self.evaluations)} opponents done)"
        if self.learning:
            parts[-1] += f" {self.progress:.0%}"
            if self.eta_seconds is not None:
                parts.append(f"{clock(self.eta_seconds)} left")
            parts.extend(f"{label} {value}" for label, value in self.facts())
        return "  ".join(parts)

    def go_on_command(self) -> str:
        """What to type to go on with this run."""
        parts = ["gymcast", "train", "--resume", shlex.quote(self.run_dir)]
        return " ".join([*parts, self.more] if self.status == "completed" and self.more else parts)

    def summary(self) -> dict[str, Any]:
        """The end of the run as JSON values."""
        return {
            "session_id": self.session_id,
            "status": self.status,
            "reason": self.reason,
            "run_dir": self.run_dir,
            "page": self.page_url,
            "episodes": self.episodes,
            "timesteps": self.timesteps,
            "worker_restarts": int(self.extra("worker_restarts") or 0),
            "episodes_failed": int(self.extra("episodes_failed") or 0),
            "evaluations": [found.to_json() for found in self.evaluations.values()],
            "checkpoint": None if self.checkpoint is None else self.checkpoint.to_json(),
            "replay_id": self.replay_id,
            "go_on": self.go_on_command(),
            "warnings": self.warnings,
        }


def sparkline(
    values: list[float], width: int, low: float | None = None, high: float | None = None, *, ascii_only: bool = False
) -> str:
    """``values`` as ``width`` block characters between ``low`` and ``high``; the mean of each part is shown.

    A bound that is not given is the smallest or the largest value; values that are all the same lie on the ground.
    """
    if not values or width < 1:
        return ""
    low = min(values) if low is None else low
    high = max(values) if high is None else high
    span = high - low or 1.0
    blocks = _ASCII_BLOCKS if ascii_only else _BLOCKS
    width = min(width, len(values))
    text = ""
    for place in range(width):
        part = values[place * len(values) // width : (place + 1) * len(values) // width]
        share = (sum(part) / len(part) - low) / span
        text += blocks[min(len(blocks) - 1, max(0, int(share * len(blocks))))]
    return text


def clock(seconds: float) -> str:
    """``m:ss``, or ``h:mm:ss`` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _count(value: float | None) -> str | None:
    return None if value is None else f"{value:,.0f}"


def _number(value: float | None) -> str | None:
    if value is None:
        return None
    return f"{value:.3f}" if abs(value) < 100 else f"{value:,.1f}"
