"""What the server answers, as models: the OpenAPI document is made from them, and the tests hold every answer to them.

Handlers answer with plain values; nothing is validated on the way out. Every field is always there unless its
description says otherwise. A newer server may add fields.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, create_model

from gymcast.training.config import ResourceLimits
from gymcast.training.events import (
    EVENT_MODELS,
    MAX_EVENTS_PER_POST,
    BotDecisionData,
    CheckpointData,
    Count,
    DesiredState,
    EvaluationData,
    Number,
    Percent,
    PerformanceGraphData,
    Phase,
    Probability,
    ReplayDecision,
    SessionStatus,
    TrainingMetricsData,
)
from gymcast.training.sessions.api import ExternalSession, ManagedSession
from gymcast.training.sessions.metrics import SessionMetrics

Cursor = Annotated[str | None, Field(description="cursor of the next page; null at the end")]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Answer(BaseModel):
    """Base of what is answered."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


# Errors


class ProblemError(Answer):
    """One value that is wrong."""

    pointer: str = Field(description="JSON pointer (RFC 6901) into the body, or the name of a parameter")
    code: str = Field(description="stable name of what is wrong")
    message: str = Field(description="for people: what is expected")


class ProblemDocument(Answer):
    """An error (RFC 9457)."""

    type: str = Field(
        description="address of the problem type; `GET` it for its meaning", examples=["/problems/conflict"]
    )
    title: str = Field(description="name of the problem type")
    status: Annotated[int, Field(ge=400, le=599)] = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong with this request, and what to do")
    instance: str = Field(description="id of the request, the same as in X-Request-Id and in the log")
    errors: list[ProblemError] = Field(default=[], description="every value that is wrong; with status 422")


class ProblemType(Answer):
    """What a type of problem means."""

    type: str
    status: int
    title: str
    description: str


class ProblemTypes(Answer):
    """Every problem type."""

    problems: list[ProblemType]


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


# History


class MetricSummary(Answer):
    """A metric within a bucket."""

    min: Number
    max: Number
    mean: Number
    count: Annotated[int, Field(ge=1)]


class Bucket(Answer):
    """Readings of a stretch of time, summed up."""

    timestamp: AwareDatetime = Field(description="begin")
    end: AwareDatetime
    count: Annotated[int, Field(ge=1)] = Field(description="readings in it")
    metrics: dict[str, MetricSummary]


class ChosenReading(Answer):
    """A reading of which only some metrics were asked for; those it has no value of are null."""

    timestamp: AwareDatetime
    episode: Count
    metrics: dict[str, Number | None]


class History(Answer):
    """A part of a session's history."""

    session_id: str
    resolution: Literal["raw", "buckets"]
    metrics_data: list[TrainingMetricsData] | list[Bucket] | list[ChosenReading] = Field(
        description="raw: readings, oldest first; buckets: at most `points` of them"
    )
    graph_data: list[PerformanceGraphData]
    decision_data: list[BotDecisionData] = Field(
        default=[], description="the newest `limit` decisions; there when `type` asks for bot_decision"
    )
    total_points: Count = Field(description="readings in the range")
    next_cursor: Cursor


# Replays


class ReplayInfo(Answer):
    """A stored episode."""

    timestamp: AwareDatetime
    replay_id: str
    session_id: str
    env_id: str
    episode: Count
    timesteps: Count
    summary: dict[str, Any]
    frames_url: str


class LoggedEpisodeInfo(Answer):
    """An episode in the log of a run."""

    replay_id: str
    session_id: str
    timesteps: Count
    lane: Count
    env_id: str
    seed: int
    episode: Count
    length: Count
    seconds: float | None
    return_: float = Field(alias="return")
    outcome: Literal["win", "draw", "loss"] | None
    kills: int | None
    deaths: int | None
    summary: dict[str, Any]
    frames_url: str


class ReplayList(Answer):
    """Episodes; stored ones newest first."""

    replays: list[ReplayInfo | LoggedEpisodeInfo]
    next_cursor: Cursor


