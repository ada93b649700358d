"""Readings summed up per time bucket, so that a long history is read at a bounded cost.

Bulk readings are summed up as they are stored. Those that come one by one wait as the session's *tail* and are summed
up together later; a history adds the tail itself. What a rollup holds and what is still in the tail is decided by
``rolled_id`` of the session's row, which changes in the same transaction.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa

from gymcast.training.events import TrainingMetricsData

from .bulk import insert_rows
from .schema import metric_rollups, metrics, sessions
from .sums import Buckets, Sums, add_sums, names_text, pack, unpack

# Seconds. Four to one: a history of n points reads at most 4 n rows of the widest level that is still fine enough.
WIDTHS_S: Final = (10, 40, 160, 640, 2_560, 10_240, 40_960)
# From here on a batch is summed up at once: then it costs less than to read it again later.
BULK: Final = 50
# What is summed up of a tail in one transaction.
TAIL_ROWS: Final = 2_000

_OTHERS: Final = frozenset({"timestamp", "algorithm", "extra"})
_FIELDS: Final = tuple(name for name in TrainingMetricsData.model_fields if name not in _OTHERS)
_NUMBERS: Final = attrgetter(*_FIELDS)


def metric_values(data: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a ``training_metrics`` reading by name; ``extra`` is flattened and never hides a field."""
    extra: Mapping[str, Any] = data.get("extra") or {}
    values = {name: value for name, value in extra.items() if value is not None}
    values.update((name, value) for name, value in data.items() if isinstance(value, int | float))
    return values


def blocks_of(times: Sequence[int], readings: Sequence[TrainingMetricsData]) -> list[Buckets]:
    """Readings as they are about to be stored, each a bucket of its own, by their set of extra metrics."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, reading in enumerate(readings):
        groups[tuple(reading.extra)].append(place)
    found = []
    for extra, places in groups.items():
        mine = [readings[place] for place in places]
        at = [times[place] for place in places]
        if _OTHERS.isdisjoint(extra) and not set(extra) & set(_FIELDS):
            rows = [(*_NUMBERS(reading), *reading.extra.values()) for reading in mine]
            found.append(Buckets.of_readings((*_FIELDS, *extra), at, rows))
        else:
            values = (metric_values(reading.__dict__) for reading in mine)
            found += blocks_of_values(zip(at, values, strict=True))
    return found


def blocks_of_values(readings: Iterable[tuple[int, Mapping[str, float]]]) -> list[Buckets]:
    """``(ts_us, values by name)`` readings, each a bucket of its own, by their set of metrics."""
    groups: dict[tuple[str, ...], tuple[list[int], list[list[float]]]] = defaultdict(lambda: ([], []))
    for ts_us, values in readings:
        times, rows = groups[tuple(values)]
        times.append(ts_us)
        rows.append([*values.values()])
    return [Buckets.of_readings(names, times, rows) for names, (times, rows) in groups.items()]


def add_blocks(connection: sa.Connection, session_id: str, blocks: Sequence[Buckets]) -> None:
    """Count readings into every level. The caller holds the session's row lock."""
    if not blocks:
        return
    fresh = [(width, level) for block in blocks for width, level in zip(WIDTHS_S, _levels(block), strict=True)]
    held = _stored(connection, session_id, fresh)
    stored = set(held)
    added: list[tuple[Any, ...]] = []
    for width, level in fresh:
        names = names_text(level.names)
        for place, (bucket, rows) in enumerate(zip(level.numbers.tolist(), level.rows.tolist(), strict=True)):
            key, packed = (width, bucket), level.sums[place].tobytes()
            if len(blocks) == 1 and key not in stored:  # nothing to add to
                added.append((session_id, width, bucket, rows, names, packed))
            else:
                rows_before, sums = held.get(key, (0, {}))
                add_sums(sums, unpack(names, packed))
                held[key] = rows_before + rows, sums
    changed = []
    for (width, bucket), (rows, sums) in held.items():
        names, packed = pack(sums)
        if (width, bucket) in stored:
            changed.append({"b_width": width, "b_bucket": bucket, "rows": rows, "names": names, "sums": packed})
        else:
            added.append((session_id, width, bucket, rows, names, packed))
    table = metric_rollups
    if changed:
        connection.execute(
            sa.update(table).where(
                table.c.session_id == session_id,
                table.c.width_s == sa.bindparam("b_width"),
                table.c.bucket == sa.bindparam("b_bucket"),
            ),
            changed,
        )
    insert_rows(connection, table, ("session_id", "width_s", "bucket", "rows", "names", "sums"), added)


