"""What storage hands out: plain immutable values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any, Final, Generic, NotRequired, Self, TypedDict, TypeVar

from pydantic_core import from_json, to_json
from sqlalchemy import RowMapping

from gymcast.training.events import Event

from .ids import from_us, rfc3339


def to_json_text(value: Any) -> str:
    """What the engines write JSON columns with."""
    return to_json(value).decode()


# What the engines read JSON columns with: several times as fast as the standard library.
from_json_text = from_json

Item = TypeVar("Item")
RowLike = Mapping[str, Any] | RowMapping


@dataclass(frozen=True, slots=True)
class SessionRecord:
    """A session as it is in the database. Times are aware UTC datetimes; ``progress`` is 0..1.

    ``lease_expires``, ``heartbeat`` and ``not_before`` are in the database's time (see :class:`.leases.Leases`);
    ``heads`` are the newest numbers of its live messages (see :mod:`.missed`).
    """

    session_id: str
    training_session_id: str
    kind: str
    env_id: str | None
    algorithm: str
    model_generation: int
    status: str
    phase: str
    desired: str
    reason: str | None
    created: datetime
    updated: datetime
    start_time: datetime | None
    end_time: datetime | None
    last_seen: datetime | None
    current_episode: int
    total_episodes: int | None
    timesteps: int
    total_timesteps: int | None
    progress: float
    eta_seconds: float | None
    room_code: str | None
    enable_spectators: bool
    priority: int
    attempts: int
    config: dict[str, Any] | None
    resources: dict[str, Any] | None
    lease_owner: str | None
    lease_expires: datetime | None
    heartbeat: datetime | None
    not_before: datetime | None
    wait_reason: str | None
    heads: dict[str, int]
    version: int

    @classmethod
    def from_row(cls, row: RowLike) -> Self:
        """From a row of ``sessions``."""
        values = [row[column] for column in _COLUMNS]
        for place in _TIMES:
            if values[place] is not None:
                values[place] = from_us(values[place])
        return cls(*values)

    def to_json(self) -> dict[str, Any]:
        """The session info of the contract, but for ``spectator_count``, which only the hub knows."""
        info: dict[str, Any] = {
            "session_id": self.session_id,
            "training_session_id": self.training_session_id,
            "kind": self.kind,
            "env_id": self.env_id,
            "model_generation": self.model_generation,
            "algorithm": self.algorithm,
            "status": self.status,
            "phase": self.phase,
            "desired": self.desired,
            "reason": self.reason,
            "created_at": _text(self.created),
            "start_time": _text(self.start_time),
            "end_time": _text(self.end_time),
            "current_episode": self.current_episode,
            "total_episodes": self.total_episodes,
            "timesteps": self.timesteps,
            "total_timesteps": self.total_timesteps,
            "progress": self.progress,
            "eta_seconds": self.eta_seconds,
            "room_code": self.room_code,
            "enable_spectators": self.enable_spectators,
            "version": self.version,
        }
        if self.kind == "managed":
            info |= {
                "config": self.config,
                "priority": self.priority,
                "attempts": self.attempts,
                "resources": self.resources,
                "wait_reason": self.wait_reason,
            }
        return info


TIME_COLUMNS = {
    "created": "created_us",
    "updated": "updated_us",
    "start_time": "start_us",
    "end_time": "end_us",
    "last_seen": "seen_us",
    "lease_expires": "lease_expires_us",
    "heartbeat": "heartbeat_us",
    "not_before": "not_before_us",
}
# Of the fields of SessionRecord, in their order: the column of each, and which are times.
_COLUMNS: Final = tuple(TIME_COLUMNS.get(field.name, field.name) for field in fields(SessionRecord))
_TIMES: Final = tuple(place for place, field in enumerate(fields(SessionRecord)) if field.name in TIME_COLUMNS)


def _text(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


class SessionChanges(TypedDict, total=False):
    """What :meth:`Storage.update_session` may change; names as in :class:`SessionRecord`."""

    status: str
    phase: str
    desired: str
    reason: str | None
    start_time: datetime | None
    end_time: datetime | None
    current_episode: int
    total_episodes: int | None
    timesteps: int
    total_timesteps: int | None
    progress: float
    eta_seconds: float | None
    priority: int
    attempts: int
    model_generation: int
    config: dict[str, Any] | None
    resources: dict[str, Any] | None
    wait_reason: str | None


@dataclass(slots=True)
class Committed:
    """What a transaction changed, told to listeners after its commit and in the order of the commits.

    ``events`` are the accepted ones, without repeats. ``session_changed`` is true when the session row changed other
    than by counting along with metrics. ``state`` is the session after it, as a record or as its row; ``None`` once it
    is deleted.
    """

    session_id: str
    state: SessionRecord | dict[str, Any] | None
    events: tuple[Event, ...] = ()
    session_changed: bool = False

    @property
    def session(self) -> SessionRecord | None:
        """The session after the transaction; made of its row when somebody asks, which for most reports is nobody."""
        if isinstance(self.state, dict):
            self.state = SessionRecord.from_row(self.state)
        return self.state

    @property
    def heads(self) -> dict[str, int]:
        """The newest numbers of the session's live messages (see :mod:`.missed`)."""
        if self.state is None:
            return {}
        return self.state["heads"] if isinstance(self.state, dict) else self.state.heads


