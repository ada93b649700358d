"""Readings summed up per time bucket, so that a long history is read in constant time."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, Final

import sqlalchemy as sa

from .schema import metric_rollups

# Seconds. Four to one: a history of n points reads at most 4 n rows of the widest level that is still fine enough.
WIDTHS_S: Final = (10, 40, 160, 640, 2_560, 10_240, 40_960)

# metric -> [count, min, max, sum]
Sums = dict[str, list[float]]


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


def add_sums(into: Sums, other: Mapping[str, list[float]]) -> None:
    """Add the sums of another bucket."""
    for name, (count, low, high, total) in other.items():
        entry = into.get(name)
        if entry is None:
            into[name] = [count, low, high, total]
        else:
            entry[0] += count
            entry[1] = min(entry[1], low)
            entry[2] = max(entry[2], high)
            entry[3] = _within(entry[3] + total)


def _within(total: float) -> float:
    """A sum of huge readings, held where JSON can say it."""
    return min(max(total, -sys.float_info.max), sys.float_info.max)


def metric_values(data: Mapping[str, Any]) -> dict[str, float]:
    """Every number of a ``training_metrics`` reading by name; ``extra`` is flattened and never hides a field."""
    extra: Mapping[str, Any] = data.get("extra") or {}
    values = {name: value for name, value in extra.items() if value is not None}
    values.update((name, value) for name, value in data.items() if isinstance(value, int | float))
    return values


def add_readings(
    connection: sa.Connection, session_id: str, readings: Iterable[tuple[int, Mapping[str, float]]]
) -> None:
    """Count ``(ts_us, values)`` readings into every level. The caller holds the session's row lock."""
    finest: dict[int, tuple[int, Sums]] = {}
    for ts_us, values in readings:
        bucket = ts_us // (WIDTHS_S[0] * 1_000_000)
        rows, sums = finest.get(bucket, (0, {}))
        for name, value in values.items():
            add_value(sums, name, value)
        finest[bucket] = (rows + 1, sums)
    fresh: dict[tuple[int, int], tuple[int, Sums]] = {}
    for width in WIDTHS_S:
        factor = width // WIDTHS_S[0]
        level: dict[int, tuple[int, Sums]] = defaultdict(lambda: (0, {}))
        for bucket, (rows, sums) in finest.items():
            held_rows, held = level[bucket // factor]
            add_sums(held, sums)
            level[bucket // factor] = (held_rows + rows, held)
        fresh |= {(width, bucket): held for bucket, held in level.items()}
    _merge(connection, session_id, fresh)


def _merge(connection: sa.Connection, session_id: str, fresh: dict[tuple[int, int], tuple[int, Sums]]) -> None:
    table = metric_rollups
    wanted: dict[int, list[int]] = defaultdict(list)
    for width, bucket in fresh:
        wanted[width].append(bucket)
    stored = connection.execute(
        sa.select(table.c.width_s, table.c.bucket, table.c.rows, table.c.data).where(
            table.c.session_id == session_id,
            sa.or_(*(sa.and_(table.c.width_s == width, table.c.bucket.in_(some)) for width, some in wanted.items())),
        )
    )
    changed = []
    for width, bucket, rows, data in stored:
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
    if fresh:
        connection.execute(
            sa.insert(table),
            [
                {"session_id": session_id, "width_s": width, "bucket": bucket, "rows": rows, "data": sums}
                for (width, bucket), (rows, sums) in fresh.items()
            ],
        )
