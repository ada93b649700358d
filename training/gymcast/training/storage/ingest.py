"""Storing what producers report: many reports in one transaction, and with one set of statements.

A report that is alone costs a handful of statements. Those that wait while a transaction runs are stored together by
the next one: their sessions are read at once, what they change is worked out in memory, and each table is written at
once. See ``benchmarks/ingest.py``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from gymcast.training.events import (
    BotDecisionData,
    Event,
    EventReceipt,
    Message,
    TrainingMetricsData,
    event_type_of,
    utc_now,
)

from . import schema
from .bulk import insert_rows
from .errors import NotFoundError
from .ids import now_us, to_us
from .missed import counted
from .numbers import Numbers, Source, find_numbers, in_order, pick_new, write_numbers
from .prepared import find_sessions, update_sessions
from .records import Committed, to_json_text
from .rollups import BULK, add_blocks, blocks_of, roll_up
from .session_rows import Row, changes_of_events, made_visible, transition
from .typed_rows import insert_typed

# Producer name of events that came without one (plain metrics POSTs); their numbers are given here.
UNNUMBERED: Final = "rest"
# Types whose data is kept in a table of its own, or (frame, episodes, picture) not at all.
_OWN_TABLE: Final = frozenset(
    {"training_metrics", "bot_decision", "graph_update", "checkpoint", "evaluation", "replay"}
    | {"frame", "episodes", "picture"}
)
_COLUMNS: Final[dict[sa.Table, tuple[str, ...]]] = {
    schema.events: ("session_id", "producer", "seq", "type", "ts_us", "data"),
    schema.metrics: ("session_id", "ts_us", "episode", "data"),
    schema.decisions: ("session_id", "ts_us", "data"),
}


@dataclass(frozen=True, slots=True)
class Report:
    """Numbered ``events`` of a producer, or ``data`` of the time ``moment`` that came without numbers."""

    session_id: str
    producer: str
    events: Sequence[Event] = ()
    data: Sequence[Message] = ()
    moment: datetime = field(default_factory=utc_now)

    @property
    def source(self) -> Source:
        """Whose numbers these are."""
        return self.session_id, self.producer

    def numbered(self, known: Numbers) -> Sequence[Event]:
        """The events. Data without numbers get the next ones, so all of it is new."""
        if not self.data:
            return self.events
        return [
            Event.model_validate(
                {"seq": known.last + 1 + place, "ts": self.moment, "type": event_type_of(item), "data": item}
            )
            for place, item in enumerate(self.data)
        ]


@dataclass(frozen=True, slots=True)
class Ingested:
    """Result of one report."""

    receipt: EventReceipt
    committed: Committed
    tail: int
    """How many readings of the session wait to be summed up."""


def ingest(connection: sa.Connection, reports: Sequence[Report]) -> list[Ingested | NotFoundError]:
    """Store what is new of ``reports``, one after the other, in the running transaction.

    A report to a session that does not exist has :class:`NotFoundError` as its result and keeps nobody else up.
    """
    group = _Group(connection, reports)
    done = [group.take(report) for report in reports]
    group.write()
    return done


class _Group:
    """Reports of one transaction: what they change, until it is written."""

    def __init__(self, connection: sa.Connection, reports: Sequence[Report]) -> None:
        self._connection = connection
        self._sessions = find_sessions(connection, {report.session_id for report in reports})
        self._numbers = find_numbers(connection, {report.source for report in reports})
        self._known = set(self._numbers)
        # Not written yet.
        self._moved: dict[Source, Numbers] = {}
        self._rows: dict[sa.Table, list[tuple[Any, ...]]] = {table: [] for table in _COLUMNS}
        self._transitions: list[Row] = []
        self._changed: dict[str, Row] = defaultdict(dict)

    def write(self) -> None:
        """Write everything taken so far."""
        if self._moved:
            write_numbers(self._connection, self._known, self._moved)
            self._known |= self._moved.keys()
            self._moved = {}
        for table, rows in self._rows.items():
            insert_rows(self._connection, table, _COLUMNS[table], rows)
            self._rows[table] = []
        if self._transitions:
            self._connection.execute(sa.insert(schema.transitions), self._transitions)
            self._transitions = []
        update_sessions(self._connection, self._changed)
        self._changed.clear()

    def take(self, report: Report) -> Ingested | NotFoundError:
        """Work out what a report changes."""
        session = self._sessions.get(report.session_id)
        if session is None:
            return NotFoundError("session", report.session_id)
        events = report.numbered(self._numbers.get(report.source, Numbers()))
        numbers, fresh = self._accept(report.source, events)
        changes, status_changed = changes_of_events(session, fresh)
        told = {"heads": counted(session["heads"], fresh, status=status_changed), "seen_us": now_us()}
        changes = made_visible(session, changes | told) if changes else told
        if (move := transition(session, changes)) is not None:
            self._transitions.append(move)
        self._keep(session, changes)
        if fresh:
            self._store(session, report.producer, fresh, numbers.head)
        receipt = EventReceipt(
            accepted=len(fresh),
            duplicates=len(events) - len(fresh),
            last_seq=numbers.last,
            desired=session["desired"],
        )
        committed = Committed(report.session_id, dict(session), tuple(fresh), status_changed)
        return Ingested(receipt, committed, session["unrolled"])

    def _accept(self, source: Source, sent: Sequence[Event]) -> tuple[Numbers, Sequence[Event]]:
        before = self._numbers.get(source, Numbers())
        if not sent:
            return before, sent
        if in_order(before, sent):
            after, fresh = Numbers(sent[-1].seq, sent[-1].seq), sent
        else:
            self.write()
            after, fresh = pick_new(self._connection, source, before, sent)
        if fresh:
            self._numbers[source] = self._moved[source] = after
        return after, fresh

    def _keep(self, session: Row, changes: Row) -> None:
        session |= changes
        self._changed[session["session_id"]] |= changes

    def _store(self, session: Row, producer: str, events: Sequence[Event], head: int) -> None:
        session_id = session["session_id"]
        readings: list[TrainingMetricsData] = []
        for event in events:
            own_table = event.type in _OWN_TABLE
            if event.seq > head or not own_table:
                data = None if own_table else to_json_text(event.data.to_json())
                self._rows[schema.events].append((session_id, producer, event.seq, event.type, to_us(event.ts), data))
            if isinstance(event.data, TrainingMetricsData):
                readings.append(event.data)
            elif isinstance(event.data, BotDecisionData):
                self._rows[schema.decisions].append(
                    (session_id, to_us(event.data.timestamp), event.data.model_dump_json())
                )
            else:
                insert_typed(self._connection, session_id, event)
        if readings:
            self._store_readings(session, readings)

    def _store_readings(self, session: Row, readings: Sequence[TrainingMetricsData]) -> None:
        session_id = session["session_id"]
        bulk = len(readings) >= BULK
        if bulk and session["unrolled"]:
            # A tail that is too long to be summed up along with them takes them in.
            self.write()
            session["unrolled"] = roll_up(self._connection, session_id)
        times = [to_us(reading.timestamp) for reading in readings]
        self._rows[schema.metrics] += [
            (session_id, ts_us, reading.episode, reading.model_dump_json())
            for ts_us, reading in zip(times, readings, strict=True)
        ]
        if not bulk or session["unrolled"]:
            self._keep(session, {"unrolled": session["unrolled"] + len(readings)})
            return
        self.write()
        add_blocks(self._connection, session_id, blocks_of(times, readings))
        # The session's row is locked, so these are its newest.
        newest = self._connection.scalar(sa.select(sa.func.max(schema.metrics.c.id)))
        self._keep(session, {"rolled_id": newest, "unrolled": 0})
