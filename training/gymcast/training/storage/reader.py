"""Reading back what is stored, in threads beside the writer's."""

from __future__ import annotations

import json
import logging
import zlib
from collections.abc import Callable, Sequence
from typing import Any, Final, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError

from gymcast.training.ratings import Evaluated

from . import cursors, history, missed, schema
from .engine import Database
from .errors import NotFoundError, StorageUnavailableError
from .history import HistoryRange
from .ids import from_us
from .missed import Missed
from .records import (
    CheckpointItem,
    EpisodeItem,
    ErrorItem,
    EvaluationItem,
    Item,
    Page,
    ReplayItem,
    ReplayRecord,
    SessionLoad,
    SessionRecord,
    TransitionItem,
    stamp,
)
from .states import ACTIVE

log = logging.getLogger(__name__)

T = TypeVar("T")

# Newest results that a ladder is made of.
MAX_RATED: Final = 2_000


class Reader:
    """The reading half of :class:`~gymcast.training.storage.Storage`."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def _read(self, query: Callable[[sa.Connection], T]) -> T:
        try:
            return await self._database.read(query)
        except SQLAlchemyError as error:
            log.error("a read failed: %s", error)
            raise StorageUnavailableError("the database refused a read") from error

    async def _rows(self, query: sa.Select[Any]) -> Sequence[sa.RowMapping]:
        return await self._read(lambda connection: connection.execute(query).mappings().all())

    # Sessions

    async def get_session(self, session_id: str) -> SessionRecord:
        """One session. Raises :class:`NotFoundError`."""
        rows = await self._rows(sa.select(schema.sessions).where(schema.sessions.c.session_id == session_id))
        if not rows:
            raise NotFoundError("session", session_id)
        return SessionRecord.from_row(rows[0])

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
        rows = await self._rows(query)
        records = [SessionRecord.from_row(row) for row in rows[:limit]]
        return records, cursors.encode("sessions", records[-1].session_id) if len(rows) > limit else None

    async def heads(self, session_ids: Sequence[str]) -> dict[str, dict[str, int]]:
        """The newest number of each type of live message, of those sessions that exist."""
        return await self._read(lambda connection: missed.heads_of(connection, session_ids))

    async def read_back(self, session_id: str, kind: str, after: int, limit: int) -> list[Missed]:
        """Live messages of one type that followed the number ``after``; see :func:`.missed.read_back`."""
        return await self._read(lambda connection: missed.read_back(connection, session_id, kind, after, limit))

    async def session_load(self) -> SessionLoad:
        """Sessions by status, and how far the active ones are."""
        table = schema.sessions
        by_status = sa.select(table.c.status, sa.func.count().label("sessions")).group_by(table.c.status)
        active = sa.select(table.c.session_id, table.c.timesteps).where(table.c.status.in_(sorted(ACTIVE)))

        def query(connection: sa.Connection) -> SessionLoad:
            counts = {row.status: row.sessions for row in connection.execute(by_status)}
            return SessionLoad(counts, {row.session_id: row.timesteps for row in connection.execute(active)})

        return await self._read(query)

    async def count_sessions(self, statuses: Sequence[str]) -> int:
        """How many sessions are in one of ``statuses``."""
        query = sa.select(sa.func.count()).select_from(schema.sessions).where(schema.sessions.c.status.in_(statuses))
        return await self._read(lambda connection: connection.execute(query).scalar_one())

    async def transitions(self, session_id: str) -> list[TransitionItem]:
        """Every change of status, oldest first."""
        table = schema.transitions
        rows = await self._rows(sa.select(table).where(table.c.session_id == session_id).order_by(table.c.id))
        return [cast(TransitionItem, stamp(row, drop=("id", "session_id"))) for row in rows]

    async def transition_page(
        self, session_id: str, *, cursor: str | None = None, limit: int = 100
    ) -> Page[TransitionItem]:
        """Changes of status, newest first."""
        return await self._newest_first(
            schema.transitions, TransitionItem, session_id, cursor, limit, drop=("session_id",)
        )

    # Reading back

    async def history_raw(
        self, session_id: str, wanted: HistoryRange, *, limit: int = 1000, cursor: str | None = None
    ) -> Page[dict[str, Any]]:
        """Readings as they were sent, oldest first."""
        return await self._read(lambda connection: history.raw_page(connection, session_id, wanted, limit, cursor))

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
        return await self._read(
            lambda connection: history.buckets(connection, session_id, wanted, points, names, max_raw_rows)
        )

    async def count_readings(self, session_id: str, wanted: HistoryRange) -> int:
        """Raw readings in the range."""
        return await self._read(lambda connection: history.count_readings(connection, session_id, wanted))

    async def graphs(self, session_id: str, wanted: HistoryRange | None = None) -> list[dict[str, Any]]:
        """Every graph of a session in the form of ``PerformanceGraphData``."""
        return await self._read(lambda connection: history.graph_list(connection, session_id, wanted or HistoryRange()))

    async def decisions(
        self, session_id: str, wanted: HistoryRange | None = None, *, limit: int = 100
    ) -> list[dict[str, Any]]:
        """The newest decisions, oldest first."""
        return await self._read(
            lambda connection: history.decision_list(connection, session_id, wanted or HistoryRange(), limit)
        )

    async def last_metrics(self, session_id: str) -> dict[str, Any] | None:
        """The newest reading."""
        table = schema.metrics
        query = sa.select(table.c.data).where(table.c.session_id == session_id)
        rows = await self._rows(query.order_by(table.c.ts_us.desc(), table.c.id.desc()).limit(1))
        return rows[0]["data"] if rows else None

    async def newest_readings(self, session_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The newest reading of each of these sessions that has one."""
        table = schema.metrics
        newest = sa.select(sa.func.max(table.c.id)).where(table.c.session_id.in_(session_ids))
        query = sa.select(table.c.session_id, table.c.data).where(table.c.id.in_(newest.group_by(table.c.session_id)))
        return {row["session_id"]: row["data"] for row in await self._rows(query)}

    async def checkpoints(
        self, session_id: str, *, cursor: str | None = None, limit: int = 100
    ) -> Page[CheckpointItem]:
        """Checkpoints, newest first."""
        return await self._newest_first(schema.checkpoints, CheckpointItem, session_id, cursor, limit)

    async def evaluations(
        self, session_id: str, *, cursor: str | None = None, limit: int = 100
    ) -> Page[EvaluationItem]:
        """Evaluations, newest first."""
        return await self._newest_first(schema.evaluations, EvaluationItem, session_id, cursor, limit)

    async def errors(self, session_id: str, *, cursor: str | None = None, limit: int = 100) -> Page[ErrorItem]:
        """What was reported to have gone wrong, newest first, as far as events are kept."""
        table = schema.events
        page = await self._newest_first(
            table, dict, session_id, cursor, limit, drop=("producer", "seq", "type"), only=table.c.type == "error"
        )
        return Page([cast(ErrorItem, item | item.pop("data")) for item in page.items], page.next_cursor)

    async def newest_evaluations(self, env_id: str | None = None) -> list[Evaluated]:
        """The newest games of every bot against each scripted opponent, in one environment when it is named.

        The environment of a training elsewhere is that of its replays; without any it is not known, and left out.
        """
        table, sessions, replays = schema.evaluations, schema.sessions, schema.replays
        newest = sa.select(sa.func.max(table.c.id)).where(table.c.opponent != "")
        shown = sa.select(sa.func.max(replays.c.env_id)).where(replays.c.session_id == sessions.c.session_id)
        env = sa.func.coalesce(sessions.c.env_id, shown.scalar_subquery()).label("env_id")
        query = (
            sa.select(
                env,
                sessions.c.session_id,
                sessions.c.training_session_id.label("name"),
                *(table.c.opponent, table.c.wins, table.c.losses, table.c.draws),
            )
            .join(sessions, sessions.c.session_id == table.c.session_id)
            .where(table.c.id.in_(newest.group_by(table.c.session_id, table.c.opponent)), env.is_not(None))
            .order_by(table.c.id.desc())
            .limit(MAX_RATED)
        )
        if env_id is not None:
            query = query.where(env == env_id)
        return [Evaluated(**row) for row in await self._rows(query)]

    async def episodes(self, session_id: str, *, cursor: str | None = None, limit: int = 100) -> Page[EpisodeItem]:
        """Episodes that were asked for one by one, newest first."""
        return await self._newest_first(schema.episodes, EpisodeItem, session_id, cursor, limit)

    async def replays(self, session_id: str | None, *, cursor: str | None = None, limit: int = 100) -> Page[ReplayItem]:
        """Replays of a session, or of all of them, without their content, newest first."""
        return await self._newest_first(
            schema.replays, ReplayItem, session_id, cursor, limit, drop=("content", "decisions")
        )

    async def _newest_first(
        self,
        table: sa.Table,
        _item: type[Item],
        session_id: str | None,
        cursor: str | None,
        limit: int,
        drop: tuple[str, ...] = (),
        only: sa.ColumnElement[bool] | None = None,
    ) -> Page[Item]:
        columns = [column for column in table.c if column.name not in drop]
        query = sa.select(*columns).order_by(table.c.id.desc())
        if only is not None:
            query = query.where(only)
        if session_id is not None:
            query = query.where(table.c.session_id == session_id)
        if cursor is not None:
            (last,) = cursors.decode(table.name, cursor, (int,))
            query = query.where(table.c.id < last)
        rows = await self._rows(query.limit(limit + 1))
        following = cursors.encode(table.name, rows[limit - 1]["id"]) if len(rows) > limit else None
        return Page([cast(Item, stamp(row, drop=("id",))) for row in rows[:limit]], following)

    async def replay(self, replay_id: str) -> ReplayRecord:
        """One stored episode with its content. Raises :class:`NotFoundError`."""
        table = schema.replays
        rows = await self._rows(sa.select(table).where(table.c.replay_id == replay_id))
        if not rows:
            raise NotFoundError("replay", replay_id)
        row = rows[0]
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
