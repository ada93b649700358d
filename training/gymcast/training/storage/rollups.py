"""Readings summed up per time bucket, so that a long history is read at a bounded cost.

Bulk readings are summed up as they are stored. Those that come one by one wait as the session's *tail* and are summed
up together later; a history adds the tail itself. What a rollup holds and what is still in the tail is decided by
``rolled_id`` of the session's row, which changes in the same transaction.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, Final

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray

from gymcast.training.events import TrainingMetricsData

from .bulk import insert_rows
from .records import to_json_text
from .schema import metric_rollups, metrics, sessions

# Seconds. Four to one: a history of n points reads at most 4 n rows of the widest level that is still fine enough.
WIDTHS_S: Final = (10, 40, 160, 640, 2_560, 10_240, 40_960)
# From here on a batch is summed up at once: then it costs less than to read it again later.
BULK: Final = 50
# What is summed up of a tail in one transaction.
TAIL_ROWS: Final = 2_000

# metric -> [count, min, max, sum]
Sums = dict[str, list[float]]

_OTHERS: Final = frozenset({"timestamp", "algorithm", "extra"})
_FIELDS: Final = tuple(name for name in TrainingMetricsData.model_fields if name not in _OTHERS)
_NUMBERS: Final = attrgetter(*_FIELDS)


@dataclass(frozen=True, slots=True)
class Block:
    """Readings with the same metrics: ``times`` int64 [n] in microseconds, ``values`` float64 [n, len(names)].

    NaN stands for a metric without a value.
    """

    names: tuple[str, ...]
    times: NDArray[np.int64]
    values: NDArray[np.float64]


def add_value(sums: Sums, name: str, value: float) -> None:
    """Count one reading in."""
    entry = sums.get(name)
    if entry is None:
        sums[name] = [1, value, value, value]
    else:
        entry[0] += 1
        if value < entry[1]:
            entry[1] = value
        if value > entry[2]:
            entry[2] = value
        entry[3] = _within(entry[3] + value)


def add_sums(into: Sums, other: Mapping[str, Sequence[float]]) -> None:
    """Add the sums of another bucket."""
    for name, (count, low, high, total) in other.items():
        entry = into.get(name)
        if entry is None:
            into[name] = [count, low, high, total]
        else:
            entry[0] += count
            if low < entry[1]:
                entry[1] = low
            if high > entry[2]:
                entry[2] = high
            entry[3] = _within(entry[3] + total)


def _within(total: float) -> float:
    """A sum of huge readings, held where JSON can say it."""
    if -sys.float_info.max <= total <= sys.float_info.max:
        return total
    return sys.float_info.max if total > 0 else -sys.float_info.max


def metric_values(data: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a ``training_metrics`` reading by name; ``extra`` is flattened and never hides a field."""
    extra: Mapping[str, Any] = data.get("extra") or {}
    values = {name: value for name, value in extra.items() if value is not None}
    values.update((name, value) for name, value in data.items() if isinstance(value, int | float))
    return values


def blocks_of(times: Sequence[int], readings: Sequence[TrainingMetricsData]) -> list[Block]:
    """Readings as they are about to be stored, by their set of extra metrics."""
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, reading in enumerate(readings):
        groups[tuple(reading.extra)].append(place)
    found = []
    for extra, places in groups.items():
        mine = [readings[place] for place in places]
        if _OTHERS.isdisjoint(extra) and not set(extra) & set(_FIELDS):
            # None becomes NaN.
            rows = [(*_NUMBERS(reading), *reading.extra.values()) for reading in mine]
            at = np.array([times[place] for place in places], np.int64)
            found.append(Block((*_FIELDS, *extra), at, np.array(rows, np.float64)))
        else:
            found += blocks_of_values([(times[place], metric_values(readings[place].__dict__)) for place in places])
    return found


