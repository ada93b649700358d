"""The typed messages a running training emits.

Field names follow the metrics server's data models. Every number is finite: a producer that has no value sends
``null``, never NaN. Times are UTC and written as RFC 3339. This module imports neither torch nor Stable-Baselines3, so
the web process can use it.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationInfo,
    field_validator,
    model_validator,
)

MAX_EVENTS_PER_POST: Final = 500
MAX_POST_BYTES: Final = 1 << 20
MAX_EXTRA_METRICS: Final = 32
MAX_SHOWN_ACTIONS: Final = 256
MAX_REPORTED_EPISODES: Final = 5000
MAX_PICTURE_CHARS: Final = 48 << 10
PROBABILITY_TOLERANCE: Final = 1e-3

# How the reason of a status begins that tells which checkpoint a run goes on from.
RESUMED: Final = "resumed from "
# And where the algorithm was chosen for the actions: which, and why.
CHOSEN: Final = "chosen algorithm "

EventType = Literal[
    "training_metrics",
    "bot_decision",
    "graph_update",
    "frame",
    "training_status",
    "episodes",
    "checkpoint",
    "evaluation",
    "replay",
    "picture",
    "error",
]
SessionStatus = Literal[
    "queued", "starting", "running", "paused", "stopping", "retrying", "completed", "failed", "cancelled"
]
Phase = Literal["compiling", "training", "evaluating", "saving", ""]
DesiredState = Literal["running", "paused", "stopping", "cancelled"]


def utc_now() -> datetime:
    """The current time, aware, in UTC."""
    return datetime.now(UTC)


def _not_a_number(value: Any) -> Any:
    if isinstance(value, int | float):
        raise ValueError("expected an RFC 3339 time such as 2026-01-02T03:04:05Z, not a number")
    return value


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{value.isoformat()} is not within the years 1 to 9999 in UTC") from None


# Strict: a number is not taken out of a text, nor out of true. Counters are stored as 64-bit integers, so larger ones
# are refused here and not by a database driver.
Count = Annotated[int, Field(ge=0, le=2**63 - 1, strict=True)]
Number = Annotated[float, Field(allow_inf_nan=False, strict=True)]
NonNegative = Annotated[float, Field(ge=0.0, allow_inf_nan=False, strict=True)]
Probability = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False, strict=True)]
Percent = Annotated[float, Field(ge=0.0, le=100.0, allow_inf_nan=False, strict=True)]
Label = Annotated[str, Field(min_length=1, max_length=128)]
Timestamp = Annotated[AwareDatetime, BeforeValidator(_not_a_number), AfterValidator(_to_utc)]


class Message(BaseModel):
    """Base of every message: immutable, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    def to_json(self) -> dict[str, Any]:
        """The message as plain JSON values, defaults included."""
        return self.model_dump(mode="json")


class TrainingMetricsData(Message):
    """One reading of a training's progress. Rewards are sums over an episode; averages run over recent episodes."""

    timestamp: Timestamp = Field(default_factory=utc_now, description="time of the reading, UTC")
    episode: Count = Field(description="episodes finished so far")
    total_episodes: Count | None = Field(description="episodes to reach; null without such a limit")
    current_reward: Number | None = Field(description="return of the newest finished episode; null before the first")
    average_reward: Number | None = Field(description="mean return of recent episodes; null before the first")
    best_reward: Number | None = Field(description="highest return of any episode so far; null before the first")
    episode_length: NonNegative | None = Field(description="decisions in the newest episode (or a mean of them)")
    win_rate: Percent | None = Field(
        description="percent of the last up-to-1000 finished episodes that were won; null in games without a winner"
    )
    learning_rate: Number | None = Field(description="learning rate now")
    model_generation: Count = Field(default=1, description="generation of the model, counted by its owner")
    algorithm: Label = Field(description='name of the algorithm, such as "PPO"')
    training_time_elapsed: NonNegative = Field(description="seconds of training so far, pauses not counted")
    loss_value: Number | None = Field(default=None, description="total loss of the last update")
    epsilon: Number | None = Field(default=None, description="exploration rate of value-based algorithms")
    actions_per_second: NonNegative | None = Field(default=None, description="decisions per wall-clock second")
    frames_per_second: NonNegative | None = Field(default=None, description="game ticks per wall-clock second")
    memory_usage_mb: NonNegative | None = Field(default=None, description="resident memory of the process, MiB")
    extra: Annotated[dict[Label, Number | None], Field(max_length=MAX_EXTRA_METRICS)] = Field(
        default_factory=dict, description="further scalars, at most 32"
    )


