"""Managed sessions: trainings that are queued, started as processes of their own, watched, and found again.

Names are imported when they are first used: the database behind a manager takes a second to import, and episodes that
are played one by one (:mod:`.batch`) need none.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_HOMES = {
    "GLOBAL_METRICS": "metrics",
    "SESSION_METRICS": "metrics",
    "ExternalSession": "api",
    "ManagedSession": "api",
    "NotManagedError": "api",
    "ResourceAlert": "usage",
    "SessionLimitError": "manager",
    "SessionManager": "manager",
    "SessionMetrics": "metrics",
    "SessionUpdate": "api",
    "TrainedEpisode": "session",
    "TrainingAPI": "api",
    "TrainingFailedError": "session",
    "TrainingSession": "session",
}

__all__ = [*_HOMES]


def __getattr__(name: str) -> Any:
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    return getattr(import_module(f"{__name__}.{home}"), name)
