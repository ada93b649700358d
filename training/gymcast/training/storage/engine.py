"""The database: URL, threads, connection settings, migrations."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from .errors import StorageUnavailableError

MIGRATIONS: Final = Path(__file__).parent / "migrations"
# Set on the writer's connection: its transactions take SQLite's write lock at once instead of failing half-way.
WRITER_OPTION: Final = "gymcast_writer"
_BUSY_TIMEOUT_MS: Final = 5_000
_READERS: Final = 4

T = TypeVar("T")


class Database:
    """A SQLite file: one thread that writes, a few that read.

    A transaction is a plain function of a connection and runs in its thread from beginning to end, so its statements
    cost no turn of the event loop each. A server-based database takes the same functions through ``run_sync``.
    """

    def __init__(self, url: str) -> None:
        parsed = database_url(url)
        self._engine = sa.create_engine(
            parsed, connect_args={"check_same_thread": False}, pool_size=_READERS + 1, max_overflow=0
        )
        sa.event.listen(self._engine, "connect", _configure_sqlite)
        sa.event.listen(self._engine, "begin", _begin_sqlite)
        self._writer = ThreadPoolExecutor(1, "gymcast-storage-writer")
        self._readers = ThreadPoolExecutor(_READERS, "gymcast-storage-reader")
        self._connection: sa.Connection | None = None

    async def open(self) -> None:
        """Connect and bring the schema up to date. Raises :class:`StorageUnavailableError`."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._open)
        except BaseException:
            await self.close()
            raise

    async def write(self, job: Callable[[sa.Connection], T]) -> T:
        """Run ``job`` in a transaction of its own on the writer's connection; commit, or roll back when it raises."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._write, job)

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run ``query`` on a consistent view of what is committed."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, query)

    async def close(self) -> None:
        """Close every connection; jobs at work end first."""
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _open(self) -> None:
        path = Path(self._engine.url.database or "")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._engine.connect().execution_options(**{WRITER_OPTION: True})
            migrate(self._connection)
        except (SQLAlchemyError, OSError) as error:
            said = getattr(error, "orig", None) or error  # the driver's own words, without the statement
            raise StorageUnavailableError(f"the database {path} cannot be opened: {said}") from error

    def _write(self, job: Callable[[sa.Connection], T]) -> T:
        assert self._connection is not None
        with self._connection.begin():
            return job(self._connection)

    def _read(self, query: Callable[[sa.Connection], T]) -> T:
        with self._engine.connect() as connection:
            return query(connection)

    def _close(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        if self._connection is not None:
            self._connection.close()
        self._engine.dispose()


def database_url(text: str) -> URL:
    """The URL of a SQLite file; ``StorageUnavailableError`` for what cannot be opened."""
    try:
        url = make_url(text)
    except ArgumentError:
        raise StorageUnavailableError(
            "the database URL is not one SQLAlchemy can read; use a form such as sqlite:///data/training_metrics.db"
        ) from None
    if url.get_backend_name() != "sqlite":
        raise StorageUnavailableError(
            f"database {url.get_backend_name()!r} is not supported by this version; use sqlite:///data/x.db"
        )
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise StorageUnavailableError(
            "an in-memory SQLite database cannot be shared by a writer and readers; name a file: sqlite:///data/x.db"
        )
    return url.set(drivername="sqlite")


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


def migrate(connection: sa.Connection) -> None:
    """Bring the schema up to this version of gymcast, in one transaction."""
    try:
        with connection.begin():
            _upgrade(connection)
    except CommandError as error:
        raise StorageUnavailableError(
            f"the database was written by another version of gymcast ({error}); update gymcast or use another file"
        ) from error


def _upgrade(connection: sa.Connection) -> None:
    config = Config()
    # Alembic treats '%' in option values as interpolation.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
