"""Statements of every report, run without the work that SQLAlchemy does again for each execution.

Building a statement, looking for its compiled form and converting its values cost several times what SQLite takes to
run it. These are compiled once for a database and given to its driver as they are, for many rows at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

import sqlalchemy as sa

from .records import to_json_text
from .schema import sessions

_JSON: Final = frozenset(column.name for column in sessions.c if isinstance(column.type, sa.JSON))
_COLUMNS: Final = tuple(sessions.c.keys())


def execute(connection: sa.Connection, statement: Any, values: Mapping[str, Any]) -> sa.CursorResult[Any]:
    """Run ``statement``, whose parameters are all named, with ``values`` as the driver takes them.

    What it returns is as the driver gives it. The statement has to be one that lives as long as the process.
    """
    text, order = _compiled(connection.dialect, statement)
    return connection.exec_driver_sql(text, tuple(values[name] for name in order))


def execute_many(connection: sa.Connection, statement: Any, rows: Sequence[Mapping[str, Any]]) -> None:
    """Run ``statement`` as :func:`execute` does, once for each of ``rows``."""
    text, order = _compiled(connection.dialect, statement)
    connection.exec_driver_sql(text, [tuple(row[name] for name in order) for row in rows])


def some(name: str, values: Collection[str]) -> dict[str, str]:
    """``values`` for the parameters of :func:`among`.

    The last one is there again up to a power of two, so that there are few statements for all numbers of values.
    """
    found = list(values)
    found += found[-1:] * ((1 << (len(found) - 1).bit_length()) - len(found))
    return {f"{name}{place}": value for place, value in enumerate(found)}


def among(column: sa.Column[str], name: str, count: int) -> sa.ColumnElement[bool]:
    """That ``column`` is one of ``count`` parameters."""
    return column.in_([sa.bindparam(f"{name}{place}", type_=column.type) for place in range(count)])


def find_sessions(connection: sa.Connection, session_ids: Collection[str]) -> dict[str, dict[str, Any]]:
    """The rows of those sessions that exist, by id, each by column; locked until the transaction ends."""
    wanted = some("id", session_ids)
    # As SQLAlchemy runs it: with so many columns what it keeps of their types is worth more than the rest it does.
    found = connection.execute(_find(len(wanted)), wanted)
    return {row.session_id: dict(zip(_COLUMNS, row, strict=True)) for row in found}


@lru_cache(maxsize=16)
def _find(count: int) -> sa.Select[Any]:
    # In one order, so that two servers that want the same rows never wait for each other.
    return (
        sa.select(sessions)
        .where(among(sessions.c.session_id, "id", count))
        .order_by(sessions.c.session_id)
        .with_for_update()
    )


def update_sessions(connection: sa.Connection, changes: Mapping[str, Mapping[str, Any]]) -> None:
    """Write columns of sessions: ``changes`` of each by its id."""
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for session_id, changed in changes.items():
        values = {"b_session_id": session_id, **changed}
        for name in _JSON & changed.keys():
            values[name] = None if changed[name] is None else to_json_text(changed[name])
        alike[tuple(sorted(changed))].append(values)
    for columns, rows in alike.items():
        execute_many(connection, _update(columns), rows)


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
