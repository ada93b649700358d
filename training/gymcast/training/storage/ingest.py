"""Storing a producer's events: repeats left out, each type in its table, the session's row kept up with them."""

from __future__ import annotations

import base64
import binascii
import json
import logging
import zlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, TypeVar

import sqlalchemy as sa

from gymcast.training.events import (
    BotDecisionData,
    CheckpointData,
    EvaluationData,
    Event,
    EventReceipt,
    Message,
    PerformanceGraphData,
    ReplayData,
    TrainingMetricsData,
    TrainingStatusData,
    event_type_of,
)

from . import schema
from .bulk import insert_rows
from .errors import DuplicateIdError, NotFoundError, StateError
from .ids import now_us, to_us
from .missed import counted
from .numbers import Numbers, accept, stored_numbers
from .prepared import find_session, update_session
from .records import Committed, NewEpisode, SessionRecord
from .rollups import BULK, add_blocks, blocks_of, roll_up
from .states import ACTIVE, TERMINAL, WAITING, check_move

log = logging.getLogger(__name__)

# Producer name of events that came without one (plain metrics POSTs); their numbers are given here.
UNNUMBERED: Final = "rest"
Row = dict[str, Any]
M = TypeVar("M", bound=Message)
# Types whose data is kept in a table of its own, or (frame, episodes, picture) not at all.
_OWN_TABLE: Final = frozenset(
    {"training_metrics", "bot_decision", "graph_update", "checkpoint", "evaluation", "replay"}
    | {"frame", "episodes", "picture"}
)


@dataclass(frozen=True, slots=True)
class Ingested:
    """Result of one batch."""

    receipt: EventReceipt
    committed: Committed
    tail: bool
    """Whether readings wait to be summed up."""


class ReplayContentError(ValueError):
    """``bytes_base64`` of a replay event is not base64."""


def decode_replay(data: ReplayData) -> bytes:
    """The replay's bytes. Raises :class:`ReplayContentError`."""
    try:
        return base64.b64decode(data.bytes_base64, validate=True)
    except (binascii.Error, ValueError):
        raise ReplayContentError(f"replay {data.replay_id}: bytes_base64 is not base64") from None


def lock_session(connection: sa.Connection, session_id: str) -> Row:
    """The session's row, locked until the transaction ends. Raises :class:`NotFoundError`."""
    row = find_session(connection, session_id)
    if row is None:
        raise NotFoundError("session", session_id)
    return row


def ingest(connection: sa.Connection, session_id: str, producer: str, events: Sequence[Event]) -> Ingested:
    """Store what is new of ``events`` in the running transaction."""
    session = lock_session(connection, session_id)
    return _store(connection, session, producer, stored_numbers(connection, session_id, producer), events)


def ingest_unnumbered(
    connection: sa.Connection, session_id: str, data: Sequence[Message], moment: datetime
) -> Ingested:
    """Store data that came without numbers: they get the next ones, so all of it is new."""
    session = lock_session(connection, session_id)
    known = stored_numbers(connection, session_id, UNNUMBERED)
    first = 1 if known is None else known.last + 1
    events = [
        Event.model_validate({"seq": first + place, "ts": moment, "type": event_type_of(item), "data": item})
        for place, item in enumerate(data)
    ]
    return _store(connection, session, UNNUMBERED, known, events)


