"""Sessions and everything they report, in SQLite or PostgreSQL. Nothing here imports torch."""

from .errors import (
    BadCursorError,
    DuplicateIdError,
    IdempotencyError,
    NotFoundError,
    StateError,
    StorageBusyError,
    StorageError,
    StorageUnavailableError,
    VersionConflictError,
)
from .history import MAX_POINTS, HistoryRange
from .ids import new_id, rfc3339, to_us
from .ingest import ReplayContentError, decode_replay
from .records import Committed, Page, ReplayRecord, SessionChanges, SessionRecord
from .states import ACTIVE, MOVES, TERMINAL
from .storage import Storage

__all__ = [
    "ACTIVE",
    "MAX_POINTS",
    "MOVES",
    "TERMINAL",
    "BadCursorError",
    "Committed",
    "DuplicateIdError",
    "HistoryRange",
    "IdempotencyError",
    "NotFoundError",
    "Page",
    "ReplayContentError",
    "ReplayRecord",
    "SessionChanges",
    "SessionRecord",
    "StateError",
    "Storage",
    "StorageBusyError",
    "StorageError",
    "StorageUnavailableError",
    "VersionConflictError",
    "decode_replay",
    "new_id",
    "rfc3339",
    "to_us",
]