def blocks_of_values(readings: Iterable[tuple[int, Mapping[str, float]]]) -> list[Block]:
    """``(ts_us, values by name)`` readings, by their set of metrics."""
    groups: dict[tuple[str, ...], list[tuple[int, Mapping[str, float]]]] = defaultdict(list)
    for reading in readings:
        groups[tuple(reading[1])].append(reading)
    return [
        Block(
            names,
            np.array([ts_us for ts_us, _ in rows], np.int64),
            np.array([[*values.values()] for _, values in rows], np.float64).reshape(len(rows), len(names)),
        )
        for names, rows in groups.items()
    ]


def add_blocks(connection: sa.Connection, session_id: str, blocks: Iterable[Block]) -> None:
    """Count readings into every level. The caller holds the session's row lock."""
    fresh: dict[tuple[int, int], tuple[int, Sums]] = {}
    for block in blocks:
        for key, (rows, sums) in _levels(block).items():
            held_rows, held = fresh.get(key, (0, {}))
            add_sums(held, sums)
            fresh[key] = (held_rows + rows, held)
    if fresh:
        _merge(connection, session_id, fresh)


def _levels(block: Block) -> dict[tuple[int, int], tuple[int, Sums]]:
    order = np.argsort(block.times, kind="stable")
    buckets = block.times[order] // (WIDTHS_S[0] * 1_000_000)
    values = block.values[order]
    known = ~np.isnan(values)
    rows = np.ones(len(buckets), np.int64)
    state = (rows, known.astype(np.int64), values, values, np.where(known, values, 0.0))
    found: dict[tuple[int, int], tuple[int, Sums]] = {}
    factor = 1
    for width in WIDTHS_S:
        buckets = buckets // factor
        starts = np.flatnonzero(np.r_[True, buckets[1:] != buckets[:-1]])
        with np.errstate(over="ignore"):
            state = (
                np.add.reduceat(state[0], starts),
                np.add.reduceat(state[1], starts),
                np.fmin.reduceat(state[2], starts),
                np.fmax.reduceat(state[3], starts),
                np.add.reduceat(state[4], starts),
            )
        buckets = buckets[starts]
        state = (*state[:4], np.clip(state[4], -sys.float_info.max, sys.float_info.max))
        for bucket, count, *columns in zip(buckets.tolist(), *(part.tolist() for part in state), strict=True):
            sums = {name: list(entry) for name, *entry in zip(block.names, *columns, strict=True) if entry[0]}
            found[width, bucket] = (count, sums)
        factor = 4
    return found


def _merge(connection: sa.Connection, session_id: str, fresh: dict[tuple[int, int], tuple[int, Sums]]) -> None:
    table = metric_rollups
    wanted: dict[int, list[int]] = defaultdict(list)
    for width, bucket in fresh:
        wanted[width].append(bucket)
    stored = connection.execute(
        sa.select(table.c.width_s, table.c.bucket, table.c.rows, table.c.data).where(
            table.c.session_id == session_id,
            sa.or_(*(sa.and_(table.c.width_s == width, _among(some)) for width, some in wanted.items())),
        )
    )
    changed = []
    for width, bucket, rows, data in stored:
        if (width, bucket) not in fresh:
            continue
        new_rows, sums = fresh.pop((width, bucket))
        add_sums(data, sums)
        changed.append({"b_width": width, "b_bucket": bucket, "rows": rows + new_rows, "data": data})
    if changed:
        connection.execute(
            sa.update(table).where(
                table.c.session_id == session_id,
                table.c.width_s == sa.bindparam("b_width"),
                table.c.bucket == sa.bindparam("b_bucket"),
            ),
            changed,
        )
    rows = [(session_id, width, bucket, rows, to_json_text(sums)) for (width, bucket), (rows, sums) in fresh.items()]
    insert_rows(connection, table, ("session_id", "width_s", "bucket", "rows", "data"), rows)


def _among(buckets: Sequence[int]) -> sa.ColumnElement[bool]:
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
