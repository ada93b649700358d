"""The storage of sessions and everything their producers report."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import datetime
from types import TracebackType
from typing import Any, Final, Self, TypedDict, Unpack

import sqlalchemy as sa

from gymcast.training.events import Event, EventReceipt, Message, event_type_of, utc_now

from . import repeats, schema
from .engine import Database
from .errors import VersionConflictError
from .ids import new_id, now_us, to_us
from .ingest import Ingested, ingest, lock_session, next_seq, times_of_move, write_session
from .reader import Reader
from .records import TIME_COLUMNS, Committed, SessionChanges, SessionRecord
from .states import TERMINAL, check_move
from .writer import Writer

log = logging.getLogger(__name__)

Listener = Callable[[Committed], None]

# Producer name of events that came without one (plain metrics POSTs); their numbers are given by the storage.
UNNUMBERED: Final = "rest"


class NewSession(TypedDict, total=False):
    """Optional fields of a new session; names as in :class:`SessionRecord`."""

    session_id: str
    training_session_id: str
    env_id: str | None
    model_generation: int
    status: str
    total_episodes: int | None
    total_timesteps: int | None
    room_code: str | None
    enable_spectators: bool
    priority: int
    config: dict[str, Any] | None
    resources: dict[str, Any] | None


class Storage(Reader):
    """One database. Open it with ``await Storage.open(url)``, or use ``async with await Storage.open(url) as storage``.

    Writes go through one writer and return after their commit. Reads run beside it on connections of their own.
    Methods raise the errors of :mod:`gymcast.training.storage.errors` and no other.
    """

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self._writer = Writer(database)
        self._listeners: list[Listener] = []

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open (and, if need be, create or migrate) the database at ``url``, such as ``sqlite:///data/metrics.db``."""
        database = Database(url)
        await database.open()
        return cls(database)

    async def close(self) -> None:
        """Commit what is waiting and close every connection."""
        await self._writer.close()
        await self._database.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def lag_seconds(self) -> float:
        """How long the oldest write has been waiting."""
        return self._writer.lag_seconds

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call ``listener`` after every commit, in order. Returns a function that ends this."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _tell(self, committed: Committed) -> None:
        for listener in tuple(self._listeners):
            try:
                listener(committed)
            except Exception:
                # The rows are committed; a listener's fault must not stop the writer that all sessions share.
                log.exception("a listener failed for session %s", committed.session_id)

    # Sessions

    async def create_session(self, *, kind: str, algorithm: str, **given: Unpack[NewSession]) -> SessionRecord:
        """Insert a session. ``kind`` is ``"managed"`` (starts ``queued``) or ``"external"`` (starts ``running``)."""
        moment = now_us()
        session_id = given.pop("session_id", None) or new_id()
        status = given.pop("status", "queued" if kind == "managed" else "running")
        row: dict[str, Any] = {
            "session_id": session_id,
            "training_session_id": session_id,
            "kind": kind,
            "env_id": None,
            "algorithm": algorithm,
            "model_generation": 1,
            "status": status,
            "phase": "",
            "desired": "running",
            "reason": None,
            "created_us": moment,
            "updated_us": moment,
            "start_us": moment if status in ("starting", "running") else None,
            "end_us": None,
            "seen_us": None,
            "current_episode": 0,
            "total_episodes": None,
            "timesteps": 0,
            "total_timesteps": None,
            "progress": 0.0,
            "eta_seconds": None,
            "room_code": None,
            "enable_spectators": True,
            "priority": 0,
            "attempts": 0,
            "config": None,
            "resources": None,
            "version": 1,
            **given,
        }

        def job(connection: sa.Connection) -> SessionRecord:
            connection.execute(sa.insert(schema.sessions), row)
            connection.execute(
                sa.insert(schema.transitions), {"session_id": session_id, "ts_us": moment, "to_status": status}
            )
            return SessionRecord.from_row(row)

        return await self._writer.submit(
            job, after=lambda record: self._tell(Committed(session_id, record, session_changed=True))
        )

    async def update_session(
        self,
        session_id: str,
        *,
        expected_version: int | None = None,
        allowed_from: Sequence[str] | None = None,
        reopen: bool = False,
        **changes: Unpack[SessionChanges],
    ) -> SessionRecord:
        """Change a session in one transaction and count its version up.

        A new ``status`` has to be a legal move (:class:`StateError`), unless ``reopen`` takes an ended session back
        into the queue. ``allowed_from`` leaves the session as it is when it has any other status. Raises
        :class:`VersionConflictError` when the session is not at ``expected_version``.
        """
        columns: dict[str, Any] = {
            TIME_COLUMNS.get(name, name): to_us(value) if isinstance(value, datetime) else value
            for name, value in changes.items()
        }

        def job(connection: sa.Connection) -> tuple[SessionRecord, bool]:
            session = lock_session(connection, session_id)
            if expected_version is not None and session["version"] != expected_version:
                raise VersionConflictError(expected_version, session["version"])
            if allowed_from is not None and session["status"] not in allowed_from:
                return SessionRecord.from_row(session), False
            wanted: dict[str, Any] = dict(columns)
            status: str = wanted["status"] if "status" in wanted else session["status"]
            if status != session["status"]:
                if reopen and session["status"] in TERMINAL:
                    wanted = {"end_us": None, "reason": None, "desired": "running", **wanted}
                else:
                    check_move(session["status"], status)
                wanted = {**times_of_move({**session, **wanted}, status), **wanted}
            wanted = {name: value for name, value in wanted.items() if session[name] != value}
            if wanted:
                session |= write_session(connection, session, wanted, visible=True)
            return SessionRecord.from_row(session), bool(wanted)

        def after(result: tuple[SessionRecord, bool]) -> None:
            if result[1]:
                self._tell(Committed(session_id, result[0], session_changed=True))

        record, _changed = await self._writer.submit(job, after=after)
        return record

    async def delete_session(self, session_id: str, *, expected_version: int | None = None) -> None:
        """Delete a session with everything stored for it.

        Raises :class:`NotFoundError`, :class:`VersionConflictError`.
        """

        def job(connection: sa.Connection) -> None:
            session = lock_session(connection, session_id)
            if expected_version is not None and session["version"] != expected_version:
                raise VersionConflictError(expected_version, session["version"])
            connection.execute(sa.delete(schema.sessions).where(schema.sessions.c.session_id == session_id))

        await self._writer.submit(job, after=lambda _none: self._tell(Committed(session_id, None)))

    # Events

    async def add_events(self, session_id: str, producer: str, events: Sequence[Event]) -> EventReceipt:
        """Store a batch; events whose ``(session, producer, seq)`` is known are counted as duplicates.

        Empty: a heartbeat.
        """

        def job(connection: sa.Connection) -> Ingested:
            return ingest(connection, session_id, producer, events)

        return await self._submit_events(job, len(events))

    async def add_data(self, session_id: str, data: Sequence[Message]) -> EventReceipt:
        """Store data that came without numbers; they are given here, so nothing can be told to be a repeat."""
        moment = utc_now()

        def job(connection: sa.Connection) -> Ingested:
            lock_session(connection, session_id)
            first = next_seq(connection, session_id, UNNUMBERED)
            events = [
                Event.model_validate({"seq": first + place, "ts": moment, "type": event_type_of(item), "data": item})
                for place, item in enumerate(data)
            ]
            return ingest(connection, session_id, UNNUMBERED, events)

        return await self._submit_events(job, len(data))

    async def _submit_events(self, job: Callable[[sa.Connection], Ingested], rows: int) -> EventReceipt:
        def after(done: Ingested) -> None:
            if done.committed.events or done.committed.session_changed:
                self._tell(done.committed)

        done = await self._writer.submit(job, rows=max(1, rows), after=after)
        return done.receipt

    # Requests that may be repeated

    async def claim_key(self, key: str, fingerprint: str) -> str | None:
        """Begin a repeatable request: ``None`` for a new key, or the session id that the first request with it made.

        Raises :class:`IdempotencyError` when the key came with another body or its first request is still at work.
        """
        return await self._writer.submit(lambda connection: repeats.claim(connection, key, fingerprint))

    async def settle_key(self, key: str, session_id: str | None) -> None:
        """End a repeatable request: remember the session it made, or forget the key when it made none."""
        await self._writer.submit(lambda connection: repeats.settle(connection, key, session_id))
