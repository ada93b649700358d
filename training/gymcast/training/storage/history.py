"""A session's history: raw readings page by page, or any number of buckets at a bounded cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import sqlalchemy as sa

from . import cursors
from .ids import rfc3339
from .records import Page
from .rollups import WIDTHS_S, Sums, add_sums, add_value, metric_values, tail
from .schema import decisions, graph_points, graphs, metric_rollups, metrics, sessions

MAX_POINTS: Final = 2_000


@dataclass(frozen=True, slots=True)
class HistoryRange:
    """What part of a history is wanted; ``None`` means no bound. Times are microseconds, both ends inclusive."""

    start_us: int | None = None
    end_us: int | None = None
    first_episode: int | None = None
    last_episode: int | None = None

    def conditions(self, session_id: str) -> list[sa.ColumnElement[bool]]:
        """As SQL on ``metrics``."""
        found: list[sa.ColumnElement[bool]] = [metrics.c.session_id == session_id]
        if self.start_us is not None:
            found.append(metrics.c.ts_us >= self.start_us)
        if self.end_us is not None:
            found.append(metrics.c.ts_us <= self.end_us)
        if self.first_episode is not None:
            found.append(metrics.c.episode >= self.first_episode)
        if self.last_episode is not None:
            found.append(metrics.c.episode <= self.last_episode)
        return found


def count_readings(connection: sa.Connection, session_id: str, wanted: HistoryRange) -> int:
    """Readings in the range."""
    found = connection.scalar(sa.select(sa.func.count()).select_from(metrics).where(*wanted.conditions(session_id)))
    return found or 0


def raw_page(
    connection: sa.Connection, session_id: str, wanted: HistoryRange, limit: int, cursor: str | None
) -> Page[dict[str, Any]]:
    """Readings as they were sent, oldest first. Raises :class:`BadCursorError`."""
    conditions = wanted.conditions(session_id)
    if cursor is not None:
        ts_us, row_id = cursors.decode("history", cursor, (int, int))
        conditions.append(sa.tuple_(metrics.c.ts_us, metrics.c.id) > sa.tuple_(sa.literal(ts_us), sa.literal(row_id)))
    rows = (
        connection.execute(
            sa.select(metrics.c.id, metrics.c.ts_us, metrics.c.data)
            .where(*conditions)
            .order_by(metrics.c.ts_us, metrics.c.id)
            .limit(limit + 1)
        )
    ).all()
    following = cursors.encode("history", rows[limit - 1].ts_us, rows[limit - 1].id) if len(rows) > limit else None
    return Page([row.data for row in rows[:limit]], following)


def buckets(
    connection: sa.Connection,
    session_id: str,
    wanted: HistoryRange,
    points: int,
    names: frozenset[str] | None,
    max_raw_rows: int,
) -> list[dict[str, Any]]:
    """At most ``points`` buckets, oldest first; buckets without a reading are left out.

    Each is ``{timestamp, end, count, metrics: {name: {min, max, mean, count}}}``. Short or small ranges are bucketed
    from the readings themselves; long ones, and those whose readings are not kept any more, from the rollups, whose
    buckets are whole: a bound of the range inside one takes in all of it.
    """
    extent = _extent(connection, session_id, wanted)
    if extent is None:
        return []
    first, last, pruned = extent
    finest = WIDTHS_S[0] * 1_000_000
    span = last - first + 1
    few = points if span >= points * finest else max(points, max_raw_rows)
    conditions = wanted.conditions(session_id)
    if not pruned and _at_most(connection, wanted, session_id, few):
        found = connection.execute(sa.select(metrics.c.ts_us, metrics.c.data).where(*conditions))
        return _from_readings(found.all(), first, -(-span // points), names)
    width_s = max((width for width in WIDTHS_S if width * 1_000_000 * points <= span), default=WIDTHS_S[0])
    first_bucket, last_bucket = first // (width_s * 1_000_000), last // (width_s * 1_000_000)
    table = metric_rollups
    found = connection.execute(
        sa.select(table.c.bucket, table.c.rows, table.c.data).where(
            table.c.session_id == session_id,
            table.c.width_s == width_s,
            table.c.bucket.between(first_bucket, last_bucket),
        )
    )
    joined = -(-(last_bucket - first_bucket + 1) // points)
    rows = [*found.all(), *_tail_buckets(connection, session_id, width_s, first_bucket, last_bucket)]
    return _from_rollups(rows, width_s, first_bucket, joined, names)


def _extent(connection: sa.Connection, session_id: str, wanted: HistoryRange) -> tuple[int, int, bool] | None:
    """Times of the first and the last reading of the range, and whether rollups are all that is left of some."""
    here = wanted.conditions(session_id)
    # One by one: only so are they looked up at the ends of an index.
    first = connection.scalar(sa.select(sa.func.min(metrics.c.ts_us)).where(*here))
    last = connection.scalar(sa.select(sa.func.max(metrics.c.ts_us)).where(*here))
    if wanted.first_episode is not None or wanted.last_episode is not None:
        return None if first is None or last is None else (first, last, False)
    width = WIDTHS_S[0] * 1_000_000
    bucket = metric_rollups.c.bucket
    rolled = [metric_rollups.c.session_id == session_id, metric_rollups.c.width_s == WIDTHS_S[0]]
    if wanted.start_us is not None:
        rolled.append(bucket >= -(-wanted.start_us // width))  # only whole ones
    if wanted.end_us is not None:
        rolled.append(bucket <= wanted.end_us // width)
    oldest = connection.scalar(sa.select(sa.func.min(bucket)).where(*rolled))
    if oldest is None or (first is not None and first // width <= oldest):
        return None if first is None or last is None else (first, last, False)
    if last is None:
        newest = connection.scalar(sa.select(sa.func.max(bucket)).where(*rolled))
        last = (oldest if newest is None else newest) * width + width - 1
    return oldest * width, last, True


def _at_most(connection: sa.Connection, wanted: HistoryRange, session_id: str, count: int) -> bool:
    some = sa.select(metrics.c.id).where(*wanted.conditions(session_id)).limit(count + 1)
    if wanted.first_episode is None and wanted.last_episode is None:
        # In the order of an index: PostgreSQL would rather look through the table until it has found enough.
        some = some.order_by(metrics.c.ts_us, metrics.c.id)
    return (connection.scalar(sa.select(sa.func.count()).select_from(some.subquery())) or 0) <= count


def _tail_buckets(
    connection: sa.Connection, session_id: str, width_s: int, first_bucket: int, last_bucket: int
) -> list[tuple[int, int, Sums]]:
    """What the rollups do not hold yet, as rows of them."""
    if not connection.scalar(sa.select(sessions.c.unrolled).where(sessions.c.session_id == session_id)):
        return []
    found: list[tuple[int, int, Sums]] = []
    for _, ts_us, data in tail(connection, session_id):
        bucket = ts_us // (width_s * 1_000_000)
        if first_bucket <= bucket <= last_bucket:
            sums: Sums = {}
            for name, value in metric_values(data).items():
                add_value(sums, name, value)
            found.append((bucket, 1, sums))
    return found


def _from_readings(
    rows: Iterable[Sequence[Any]], first: int, width: int, names: frozenset[str] | None
) -> list[dict[str, Any]]:
    found: dict[int, tuple[int, Sums]] = {}
    for ts_us, data in rows:
        index = (ts_us - first) // width
        count, sums = found.get(index, (0, {}))
        for name, value in metric_values(data).items():
            if names is None or name in names:
                add_value(sums, name, value)
        found[index] = (count + 1, sums)
    return [_bucket(first + index * width, width, *found[index]) for index in sorted(found)]


def _from_rollups(
    rows: Iterable[Sequence[Any]], width_s: int, first_bucket: int, joined: int, names: frozenset[str] | None
) -> list[dict[str, Any]]:
    """Join every ``joined`` buckets of the rollup, counted from ``first_bucket``, into one."""
    found: dict[int, tuple[int, Sums]] = {}
    for bucket, rows_in_bucket, data in rows:
        wanted = data if names is None else {name: entry for name, entry in data.items() if name in names}
        index = (bucket - first_bucket) // joined
        held = found.get(index)
        if held is None:
            found[index] = (rows_in_bucket, wanted)  # as it was read; what is joined to it is added there
        else:
            add_sums(held[1], wanted)
            found[index] = (held[0] + rows_in_bucket, held[1])
    width = width_s * 1_000_000
    return [_bucket((first_bucket + index * joined) * width, joined * width, *found[index]) for index in sorted(found)]


def _bucket(start_us: int, width: int, rows: int, sums: Sums) -> dict[str, Any]:
    return {
        "timestamp": rfc3339(start_us),
        "end": rfc3339(start_us + width),
        "count": rows,
        "metrics": {
            name: {"min": low, "max": high, "mean": total / count, "count": int(count)}
            for name, (count, low, high, total) in sums.items()
        },
    }


def graph_list(connection: sa.Connection, session_id: str, wanted: HistoryRange) -> list[dict[str, Any]]:
    """Every graph of a session in the form of ``PerformanceGraphData``, with the points inside the range."""
    conditions: list[sa.ColumnElement[bool]] = [graph_points.c.session_id == session_id]
    if wanted.start_us is not None:
        conditions.append(graph_points.c.ts_us >= wanted.start_us)
    if wanted.end_us is not None:
        conditions.append(graph_points.c.ts_us <= wanted.end_us)
    found = connection.execute(sa.select(graphs).where(graphs.c.session_id == session_id).order_by(graphs.c.graph_id))
    answer = {
        row["graph_id"]: {
            "graph_id": row["graph_id"],
            "title": row["title"],
            "y_label": row["y_label"],
            "metrics": row["metrics"],
            "data_points": {},
            "max_points": row["max_points"],
        }
        for row in found.mappings()
    }
    points = connection.execute(
        sa.select(graph_points.c.graph_id, graph_points.c.metric, graph_points.c.ts_us, graph_points.c.value)
        .where(*conditions)
        .order_by(graph_points.c.graph_id, graph_points.c.metric, graph_points.c.ts_us)
    )
    for graph_id, metric, ts_us, value in points:
        curve = answer[graph_id]["data_points"].setdefault(metric, [])
        curve.append({"timestamp": rfc3339(ts_us), "value": value})
    return list(answer.values())


def decision_list(connection: sa.Connection, session_id: str, wanted: HistoryRange, limit: int) -> list[dict[str, Any]]:
    """The newest ``limit`` decisions in the range, oldest first."""
    conditions: list[sa.ColumnElement[bool]] = [decisions.c.session_id == session_id]
    if wanted.start_us is not None:
        conditions.append(decisions.c.ts_us >= wanted.start_us)
    if wanted.end_us is not None:
        conditions.append(decisions.c.ts_us <= wanted.end_us)
    found = connection.scalars(
        sa.select(decisions.c.data).where(*conditions).order_by(decisions.c.id.desc()).limit(limit)
    )
    return list(found)[::-1]
