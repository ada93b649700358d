"""Metrics of a session and of all sessions of a manager. :data:`SESSION_METRICS` is the one table of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from gymcast.training.events import TrainingMetricsData
from gymcast.training.storage import SessionRecord

from .usage import Usage

# Name -> (unit, meaning in a session's metrics, meaning in the global ones). The fields of :class:`SessionMetrics`.
SESSION_METRICS: Final[dict[str, tuple[str, str, str]]] = {
    "episodes_completed": ("episodes", "training episodes that were played to their end", "sum"),
    "episodes_failed": ("episodes", "training episodes lost because their environment crashed or hung", "sum"),
    "average_reward": ("", "mean return of the last up to 1,000 episodes", "mean over sessions, weighted by episodes"),
    "best_reward": ("", "highest return of any episode", "highest"),
    "worst_reward": ("", "lowest return of any episode", "lowest"),
    "success_rate": (
        "percent",
        "episodes won among all that had a winner or a success; null in games without",
        "the same over all sessions",
    ),
    "episodes_per_minute": ("1/min", "episodes per minute of training over about the last ten seconds", "sum"),
    "memory_usage_mb": ("MiB", "resident memory of the worker and all its processes", "sum"),
    "cpu_usage_percent": ("percent of the machine", "processor use of the worker and all its processes", "sum"),
    "training_seconds": ("s", "duration of the training, pauses and waiting not counted", "sum"),
    "duration_seconds": ("s", "wall-clock time from the start to the end or to now", "sum"),
    "timesteps": ("decisions", "decisions taken, all lanes together", "sum"),
}
# Name -> meaning of what :meth:`SessionManager.get_global_metrics` has besides.
GLOBAL_METRICS: Final[dict[str, str]] = {
    "sessions": "managed sessions by status",
    "active_sessions": "sessions of this manager that have a worker",
    "queued_sessions": "sessions that wait for their start or for another attempt",
    "parallel_episodes": "lanes of the sessions that have a worker",
    "handler_failures": "events for which a registered handler raised",
    "handler_drops": "events that a slow handler did not get",
}


@dataclass(frozen=True)
class SessionMetrics:
    """How a session does; see :data:`SESSION_METRICS`. ``None`` where there is no value yet."""

    episodes_completed: int = 0
    episodes_failed: int = 0
    average_reward: float | None = None
    best_reward: float | None = None
    worst_reward: float | None = None
    success_rate: float | None = None
    episodes_per_minute: float | None = None
    memory_usage_mb: float | None = None
    cpu_usage_percent: float | None = None
    training_seconds: float = 0.0
    duration_seconds: float = 0.0
    timesteps: int = 0

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


def session_metrics(
    record: SessionRecord, reading: TrainingMetricsData | Mapping[str, Any] | None, usage: Usage | None = None
) -> SessionMetrics:
    """The metrics of ``record``, from its newest reading and what its processes use now."""
    if isinstance(reading, TrainingMetricsData):
        reading = reading.to_json()
    given: Mapping[str, Any] = reading or {}
    extra: Mapping[str, Any] = given.get("extra", {})
    outcomes = [extra.get(name) for name in ("wins", "losses", "draws")]
    end = record.end_time or datetime.now(UTC)
    return SessionMetrics(
        episodes_completed=int(given.get("episode", 0)),
        episodes_failed=int(extra.get("episodes_failed") or 0),
        average_reward=given.get("average_reward"),
        best_reward=given.get("best_reward"),
        worst_reward=extra.get("worst_reward"),
        success_rate=_share(outcomes),
        episodes_per_minute=extra.get("episodes_per_minute"),
        memory_usage_mb=usage.memory_mb if usage is not None else given.get("memory_usage_mb"),
        cpu_usage_percent=None if usage is None else usage.cpu_percent,
        training_seconds=float(given.get("training_time_elapsed", 0.0)),
        duration_seconds=max(0.0, (end - record.start_time).total_seconds()) if record.start_time else 0.0,
        timesteps=int(extra.get("timesteps") or record.timesteps),
    )


def _share(outcomes: list[float | None]) -> float | None:
    known = [float(count) for count in outcomes if count is not None]
    played: float = sum(known)
    return 100.0 * known[0] / played if len(known) == 3 and played else None


def outcome_counts(reading: Mapping[str, Any] | None) -> list[float]:
    """Wins, losses and draws of a reading; zeros where the game has none."""
    extra = (reading or {}).get("extra", {})
    return [float(extra.get(name) or 0) for name in ("wins", "losses", "draws")]


def global_metrics(
    found: Iterable[tuple[SessionRecord, SessionMetrics, list[float]]], running: Iterable[str]
) -> dict[str, Any]:
    """All sessions together: records with their metrics and outcomes, and which of them have a worker here."""
    sessions = list(found)
    active = set(running)
    each = [metrics for _, metrics, _ in sessions]
    live = [metrics for record, metrics, _ in sessions if record.session_id in active]
    weights = [(one.average_reward, one.episodes_completed) for one in each if one.average_reward is not None]
    total = sum(weight for _, weight in weights)
    outcomes = [sum(counts) for counts in zip(*(counts for *_, counts in sessions), strict=True)] or [0.0, 0.0, 0.0]
    best = [one.best_reward for one in each if one.best_reward is not None]
    worst = [one.worst_reward for one in each if one.worst_reward is not None]
    values = SessionMetrics(
        episodes_completed=sum(one.episodes_completed for one in each),
        episodes_failed=sum(one.episodes_failed for one in each),
        average_reward=sum(mean * weight for mean, weight in weights) / total if total else None,
        best_reward=max(best, default=None),
        worst_reward=min(worst, default=None),
        success_rate=_share([*outcomes]),
        episodes_per_minute=sum(one.episodes_per_minute or 0.0 for one in live),
        memory_usage_mb=sum(one.memory_usage_mb or 0.0 for one in live),
        cpu_usage_percent=sum(one.cpu_usage_percent or 0.0 for one in live),
        training_seconds=sum(one.training_seconds for one in each),
        duration_seconds=sum(one.duration_seconds for one in each),
        timesteps=sum(one.timesteps for one in each),
    )
    statuses = Counter(record.status for record, *_ in sessions)
    return {
        **values.to_json(),
        "sessions": dict(statuses),
        "active_sessions": len(live),
        "queued_sessions": statuses["queued"] + statuses["retrying"],
    }
