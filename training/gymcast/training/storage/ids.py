"""Ids that sort by time, and the one conversion between datetimes and the database's integers."""

from __future__ import annotations

import secrets
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import Final

import numpy as np
from numpy.typing import NDArray

_ALPHABET: Final = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's base 32: no i, l, o, u
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RANDOM_BITS: Final = 80
_EARLIEST: Final = (datetime.min.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)
_LATEST: Final = (datetime.max.replace(tzinfo=UTC) - _EPOCH) // timedelta(microseconds=1)

_lock = threading.Lock()
_last = 0


def new_id() -> str:
    """26 characters: 48 bits of milliseconds since 1970, then 80 random bits. Ids of one process strictly increase."""
    global _last
    value = (time.time_ns() // 1_000_000) << _RANDOM_BITS | secrets.randbits(_RANDOM_BITS)
    with _lock:
        value = max(value, _last + 1)
        _last = value
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def now_us() -> int:
    """Microseconds since 1970-01-01 UTC."""
    return time.time_ns() // 1000


def to_us(moment: datetime) -> int:
    """Microseconds since 1970-01-01 UTC of an aware datetime, exactly."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def from_us(value: int) -> datetime:
    """The aware UTC datetime ``value`` microseconds after 1970-01-01, held within what a datetime can say."""
    return _EPOCH + timedelta(microseconds=min(max(value, _EARLIEST), _LATEST))


def rfc3339(value: int | None) -> str | None:
    """RFC 3339 text in UTC, such as ``2026-01-02T03:04:05.678901Z``; texts sort as times. ``None`` stays ``None``."""
    return None if value is None else from_us(value).isoformat(timespec="microseconds").replace("+00:00", "Z")


def rfc3339_all(values: NDArray[np.int64]) -> list[str]:
    """As :func:`rfc3339`, of many."""
    held = np.clip(values, _EARLIEST, _LATEST).astype("datetime64[us]")
    return [text + "Z" for text in np.datetime_as_string(held, unit="us").tolist()]
