"""The storage of sessions and everything their producers report."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Final, Self, TypedDict, TypeVar, Unpack

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from gymcast.training.events import Event, EventReceipt, Message, event_type_of, utc_now

from . import cursors, history, schema
from .engine import WRITER_OPTION, create_engine, database_url, migrate
from .errors import IdempotencyError, NotFoundError, StorageUnavailableError, VersionConflictError
from .history import HistoryRange
from .ids import from_us, new_id, now_us, to_us
from .ingest import Ingested, ingest, lock_session, next_seq, times_of_move, write_session
from .records import TIME_COLUMNS, Committed, Page, ReplayRecord, SessionChanges, SessionRecord, stamp
from .states import TERMINAL, check_move
from .writer import Writer

log = logging.getLogger(__name__)

T = TypeVar("T")
Listener = Callable[[Committed], None]

IDEMPOTENCY_HOURS: Final = 24
# A first request that has not ended by then died with its server.
_STALE_US: Final = 60_000_000
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


class Storage:
    """One database. Open it with ``await Storage.open(url)``, or use ``async with await Storage.open(url) as storage``.

    Writes go through one writer and return after their commit. Reads run beside it on connections of their own.
    Methods raise the errors of :mod:`gymcast.training.storage.errors` and no other.
    """

    def __init__(self, engine: AsyncEngine, connection: AsyncConnection) -> None:
        self._engine = engine
        self._connection = connection
        self._writer = Writer(connection)
        self._listeners: list[Listener] = []

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open (and, if need be, create or migrate) the database at ``url``, such as ``sqlite:///data/metrics.db``."""
        engine = create_engine(database_url(url))
        try:
            connection = await engine.connect()
            connection = await connection.execution_options(**{WRITER_OPTION: True})
            try:
                await migrate(connection)
            except BaseException:
                await connection.close()
                raise
        except (SQLAlchemyError, OSError) as error:
            await engine.dispose()
            raise StorageUnavailableError(f"the database cannot be opened: {error}") from error
        except BaseException:
            await engine.dispose()
            raise
        return cls(engine, connection)

    async def close(self) -> None:
        """Commit what is waiting and close every connection."""
        await self._writer.close()
        await self._connection.close()
        await self._engine.dispose()

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

    @asynccontextmanager
    async def _read(self) -> AsyncIterator[AsyncConnection]:
        try:
            async with self._engine.connect() as connection:
                yield connection
        except SQLAlchemyError as error:
            log.error("a read failed: %s", error)
            raise StorageUnavailableError("the database refused a read") from error

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

        async def job(connection: AsyncConnection) -> SessionRecord:
            await connection.execute(sa.insert(schema.sessions), row)
            await connection.execute(
                sa.insert(schema.transitions), {"session_id": session_id, "ts_us": moment, "to_status": status}
            )
            return SessionRecord.from_row(row)

        return await self._writer.submit(
            job, after=lambda record: self._tell(Committed(session_id, record, session_changed=True))
        )

    async def get_session(self, session_id: str) -> SessionRecord:
        """One session. Raises :class:`NotFoundError`."""
        async with self._read() as connection:
            found = await connection.execute(
                sa.select(schema.sessions).where(schema.sessions.c.session_id == session_id)
            )
            row = found.mappings().first()
        if row is None:
            raise NotFoundError("session", session_id)
        return SessionRecord.from_row(row)

    async def list_sessions(
        self, *, cursor: str | None = None, limit: int = 100, statuses: Sequence[str] | None = None
    ) -> tuple[list[SessionRecord], str | None]:
        """Sessions, newest first, and the next cursor; only those in ``statuses`` when given."""
        table = schema.sessions
        query = sa.select(table).order_by(table.c.session_id.desc()).limit(limit + 1)
        if cursor is not None:
            (last,) = cursors.decode("sessions", cursor, (str,))
            query = query.where(table.c.session_id < last)
        if statuses is not None:
            query = query.where(table.c.status.in_(statuses))
        async with self._read() as connection:
            rows = (await connection.execute(query)).mappings().all()
        records = [SessionRecord.from_row(row) for row in rows[:limit]]
        return records, cursors.encode("sessions", records[-1].session_id) if len(rows) > limit else None

    async def count_sessions(self, statuses: Sequence[str]) -> int:
        """How many sessions are in one of ``statuses``."""
        async with self._read() as connection:
            found = await connection.scalar(
                sa.select(sa.func.count()).select_from(schema.sessions).where(schema.sessions.c.status.in_(statuses))
            )
        return found or 0

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

        async def job(connection: AsyncConnection) -> tuple[SessionRecord, bool]:
            session = await lock_session(connection, session_id)
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
                session |= await write_session(connection, session, wanted, visible=True)
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

        async def job(connection: AsyncConnection) -> None:
            session = await lock_session(connection, session_id)
            if expected_version is not None and session["version"] != expected_version:
                raise VersionConflictError(expected_version, session["version"])
            await connection.execute(sa.delete(schema.sessions).where(schema.sessions.c.session_id == session_id))

        await self._writer.submit(job, after=lambda _none: self._tell(Committed(session_id, None)))

    async def transitions(self, session_id: str) -> list[dict[str, Any]]:
        """Every change of status, oldest first: ``{timestamp, from_status, to_status, reason}``."""
        table = schema.transitions
        async with self._read() as connection:
            found = await connection.execute(
                sa.select(table).where(table.c.session_id == session_id).order_by(table.c.id)
            )
            return [stamp(row, drop=("id", "session_id")) for row in found.mappings()]

    # Events

    async def add_events(self, session_id: str, producer: str, events: Sequence[Event]) -> EventReceipt:
        """Store a batch; events whose ``(session, producer, seq)`` is known are counted as duplicates.

        Empty: a heartbeat.
        """

        async def job(connection: AsyncConnection) -> Ingested:
            return await ingest(connection, session_id, producer, events)

        return await self._submit_events(job, len(events))

    async def add_data(self, session_id: str, data: Sequence[Message]) -> EventReceipt:
        """Store data that came without numbers; they are given here, so nothing can be told to be a repeat."""
        moment = utc_now()

        async def job(connection: AsyncConnection) -> Ingested:
            await lock_session(connection, session_id)
            first = await next_seq(connection, session_id, UNNUMBERED)
            events = [
                Event.model_validate({"seq": first + place, "ts": moment, "type": event_type_of(item), "data": item})
                for place, item in enumerate(data)
            ]
            return await ingest(connection, session_id, UNNUMBERED, events)

        return await self._submit_events(job, len(data))

    async def _submit_events(self, job: Callable[[AsyncConnection], Any], rows: int) -> EventReceipt:
        def after(done: Ingested) -> None:
            if done.committed.events or done.committed.session_changed:
                self._tell(done.committed)

        done: Ingested = await self._writer.submit(job, rows=max(1, rows), after=after)
        return done.receipt

    # Reading back

    async def history_raw(
        self, session_id: str, wanted: HistoryRange, *, limit: int = 1000, cursor: str | None = None
    ) -> Page:
        """Readings as they were sent, oldest first."""
        async with self._read() as connection:
            return await history.raw_page(connection, session_id, wanted, limit, cursor)

    async def history(
        self,
        session_id: str,
        wanted: HistoryRange,
        *,
        points: int,
        metrics: Sequence[str] | None = None,
        max_raw_rows: int = 10_000,
    ) -> list[dict[str, Any]]:
        """At most ``points`` buckets with min, max, mean and count of each metric; see :func:`.history.buckets`."""
        names = None if metrics is None else frozenset(metrics)
        async with self._read() as connection:
            return await history.buckets(connection, session_id, wanted, points, names, max_raw_rows)

    async def count_readings(self, session_id: str, wanted: HistoryRange) -> int:
        """Raw readings in the range."""
        async with self._read() as connection:
            return await history.count_readings(connection, session_id, wanted)

    async def graphs(self, session_id: str, wanted: HistoryRange | None = None) -> list[dict[str, Any]]:
        """Every graph of a session in the form of ``PerformanceGraphData``."""
        async with self._read() as connection:
            return await history.graph_list(connection, session_id, wanted or HistoryRange())

    async def decisions(
        self, session_id: str, wanted: HistoryRange | None = None, *, limit: int = 100
    ) -> list[dict[str, Any]]:
        """The newest decisions, oldest first."""
        async with self._read() as connection:
            return await history.decision_list(connection, session_id, wanted or HistoryRange(), limit)

    async def last_metrics(self, session_id: str) -> dict[str, Any] | None:
        """The newest reading."""
        table = schema.metrics
        query = sa.select(table.c.data).where(table.c.session_id == session_id)
        async with self._read() as connection:
            found: dict[str, Any] | None = await connection.scalar(
                query.order_by(table.c.ts_us.desc(), table.c.id.desc()).limit(1)
            )
        return found

    async def checkpoints(self, session_id: str, *, cursor: str | None = None, limit: int = 100) -> Page:
        """Checkpoints, newest first."""
        return await self._newest_first(schema.checkpoints, "checkpoints", session_id, cursor, limit)

    async def evaluations(self, session_id: str, *, cursor: str | None = None, limit: int = 100) -> Page:
        """Evaluations, newest first."""
        return await self._newest_first(schema.evaluations, "evaluations", session_id, cursor, limit)

    async def replays(self, session_id: str, *, cursor: str | None = None, limit: int = 100) -> Page:
        """Replays without their content, newest first."""
        return await self._newest_first(
            schema.replays, "replays", session_id, cursor, limit, drop=("content", "decisions")
        )

    async def _newest_first(
        self, table: sa.Table, kind: str, session_id: str, cursor: str | None, limit: int, drop: tuple[str, ...] = ()
    ) -> Page:
        columns = [column for column in table.c if column.name not in drop]
        query = sa.select(*columns).where(table.c.session_id == session_id).order_by(table.c.id.desc())
        if cursor is not None:
            (last,) = cursors.decode(kind, cursor, (int,))
            query = query.where(table.c.id < last)
        async with self._read() as connection:
            rows = (await connection.execute(query.limit(limit + 1))).mappings().all()
        following = cursors.encode(kind, rows[limit - 1]["id"]) if len(rows) > limit else None
        return Page([stamp(row, drop=("id",)) for row in rows[:limit]], following)

    async def replay(self, replay_id: str) -> ReplayRecord:
        """One stored episode with its content. Raises :class:`NotFoundError`."""
        table = schema.replays
        async with self._read() as connection:
            row = (await connection.execute(sa.select(table).where(table.c.replay_id == replay_id))).mappings().first()
        if row is None:
            raise NotFoundError("replay", replay_id)
        packed = row["decisions"]
        return ReplayRecord(
            replay_id=replay_id,
            session_id=row["session_id"],
            timestamp=from_us(row["ts_us"]),
            env_id=row["env_id"],
            episode=row["episode"],
            timesteps=row["timesteps"],
            summary=row["summary"],
            content=row["content"],
            decisions=json.loads(zlib.decompress(packed)) if packed else [],
        )

    # Requests that may be repeated

    async def claim_key(self, key: str, fingerprint: str) -> str | None:
        """Begin a repeatable request: ``None`` for a new key, or the session id that the first request with it made.

        Raises :class:`IdempotencyError` when the key came with another body or its first request is still at work.
        """
        table = schema.idempotency
        moment = now_us()
        oldest = moment - timedelta(hours=IDEMPOTENCY_HOURS) // timedelta(microseconds=1)

        async def job(connection: AsyncConnection) -> str | None:
            await connection.execute(sa.delete(table).where(table.c.created_us < oldest))
            row = (await connection.execute(sa.select(table).where(table.c.key == key))).mappings().first()
            if row is None:
                await connection.execute(
                    sa.insert(table), {"key": key, "fingerprint": fingerprint, "created_us": moment}
                )
                return None
            if row["fingerprint"] != fingerprint:
                raise IdempotencyError("this Idempotency-Key was used with another body", running=False)
            if row["session_id"] is None and row["created_us"] < moment - _STALE_US:
                await connection.execute(sa.update(table).where(table.c.key == key).values(created_us=moment))
                return None
            if row["session_id"] is None:
                raise IdempotencyError("the first request with this Idempotency-Key is still at work", running=True)
            return str(row["session_id"])

        return await self._writer.submit(job)

    async def settle_key(self, key: str, session_id: str | None) -> None:
        """End a repeatable request: remember the session it made, or forget the key when it made none."""
        table = schema.idempotency

        async def job(connection: AsyncConnection) -> None:
            if session_id is None:
                await connection.execute(sa.delete(table).where(table.c.key == key))
            else:
                await connection.execute(sa.update(table).where(table.c.key == key).values(session_id=session_id))

        await self._writer.submit(job)
