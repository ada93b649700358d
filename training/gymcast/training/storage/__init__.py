"""Sessions and everything they report, in SQLite or PostgreSQL. Nothing here imports torch."""

from .errors import (
    BadCursorError,
    DuplicateIdError,
    IdempotencyError,
    LeaseLostError,
    NotFoundError,
    StateError,
    StorageBusyError,
    StorageError,
    StorageUnavailableError,
    VersionConflictError,
)
from .history import MAX_POINTS, HistoryRange
from .ids import new_id, rfc3339, to_us
from .leases import LEASE_SECONDS, Leases
from .missed import STATES, Missed, live_type
from .records import (
    CheckpointItem,
    Committed,
    EpisodeItem,
    ErrorItem,
    EvaluationItem,
    NewEpisode,
    Page,
    ReplayItem,
    ReplayRecord,
    SessionChanges,
    SessionLoad,
    SessionRecord,
    TransitionItem,
)
from .rooms import CODE_ALPHABET, RoomRecord, TooManyRoomsError
from .states import ACTIVE, MOVES, TERMINAL, WAITING
from .storage import Storage
from .typed_rows import ReplayContentError, decode_replay

__all__ = [
    "ACTIVE",
    "CODE_ALPHABET",
    "LEASE_SECONDS",
    "MAX_POINTS",
    "MOVES",
    "STATES",
    "TERMINAL",
    "WAITING",
    "BadCursorError",
    "CheckpointItem",
    "Committed",
    "DuplicateIdError",
    "EpisodeItem",
    "ErrorItem",
    "EvaluationItem",
    "HistoryRange",
    "IdempotencyError",
    "LeaseLostError",
    "Leases",
    "Missed",
    "NewEpisode",
    "NotFoundError",
    "Page",
    "ReplayContentError",
    "ReplayItem",
    "ReplayRecord",
    "RoomRecord",
    "SessionChanges",
    "SessionLoad",
    "SessionRecord",
    "StateError",
    "Storage",
    "StorageBusyError",
    "StorageError",
    "StorageUnavailableError",
    "TooManyRoomsError",
    "TransitionItem",
    "VersionConflictError",
    "decode_replay",
    "live_type",
    "new_id",
    "rfc3339",
    "to_us",
]
