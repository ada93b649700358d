"""The database's own time: what leases are measured in, so that a wall clock that is set moves none of them.

PostgreSQL: the server's ``clock_timestamp()``, whatever the clocks of its clients say. SQLite has no server; there it
is this machine's monotonic clock, which all processes share and nobody can set, shifted once per boot to the time of
day.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from .ids import now_us
from .schema import clock, sessions

SQLITE_FUNCTION: Final = "gymcast_now_us"
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class DatabaseNow(FunctionElement[int]):
    """Microseconds since 1970-01-01 UTC in the database's time, as an SQL expression."""

    type = sa.BigInteger()
    inherit_cache = True


@compiles(DatabaseNow, "sqlite")
def _sqlite_now(_element: DatabaseNow, _compiler: Any, **_more: Any) -> str:
    return f"{SQLITE_FUNCTION}()"


@compiles(DatabaseNow, "postgresql")
def _postgres_now(_element: DatabaseNow, _compiler: Any, **_more: Any) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)"


def database_now(connection: sa.Connection) -> int:
    """Microseconds since 1970-01-01 UTC in the database's time."""
    return connection.execute(sa.select(DatabaseNow())).scalar_one()


def steady_us() -> int:
    """Microseconds on this machine's monotonic clock."""
    return time.monotonic_ns() // 1000


def steady_clock(connection: sa.Connection) -> Callable[[], int]:
    """The time of a database on this machine; the first process after a boot settles it in the running transaction.

    No process lives through a boot, so the leases of an earlier one end there.
    """
    try:
        boot_id = _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return now_us  # not Linux: nothing tells this boot from the one before, so the wall clock has to do
    offset = connection.scalar(sa.select(clock.c.offset_us).where(clock.c.boot_id == boot_id))
    if offset is None:
        offset = now_us() - steady_us()
        connection.execute(sa.delete(clock))
        connection.execute(sa.insert(clock), {"boot_id": boot_id, "offset_us": offset})
        connection.execute(sa.update(sessions).where(sessions.c.lease_owner.is_not(None)).values(lease_expires_us=0))
    return lambda: steady_us() + offset