def _store(
    connection: sa.Connection, session: Row, producer: str, known: Numbers | None, events: Sequence[Event]
) -> Ingested:
    session_id = session["session_id"]
    numbers, fresh = accept(connection, session_id, producer, known, events)
    by_type: dict[str, list[Event]] = defaultdict(list)
    for event in fresh:
        by_type[event.type].append(event)
    changes, status_changed = _session_changes(session, fresh)
    hidden: Row = {"seen_us": now_us(), "heads": counted(session["heads"], fresh, status=status_changed)}
    if fresh:
        _insert_events(connection, session_id, producer, fresh, numbers.head)
        _insert_typed(connection, session_id, by_type)
    if readings := _data(by_type.get("training_metrics", ()), TrainingMetricsData):
        hidden |= _insert_metrics(connection, session, readings)
    session |= write_session(connection, session, {**changes, **hidden}, visible=bool(changes))
    receipt = EventReceipt(
        accepted=len(fresh),
        duplicates=len(events) - len(fresh),
        last_seq=numbers.last,
        desired=session["desired"],
    )
    committed = Committed(session_id, SessionRecord.from_row(session), tuple(fresh), status_changed)
    return Ingested(receipt, committed, bool(session["unrolled"]))


def write_session(connection: sa.Connection, session: Row, changes: Row, *, visible: bool) -> Row:
    """Write ``changes``; visible ones count the version up, and a change of status is logged in ``transitions``.

    Visible changes are told to viewers, so unless ``changes`` has ``heads``, they get a number here.
    """
    moment = now_us()
    if visible:
        told = {"heads": counted(session["heads"], (), status=True)}
        changes = {**told, **changes, "version": session["version"] + 1, "updated_us": moment}
    update_session(connection, session["session_id"], changes)
    status = changes.get("status", session["status"])
    if status != session["status"]:
        connection.execute(
            sa.insert(schema.transitions),
            {
                "session_id": session["session_id"],
                "ts_us": moment,
                "from_status": session["status"],
                "to_status": status,
                "reason": changes.get("reason"),
                "version": changes.get("version", session["version"]),
            },
        )
    return changes


def times_of_move(session: Row, status: str) -> Row:
    """Columns that follow from entering ``status``."""
    changes: Row = {}
    if status not in ACTIVE:
        changes |= {"lease_owner": None, "lease_expires_us": None, "heartbeat_us": None}
    if status not in WAITING:
        changes |= {"wait_reason": None, "not_before_us": None}
    if status in ("starting", "running") and session["start_us"] is None:
        changes["start_us"] = now_us()
    if status in TERMINAL:
        changes["phase"] = ""
        changes["eta_seconds"] = None
        if session["end_us"] is None:
            changes["end_us"] = now_us()
    return changes


def _insert_events(
    connection: sa.Connection, session_id: str, producer: str, events: Sequence[Event], head: int
) -> None:
    rows = [
        {
            "session_id": session_id,
            "producer": producer,
            "seq": event.seq,
            "type": event.type,
            "ts_us": to_us(event.ts),
            "data": None if event.type in _OWN_TABLE else event.data.to_json(),
        }
        for event in events
        if event.seq > head or event.type not in _OWN_TABLE
    ]
    if rows:
        connection.execute(sa.insert(schema.events), rows)


def _insert_typed(connection: sa.Connection, session_id: str, by_type: dict[str, list[Event]]) -> None:
    if found := by_type.get("bot_decision"):
        rows = [
            {"session_id": session_id, "ts_us": to_us(data.timestamp), "data": data.to_json()}
            for data in _data(found, BotDecisionData)
        ]
        connection.execute(sa.insert(schema.decisions), rows)
    for graph in _data(by_type.get("graph_update", ()), PerformanceGraphData):
        _merge_graph(connection, session_id, graph)
    for kind, model, table in (
        ("checkpoint", CheckpointData, schema.checkpoints),
        ("evaluation", EvaluationData, schema.evaluations),
    ):
        if found := by_type.get(kind):
            rows = [
                {"session_id": session_id, "ts_us": to_us(event.ts), **_checked(event.data, model).model_dump()}
                for event in found
            ]
            connection.execute(sa.insert(table), rows)
    for event in by_type.get("replay", ()):
        _insert_replay(connection, session_id, event)


def _checked(data: Message, model: type[M]) -> M:
    if not isinstance(data, model):
        raise TypeError(f"expected {model.__name__}, got {type(data).__name__}")
    return data