class BotDecisionData(Message):
    """What the bot considered in one decision. Probabilities sum to 1 within 1e-3."""

    timestamp: Timestamp = Field(default_factory=utc_now)
    action_probabilities: Annotated[dict[Label, Probability], Field(max_length=MAX_SHOWN_ACTIONS)] = Field(
        description='probability per (joint) action; rare ones may be summed under "other"'
    )
    groups: Annotated[dict[Label, dict[Label, Probability]], Field(max_length=32)] | None = Field(
        default=None, description="marginal probabilities per action group, such as move and aim"
    )
    state_values: Number | None = Field(default=None, description="the critic's value of the situation")
    q_values: Annotated[list[Number], Field(max_length=MAX_SHOWN_ACTIONS)] | None = None
    selected_action: Annotated[str, Field(max_length=256)] | None = None
    confidence_score: Probability | None = Field(default=None, description="probability of the selected action")

    @field_validator("action_probabilities")
    @classmethod
    def _sums_to_one(cls, value: dict[str, float]) -> dict[str, float]:
        total = sum(value.values())
        if value and abs(total - 1.0) > PROBABILITY_TOLERANCE:
            raise ValueError(f"probabilities sum to {total:.6g}; they have to sum to 1 within {PROBABILITY_TOLERANCE}")
        return value


class GraphPoint(Message):
    """One point of a curve."""

    timestamp: Timestamp
    value: Number | None


class PerformanceGraphData(Message):
    """Points of one graph with one curve per metric."""

    graph_id: Label
    title: Annotated[str, Field(max_length=256)]
    y_label: Annotated[str, Field(max_length=256)]
    metrics: Annotated[list[Label], Field(max_length=MAX_EXTRA_METRICS)]
    data_points: Annotated[dict[Label, Annotated[list[GraphPoint], Field(max_length=2000)]], Field(max_length=32)]
    max_points: Annotated[int, Field(ge=1, le=10_000, strict=True)] = 1000

    @model_validator(mode="after")
    def _curves_are_declared(self) -> PerformanceGraphData:
        unknown = sorted(set(self.data_points) - set(self.metrics))
        if unknown:
            raise ValueError(f"data_points has curves that metrics does not list: {', '.join(unknown)}")
        return self


class TrainingStatusData(Message):
    """State of a session and how far it is."""

    status: SessionStatus
    phase: Phase = ""
    reason: Annotated[str, Field(max_length=2000)] | None = None
    algorithm: Label | None = Field(default=None, description="the algorithm, once it is settled; null before")
    current_episode: Count = 0
    timesteps: Count = 0
    total_timesteps: Count | None = Field(default=None, description="decisions to reach; null without such a limit")
    progress: Probability = Field(default=0.0, description="0..1 towards the nearest limit; 0 without any limit")
    eta_seconds: NonNegative | None = Field(default=None, description="estimated seconds left; null when unknown")


class EpisodesData(Message):
    """Finished training episodes one by one, for those who asked for them; not stored. Lists of one length each."""

    first: Annotated[int, Field(ge=1, strict=True)] = Field(description="number of the first of them, counted from 1")
    rewards: Annotated[list[Number | None], Field(max_length=MAX_REPORTED_EPISODES)] = Field(
        description="return of each; null where it is not finite"
    )
    lengths: Annotated[list[Count], Field(max_length=MAX_REPORTED_EPISODES)] = Field(description="decisions of each")
    outcomes: Annotated[list[Literal[-1, 0, 1] | None], Field(max_length=MAX_REPORTED_EPISODES)] = Field(
        description="1 won, 0 drawn, -1 lost; null without a winner"
    )


class CheckpointData(Message):
    """A checkpoint that was written and verified."""

    path: Annotated[str, Field(max_length=4096)] = Field(description="folder, relative to the run folder")
    timesteps: Count
    episodes: Count
    bytes: Count
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] = Field(description="SHA-256 of the manifest")
    reason: Label = Field(description='why it was written: "interval", "final", "signal", "pause" or "requested"')


