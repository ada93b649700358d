"""Who runs a session: claimed, renewed, given back, found expired and taken over, each in one transaction.

Several managers, in one process or on several machines, may use one database; each session is claimed by exactly one. A
lease is an owner's name and a time in the database's clock (see :mod:`.clock`), which setting a machine's wall clock
does not move. ``attempts`` counts the claims of a session: together with the owner it tells a worker that was given up
from the one that followed it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final

import sqlalchemy as sa

from .clock import database_now
from .engine import Database
from .errors import LeaseLostError
from .records import Committed, SessionRecord
from .schema import sessions
from .session_rows import Row, lock_session, times_of_move, write_session
from .states import ACTIVE, WAITING, check_move
from .writer import Writer

LEASE_SECONDS: Final = 30.0
_S: Final = 1_000_000


class Leases:
    """The leases of one database; an opened :class:`~gymcast.training.storage.Storage` has them as ``leases``.

    Owners are texts of at most 128 characters that no other manager uses, also not one of an earlier start. Every
    method raises :class:`StorageUnavailableError` when the database cannot be used.
    """

    def __init__(self, database: Database, writer: Writer, tell: Callable[[Committed], None]) -> None:
        self._database = database
        self._writer = writer
        self._tell = tell

    async def claim(
        self,
        owner: str,
        *,
        session_id: str | None = None,
        skip: Collection[str] = (),
        seconds: float = LEASE_SECONDS,
        ageing_seconds: float | None = None,
    ) -> SessionRecord | None:
        """Take the next waiting managed session, or the one named: ``starting``, leased, one attempt more.

        Waiting are ``queued`` and ``retrying`` ones that are wanted and whose ``not_before`` has passed. They come by
        priority (higher first), then by age; ``ageing_seconds`` of waiting weigh as much as one step of priority.
        ``skip`` names sessions to pass over. ``None`` when there is none left, or another manager was faster.
        """

        def job(connection: sa.Connection) -> SessionRecord | None:
            now = database_now(connection)
            query = _waiting(now, ageing_seconds).limit(1).with_for_update(skip_locked=True)
            if session_id is not None:
                query = query.where(sessions.c.session_id == session_id)
            if skip:
                query = query.where(sessions.c.session_id.not_in(skip))
            row = connection.execute(query).mappings().first()
            if row is None:
                return None
            lease = {**_lease(owner, now, seconds), "attempts": row["attempts"] + 1, "not_before_us": None}
            return _moved(connection, dict(row), "starting", {**lease, "reason": None})

        return await self._change(job)

    async def waiting(self, *, limit: int = 1000, ageing_seconds: float | None = None) -> list[SessionRecord]:
        """What :meth:`claim` would take, in its order."""

        def query(connection: sa.Connection) -> list[SessionRecord]:
            found = connection.execute(_waiting(database_now(connection), ageing_seconds).limit(limit))
            return [SessionRecord.from_row(row) for row in found.mappings()]

        return await self._database.read(query)

    async def renew(
        self, owner: str, session_ids: Collection[str] | None = None, *, seconds: float = LEASE_SECONDS
    ) -> set[str]:
        """Prolong the leases of ``owner``, or of those named; returns the sessions it holds.

        One that is missing in the answer has been given to someone else or has ended: its worker has to stop. A lease
        that had expired but that nobody took is held again.
        """

        def job(connection: sa.Connection) -> set[str]:
            now = database_now(connection)
            update = sa.update(sessions).where(sessions.c.lease_owner == owner)
            if session_ids is not None:
                update = update.where(sessions.c.session_id.in_(session_ids))
            changes = _lease(owner, now, seconds)
            return set(connection.scalars(update.values(changes).returning(sessions.c.session_id)))

        return await self._writer.submit(job)

    async def release(
        self,
        session_id: str,
        owner: str,
        *,
        status: str,
        reason: str | None = None,
        delay_seconds: float | None = None,
        wait_reason: str | None = None,
    ) -> SessionRecord:
        """Give a session back with a new ``status``; one that is to be tried again waits ``delay_seconds`` first.

        Raises :class:`LeaseLostError` when ``owner`` does not hold it, :class:`StateError` for a move that does not
        exist, :class:`NotFoundError`.
        """

        def job(connection: sa.Connection) -> SessionRecord:
            row = lock_session(connection, session_id)
            check_owner(row, owner)
            return _moved(connection, row, status, _end(connection, reason, delay_seconds, wait_reason))

        released = await self._change(job)
        assert released is not None
        return released

    async def expired(self) -> list[SessionRecord]:
        """Active sessions whose lease has run out, oldest first."""

        def query(connection: sa.Connection) -> list[SessionRecord]:
            table = sessions
            found = connection.execute(
                sa.select(table)
                .where(
                    table.c.status.in_(ACTIVE),
                    table.c.lease_owner.is_not(None),
                    table.c.lease_expires_us <= database_now(connection),
                )
                .order_by(table.c.session_id)
            )
            return [SessionRecord.from_row(row) for row in found.mappings()]

        return await self._database.read(query)

    async def expire(
        self,
        session_id: str,
        *,
        status: str = "retrying",
        reason: str | None = None,
        delay_seconds: float | None = None,
        wait_reason: str | None = None,
    ) -> SessionRecord | None:
        """End a lease that has run out; ``None`` when it was renewed, released or taken over meanwhile."""

        def job(connection: sa.Connection) -> SessionRecord | None:
            row = lock_session(connection, session_id)
            if row["lease_owner"] is None or row["lease_expires_us"] > database_now(connection):
                return None
            return _moved(connection, row, status, _end(connection, reason, delay_seconds, wait_reason))

        return await self._change(job)

    async def adopt(
        self, session_id: str, owner: str, *, from_owner: str | None = None, seconds: float = LEASE_SECONDS
    ) -> SessionRecord | None:
        """Take over an active session as it is, because its lease has run out or is that of ``from_owner``.

        Name ``from_owner`` only when it is known to be dead. ``None`` when another manager was faster.
        """

        def job(connection: sa.Connection) -> SessionRecord | None:
            row = lock_session(connection, session_id)
            now = database_now(connection)
            holder = row["lease_owner"]
            free = holder is None or row["lease_expires_us"] <= now or holder == from_owner
            if row["status"] not in ACTIVE or not free:
                return None
            row |= write_session(connection, row, _lease(owner, now, seconds), visible=True)
            return SessionRecord.from_row(row)

        return await self._change(job)

    async def now_us(self) -> int:
        """The database's time, in microseconds since 1970-01-01 UTC."""
        return await self._database.read(database_now)

    async def _change(self, job: Callable[[sa.Connection], SessionRecord | None]) -> SessionRecord | None:
        def after(record: SessionRecord | None) -> None:
            if record is not None:
                self._tell(Committed(record.session_id, record, session_changed=True))

        return await self._writer.submit(job, after=after)