def _insert_metrics(connection: sa.Connection, session: Row, readings: Sequence[TrainingMetricsData]) -> Row:
    """Store readings; returns what that changes in the session's row."""
    session_id = session["session_id"]
    bulk = len(readings) >= BULK
    # A tail that is too long to be summed up along with them takes them in.
    waiting: int = roll_up(connection, session_id) if bulk and session["unrolled"] else session["unrolled"]
    times = [to_us(reading.timestamp) for reading in readings]
    rows = [
        (session_id, ts_us, reading.episode, reading.model_dump_json())
        for ts_us, reading in zip(times, readings, strict=True)
    ]
    insert_rows(connection, schema.metrics, ("session_id", "ts_us", "episode", "data"), rows)
    if waiting or not bulk:
        return {"unrolled": waiting + len(readings)}
    add_blocks(connection, session_id, blocks_of(times, readings))
    table = schema.metrics
    # The session's row is locked, so these are its newest.
    return {"rolled_id": connection.scalar(sa.select(sa.func.max(table.c.id))), "unrolled": 0}


def _merge_graph(connection: sa.Connection, session_id: str, graph: PerformanceGraphData) -> None:
    meta = schema.graphs
    points = schema.graph_points
    here = (meta.c.session_id == session_id, meta.c.graph_id == graph.graph_id)
    values = graph.model_dump(include={"title", "y_label", "metrics", "max_points"})
    updated = connection.execute(sa.update(meta).where(*here).values(values))
    if not updated.rowcount:
        connection.execute(sa.insert(meta), {"session_id": session_id, "graph_id": graph.graph_id, **values})
    for metric, sent in graph.data_points.items():
        curve = (points.c.session_id == session_id, points.c.graph_id == graph.graph_id, points.c.metric == metric)
        latest = {to_us(point.timestamp): point.value for point in sent}
        if not latest:
            continue
        connection.execute(sa.delete(points).where(*curve, points.c.ts_us.in_(latest)))
        connection.execute(
            sa.insert(points),
            [
                {"session_id": session_id, "graph_id": graph.graph_id, "metric": metric, "ts_us": ts_us, "value": value}
                for ts_us, value in latest.items()
            ],
        )
        oldest_kept = (
            sa.select(points.c.ts_us)
            .where(*curve)
            .order_by(points.c.ts_us.desc())
            .offset(graph.max_points - 1)
            .limit(1)
        )
        connection.execute(sa.delete(points).where(*curve, points.c.ts_us < oldest_kept.scalar_subquery()))


def _insert_replay(connection: sa.Connection, session_id: str, event: Event) -> None:
    table = schema.replays
    data = _checked(event.data, ReplayData)
    owner = connection.scalar(sa.select(table.c.session_id).where(table.c.replay_id == data.replay_id))
    if owner == session_id:
        return  # a producer that restarted with new numbers sends the same episode once more
    if owner is not None:
        raise DuplicateIdError(f"replay id {data.replay_id!r} is taken by another session")
    decisions = json.dumps([decision.to_json() for decision in data.decisions], separators=(",", ":"))
    connection.execute(
        sa.insert(table),
        {
            "replay_id": data.replay_id,
            "session_id": session_id,
            "ts_us": to_us(event.ts),
            "env_id": data.env_id,
            "episode": data.episode,
            "timesteps": data.timesteps,
            "summary": data.summary,
            "content": decode_replay(data),
            "decisions": zlib.compress(decisions.encode(), 6) if data.decisions else None,
        },
    )


def _data(events: Sequence[Event], model: type[M]) -> list[M]:
    return [_checked(event.data, model) for event in events]


