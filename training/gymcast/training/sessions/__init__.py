"""Managed sessions: trainings that are queued, started as processes of their own, watched, and found again.

Names are imported when they are first used: the database behind a manager takes a second to import, and episodes that
are played one by one (:mod:`.batch`) need none.
"""

from typing import TYPE_CHECKING

from gymcast.training.lazy import lazy_names

if TYPE_CHECKING:
    from .api import ExternalSession as ExternalSession
    from .api import ManagedSession as ManagedSession
    from .api import NotManagedError as NotManagedError
    from .api import SessionUpdate as SessionUpdate
    from .api import TrainingAPI as TrainingAPI
    from .manager import SessionLimitError as SessionLimitError
    from .manager import SessionManager as SessionManager
    from .metrics import GLOBAL_METRICS as GLOBAL_METRICS
    from .metrics import SESSION_METRICS as SESSION_METRICS
    from .metrics import SessionMetrics as SessionMetrics
    from .session import TrainedEpisode as TrainedEpisode
    from .session import TrainingFailedError as TrainingFailedError
    from .session import TrainingSession as TrainingSession
    from .usage import ResourceAlert as ResourceAlert

_NAMES = {
    ".api": (
        "ExternalSession",
        "ManagedSession",
        "NotManagedError",
        "SessionUpdate",
        "TrainingAPI",
    ),
    ".manager": (
        "SessionLimitError",
        "SessionManager",
    ),
    ".metrics": (
        "GLOBAL_METRICS",
        "SESSION_METRICS",
        "SessionMetrics",
    ),
    ".session": (
        "TrainedEpisode",
        "TrainingFailedError",
        "TrainingSession",
    ),
    ".usage": ("ResourceAlert",),
}

__all__ = [name for names in _NAMES.values() for name in names]
__getattr__, __dir__ = lazy_names(__name__, _NAMES)