class ReplayView(Answer):
    """An episode as the page draws it."""

    replay_id: str
    env_id: str
    view: str = Field(description="what draws it: the name of a game, or pictures")
    fps: float = Field(description="decisions per second of game time")
    decision_seconds: float = Field(default=0.0, description="seconds of game time per decision; of pictures only")
    scene: dict[str, Any] = Field(description="what stays the same in all frames")
    frames: list[dict[str, Any]] = Field(description="`t` seconds of game time, and what is to be drawn")
    summary: dict[str, Any]
    decisions: list[ReplayDecision] = Field(description="what the bot considered")


# The server


class Health(Answer):
    """The process answers."""

    status: Literal["healthy"]
    version: str
    uptime_seconds: Seconds


class Readiness(Answer):
    """Whether the server can take work."""

    status: Literal["ready", "degraded"] = Field(
        description="degraded: it does its work, but the other server processes cannot be reached"
    )
    database: Literal["ok"]
    redis: Literal["ok", "unavailable", "off"]
    writer_lag_seconds: Seconds


class ServerStatus(Answer):
    """Load of the server."""

    status: Literal["running"]
    version: str
    active_sessions: Count
    total_connections: Count
    uptime_seconds: Seconds
    memory_usage_mb: Seconds
    cpu_usage_percent: Seconds
    runs_trainings: bool


class Machine(Answer):
    """The machine."""

    cpus: int | None
    cpu_percent: Percent
    memory_total_mb: float
    memory_available_mb: float


# As the manager has them; its model would be written in camelCase.
_LIMITS: Any = {
    name: (info.annotation, Field(description=info.description)) for name, info in ResourceLimits.model_fields.items()
}
Limits: Any = create_model(
    "Limits",
    __base__=Answer,
    __doc__="Limits that all sessions share.",
    alert_share=(Probability, Field(description="part of a limit at which an alert is raised")),
    **_LIMITS,
)


class GlobalMetrics(BaseModel):
    """All managed sessions together, see docs/metrics.md."""

    episodes_completed: Count
    episodes_failed: Count
    average_reward: float | None
    best_reward: float | None
    worst_reward: float | None
    success_rate: Percent | None
    episodes_per_minute: float
    memory_usage_mb: float
    cpu_usage_percent: float
    training_seconds: float
    duration_seconds: float
    timesteps: Count
    sessions: dict[SessionStatus, Count]
    active_sessions: Count
    queued_sessions: Count
    parallel_episodes: Count
    handler_failures: Count
    handler_drops: Count


class SystemStatus(Answer):
    """Resources, limits and totals."""

    status: Literal["running"]
    runs_trainings: bool
    uptime_seconds: Seconds
    machine: Machine
    active_sessions: Count
    limits: Limits | None = Field(description="null on a server that runs no trainings")
    metrics: GlobalMetrics | None
    queue_length: Count


class EnvOption(Answer):
    """An option of a game."""

    default: Any
    help: str
    choices: list[Any]


class DiscreteSpace(Answer):
    """One of `n` values."""

    kind: Literal["Discrete"]
    shape: list[int]
    n: int


class MultiDiscreteSpace(Answer):
    """One of so many values for each group."""

    kind: Literal["MultiDiscrete"]
    shape: list[int]
    nvec: list[int]


class BoxSpace(Answer):
    """An array of numbers."""

    kind: Literal["Box"]
    shape: list[int]
    low: float = Field(description="lowest value of any element")
    high: float = Field(description="highest value of any element")
    dtype: str


SpaceInfo = Annotated[DiscreteSpace | MultiDiscreteSpace | BoxSpace, Field(discriminator="kind")]


class EnvSpaces(Answer):
    """Spaces of a game for each choice of its option `action` or `observation`; `default` where it has none."""

    actions: dict[str, SpaceInfo]
    observations: dict[str, SpaceInfo]


