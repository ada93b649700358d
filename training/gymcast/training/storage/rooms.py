"""Rooms: codes under which guests watch one session each, kept beside the sessions they open.

They are in this database, and not in a server's memory, because every server process has to know them, they outlive a
restart, they end with their session in the same transaction, and ``sessions.room_code`` names the newest of them.
Times are the wall clock's: a room's end is told to people.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Self

import sqlalchemy as sa

from . import cursors
from .engine import Database
from .errors import NotFoundError, StorageError
from .ids import from_us, now_us, rfc3339, to_us
from .reader import Reader
from .records import Committed, Page, RowLike, SessionRecord
from .schema import rooms
from .session_rows import lock_session, write_session
from .writer import Writer

CODE_LENGTH: Final = 6
# Without 0 O Q D, 1 I L, 2 Z, 5 S, 8 B, U V: whoever reads a code aloud or off a screen cannot mistake one for another.
CODE_ALPHABET: Final = "ACEFGHJKMNPRTWXY34679"
MAX_ROOMS_PER_SESSION: Final = 20


class TooManyRoomsError(StorageError):
    """A session has as many rooms as it may have."""

    def __init__(self, session_id: str) -> None:
        super().__init__(
            f"session {session_id} has {MAX_ROOMS_PER_SESSION} rooms, the most there may be; close one of them first"
        )


def new_room_code() -> str:
    """Six random characters of :data:`CODE_ALPHABET`: one of 86 million."""
    return "".join(secrets.choice(CODE_ALPHABET) for _ in range(CODE_LENGTH))


@dataclass(frozen=True, slots=True)
class RoomRecord:
    """A room. ``max_spectators`` is ``None`` where only the server's own limits hold, ``expires`` for no end."""

    code: str
    session_id: str
    kind: str
    password_hash: str | None = field(repr=False)
    max_spectators: int | None
    created: datetime
    expires: datetime | None

    @classmethod
    def from_row(cls, row: RowLike) -> Self:
        """From a row of ``rooms``."""
        return cls(
            code=row["code"],
            session_id=row["session_id"],
            kind=row["kind"],
            password_hash=row["password_hash"],
            max_spectators=row["max_spectators"],
            created=from_us(row["created_us"]),
            expires=None if row["expires_us"] is None else from_us(row["expires_us"]),
        )

    def to_json(self) -> dict[str, Any]:
        """Everything but the password, and but for ``spectator_count``, which only the hub knows."""
        return {
            "code": self.code,
            "session_id": self.session_id,
            "kind": self.kind,
            "password_protected": self.password_hash is not None,
            "max_spectators": self.max_spectators,
            "created_at": rfc3339(to_us(self.created)),
            "expires_at": None if self.expires is None else rfc3339(to_us(self.expires)),
        }


class Rooms(Reader):
    """The rooms of one database; an opened :class:`~gymcast.training.storage.Storage` has them as ``rooms``."""

    def __init__(self, database: Database, writer: Writer, tell: Callable[[Committed], None]) -> None:
        super().__init__(database)
        self._writer = writer
        self._tell = tell

    async def create(
        self,
        session_id: str,
        *,
        kind: str = "spectator",
        password_hash: str | None = None,
        max_spectators: int | None = None,
        seconds: float | None = None,
    ) -> RoomRecord:
        """Open a room for a session, which ends after ``seconds``; the session's ``room_code`` names it.

        Raises :class:`NotFoundError`, :class:`TooManyRoomsError`.
        """
        moment = now_us()

        def job(connection: sa.Connection) -> tuple[RoomRecord, SessionRecord]:
            session = lock_session(connection, session_id)
            count = sa.select(sa.func.count()).select_from(rooms)
            if connection.execute(count.where(*_open(moment), rooms.c.session_id == session_id)).scalar_one() >= (
                MAX_ROOMS_PER_SESSION
            ):
                raise TooManyRoomsError(session_id)
            code = new_room_code()
            while connection.scalar(sa.select(rooms.c.code).where(rooms.c.code == code)) is not None:
                code = new_room_code()
            row = {
                "code": code,
                "session_id": session_id,
                "kind": kind,
                "password_hash": password_hash,
                "max_spectators": max_spectators,
                "created_us": moment,
                "expires_us": None if seconds is None else moment + int(seconds * 1_000_000),
            }
            connection.execute(sa.insert(rooms), row)
            session |= write_session(connection, session, {"room_code": code}, visible=True)
            return RoomRecord.from_row(row), SessionRecord.from_row(session)

        room, _session = await self._writer.submit(
            job, after=lambda made: self._tell(Committed(session_id, made[1], session_changed=True))
        )
        return room

    async def get(self, code: str) -> RoomRecord:
        """A room that is open. Raises :class:`NotFoundError`."""
        found = await self._rows(sa.select(rooms).where(rooms.c.code == code, *_open(now_us())))
        if not found:
            raise NotFoundError("room", code)
        return RoomRecord.from_row(found[0])

    async def page(
        self, *, session_id: str | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[RoomRecord]:
        """Open rooms, newest first, of one session when it is named."""
        query = sa.select(rooms).where(*_open(now_us())).order_by(rooms.c.created_us.desc(), rooms.c.code.desc())
        if session_id is not None:
            query = query.where(rooms.c.session_id == session_id)
        if cursor is not None:
            created, code = cursors.decode("rooms", cursor, (int, str))
            earlier = rooms.c.created_us < created
            query = query.where(earlier | ((rooms.c.created_us == created) & (rooms.c.code < code)))
        found = await self._rows(query.limit(limit + 1))
        following = None
        if len(found) > limit:
            following = cursors.encode("rooms", found[limit - 1]["created_us"], found[limit - 1]["code"])
        return Page([RoomRecord.from_row(row) for row in found[:limit]], following)

    async def still_open(self, codes: Collection[str]) -> set[str]:
        """Those of ``codes`` whose rooms are open."""
        found = await self._rows(sa.select(rooms.c.code).where(rooms.c.code.in_(codes), *_open(now_us())))
        return {row["code"] for row in found}

    async def expired(self) -> list[str]:
        """Codes of rooms whose time is over and that are still kept."""
        found = await self._rows(sa.select(rooms.c.code).where(rooms.c.expires_us <= now_us()))
        return [row["code"] for row in found]

    async def close(self, code: str) -> None:
        """Take a room away; the session's ``room_code`` names the newest that is left.

        Raises :class:`NotFoundError`.
        """

        def job(connection: sa.Connection) -> SessionRecord | None:
            session_id = connection.scalar(sa.select(rooms.c.session_id).where(rooms.c.code == code))
            if session_id is None:
                raise NotFoundError("room", code)
            session = lock_session(connection, session_id)
            if not connection.execute(sa.delete(rooms).where(rooms.c.code == code)).rowcount:
                raise NotFoundError("room", code)
            if session["room_code"] != code:
                return None
            left = sa.select(rooms.c.code).where(rooms.c.session_id == session_id, *_open(now_us()))
            newest = connection.scalar(left.order_by(rooms.c.created_us.desc(), rooms.c.code.desc()).limit(1))
            session |= write_session(connection, session, {"room_code": newest}, visible=True)
            return SessionRecord.from_row(session)

        def after(session: SessionRecord | None) -> None:
            if session is not None:
                self._tell(Committed(session.session_id, session, session_changed=True))

        await self._writer.submit(job, after=after)


def _open(moment: int) -> list[sa.ColumnElement[bool]]:
    return [rooms.c.expires_us.is_(None) | (rooms.c.expires_us > moment)]
