"""The server itself, its machine and its environments."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, create_model

from gymcast.training.events import (
    Count,
    Percent,
    Probability,
    SessionStatus,
)
from gymcast.training.limits import ResourceLimits

from .base import Answer, Seconds

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
