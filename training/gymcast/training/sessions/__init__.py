"""Managed sessions: trainings that are queued, started as processes of their own, watched, and found again."""

from .api import ExternalSession, ManagedSession, NotManagedError, SessionUpdate, TrainingAPI
from .manager import SessionLimitError, SessionManager
from .metrics import GLOBAL_METRICS, SESSION_METRICS, SessionMetrics
from .session import TrainedEpisode, TrainingFailedError, TrainingSession
from .usage import ResourceAlert

__all__ = [
    "GLOBAL_METRICS",
    "SESSION_METRICS",
    "ExternalSession",
    "ManagedSession",
    "NotManagedError",
    "ResourceAlert",
    "SessionLimitError",
    "SessionManager",
    "SessionMetrics",
    "SessionUpdate",
    "TrainedEpisode",
    "TrainingAPI",
    "TrainingFailedError",
    "TrainingSession",
]