def _session_changes(session: Row, events: Sequence[Event]) -> tuple[Row, bool]:
    """Columns that the events change, in their order, and whether a status event was among them."""
    changes: Row = {}
    status_seen = False
    newest = next((event for event in reversed(events) if event.type == "training_metrics"), None)
    for event in events:
        if isinstance(event.data, TrainingMetricsData):
            # Of readings in a row only the last one counts, but for a number of timesteps that it may lack.
            if event is newest or "timesteps" in event.data.extra:
                changes |= _from_metrics(session, event.data)
        elif isinstance(event.data, TrainingStatusData):
            status_seen = True
            changes |= _from_status({**session, **changes}, event.data)
    return {name: value for name, value in changes.items() if session[name] != value}, status_seen


def _from_metrics(session: Row, data: TrainingMetricsData) -> Row:
    changes: Row = {"current_episode": data.episode, "model_generation": data.model_generation}
    timesteps = data.extra.get("timesteps")
    if timesteps is not None and 0 <= timesteps < 2**63:
        changes["timesteps"] = int(timesteps)
    if session["kind"] == "external":
        total = data.total_episodes if data.total_episodes is not None else session["total_episodes"]
        changes["total_episodes"] = total
        if total:
            changes["progress"] = min(1.0, data.episode / total)
    return changes


def _from_status(session: Row, data: TrainingStatusData) -> Row:
    # What a producer leaves out stays as it is.
    changes: Row = data.model_dump(exclude={"status"}, exclude_unset=True)
    for name in ("total_timesteps", "algorithm"):
        if changes.get(name) is None:
            changes.pop(name, None)
    if session["kind"] == "managed" and data.status in TERMINAL:
        # How a managed session ends is for its manager to say, once the process is gone and it is settled what follows.
        _drop(changes, "phase", "reason", "eta_seconds")
        return changes
    if _goes_on(session, data.status):
        return {**changes, "status": data.status, "end_us": None}
    try:
        check_move(session["status"], data.status)
    except StateError as error:
        # A producer's word comes late by nature: what it was doing before a stop does not undo the stop.
        log.info("session %s: a status event is not followed: %s", session["session_id"], error)
        if session["status"] in TERMINAL:
            _drop(changes, "phase", "reason", "eta_seconds")
        return changes
    if session["status"] in TERMINAL:
        # Repeated by the session manager or the worker: the first reason stands.
        _drop(changes, "phase", "eta_seconds")
        if session["reason"] is not None or data.reason is None:
            _drop(changes, "reason")
        return changes
    return {**changes, "status": data.status, **times_of_move(session, data.status)}


def _drop(changes: Row, *names: str) -> None:
    for name in names:
        changes.pop(name, None)


def _goes_on(session: Row, status: str) -> bool:
    """Whether somebody's own trainer takes up what it had completed, as the next call of a ``learn()`` does.

    What was ended at the server (which shows in the wish) stays ended.
    """
    return (
        session["kind"] == "external"
        and session["status"] == "completed"
        and session["desired"] == "running"
        and status == "running"
    )


def insert_episodes(connection: sa.Connection, session_id: str, episodes: Sequence[NewEpisode], moment: int) -> int:
    """Insert those whose id the session, whose row is locked, does not have yet; returns how many."""
    table = schema.episodes
    by_id: dict[str, NewEpisode] = {}
    for episode in episodes:
        by_id.setdefault(episode["episode_id"], episode)
    for known in connection.scalars(
        sa.select(table.c.episode_id).where(table.c.session_id == session_id, table.c.episode_id.in_(by_id))
    ):
        del by_id[known]
    rows = [
        {
            "session_id": session_id,
            "episode_id": episode["episode_id"],
            "ts_us": to_us(episode["ended"]) if "ended" in episode else moment,
            "status": episode["status"],
            "total_reward": episode.get("total_reward"),
            "length": episode.get("length"),
            "outcome": episode.get("outcome"),
            "duration_seconds": episode.get("duration_seconds"),
            "attempts": episode.get("attempts", 1),
            "error": episode.get("error"),
            "data": episode.get("data"),
        }
        for episode in by_id.values()
    ]
    if rows:
        connection.execute(sa.insert(table), rows)
    return len(rows)
