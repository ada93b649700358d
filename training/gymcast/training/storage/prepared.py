"""Statements of every report, run without the work that SQLAlchemy does again for each execution.

Building a statement, looking for its compiled form and converting its values cost several times what SQLite takes to
run it. These are compiled once for a database and given to its driver as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Final

import sqlalchemy as sa

from .records import to_json_text
from .schema import sessions

_JSON: Final = frozenset(column.name for column in sessions.c if isinstance(column.type, sa.JSON))
_COLUMNS: Final = tuple(sessions.c.keys())
_FIND: Final = sa.select(sessions).where(sessions.c.session_id == sa.bindparam("wanted")).with_for_update()


def execute(connection: sa.Connection, statement: Any, values: Mapping[str, Any]) -> sa.CursorResult[Any]:
    """Run ``statement``, whose parameters are all named, with ``values`` as the driver takes them.

    What it returns is as the driver gives it. The statement has to be one that lives as long as the process.
    """
    text, order = _compiled(connection.dialect, statement)
    return connection.exec_driver_sql(text, tuple(values[name] for name in order))


def find_session(connection: sa.Connection, session_id: str) -> dict[str, Any] | None:
    """The session's row by column, locked until the transaction ends."""
    # As SQLAlchemy runs it: with so many columns what it keeps of their types is worth more than the rest it does.
    row = connection.execute(_FIND, {"wanted": session_id}).first()
    return None if row is None else dict(zip(_COLUMNS, row, strict=True))


def update_session(connection: sa.Connection, session_id: str, changes: Mapping[str, Any]) -> None:
    """Write columns of a session."""
    values = {"b_session_id": session_id, **changes}
    for name in _JSON & changes.keys():
        values[name] = None if changes[name] is None else to_json_text(changes[name])
    execute(connection, _update(tuple(sorted(changes))), values)


@lru_cache(maxsize=256)
def _update(columns: tuple[str, ...]) -> sa.Update:
    return (
        sa.update(sessions)
        .where(sessions.c.session_id == sa.bindparam("b_session_id"))
        .values({name: sa.bindparam(name, type_=sessions.c[name].type) for name in columns})
    )


@lru_cache(maxsize=512)
def _compiled(dialect: sa.Dialect, statement: Any) -> tuple[str, tuple[str, ...]]:
    compiled = statement.compile(dialect=dialect)
    return str(compiled), tuple(compiled.positiontup or ())