class EnvInfo(Answer):
    """A built-in game."""

    id: str
    name: str
    version: int
    title: str
    tick_rate: int | None = Field(description="ticks per second of game time; null without")
    frame_skip_default: int | None = Field(description="ticks per decision; null without")
    max_seats: int
    opponents: list[str]
    options: dict[str, EnvOption]
    spaces: EnvSpaces
    action_labels: list[tuple[str, list[str]]] = Field(description="groups of actions with their names")


class EnvList(Answer):
    """The built-in games."""

    envs: list[EnvInfo]


# Reports: the event models of gymcast.training.events, one by one, so that a document can tell them apart.


def _event(kind: str, data: type[BaseModel]) -> type[BaseModel]:
    return create_model(
        data.__name__.removesuffix("Data") + "Event",
        __config__=ConfigDict(extra="forbid"),
        __doc__=f"A numbered event of type {kind}.",
        seq=(Annotated[int, Field(ge=1, le=2**63 - 1)], ...),
        ts=(AwareDatetime, Field(default=None, description="time of the event; left out: now")),
        type=(Literal[kind], ...),  # type: ignore[arg-type]
        data=(data, ...),
    )


EventInfo: Any = Annotated[
    Union[tuple(_event(kind, data) for kind, data in EVENT_MODELS.items())],  # noqa: UP007
    Field(discriminator="type"),
]


class EventBatchBody(BaseModel):
    """Numbered events of one producer; an empty list is a heartbeat."""

    model_config = ConfigDict(title="EventBatch", extra="forbid")

    producer: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")] = Field(description="name of the sender")
    events: Annotated[list[EventInfo], Field(max_length=MAX_EVENTS_PER_POST)] = Field(default=[])


def one_or_more(model: type[BaseModel]) -> Any:
    """One of ``model``, or a list of up to 500."""
    return model | Annotated[list[model], Field(min_length=1, max_length=MAX_EVENTS_PER_POST)]  # type: ignore[valid-type]


NewSession: Any = ExternalSession | ManagedSession


# Rooms


class RoomInfo(Answer):
    """A room through which guests watch a session."""

    code: str = Field(description="six letters and digits without look-alikes", examples=["K7WXR3"])
    session_id: str
    kind: Literal["spectator"] = Field(description="what guests may do: watch")
    password_protected: bool
    max_spectators: int | None = Field(description="guests at a time; null: as many as the server's limits allow")
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = Field(description="when the room ends; null: when it is closed")
    spectator_count: Count = Field(description="guests who watch now, through this server process")


class NewRoomInfo(RoomInfo):
    """A room that was just made."""

    password: str | None = Field(description="the password, told this once; null without one")


class RoomList(Answer):
    """Open rooms, newest first."""

    rooms: list[RoomInfo]
    next_cursor: Cursor


class JoinedRoom(Answer):
    """What a guest needs to watch."""

    token: str = Field(description="opens the room's session, to read, as Authorization: Bearer")
    token_type: Literal["Bearer"]
    expires_in: Annotated[int, Field(ge=0)] = Field(description="seconds the token is good for")
    session_id: str
    room: RoomInfo


# Ratings


class RatedPlayer(Answer):
    """A bot or a scripted opponent; numbers of games are those the ladder is made of."""

    kind: Literal["bot", "scripted"]
    name: str = Field(description="a bot's training_session_id, or the name of the scripted opponent")
    session_id: str | None = Field(description="session of a bot; null for a scripted opponent")
    games: Count
    wins: Count
    losses: Count
    draws: Count
    rating: Number | None = Field(description="Elo points; null when no games connect it to the anchor")
    ci_low: Number | None = Field(description="lower end of the 95 % interval")
    ci_high: Number | None = Field(description="upper end of the 95 % interval")
    standard_error: Number | None = Field(description="standard error, in points; 0 for the anchor")


class Ladder(Answer):
    """The players of one environment, best first."""

    env_id: str
    anchor: str = Field(description="the scripted opponent whose rating is fixed")
    anchor_rating: Number
    players: list[RatedPlayer]


class Ladders(Answer):
    """One ladder for each environment."""

    ladders: list[Ladder]