@dataclass(slots=True)
class Counts:
    """What a storage has taken since it was opened: events that were new, repeats, and rows of every kind of write."""

    accepted: int = 0
    repeated: int = 0
    rows: int = 0


@dataclass(frozen=True, slots=True)
class SessionLoad:
    """How many sessions have each status, and the timesteps of each active one."""

    by_status: dict[str, int]
    timesteps: dict[str, int]


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """One page of a list, and the cursor of the next one (``None`` at the end)."""

    items: list[Item]
    next_cursor: str | None


class CheckpointItem(TypedDict):
    """A checkpoint that was written and verified; ``path`` is relative to the run folder."""

    timestamp: str
    session_id: str
    path: str
    timesteps: int
    episodes: int
    bytes: int
    sha256: str
    reason: str


class ErrorItem(TypedDict):
    """What a training reported to have gone wrong."""

    timestamp: str
    session_id: str
    code: str
    message: str
    detail: dict[str, Any] | None


class EvaluationItem(TypedDict):
    """Games played for measurement only; percentages are 0..100, the interval is Wilson's at 95 %."""

    timestamp: str
    session_id: str
    opponent: str
    games: int
    wins: int
    losses: int
    draws: int
    win_rate: float | None
    ci_low: float | None
    ci_high: float | None
    mean_return: float
    mean_length: float


class ReplayItem(TypedDict):
    """A stored replay without its content."""

    timestamp: str
    replay_id: str
    session_id: str
    env_id: str
    episode: int
    timesteps: int
    summary: dict[str, Any]


class TransitionItem(TypedDict):
    """A change of status; ``version`` is the session's after it, null in rows of the first schema."""

    timestamp: str
    from_status: str | None
    to_status: str
    reason: str | None
    version: int | None


class EpisodeItem(TypedDict):
    """A finished episode; ``length`` counts decisions, ``outcome`` is win, loss, draw or null."""

    timestamp: str
    session_id: str
    episode_id: str
    status: str
    total_reward: float | None
    length: int | None
    outcome: str | None
    duration_seconds: float | None
    attempts: int
    error: str | None
    data: dict[str, Any] | None


class NewEpisode(TypedDict):
    """An episode to store; fields as in :class:`EpisodeItem`, the time is that of the storing when left out."""

    episode_id: str
    status: str
    total_reward: NotRequired[float | None]
    length: NotRequired[int | None]
    outcome: NotRequired[str | None]
    duration_seconds: NotRequired[float | None]
    attempts: NotRequired[int]
    error: NotRequired[str | None]
    data: NotRequired[dict[str, Any] | None]
    ended: NotRequired[datetime]


@dataclass(frozen=True, slots=True)
class ReplayRecord:
    """A stored episode: ``content`` are the replay's bytes, ``decisions`` what the bot considered, step by step."""

    replay_id: str
    session_id: str
    timestamp: datetime
    env_id: str
    episode: int
    timesteps: int
    summary: dict[str, Any]
    content: bytes
    decisions: list[dict[str, Any]]


def stamp(row: RowLike, *, drop: tuple[str, ...] = ()) -> dict[str, Any]:
    """A row as JSON values: ``ts_us`` becomes ``timestamp``, the columns in ``drop`` are left out."""
    values = {name: value for name, value in row.items() if name not in drop and name != "ts_us"}
    return {"timestamp": rfc3339(row["ts_us"]), **values}
