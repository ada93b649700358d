"""Which of a producer's numbered events are new.

A producer numbers its events 1, 2, 3, ... and sends some of them again when an answer was lost. ``producers`` holds how
far they are there without a gap; only numbers beyond a gap need rows of their own (in ``events``) to be remembered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import sqlalchemy as sa

from gymcast.training.events import Event

from .prepared import execute
from .schema import events as table
from .schema import producers

_HERE: Final = (
    producers.c.session_id == sa.bindparam("of_session"),
    producers.c.producer == sa.bindparam("of_producer"),
)
_FIND: Final = sa.select(producers.c.head, producers.c.last).where(*_HERE)
_MOVE: Final = sa.update(producers).where(*_HERE).values(head=sa.bindparam("head"), last=sa.bindparam("last"))


@dataclass(frozen=True, slots=True)
class Numbers:
    """Every number up to ``head`` is accepted; ``last`` is the highest accepted one. 0: none."""

    head: int = 0
    last: int = 0


def stored_numbers(connection: sa.Connection, session_id: str, producer: str) -> Numbers | None:
    """What is accepted from ``producer``; ``None`` before its first report."""
    row = execute(connection, _FIND, {"of_session": session_id, "of_producer": producer}).first()
    return None if row is None else Numbers(row.head, row.last)


def accept(
    connection: sa.Connection, session_id: str, producer: str, known: Numbers | None, sent: Sequence[Event]
) -> tuple[Numbers, list[Event]]:
    """Count in what is new of ``sent``; returns the numbers after that, and the new events in the order sent.

    ``known`` is what :func:`stored_numbers` says. The caller holds the session's row lock and stores the new events: a
    row in ``events`` for each beyond ``head``.
    """
    before = known or Numbers()
    numbers = [event.seq for event in sent]
    if (
        numbers
        and before.head == before.last
        and numbers == list(range(before.head + 1, before.head + 1 + len(numbers)))
    ):
        after = Numbers(numbers[-1], numbers[-1])  # the usual case: all of them new and in order
        _store(connection, session_id, producer, known, after)
        return after, list(sent)
    seen = _beyond_gap(connection, session_id, producer, before, sent)
    fresh = []
    for event in sent:
        if event.seq > before.head and event.seq not in seen:
            seen.add(event.seq)
            fresh.append(event)
    if not fresh:
        return before, fresh
    head = _head(connection, session_id, producer, before, {event.seq for event in fresh})
    after = Numbers(head, max(before.last, *(event.seq for event in fresh)))
    _store(connection, session_id, producer, known, after)
    return after, fresh


def _store(connection: sa.Connection, session_id: str, producer: str, known: Numbers | None, after: Numbers) -> None:
    row = {"session_id": session_id, "producer": producer, "head": after.head, "last": after.last}
    if known is None:
        connection.execute(sa.insert(producers), row)
    else:
        here = {"of_session": session_id, "of_producer": producer}
        execute(connection, _MOVE, {**here, "head": after.head, "last": after.last})


def _beyond_gap(
    connection: sa.Connection, session_id: str, producer: str, known: Numbers, sent: Sequence[Event]
) -> set[int]:
    """Which of the numbers sent are known although one before them is missing."""
    wanted = [event.seq for event in sent if known.head < event.seq <= known.last]
    if not wanted:
        return set()
    return set(
        connection.scalars(
            sa.select(table.c.seq).where(
                table.c.session_id == session_id, table.c.producer == producer, table.c.seq.in_(wanted)
            )
        )
    )


def _head(connection: sa.Connection, session_id: str, producer: str, known: Numbers, fresh: set[int]) -> int:
    head = known.head
    if head + 1 not in fresh:
        return head
    mine = (table.c.session_id == session_id, table.c.producer == producer, table.c.seq > known.head)
    if known.last > known.head:  # a gap is closed, wholly or in part
        fresh = fresh | set(connection.scalars(sa.select(table.c.seq).where(*mine)))
    while head + 1 in fresh:
        head += 1
    if known.last > known.head:
        connection.execute(sa.delete(table).where(*mine, table.c.seq <= head, table.c.data.is_(None)))
    return head
