"""A SQLite file as the database: one thread that writes, a few that read."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError

from .clock import SQLITE_FUNCTION, steady_clock
from .engine import MIGRATE_WAIT_S, READERS, WRITE_WAIT_S, migrate
from .errors import StorageUnavailableError
from .ids import now_us
from .records import from_json_text, to_json_text

# Set on the writer's connection: its transactions take SQLite's write lock at once instead of failing half-way.
WRITER_OPTION: Final = "gymcast_writer"
# Faults of the file, the disk or another process; anything else is the fault of a statement.
_UNAVAILABLE: Final = frozenset(
    {
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_CORRUPT,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOTADB,
    }
)

T = TypeVar("T")


class SqliteDatabase:
    """See :class:`~gymcast.training.storage.engine.Database`."""

    def __init__(self, url: URL) -> None:
        self._path = Path(url.database or "")
        self._now: Callable[[], int] = now_us
        self._engine = sa.create_engine(
            url,
            connect_args={"check_same_thread": False},
            pool_size=READERS + 1,
            max_overflow=0,
            hide_parameters=True,
            json_serializer=to_json_text,
            json_deserializer=from_json_text,
        )
        sa.event.listen(self._engine, "connect", self._configure)
        sa.event.listen(self._engine, "begin", _begin)
        self._writer = ThreadPoolExecutor(1, "gymcast-storage-writer")
        self._readers = ThreadPoolExecutor(READERS, "gymcast-storage-reader")
        self._connection: sa.Connection | None = None

    async def open(self) -> None:
        """Connect and bring the schema up to date."""
        try:
            await asyncio.get_running_loop().run_in_executor(self._writer, self._open)
        except BaseException:
            await self.close()
            raise

    async def write(self, job: Callable[[sa.Connection], T]) -> T:
        """Run ``job`` in a transaction of its own; see :class:`~gymcast.training.storage.engine.Database`."""
        return await asyncio.get_running_loop().run_in_executor(self._writer, self._write, job)

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run ``query`` on a consistent view of what is committed."""
        return await asyncio.get_running_loop().run_in_executor(self._readers, self._read, query)

    async def close(self) -> None:
        """Close every connection; jobs at work end first."""
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    def _open(self) -> None:
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._connection = self._engine.connect().execution_options(**{WRITER_OPTION: True})
            _wait_for_locks(self._connection, MIGRATE_WAIT_S)
            with self._connection.begin():
                migrate(self._connection)
                self._now = steady_clock(self._connection)
            _wait_for_locks(self._connection, WRITE_WAIT_S)
        except (DBAPIError, OSError) as error:
            said = getattr(error, "orig", None) or error  # the driver's own words, without the statement
            raise StorageUnavailableError(f"the database {self._path} cannot be opened: {said}") from error

    def _write(self, job: Callable[[sa.Connection], T]) -> T:
        assert self._connection is not None
        with _translated("write"), self._connection.begin():
            return job(self._connection)

    def _read(self, query: Callable[[sa.Connection], T]) -> T:
        with _translated("read"), self._engine.connect() as connection:
            return query(connection)

    def _close(self) -> None:
        self._writer.shutdown()
        self._readers.shutdown()
        if self._connection is not None:
            self._connection.close()
        self._engine.dispose()

    def _configure(self, connection: Any, _record: Any) -> None:
        # The driver's own implicit BEGIN comes too late and is always deferred; _begin emits the right one.
        connection.isolation_level = None
        connection.create_function(SQLITE_FUNCTION, 0, lambda: self._now())
        cursor = connection.cursor()
        for pragma in (
            f"busy_timeout = {int(WRITE_WAIT_S * 1000)}",
            "journal_mode = WAL",
            "synchronous = FULL",  # an acknowledged row survives a power cut, not only a crash of the process
            "foreign_keys = ON",
            "journal_size_limit = 67108864",
            "wal_autocheckpoint = 4000",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()


def _begin(connection: sa.Connection) -> None:
    writer = connection.get_execution_options().get(WRITER_OPTION, False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writer else "BEGIN")


def _wait_for_locks(connection: sa.Connection, seconds: float) -> None:
    # On the driver's connection: through SQLAlchemy it would begin a transaction.
    connection.connection.dbapi_connection.execute(f"PRAGMA busy_timeout = {int(seconds * 1000)}")  # type: ignore[union-attr]


@contextmanager
def _translated(what: str) -> Iterator[None]:
    """Turn a fault of the file, the disk or another process into :class:`StorageUnavailableError`."""
    try:
        yield
    except DBAPIError as error:
        code = getattr(error.orig, "sqlite_errorcode", None)
        if code is None or code & 0xFF not in _UNAVAILABLE:
            raise
        raise StorageUnavailableError(f"the database refused a {what}: {error.orig}") from error