def check_owner(session: Row, owner: str) -> None:
    """Raise :class:`LeaseLostError` unless ``owner`` holds the session."""
    if session["lease_owner"] != owner:
        raise LeaseLostError(session["session_id"], owner, session["lease_owner"])


def _waiting(now: int, ageing_seconds: float | None) -> sa.Select[Any]:
    table = sessions
    order: list[sa.ColumnElement[Any]] = [table.c.priority.desc(), table.c.session_id]
    if ageing_seconds is not None:
        weight = sa.literal(round(ageing_seconds * _S), sa.BigInteger)
        order.insert(0, (sa.cast(table.c.priority, sa.BigInteger) * weight - table.c.created_us).desc())
    return (
        sa.select(table)
        .where(
            table.c.kind == "managed",
            table.c.status.in_(WAITING),
            table.c.desired == "running",
            sa.or_(table.c.not_before_us.is_(None), table.c.not_before_us <= now),
        )
        .order_by(*order)
    )


def _lease(owner: str, now: int, seconds: float) -> Row:
    return {"lease_owner": owner, "lease_expires_us": now + round(seconds * _S), "heartbeat_us": now}


def _end(connection: sa.Connection, reason: str | None, delay_seconds: float | None, wait_reason: str | None) -> Row:
    delay = None if delay_seconds is None else database_now(connection) + round(delay_seconds * _S)
    return {"reason": reason, "not_before_us": delay, "wait_reason": wait_reason}


def _moved(connection: sa.Connection, session: Row, status: str, changes: Row) -> SessionRecord:
    check_move(session["status"], status)
    changes = {**times_of_move(session, status), **changes, "status": status}
    return SessionRecord.from_row(session | write_session(connection, session, changes, visible=True))
