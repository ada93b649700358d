"""The one writer: jobs that arrive while a transaction runs share the next one."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from operator import attrgetter
from typing import Any, Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from .engine import Database
from .errors import StorageBusyError, StorageError, StorageUnavailableError

log = logging.getLogger(__name__)

T = TypeVar("T")
Item = TypeVar("Item")
Job = Callable[[sa.Connection], Any]
# Does many items at once; returns the result of each, or the error that is its result.
Together = Callable[[sa.Connection, Sequence[Item]], Sequence[T | StorageError]]

MAX_WAITING_ROWS: Final = 10_000
MAX_WAIT_S: Final = 2.0
# One transaction stays short enough that a small request never waits long behind bulk ones.
_ROWS_PER_COMMIT: Final = 2_000


@dataclass(slots=True)
class _Waiting:
    together: Together[Any, Any]
    item: Any
    rows: int
    done: asyncio.Future[Any]
    since: float
    after: Callable[[Any], None] | None


class Writer:
    """Runs jobs in order in the writer's thread; a job's result is delivered only after its commit.

    Natural group commit: the next transaction starts when the last one ends and takes every job that is waiting by
    then; there is no timer. When a job fails, the group is rolled back and its jobs run again one by one, so a job
    has to be repeatable: it must change nothing but the database. A database that cannot be written fails the group.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._queue: deque[_Waiting] = deque()
        self._rows = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._committing: float | None = None  # since when the oldest job of the running transaction has been waiting
        self._task = asyncio.create_task(self._run(), name="gymcast-storage-writer")

    @property
    def lag_seconds(self) -> float:
        """How long the oldest job that is not committed has been waiting."""
        since = self._committing
        if since is None:
            since = self._queue[0].since if self._queue else None
        return 0.0 if since is None else asyncio.get_running_loop().time() - since

    @property
    def waiting_rows(self) -> int:
        """How many rows wait to be committed."""
        return self._rows

    async def submit(
        self,
        job: Callable[[sa.Connection], T],
        *,
        rows: int = 1,
        after: Callable[[T], None] | None = None,
    ) -> T:
        """Run ``job`` in a transaction and return its result once that is committed.

        ``after`` is called with the result right after the commit, in the order of the commits, even when the caller
        has gone. Raises :class:`StorageBusyError` at once when the queue is full, :class:`StorageUnavailableError`
        when the database fails, and whatever the job raises.
        """
        return await self.submit_to(_each, job, rows=rows, after=after)

    async def submit_to(
        self,
        together: Together[Item, T],
        item: Item,
        *,
        rows: int = 1,
        after: Callable[[T], None] | None = None,
    ) -> T:
        """As :meth:`submit`, with items that ``together`` does at once when several of them wait in a row.

        An error among its results belongs to that item only: the others are committed.
        """
        if self._closing:
            raise StorageUnavailableError("the storage is closed")
        if self._rows + rows > MAX_WAITING_ROWS or self.lag_seconds > MAX_WAIT_S:
            raise StorageBusyError
        loop = asyncio.get_running_loop()
        waiting = _Waiting(together, item, rows, loop.create_future(), loop.time(), after)
        self._queue.append(waiting)
        self._rows += rows
        self._wake.set()
        result: T = await waiting.done
        return result

    async def close(self) -> None:
        """Commit everything that is waiting, then stop."""
        self._closing = True
        self._wake.set()
        await self._task

    async def _run(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                await self._commit(self._take())
            if self._closing:
                return

    def _take(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        rows = 0
        while self._queue and (not group or rows + self._queue[0].rows <= _ROWS_PER_COMMIT):
            group.append(self._queue.popleft())
            rows += group[-1].rows
        return group

    async def _commit(self, group: list[_Waiting]) -> None:
        self._committing = group[0].since
        try:
            results = await self._database.write(partial(_run, group))
        except StorageUnavailableError as error:
            # Each job on its own would only wait as long again.
            log.error("a group of writes (%d) failed: %s", len(group), error)
            for waiting in group:
                self._rows -= waiting.rows
                told = StorageUnavailableError(str(error))
                told.__cause__ = error.__cause__
                _fail(waiting.done, told)
            return
        except Exception as error:  # noqa: BLE001 - whatever a job raises belongs to the caller of that job
            if len(group) > 1:
                for waiting in group:
                    await self._commit([waiting])
                return
            self._rows -= group[0].rows
            _fail(group[0].done, error)
            return
        finally:
            self._committing = None
        for waiting, result in zip(group, results, strict=True):
            self._rows -= waiting.rows
            if isinstance(result, StorageError):
                _fail(waiting.done, result)
                continue
            if not waiting.done.done():
                waiting.done.set_result(result)
            if waiting.after is not None:
                waiting.after(result)


def _each(connection: sa.Connection, jobs: Sequence[Job]) -> list[Any]:
    return [job(connection) for job in jobs]


def _run(group: Sequence[_Waiting], connection: sa.Connection) -> list[Any]:
    results: list[Any] = []
    for together, some in groupby(group, key=attrgetter("together")):
        results += together(connection, [waiting.item for waiting in some])
    return results


def _fail(done: asyncio.Future[Any], error: Exception) -> None:
    if isinstance(error, SQLAlchemyError):
        log.error("a transaction failed: %s", error)
        unavailable = StorageUnavailableError(f"the database refused a write: {error.__class__.__name__}")
        unavailable.__cause__ = error
        error = unavailable
    elif not isinstance(error, StorageError):
        log.error("a storage job failed", exc_info=error)
    if not done.done():
        done.set_exception(error)
