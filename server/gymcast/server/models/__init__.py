"""What the server answers, as models: the OpenAPI document is made from them, and the tests hold every answer to them.

Handlers answer with plain values; nothing is validated on the way out. Every field is always there unless its
description says otherwise. A newer server may add fields.
"""

from .base import ProblemDocument as ProblemDocument
from .base import ProblemType as ProblemType
from .base import ProblemTypes as ProblemTypes
from .history import History as History
from .history import ReplayList as ReplayList
from .history import ReplayView as ReplayView
from .people import JoinedRoom as JoinedRoom
from .people import Ladders as Ladders
from .people import NewRoomInfo as NewRoomInfo
from .people import RoomInfo as RoomInfo
from .people import RoomList as RoomList
from .reports import EventBatchBody as EventBatchBody
from .reports import NewSession as NewSession
from .reports import one_or_more as one_or_more
from .sessions import CheckpointList as CheckpointList
from .sessions import ErrorList as ErrorList
from .sessions import EvaluationList as EvaluationList
from .sessions import LogList as LogList
from .sessions import QueueList as QueueList
from .sessions import SessionInfo as SessionInfo
from .sessions import SessionList as SessionList
from .sessions import SessionMetricsInfo as SessionMetricsInfo
from .sessions import TransitionList as TransitionList
from .system import EnvInfo as EnvInfo
from .system import EnvList as EnvList
from .system import Health as Health
from .system import Readiness as Readiness
from .system import ServerStatus as ServerStatus
from .system import SystemStatus as SystemStatus
