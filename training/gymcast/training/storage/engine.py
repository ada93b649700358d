"""Opening a database: URL, connection settings, migrations."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from .errors import StorageUnavailableError

MIGRATIONS: Final = Path(__file__).parent / "migrations"
# Set on the writer's connection: its transactions take SQLite's write lock at once instead of failing half-way.
WRITER_OPTION: Final = "gymcast_writer"
_BUSY_TIMEOUT_MS: Final = 5_000
_READERS: Final = 4


def database_url(text: str) -> URL:
    """The URL with the async driver gymcast uses; ``StorageUnavailableError`` for what it cannot open."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise StorageUnavailableError(
            "the database URL is not one SQLAlchemy can read; use a form such as sqlite:///data/training_metrics.db"
        ) from None
    backend = url.get_backend_name()
    if backend == "sqlite":
        if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
            raise StorageUnavailableError(
                "an in-memory SQLite database cannot be shared by a writer and readers; name a file:"
                " sqlite:///data/x.db"
            )
        return url.set(drivername="sqlite+aiosqlite")
    if backend in ("postgresql", "postgres"):
        if find_spec("asyncpg") is None:
            raise StorageUnavailableError("PostgreSQL needs the package asyncpg: pip install asyncpg")
        return url.set(drivername="postgresql+asyncpg")
    raise StorageUnavailableError(f"database {backend!r} is not supported; use sqlite:///... or postgresql://...")


def create_engine(url: URL) -> AsyncEngine:
    """An engine for :func:`database_url`'s result. For SQLite the file's folder is made."""
    if url.get_backend_name() != "sqlite":
        return create_async_engine(url, pool_size=_READERS + 1, pool_pre_ping=True)
    assert url.database is not None
    try:
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageUnavailableError(f"cannot make the folder of {url.database}: {error}") from error
    engine = create_async_engine(url, pool_size=_READERS + 1, max_overflow=0)
    sa.event.listen(engine.sync_engine, "connect", _configure_sqlite)
    sa.event.listen(engine.sync_engine, "begin", _begin_sqlite)
    return engine


def _configure_sqlite(connection: Any, _record: Any) -> None:
    # The driver's own implicit BEGIN comes too late and is always deferred; _begin_sqlite emits the right one.
    connection.isolation_level = None
    cursor = connection.cursor()
    for pragma in (
        f"busy_timeout = {_BUSY_TIMEOUT_MS}",
        "journal_mode = WAL",
        "synchronous = FULL",  # an acknowledged row survives a power cut, not only a crash of the process
        "foreign_keys = ON",
        "journal_size_limit = 67108864",
    ):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _begin_sqlite(connection: sa.Connection) -> None:
    writer = connection.get_execution_options().get(WRITER_OPTION, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")


async def migrate(connection: AsyncConnection) -> None:
    """Bring the schema up to this version of gymcast, in one transaction.

    ``StorageUnavailableError`` when it cannot.
    """
    try:
        async with connection.begin():
            await connection.run_sync(_upgrade)
    except CommandError as error:
        raise StorageUnavailableError(
            f"the database was written by another version of gymcast ({error}); update gymcast or use another file"
        ) from error
    except SQLAlchemyError as error:
        raise StorageUnavailableError(f"the database cannot be brought up to date: {error}") from error


def _upgrade(connection: sa.Connection) -> None:
    config = Config()
    # Alembic treats '%' in option values as interpolation.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
