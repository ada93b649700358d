"""Which of a producer's numbered events are new.

A producer numbers its events 1, 2, 3, ... and sends some of them again when an answer was lost. ``producers`` holds how
far they are there without a gap; only numbers beyond a gap need rows of their own (in ``events``) to be remembered.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

import sqlalchemy as sa

from gymcast.training.events import Event

from .bulk import insert_rows
from .prepared import among, execute, execute_many, some
from .schema import events as table
from .schema import producers

_MOVE: Final = (
    sa.update(producers)
    .where(
        producers.c.session_id == sa.bindparam("of_session"),
        producers.c.producer == sa.bindparam("of_producer"),
    )
    .values(head=sa.bindparam("head"), last=sa.bindparam("last"))
)

# (session id, name) of a producer.
Source = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Every number up to ``head`` is accepted; ``last`` is the highest accepted one. 0: none."""

    head: int = 0
    last: int = 0


def find_numbers(connection: sa.Connection, sources: Collection[Source]) -> dict[Source, Numbers]:
    """What is accepted from each of ``sources``; one that never reported is missing."""
    sessions = some("session", {session_id for session_id, _ in sources})
    names = some("name", {name for _, name in sources})
    found = execute(connection, _find(len(sessions), len(names)), {**sessions, **names})
    return {(row.session_id, row.producer): Numbers(row.head, row.last) for row in found}


@lru_cache(maxsize=64)
def _find(sessions: int, names: int) -> sa.Select[Any]:
    return sa.select(producers).where(
        among(producers.c.session_id, "session", sessions), among(producers.c.producer, "name", names)
    )


def write_numbers(connection: sa.Connection, known: Collection[Source], numbers: Mapping[Source, Numbers]) -> None:
    """Store ``numbers``; those of ``known`` sources replace older ones."""
    fresh = [(*source, found.head, found.last) for source, found in numbers.items() if source not in known]
    insert_rows(connection, producers, ("session_id", "producer", "head", "last"), fresh)
    moved = [
        {"of_session": source[0], "of_producer": source[1], "head": found.head, "last": found.last}
        for source, found in numbers.items()
        if source in known
    ]
    if moved:
        execute_many(connection, _MOVE, moved)


def in_order(before: Numbers, sent: Sequence[Event]) -> bool:
    """Whether all of ``sent`` is new and follows what is accepted, without a gap: the usual case."""
    first = before.head + 1
    return before.head == before.last and all(event.seq == first + place for place, event in enumerate(sent))


def pick_new(
    connection: sa.Connection, source: Source, before: Numbers, sent: Sequence[Event]
) -> tuple[Numbers, list[Event]]:
    """Count in what is new of ``sent``; returns the numbers after that, and the new events in the order sent.

    The caller holds the session's row lock, has stored all events before these and stores the new ones: a row in
    ``events`` for each beyond ``head``.
    """
    seen = _beyond_gap(connection, source, before, sent)
    fresh = []
    for event in sent:
        if event.seq > before.head and event.seq not in seen:
            seen.add(event.seq)
            fresh.append(event)
    if not fresh:
        return before, fresh
    head = _head(connection, source, before, {event.seq for event in fresh})
    return Numbers(head, max(before.last, *(event.seq for event in fresh))), fresh


def _beyond_gap(connection: sa.Connection, source: Source, known: Numbers, sent: Sequence[Event]) -> set[int]:
    """Which of the numbers sent are known although one before them is missing."""
    wanted = [event.seq for event in sent if known.head < event.seq <= known.last]
    if not wanted:
        return set()
    return set(connection.scalars(sa.select(table.c.seq).where(*_of(source), table.c.seq.in_(wanted))))


def _head(connection: sa.Connection, source: Source, known: Numbers, fresh: set[int]) -> int:
    head = known.head
    if head + 1 not in fresh:
        return head
    mine = (*_of(source), table.c.seq > known.head)
    if known.last > known.head:  # a gap is closed, wholly or in part
        fresh = fresh | set(connection.scalars(sa.select(table.c.seq).where(*mine)))
    while head + 1 in fresh:
        head += 1
    if known.last > known.head:
        connection.execute(sa.delete(table).where(*mine, table.c.seq <= head, table.c.data.is_(None)))
    return head


def _of(source: Source) -> tuple[sa.ColumnElement[bool], ...]:
    return table.c.session_id == source[0], table.c.producer == source[1]
