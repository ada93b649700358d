"""A PostgreSQL server as the database, through asyncpg."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import URL
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from .engine import MIGRATE_WAIT_S, READERS, WRITE_WAIT_S, migrate
from .errors import StorageUnavailableError
from .postgres_errors import asyncpg, cannot_open, faults, is_gone, is_unavailable, said
from .records import from_json_text, to_json_text

_CONNECT_S: Final = 5.0
# A statement that takes longer is given up on the server; a server that says nothing at all, a little later here.
_STATEMENT_S: Final = 30.0
_SILENT_S: Final = 40.0
# A read that meets a lock on a whole table answers soon; one of a row never waits at all.
_READ_LOCK_S: Final = 1.0
_RETRY_S: Final = 0.1
# Any number, the same in every process that migrates.
_MIGRATION_LOCK: Final = 0x67796D63617374

T = TypeVar("T")


class PostgresDatabase:
    """See :class:`~gymcast.training.storage.engine.Database`.

    The connections live in an event loop of their own, in a thread of their own: building rows and reading JSON takes
    processor time, which would hold up a server's loop.
    """

    def __init__(self, url: URL) -> None:
        self._url = url
        self._driver = asyncpg()
        self._faults = faults()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gymcast-storage", daemon=True)
        self._thread.start()
        self._writer = self._engine(1, WRITE_WAIT_S)
        self._readers = self._engine(READERS, _READ_LOCK_S)

    def _engine(self, connections: int, lock_wait: float) -> AsyncEngine:
        settings = {
            "application_name": "gymcast",
            "lock_timeout": str(int(lock_wait * 1000)),
            "statement_timeout": str(int(_STATEMENT_S * 1000)),
            # A client that is cut off must not hold the lock of its session's row for ever.
            "idle_in_transaction_session_timeout": str(int(_SILENT_S * 1000)),
            "jit": "off",  # it costs short statements more than it saves
        }
        address = self._url.render_as_string(hide_password=False)

        async def connect(*_arguments: Any, **_options: Any) -> Any:
            # asyncpg reads the URL itself, so that sslmode and the like mean what they mean to every client.
            return await self._driver.connect(
                address, timeout=_CONNECT_S, command_timeout=_SILENT_S, server_settings=settings
            )

        return create_async_engine(
            "postgresql+asyncpg://",
            async_creator=connect,
            pool_size=connections,
            max_overflow=0,
            pool_timeout=WRITE_WAIT_S,
            hide_parameters=True,
            json_serializer=to_json_text,
            json_deserializer=from_json_text,
        )

    async def open(self) -> None:
        """Connect and bring the schema up to date."""
        try:
            await self._in_thread(self._open())
        except BaseException:
            await self.close()
            raise

    async def write(self, job: Callable[[sa.Connection], T]) -> T:
        """Run ``job`` in a transaction of its own; see :class:`~gymcast.training.storage.engine.Database`."""
        return await self._in_thread(self._write(job))

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run ``query`` on a consistent view of what is committed."""
        return await self._in_thread(self._read(query))

    async def close(self) -> None:
        """Close every connection; jobs at work end first."""
        if self._loop.is_closed():
            return
        await self._in_thread(self._dispose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        await asyncio.to_thread(self._thread.join)
        self._loop.close()

    async def _in_thread(self, work: Coroutine[Any, Any, T]) -> T:
        # Shielded: a caller that leaves must not cut a transaction off half-way.
        return await asyncio.shield(asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, self._loop)))

    async def _dispose(self) -> None:
        await self._writer.dispose()
        await self._readers.dispose()

    async def _open(self) -> None:
        try:
            async with self._writer.begin() as connection:
                await connection.execute(sa.text(f"SET LOCAL lock_timeout = {int(MIGRATE_WAIT_S * 1000)}"))
                await connection.execute(sa.text("SET LOCAL statement_timeout = 0"))
                lock = sa.func.pg_advisory_xact_lock(sa.literal(_MIGRATION_LOCK, sa.BigInteger))
                await connection.execute(sa.select(lock))
                await connection.run_sync(migrate)
        except self._faults as error:
            raise cannot_open(self._url, error) from error

    async def _write(self, job: Callable[[sa.Connection], T]) -> T:
        deadline = time.monotonic() + WRITE_WAIT_S
        while True:
            committing = False
            try:
                async with self._writer.connect() as connection:
                    transaction = await connection.begin()
                    result = await connection.run_sync(job)
                    committing = True
                    await transaction.commit()
                    return result
            except self._faults as error:
                if not is_unavailable(error):
                    raise
                if committing:
                    text = "the connection broke during a commit; whether it was stored is not known"
                    raise StorageUnavailableError(text) from error
                if not is_gone(error) or time.monotonic() > deadline:
                    raise StorageUnavailableError(f"the database refused a write: {said(error)}") from error
            await asyncio.sleep(_RETRY_S)

    async def _read(self, query: Callable[[sa.Connection], T]) -> T:
        for attempt in range(2):
            try:
                async with self._readers.connect() as connection:
                    connection = await connection.execution_options(
                        isolation_level="REPEATABLE READ", postgresql_readonly=True
                    )
                    return await connection.run_sync(query)
            except self._faults as error:
                if not is_unavailable(error):
                    raise
                # Connections that broke while they lay idle are all replaced by now.
                if attempt or not getattr(error, "connection_invalidated", False):
                    raise StorageUnavailableError(f"the database refused a read: {said(error)}") from error
        raise AssertionError("unreachable")
