"""Sessions, their lists and logs, and the queue."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from gymcast.training.events import (
    CheckpointData,
    Count,
    DesiredState,
    ErrorData,
    EvaluationData,
    Phase,
    Probability,
    SessionStatus,
)
from gymcast.training.sessions.metrics import SessionMetrics

from .base import Answer, Cursor, Seconds

# Sessions


class _Session(Answer):
    session_id: str = Field(description="id, sortable by time of creation")
    training_session_id: str = Field(description="name given by whoever created it; the id of a managed one")
    env_id: str | None
    model_generation: Count
    algorithm: str
    status: SessionStatus
    phase: Phase
    desired: DesiredState = Field(description="what the producer is asked to do")
    reason: str | None = Field(description="why it is in this state")
    created_at: AwareDatetime
    start_time: AwareDatetime | None
    end_time: AwareDatetime | None
    current_episode: Count
    total_episodes: Count | None
    timesteps: Count
    total_timesteps: Count | None
    progress: Probability
    eta_seconds: Seconds | None
    spectator_count: Count = Field(description="viewers that are connected now, to all server processes together")
    room_code: str | None
    enable_spectators: bool
    version: Annotated[int, Field(ge=1)] = Field(description="grows with every change; the ETag")


class ExternalSessionInfo(_Session):
    """A training that someone else runs and reports on."""

    kind: Literal["external"]


class ManagedSessionInfo(_Session):
    """A training that gymcast runs."""

    kind: Literal["managed"]
    config: dict[str, Any] | None = Field(description="the whole TrainingConfig in snake_case, see docs/settings.md")
    priority: int
    attempts: Count = Field(description="how often its worker was started")
    resources: dict[str, Any] | None = Field(description="what the manager notes about its run")
    wait_reason: str | None = Field(description="why it waits in the queue")


SessionInfo = Annotated[ExternalSessionInfo | ManagedSessionInfo, Field(discriminator="kind", title="SessionInfo")]


class SessionList(Answer):
    """Sessions, newest first."""

    sessions: list[SessionInfo]
    next_cursor: Cursor


class SessionMetricsInfo(Answer):
    """How a session does, see docs/metrics.md."""

    session_id: str
    metrics: SessionMetrics


class TransitionInfo(Answer):
    """A change of status."""

    timestamp: AwareDatetime
    from_status: SessionStatus | None
    to_status: SessionStatus
    reason: str | None
    version: int | None = Field(description="the session's version after it; null in old databases")


class TransitionList(Answer):
    """Changes of status, oldest first."""

    transitions: list[TransitionInfo]


class CheckpointInfo(CheckpointData):
    """A checkpoint that was written and verified."""

    timestamp: AwareDatetime
    session_id: str


class CheckpointList(Answer):
    """Checkpoints, newest first."""

    checkpoints: list[CheckpointInfo]
    next_cursor: Cursor


class EvaluationInfo(EvaluationData):
    """Games played for measurement only."""

    timestamp: AwareDatetime
    session_id: str


class EvaluationList(Answer):
    """Evaluations, newest first."""

    evaluations: list[EvaluationInfo]
    next_cursor: Cursor


class ErrorInfo(ErrorData):
    """What a training reported to have gone wrong."""

    timestamp: AwareDatetime
    session_id: str


class ErrorList(Answer):
    """Errors and alarms, newest first."""

    errors: list[ErrorInfo]
    next_cursor: Cursor


class RunLogLine(Answer):
    """A line of a training's log."""

    offset: Count = Field(description="where the line begins in its file")
    timestamp: str | float | None
    level: str | None
    logger: str | None
    message: str
    traceback: str = Field(default="", description="of a logged exception; left out otherwise")


class WorkerLogLine(Answer):
    """A line that a training's process printed."""

    offset: Count = Field(description="where the line begins in its file")
    message: str


class LogList(Answer):
    """Lines of a log, newest first."""

    logs: list[RunLogLine | WorkerLogLine]
    next_cursor: Cursor


class QueueEntry(Answer):
    """A session that waits."""

    position: Annotated[int, Field(ge=1)]
    session_id: str
    priority: int
    rank: int = Field(description="priority, and a point for every minute of waiting")
    waited_seconds: Seconds
    parallel_episodes: Count
    status: SessionStatus
    reason: str | None = Field(description="which limit it waits for")


class QueueList(Answer):
    """The queue, whoever is next first."""

    queue: list[QueueEntry]