def _levels(block: Buckets) -> Iterator[Buckets]:
    """Readings summed up, in the order of :data:`WIDTHS_S`."""
    level = block.joined(block.numbers // (WIDTHS_S[0] * 1_000_000))
    yield level
    for narrow, wide in pairwise(WIDTHS_S):
        level = level.joined(level.numbers // (wide // narrow))
        yield level


def _stored(
    connection: sa.Connection, session_id: str, fresh: Sequence[tuple[int, Buckets]]
) -> dict[tuple[int, int], tuple[int, Sums]]:
    """How many readings are in those of the buckets that exist, by width and number, and their sums."""
    table = metric_rollups
    wanted: dict[int, set[int]] = defaultdict(set)
    for width, level in fresh:
        wanted[width].update(level.numbers.tolist())
    found = connection.execute(
        sa.select(table.c.width_s, table.c.bucket, table.c.rows, table.c.names, table.c.sums).where(
            table.c.session_id == session_id,
            sa.or_(*(sa.and_(table.c.width_s == width, _among(some)) for width, some in wanted.items())),
        )
    )
    return {
        (width, bucket): (rows, unpack(names, sums))
        for width, bucket, rows, names, sums in found
        if bucket in wanted[width]
    }


def _among(buckets: Collection[int]) -> sa.ColumnElement[bool]:
    """A condition that takes in ``buckets``: when they lie close together their whole range, which is cheaper."""
    column = metric_rollups.c.bucket
    if max(buckets) - min(buckets) < 2 * len(buckets):
        return column.between(min(buckets), max(buckets))
    return column.in_(buckets)


def sessions_with_tails(connection: sa.Connection) -> Sequence[str]:
    """Whose readings wait to be summed up."""
    return connection.scalars(sa.select(sessions.c.session_id).where(sessions.c.unrolled > 0)).all()


def tail(connection: sa.Connection, session_id: str, limit: int | None = None) -> Sequence[sa.Row[Any, Any, Any]]:
    """``(id, ts_us, data)`` of the readings that no rollup holds yet, in the order they were stored."""
    rolled = sa.select(sessions.c.rolled_id).where(sessions.c.session_id == session_id).scalar_subquery()
    # The newest rows of the table hold the tail. Joined to a text, the session's id keeps the database from reading all
    # rows of the session through the index that begins with it.
    mine = metrics.c.session_id.concat("") == session_id
    query = sa.select(metrics.c.id, metrics.c.ts_us, metrics.c.data).where(metrics.c.id > rolled, mine)
    query = query.order_by(metrics.c.id)
    return connection.execute(query.limit(limit)).all()


def roll_up(connection: sa.Connection, session_id: str) -> int:
    """Sum up the oldest part of a session's tail; returns how many readings are left in it."""
    here = sessions.c.session_id == session_id
    found = connection.execute(sa.select(sessions.c.unrolled).where(here).with_for_update()).first()
    if found is None or not found.unrolled:
        return 0
    rows = tail(connection, session_id, TAIL_ROWS)
    add_blocks(connection, session_id, blocks_of_values((row.ts_us, metric_values(row.data)) for row in rows))
    left: int = found.unrolled - len(rows)
    connection.execute(sa.update(sessions).where(here).values(rolled_id=rows[-1].id, unrolled=left))
    return left
