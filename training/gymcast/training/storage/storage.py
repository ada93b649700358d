"""The storage of sessions and everything their producers report."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypedDict, Unpack

import sqlalchemy as sa

from gymcast.training.events import Event, EventReceipt, Message

from . import repeats, retention, schema
from .databases import make_database
from .engine import Database
from .errors import StorageBusyError, StorageUnavailableError, VersionConflictError
from .ids import new_id, now_us, to_us
from .ingest import UNNUMBERED, Ingested, Report, ingest
from .leases import Leases, check_owner
from .missed import counted
from .reader import Reader
from .records import TIME_COLUMNS, Committed, Counts, NewEpisode, SessionChanges, SessionRecord
from .rollups import roll_up, sessions_with_tails
from .rooms import Rooms
from .session_rows import lock_session, times_of_move, write_session
from .states import TERMINAL, check_move
from .typed_rows import insert_episodes
from .writer import Writer

log = logging.getLogger(__name__)

Listener = Callable[[Committed], None]

# Readings that come one by one wait until they are summed up together: until there are so many, or for so long. How
# often that is looked at.
ROLL_ROWS: Final = 200
ROLL_SECONDS: Final = 10.0
_ROLL_PAUSE_S: Final = 2.0


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
        self.leases = Leases(database, self._writer, self._tell)
        self.rooms = Rooms(database, self._writer, self._tell)
        self._listeners: list[Listener] = []
        # Since when readings of a session wait to be summed up (loop time), and how many.
        self._tails: dict[str, tuple[float, int]] = {}
        self.counts = Counts()
        self._roller = asyncio.create_task(self._roll_tails(), name="gymcast-storage-roller")

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open (and, if need be, create or migrate) the database at ``url``, such as ``sqlite:///data/metrics.db``."""
        database = make_database(url)
        await database.open()
        storage = cls(database)
        storage._tails.update(dict.fromkeys(await database.read(sessions_with_tails), (0.0, 0)))
        return storage

    async def close(self) -> None:
        """Commit what is waiting and close every connection."""
        self._roller.cancel()
        with suppress(asyncio.CancelledError):
            await self._roller
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

    @property
    def waiting_rows(self) -> int:
        """How many rows wait to be committed."""
        return self._writer.waiting_rows

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

    async def mark(self, name: str, make: Callable[[], str]) -> str:
        """What the database was given once under ``name``; ``make`` says what, when it has nothing yet.

        All processes on one database get the same.
        """
        found = sa.select(schema.marks.c.value).where(schema.marks.c.name == name)

        def job(connection: sa.Connection) -> str:
            unless_there = sa.text(
                "INSERT INTO marks (name, value) VALUES (:name, :value) ON CONFLICT (name) DO NOTHING"
            )
            connection.execute(unless_there, {"name": name, "value": make()})
            return str(connection.execute(found).scalar_one())

        known = await self._database.read(lambda connection: connection.scalar(found))
        return str(known) if known is not None else await self._writer.submit(job)

    # Sessions

    async def create_session(
        self, *, kind: str, algorithm: str, repeat_key: str | None = None, **given: Unpack[NewSession]
    ) -> SessionRecord:
        """Insert a session. ``kind`` is ``"managed"`` (starts ``queued``) or ``"external"`` (starts ``running``).

        With the ``repeat_key`` that :meth:`claim_key` has begun, the key is settled in the same transaction: whatever
        dies in between, there are both or neither.
        """
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
            "lease_owner": None,
            "lease_expires_us": None,
            "heartbeat_us": None,
            "not_before_us": None,
            "wait_reason": None,
            "rolled_id": 0,
            "unrolled": 0,
            "heads": counted({}, (), status=True),
            "version": 1,
            **given,
        }

        def job(connection: sa.Connection) -> SessionRecord:
            connection.execute(sa.insert(schema.sessions), row)
            connection.execute(
                sa.insert(schema.transitions),
                {"session_id": session_id, "ts_us": moment, "to_status": status, "version": 1},
            )
            if repeat_key is not None:
                repeats.settle(connection, repeat_key, session_id)
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
        owner: str | None = None,
        reopen: bool = False,
        **changes: Unpack[SessionChanges],
    ) -> SessionRecord:
        """Change a session in one transaction and count its version up.

        A new ``status`` has to be a legal move (:class:`StateError`), unless ``reopen`` takes an ended session back
        into the queue. ``allowed_from`` leaves the session as it is when it has any other status. Raises
        :class:`VersionConflictError` when the session is not at ``expected_version``, :class:`LeaseLostError` when its
        lease is not that of ``owner``. A session that is no longer active has no lease.
        """
        columns: dict[str, Any] = {
            TIME_COLUMNS.get(name, name): to_us(value) if isinstance(value, datetime) else value
            for name, value in changes.items()
        }

        def job(connection: sa.Connection) -> tuple[SessionRecord, bool]:
            session = lock_session(connection, session_id)
            if expected_version is not None and session["version"] != expected_version:
                raise VersionConflictError(expected_version, session["version"])
            if owner is not None:
                check_owner(session, owner)
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
        return await self._report(Report(session_id, producer, events=events), len(events))

    async def add_data(self, session_id: str, data: Sequence[Message]) -> EventReceipt:
        """Store data that came without numbers; they are given here, so nothing can be told to be a repeat."""
        return await self._report(Report(session_id, UNNUMBERED, data=data), len(data))

    async def _report(self, report: Report, rows: int) -> EventReceipt:
        def after(done: Ingested) -> None:
            self.counts.accepted += done.receipt.accepted
            self.counts.repeated += done.receipt.duplicates
            self.counts.rows += done.receipt.accepted
            if done.tail:
                self._note_tail(report.session_id, done.tail)
            if done.committed.events or done.committed.session_changed:
                self._tell(done.committed)

        done = await self._writer.submit_to(ingest, report, rows=max(1, rows), after=after)
        return done.receipt

    def _note_tail(self, session_id: str, rows: int) -> None:
        since, _ = self._tails.get(session_id) or (asyncio.get_running_loop().time(), 0)
        self._tails[session_id] = since, rows

    async def _roll_tails(self) -> None:
        """Sum up what came one by one, a little later and together (see :mod:`.rollups`)."""
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(_ROLL_PAUSE_S)
            for session_id, (since, rows) in sorted(self._tails.items()):
                if rows < ROLL_ROWS and loop.time() - since < ROLL_SECONDS:
                    continue
                del self._tails[session_id]  # first: readings that come meanwhile put it back
                try:
                    while await self._writer.submit(partial(roll_up, session_id=session_id)):
                        pass
                except (StorageBusyError, StorageUnavailableError):
                    self._tails[session_id] = since, rows
                    break  # the next round may be luckier; histories add the tails themselves

    async def add_episodes(self, session_id: str, episodes: Sequence[NewEpisode]) -> int:
        """Store finished episodes; one whose ``episode_id`` the session has already stays as it is.

        Returns how many are new. Raises :class:`NotFoundError`.
        """
        moment = now_us()

        def job(connection: sa.Connection) -> int:
            lock_session(connection, session_id)
            return insert_episodes(connection, session_id, episodes, moment)

        return await self._writer.submit(job, rows=max(1, len(episodes)))

    async def clean_up(self, keep: int, *, moment_us: int | None = None) -> int:
        """Take away what retention does not keep (see :mod:`.retention`), in small transactions; returns the rows.

        ``keep`` readings, decisions and reports of each session stay. Idempotency keys go a day after they were made;
        ``moment_us`` says what time it is, by default this machine's. Other writes go in between.
        """
        moment = now_us() if moment_us is None else moment_us
        removed = await self._writer.submit(partial(repeats.forget, moment=moment))
        for table in retention.TABLES:
            for session_id, last_id in await self._read(partial(retention.surpluses, table=table, keep=keep)):
                some = partial(retention.remove_some, table=table, session_id=session_id, last_id=last_id)
                while gone := await self._writer.submit(some, rows=retention.BATCH):
                    removed += gone
        return removed

    # Requests that may be repeated

    async def claim_key(self, key: str, fingerprint: str) -> str | None:
        """Begin a repeatable request: ``None`` for a new key, or the session id that the first request with it made.

        Raises :class:`IdempotencyError` when the key came with another body or its first request is still at work.
        """
        return await self._writer.submit(lambda connection: repeats.claim(connection, key, fingerprint))

    async def settle_key(self, key: str, session_id: str | None) -> None:
        """End a repeatable request: remember the session it made, or forget the key when it made none."""
        await self._writer.submit(lambda connection: repeats.settle(connection, key, session_id))
