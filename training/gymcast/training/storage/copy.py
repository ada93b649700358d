"""Copy a whole database into an empty one, such as a SQLite file into PostgreSQL.

    python -m gymcast.training.storage.copy sqlite:///runs/gymcast.db postgresql://user:password@host/name

No server may use either database meanwhile. Both are brought up to date first.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from typing import Any, Final

import sqlalchemy as sa

from .databases import make_database
from .engine import Database
from .errors import StorageError, StorageUnavailableError
from .schema import clock, metadata, sessions

_BATCH: Final = 1_000


async def copy(source_url: str, target_url: str) -> dict[str, int]:
    """Copy every row; returns how many of each table.

    Raises :class:`StorageUnavailableError` for a database that cannot be used and for a target with sessions in it.
    """
    source, target = make_database(source_url), make_database(target_url)
    copied = {}
    await source.open()
    try:
        await target.open()
        try:
            if await target.read(lambda connection: connection.scalar(sa.select(sessions.c.session_id).limit(1))):
                raise StorageUnavailableError("the database to copy into has sessions already; make an empty one")
            for table in metadata.sorted_tables:
                if table is not clock:  # each machine's own
                    copied[table.name] = await _copy_table(source, target, table)
        finally:
            await target.close()
    finally:
        await source.close()
    return copied


async def _copy_table(source: Database, target: Database, table: sa.Table) -> int:
    key = sa.tuple_(*table.primary_key)
    count = 0
    last: tuple[Any, ...] | None = None

    def read(connection: sa.Connection) -> Sequence[sa.RowMapping]:
        query = sa.select(table).order_by(*table.primary_key).limit(_BATCH)
        if last is not None:
            bounds = [sa.literal(value, column.type) for value, column in zip(last, table.primary_key, strict=True)]
            query = query.where(key > sa.tuple_(*bounds))
        return connection.execute(query).mappings().all()

    while rows := await source.read(read):
        values = [dict(row) for row in rows]
        await target.write(lambda connection, values=values: connection.execute(sa.insert(table), values))  # type: ignore[misc]
        last = tuple(rows[-1][column.name] for column in table.primary_key)
        count += len(rows)
    await target.write(lambda connection: _count_on(connection, table))
    return count


def _count_on(connection: sa.Connection, table: sa.Table) -> None:
    """Let PostgreSQL go on with the next free id; SQLite does so by itself."""
    if connection.dialect.name == "postgresql" and "id" in table.c:
        sequence = sa.func.pg_get_serial_sequence(table.name, "id")
        highest = sa.select(sa.func.max(table.c.id)).scalar_subquery()
        connection.execute(sa.select(sa.func.setval(sequence, sa.func.coalesce(highest, 1), highest.is_not(None))))


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m gymcast.training.storage.copy",
        description="Copy a whole gymcast database into an empty one. No server may use either meanwhile.",
    )
    parser.add_argument("source", help="URL such as sqlite:///runs/gymcast.db")
    parser.add_argument("target", help="URL such as postgresql://user:password@host/name")
    arguments = parser.parse_args()
    try:
        copied = asyncio.run(copy(arguments.source, arguments.target))
    except StorageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(", ".join(f"{count:,} {name}" for name, count in copied.items() if count) or "nothing to copy")
    return 0


if __name__ == "__main__":
    sys.exit(main())
