"""Inserting many rows with one statement, without SQLAlchemy's work per row, which costs more than the row itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Final

import sqlalchemy as sa

# From here on PostgreSQL's COPY is the faster way.
_COPY_FROM: Final = 20


def insert_rows(
    connection: sa.Connection, table: sa.Table, columns: tuple[str, ...], rows: Sequence[tuple[Any, ...]]
) -> None:
    """Insert ``rows``, whose values stand in the order of ``columns`` and are what the driver takes.

    JSON has to be text already. The transaction must have begun with another statement.
    """
    if connection.dialect.name == "postgresql" and len(rows) >= _COPY_FROM:
        driver: Any = connection.connection.dbapi_connection
        driver.run_async(lambda native: native.copy_records_to_table(table.name, records=rows, columns=columns))
    elif rows:
        connection.exec_driver_sql(_statement(connection.dialect, table, columns), list(rows))


@lru_cache(maxsize=64)
def _statement(dialect: sa.Dialect, table: sa.Table, columns: tuple[str, ...]) -> str:
    compiled = sa.insert(table).inline().compile(dialect=dialect, column_keys=list(columns))
    assert tuple(compiled.positiontup or ()) == columns
    return str(compiled)