class EvaluationData(Message):
    """Result of games played for measurement only. Percentages are 0..100; the interval is Wilson's at 95 %."""

    opponent: Annotated[str, Field(max_length=128)] = Field(description="scripted level; empty without an opponent")
    games: Count
    wins: Count
    losses: Count
    draws: Count
    win_rate: Percent | None
    ci_low: Percent | None
    ci_high: Percent | None
    mean_return: Number
    mean_length: NonNegative = Field(description="decisions per game")


class ReplayDecision(Message):
    """What the bot considered at one step of a recorded episode."""

    step: Count
    action_probabilities: dict[Label, Probability]
    groups: dict[Label, dict[Label, Probability]] | None = None
    state_values: Number | None = None
    selected_action: Annotated[str, Field(max_length=256)] | None = None


class ReplayData(Message):
    """A whole recorded episode; the server stores it and announces it to viewers as a ``frame`` message."""

    replay_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    env_id: Label
    episode: Count
    timesteps: Count
    summary: dict[str, Any]
    bytes_base64: Annotated[str, Field(max_length=MAX_POST_BYTES)]
    decisions: Annotated[list[ReplayDecision], Field(max_length=20_000)] = Field(default_factory=list)


class FrameData(Message):
    """New footage is there: where a viewer fetches the frames of a stored episode."""

    replay_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")]
    env_id: Label
    episode: Count
    timesteps: Count
    summary: dict[str, Any]
    frames_url: Annotated[str, Field(max_length=512)]


class PictureData(Message):
    """How the game of a training looks right now; only passed on to who watches, not stored."""

    image: Annotated[str, Field(max_length=MAX_PICTURE_CHARS, pattern=r"^data:image/(webp|png|jpeg);base64,")] = Field(
        description="the picture as a data: URL"
    )
    env_id: Label
    episode: Count = Field(description="episodes finished before it, all lanes together")
    timesteps: Count


class ErrorData(Message):
    """Something went wrong; ``code`` is stable, ``message`` is for people, ``detail`` holds facts."""

    code: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,64}$")]
    message: Annotated[str, Field(max_length=2000)]
    detail: dict[str, Any] | None = None


EVENT_MODELS: Final[dict[str, type[Message]]] = {
    "training_metrics": TrainingMetricsData,
    "bot_decision": BotDecisionData,
    "graph_update": PerformanceGraphData,
    "frame": FrameData,
    "training_status": TrainingStatusData,
    "episodes": EpisodesData,
    "checkpoint": CheckpointData,
    "evaluation": EvaluationData,
    "replay": ReplayData,
    "picture": PictureData,
    "error": ErrorData,
}
_TYPE_OF_MODEL: Final[dict[type[Message], str]] = {model: name for name, model in EVENT_MODELS.items()}


def event_type_of(data: Message) -> str:
    """The event type that carries ``data``; ``TypeError`` for a model that is not an event."""
    try:
        return _TYPE_OF_MODEL[type(data)]
    except KeyError:
        raise TypeError(f"{type(data).__name__} is not the data of any event type") from None


class Event(Message):
    """One numbered event. ``(session, producer, seq)`` is unique; ``data`` is the model of ``type``."""

    seq: Annotated[int, Field(ge=1, le=2**63 - 1, strict=True)]
    ts: Timestamp = Field(default_factory=utc_now)
    type: EventType
    data: SerializeAsAny[Message]

    @field_validator("data", mode="wrap")
    @classmethod
    def _data_by_type(cls, value: Any, handler: Any, info: ValidationInfo) -> Message:
        model = EVENT_MODELS.get(info.data.get("type", ""))
        if model is None:
            # The type itself is already reported as wrong; anything said about the data would mislead.
            return Message()
        return value if isinstance(value, model) else model.model_validate(value)


class EventBatch(Message):
    """Body of one POST from a producer. An empty list is a heartbeat."""

    producer: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")]
    events: Annotated[list[Event], Field(max_length=MAX_EVENTS_PER_POST)] = Field(default_factory=list)


class EventReceipt(Message):
    """Answer to an :class:`EventBatch` once it is committed; ``desired`` tells the producer what to do next."""

    # A newer server may add fields; a producer must go on working.
    model_config = ConfigDict(frozen=True, extra="ignore")

    accepted: Count
    duplicates: Count
    last_seq: Count
    desired: DesiredState = "running"
    watchers: Count = Field(default=0, description="how many watch the session now; what only they see can wait")
