"""What is kept, and taking away the rest a little at a time, so that no other write waits long.

Of each session the newest readings, decisions and reports (statuses, errors) stay, ``metrics_history_size`` of each.
The sums of readings that go stay in the rollups, so a long history keeps its shape. Everything else stays until its
session is deleted.
"""

from __future__ import annotations

from typing import Final

import sqlalchemy as sa

from .schema import decisions, events, metrics, producers, sessions

BATCH: Final = 1_000
TABLES: Final = (metrics, decisions, events)


def surpluses(connection: sa.Connection, table: sa.Table, keep: int) -> list[tuple[str, int]]:
    """Sessions with more than ``keep`` rows in ``table``, and the highest id among those that are too many."""
    count = sa.func.count()
    query = sa.select(table.c.session_id).where(*_removable(table))
    found = connection.scalars(query.group_by(table.c.session_id).having(count > keep)).all()
    # Newest by id and not by time: the newest row has to stay, or SQLite would give its id away again.
    newest = sa.select(table.c.id).where(*_removable(table)).order_by(table.c.id.desc()).limit(1).offset(keep)
    return [
        (session_id, connection.execute(newest.where(table.c.session_id == session_id)).scalar_one())
        for session_id in found
    ]


def remove_some(connection: sa.Connection, table: sa.Table, session_id: str, last_id: int) -> int:
    """Delete at most :data:`BATCH` rows of a session up to ``last_id``; returns how many there were."""
    some = sa.select(table.c.id).where(table.c.session_id == session_id, table.c.id <= last_id, *_removable(table))
    gone = connection.execute(sa.delete(table).where(table.c.id.in_(some.limit(BATCH))))
    return gone.rowcount


def _removable(table: sa.Table) -> list[sa.ColumnElement[bool]]:
    if table is metrics:  # what no rollup holds yet has to stay
        here = sessions.c.session_id == table.c.session_id
        return [table.c.id <= sa.select(sessions.c.rolled_id).where(here).scalar_subquery()]
    if table is events:  # a row beyond a gap is what tells a repeat from news (see .numbers)
        here = sa.and_(producers.c.session_id == table.c.session_id, producers.c.producer == table.c.producer)
        return [table.c.data.is_not(None), table.c.seq <= sa.select(producers.c.head).where(here).scalar_subquery()]
    return []
