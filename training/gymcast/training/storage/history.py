"""A session's history: raw readings page by page, or any number of buckets at a bounded cost."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import numpy as np
import sqlalchemy as sa

from . import cursors
from .ids import rfc3339, rfc3339_all
from .records import Page
from .rollups import WIDTHS_S, blocks_of_values, metric_values, tail
from .schema import decisions, graph_points, graphs, metric_rollups, metrics, sessions
from .sums import Buckets, merged

MAX_POINTS: Final = 2_000
_ENDS: Final = (sa.func.min, sa.func.max)


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
        found = connection.execute(sa.select(metrics.c.ts_us, metrics.c.data).where(*conditions)).all()
        readings = blocks_of_values((ts_us, metric_values(data)) for ts_us, data in found)
        return _joined(readings, first, -(-span // points), 1, names)
    width_s = max((width for width in WIDTHS_S if width * 1_000_000 * points <= span), default=WIDTHS_S[0])
    first_bucket, last_bucket = first // (width_s * 1_000_000), last // (width_s * 1_000_000)
    table = metric_rollups
    stored = connection.execute(
        sa.select(table.c.bucket, table.c.rows, table.c.names, table.c.sums)
        .where(
            table.c.session_id == session_id,
            table.c.width_s == width_s,
            table.c.bucket.between(first_bucket, last_bucket),
        )
        .order_by(table.c.bucket)
    ).all()
    parts = [*Buckets.of_rows(stored), *_tail(connection, session_id, width_s, first_bucket, last_bucket)]
    joined = -(-(last_bucket - first_bucket + 1) // points)
    return _joined(parts, first_bucket, joined, width_s * 1_000_000, names)


def _extent(connection: sa.Connection, session_id: str, wanted: HistoryRange) -> tuple[int, int, bool] | None:
    """Times of the first and the last reading of the range, and whether rollups are all that is left of some."""
    width = WIDTHS_S[0] * 1_000_000
    bucket = metric_rollups.c.bucket
    rolled = [metric_rollups.c.session_id == session_id, metric_rollups.c.width_s == WIDTHS_S[0]]
    if wanted.start_us is not None:
        rolled.append(bucket >= -(-wanted.start_us // width))  # only whole ones
    if wanted.end_us is not None:
        rolled.append(bucket <= wanted.end_us // width)
    # Each a query of its own within one: only so are they looked up at the ends of an index.
    first, last, oldest, newest = connection.execute(
        sa.select(
            *(sa.select(end(metrics.c.ts_us)).where(*wanted.conditions(session_id)).scalar_subquery() for end in _ENDS),
            *(sa.select(end(bucket)).where(*rolled).scalar_subquery() for end in _ENDS),
        )
    ).one()
    episodes = wanted.first_episode is not None or wanted.last_episode is not None
    if episodes or oldest is None or (first is not None and first // width <= oldest):
        return None if first is None else (first, last, False)
    return oldest * width, newest * width + width - 1 if last is None else last, True


def _at_most(connection: sa.Connection, wanted: HistoryRange, session_id: str, count: int) -> bool:
    some = sa.select(metrics.c.id).where(*wanted.conditions(session_id)).limit(count + 1)
    if wanted.first_episode is None and wanted.last_episode is None:
        # In the order of an index: PostgreSQL would rather look through the table until it has found enough.
        some = some.order_by(metrics.c.ts_us, metrics.c.id)
    return (connection.scalar(sa.select(sa.func.count()).select_from(some.subquery())) or 0) <= count


def _tail(
    connection: sa.Connection, session_id: str, width_s: int, first_bucket: int, last_bucket: int
) -> Iterator[Buckets]:
    """What the rollups do not hold yet, in such buckets."""
    if not connection.scalar(sa.select(sessions.c.unrolled).where(sessions.c.session_id == session_id)):
        return
    rows = tail(connection, session_id)
    for readings in blocks_of_values((row.ts_us, metric_values(row.data)) for row in rows):
        part = readings.joined(readings.numbers // (width_s * 1_000_000))
        yield part.where((part.numbers >= first_bucket) & (part.numbers <= last_bucket))


def _joined(
    parts: Iterable[Buckets], first: int, joined: int, width_us: int, names: frozenset[str] | None
) -> list[dict[str, Any]]:
    """Every ``joined`` buckets, counted from ``first`` and ``width_us`` wide, as one."""
    wide = []
    for part in parts:
        wanted = part if names is None else part.only(names)
        if len(wanted.numbers):
            wide.append(wanted.joined((wanted.numbers - first) // joined))
    found = sorted((bucket for part in merged(wide) for bucket in _described(part)), key=itemgetter(0))
    starts = np.array([(first + place * joined) * width_us for place, _, _ in found], np.int64)
    ends = rfc3339_all(starts + joined * width_us)
    return [
        {"timestamp": start, "end": end, "count": rows, "metrics": values}
        for start, end, (_, rows, values) in zip(rfc3339_all(starts), ends, found, strict=True)
    ]


def _described(part: Buckets) -> Iterator[tuple[int, int, dict[str, dict[str, float]]]]:
    """Number, readings and metrics of each bucket."""
    counts, lows, highs, totals = np.moveaxis(part.sums, 2, 0)
    with np.errstate(invalid="ignore"):
        means = totals / counts
    columns = lows.tolist(), highs.tolist(), means.tolist(), counts.astype(np.int64).tolist()
    for number, rows, *values in zip(part.numbers.tolist(), part.rows.tolist(), *columns, strict=True):
        yield (
            number,
            rows,
            {
                name: {"min": low, "max": high, "mean": mean, "count": count}
                for name, low, high, mean, count in zip(part.names, *values, strict=True)
                if count
            },
        )


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
