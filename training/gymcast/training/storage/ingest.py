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
)

from . import schema
from .errors import DuplicateIdError, NotFoundError, StateError
from .ids import now_us, to_us
from .records import Committed, SessionRecord
from .rollups import add_readings, metric_values
from .states import TERMINAL, check_move

log = logging.getLogger(__name__)

Row = dict[str, Any]
M = TypeVar("M", bound=Message)
# Types whose data is kept in a table of its own; of a frame announcement nothing but the fact needs keeping.
_OWN_TABLE: Final = frozenset(
    {"training_metrics", "bot_decision", "graph_update", "checkpoint", "evaluation", "replay", "frame"}
)


@dataclass(frozen=True, slots=True)
class Ingested:
    """Result of one batch."""

    receipt: EventReceipt
    committed: Committed


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
    found = connection.execute(
        sa.select(schema.sessions).where(schema.sessions.c.session_id == session_id).with_for_update()
    )
    row = found.mappings().first()
    if row is None:
        raise NotFoundError("session", session_id)
    return dict(row)


def ingest(connection: sa.Connection, session_id: str, producer: str, events: Sequence[Event]) -> Ingested:
    """Store what is new of ``events`` in the running transaction."""
    session = lock_session(connection, session_id)
    fresh = _without_repeats(connection, session_id, producer, events)
    by_type: dict[str, list[Event]] = defaultdict(list)
    for event in fresh:
        by_type[event.type].append(event)
    if fresh:
        _insert_events(connection, session_id, producer, fresh)
        _insert_typed(connection, session_id, by_type)
    changes, status_changed = _session_changes(session, fresh)
    session |= write_session(connection, session, {**changes, "seen_us": now_us()}, visible=bool(changes))
    last = connection.scalar(
        sa.select(sa.func.max(schema.events.c.seq)).where(
            schema.events.c.session_id == session_id, schema.events.c.producer == producer
        )
    )
    receipt = EventReceipt(
        accepted=len(fresh),
        duplicates=len(events) - len(fresh),
        last_seq=last or 0,
        desired=session["desired"],
    )
    return Ingested(receipt, Committed(session_id, SessionRecord.from_row(session), tuple(fresh), status_changed))


def next_seq(connection: sa.Connection, session_id: str, producer: str) -> int:
    """The first number that ``producer`` has not used."""
    last = connection.scalar(
        sa.select(sa.func.max(schema.events.c.seq)).where(
            schema.events.c.session_id == session_id, schema.events.c.producer == producer
        )
    )
    return (last or 0) + 1


def write_session(connection: sa.Connection, session: Row, changes: Row, *, visible: bool) -> Row:
    """Write ``changes``; visible ones count the version up, and a change of status is logged in ``transitions``."""
    moment = now_us()
    if visible:
        changes = {**changes, "version": session["version"] + 1, "updated_us": moment}
    connection.execute(
        sa.update(schema.sessions).where(schema.sessions.c.session_id == session["session_id"]).values(changes)
    )
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
            },
        )
    return changes


def times_of_move(session: Row, status: str) -> Row:
    """Columns that follow from entering ``status``."""
    changes: Row = {}
    if status in ("starting", "running") and session["start_us"] is None:
        changes["start_us"] = now_us()
    if status in TERMINAL:
        changes["phase"] = ""
        changes["eta_seconds"] = None
        if session["end_us"] is None:
            changes["end_us"] = now_us()
    return changes


def _without_repeats(connection: sa.Connection, session_id: str, producer: str, events: Sequence[Event]) -> list[Event]:
    if not events:
        return []
    table = schema.events
    stored = connection.scalars(
        sa.select(table.c.seq).where(
            table.c.session_id == session_id,
            table.c.producer == producer,
            table.c.seq.in_([event.seq for event in events]),
        )
    )
    seen = set(stored)
    fresh = []
    for event in events:
        if event.seq not in seen:
            seen.add(event.seq)
            fresh.append(event)
    return fresh


def _insert_events(connection: sa.Connection, session_id: str, producer: str, events: Sequence[Event]) -> None:
    connection.execute(
        sa.insert(schema.events),
        [
            {
                "session_id": session_id,
                "producer": producer,
                "seq": event.seq,
                "type": event.type,
                "ts_us": to_us(event.ts),
                "data": None if event.type in _OWN_TABLE else event.data.to_json(),
            }
            for event in events
        ],
    )


def _insert_typed(connection: sa.Connection, session_id: str, by_type: dict[str, list[Event]]) -> None:
    if readings := by_type.get("training_metrics"):
        _insert_metrics(connection, session_id, readings)
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


def _insert_metrics(connection: sa.Connection, session_id: str, events: Sequence[Event]) -> None:
    rows = []
    readings = []
    for data in _data(events, TrainingMetricsData):
        values = data.to_json()
        ts_us = to_us(data.timestamp)
        rows.append({"session_id": session_id, "ts_us": ts_us, "episode": data.episode, "data": values})
        readings.append((ts_us, metric_values(values)))
    connection.execute(sa.insert(schema.metrics), rows)
    add_readings(connection, session_id, readings)


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
    for event in events:
        if isinstance(event.data, TrainingMetricsData):
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
    changes: Row = data.model_dump(exclude={"status"})
    if data.total_timesteps is None:
        del changes["total_timesteps"]
    try:
        check_move(session["status"], data.status)
    except StateError as error:
        # A producer's word comes late by nature: what it was doing before a stop does not undo the stop.
        log.info("session %s: a status event is not followed: %s", session["session_id"], error)
        if session["status"] in TERMINAL:
            del changes["phase"], changes["reason"], changes["eta_seconds"]
        return changes
    if session["status"] in TERMINAL:
        # Repeated by the session manager or the worker: the first reason stands.
        del changes["phase"], changes["eta_seconds"]
        if session["reason"] is not None or data.reason is None:
            del changes["reason"]
        return changes
    return {**changes, "status": data.status, **times_of_move(session, data.status)}
