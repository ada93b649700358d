"""Readings summed up: count, minimum, maximum and sum of each metric, and how a row of ``metric_rollups`` holds them.

A row's ``names`` is a JSON list of its metrics, its ``sums`` are their four numbers each as float64, little-endian.
Rows with the same ``names`` are one array without being looked at one by one.
"""

from __future__ import annotations

import struct
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from .records import from_json_text, to_json_text

# metric -> [count, min, max, sum]
Sums = dict[str, list[float]]

_ENTRY: Final = struct.Struct("<4d")


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


def pack(sums: Sums) -> tuple[str, bytes]:
    """``names`` and ``sums`` of a row."""
    return names_text(tuple(sums)), b"".join(_ENTRY.pack(*entry) for entry in sums.values())


def unpack(names: str, packed: bytes) -> Sums:
    """What a row says."""
    entries = zip(_names(names), _ENTRY.iter_unpack(packed), strict=True)
    return {name: list(entry) for name, entry in entries if entry[0]}


@lru_cache(maxsize=256)
def names_text(names: tuple[str, ...]) -> str:
    """The column ``names`` of a row."""
    return to_json_text(names)


@lru_cache(maxsize=256)
def _names(text: str) -> tuple[str, ...]:
    return tuple(from_json_text(text))


@dataclass(frozen=True, slots=True)
class Buckets:
    """Buckets with the same metrics.

    ``numbers`` int64 [n], ascending, says which they are; ``rows`` int64 [n] how many readings each has; ``sums``
    float64 [n, len(names), 4] are count, min, max and sum. A metric without a value has the count 0, and NaN as its
    least and most.
    """

    names: tuple[str, ...]
    numbers: NDArray[np.int64]
    rows: NDArray[np.int64]
    sums: NDArray[np.float64]

    @classmethod
    def of_readings(
        cls, names: tuple[str, ...], times: Sequence[int], values: Sequence[Sequence[float | None]]
    ) -> Self:
        """Each reading as a bucket of its own, numbered by its time; ``None`` is a metric without a value."""
        at = np.array(times, np.int64)
        order = np.argsort(at, kind="stable")
        found = np.array(values, np.float64).reshape(len(at), len(names))[order]  # None becomes NaN
        known = ~np.isnan(found)
        sums = np.stack((known, found, found, np.where(known, found, 0.0)), axis=2)
        return cls(names, at[order], np.ones(len(at), np.int64), sums)

    @classmethod
    def of_rows(cls, rows: Iterable[Sequence[Any]]) -> list[Self]:
        """From ``(bucket, rows, names, sums)``, in the order of their buckets."""
        alike: dict[str, list[Sequence[Any]]] = defaultdict(list)
        for row in rows:
            alike[row[2]].append(row)
        found = []
        for text, mine in alike.items():
            names = _names(text)
            numbers, counts, _, packed = zip(*mine, strict=True)
            sums = np.frombuffer(b"".join(packed), "<f8").reshape(len(mine), len(names), 4)
            found.append(cls(names, np.array(numbers, np.int64), np.array(counts, np.int64), sums))
        return found

    def joined(self, numbers: NDArray[np.int64]) -> Self:
        """Buckets that get the same of ``numbers`` (int64 [n], ascending) as one."""
        starts = np.flatnonzero(np.r_[True, numbers[1:] != numbers[:-1]])
        sums = np.empty((len(starts), *self.sums.shape[1:]))
        with np.errstate(over="ignore", invalid="ignore"):
            for place, join in enumerate((np.add, np.fmin, np.fmax, np.add)):
                sums[..., place] = join.reduceat(self.sums[..., place], starts)
        np.nan_to_num(sums[..., 3], copy=False)  # huge readings: held where JSON can say it
        return type(self)(self.names, numbers[starts], np.add.reduceat(self.rows, starts), sums)

    def where(self, here: NDArray[np.bool_]) -> Self:
        """Those buckets for which ``here`` [n] is true."""
        return type(self)(self.names, self.numbers[here], self.rows[here], self.sums[here])

    def only(self, names: Collection[str]) -> Self:
        """Without the metrics that are not among ``names``."""
        places = [place for place, name in enumerate(self.names) if name in names]
        kept = tuple(self.names[place] for place in places)
        return type(self)(kept, self.numbers, self.rows, self.sums[:, places])


def merged(parts: Sequence[Buckets]) -> Sequence[Buckets]:
    """The same buckets, with those that several of ``parts`` have as one."""
    if len(parts) < 2:
        return parts
    numbers, times = np.unique(np.concatenate([part.numbers for part in parts]), return_counts=True)
    shared = numbers[times > 1]
    found: dict[int, tuple[int, Sums]] = {}
    whole = []
    for part in parts:
        here = np.isin(part.numbers, shared)
        whole.append(part.where(~here))
        some = part.where(here)
        for number, rows, entries in zip(some.numbers.tolist(), some.rows.tolist(), some.sums.tolist(), strict=True):
            held_rows, held = found.get(number, (0, {}))
            add_sums(held, {name: entry for name, entry in zip(part.names, entries, strict=True) if entry[0]})
            found[number] = held_rows + rows, held
    return [*whole, *Buckets.of_rows((number, rows, *pack(sums)) for number, (rows, sums) in found.items())]
