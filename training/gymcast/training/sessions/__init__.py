"""Managed sessions: trainings that this server queues, starts as processes of their own, watches and stops."""

from .manager import SessionLimitError, SessionManager
from .process import WorkerExit, WorkerProcess

__all__ = ["SessionLimitError", "SessionManager", "WorkerExit", "WorkerProcess"]
