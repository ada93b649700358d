"""Requests that may be repeated: which session the first one with a key made."""

from __future__ import annotations

from datetime import timedelta
from typing import Final

import sqlalchemy as sa

from .errors import IdempotencyError
from .ids import now_us
from .schema import idempotency

KEPT: Final = timedelta(hours=24)
# A first request that has not ended by then died with its server.
STALE: Final = timedelta(seconds=60)


def claim(connection: sa.Connection, key: str, fingerprint: str) -> str | None:
    """``None`` for a new key, or the session the first request made. Raises :class:`IdempotencyError`."""
    moment = now_us()
    table = idempotency
    forget(connection, moment)
    row = (connection.execute(sa.select(table).where(table.c.key == key))).mappings().first()
    if row is None:
        connection.execute(sa.insert(table), {"key": key, "fingerprint": fingerprint, "created_us": moment})
        return None
    if row["fingerprint"] != fingerprint:
        raise IdempotencyError("this Idempotency-Key was used with another body", running=False)
    if row["session_id"] is not None:
        return str(row["session_id"])
    if row["created_us"] < moment - STALE // timedelta(microseconds=1):
        connection.execute(sa.update(table).where(table.c.key == key).values(created_us=moment))
        return None
    raise IdempotencyError("the first request with this Idempotency-Key is still at work", running=True)


def forget(connection: sa.Connection, moment: int) -> int:
    """Delete keys that are too old at ``moment`` (microseconds since 1970); returns how many there were."""
    old = idempotency.c.created_us < moment - KEPT // timedelta(microseconds=1)
    return connection.execute(sa.delete(idempotency).where(old)).rowcount


def settle(connection: sa.Connection, key: str, session_id: str | None) -> None:
    """Remember the session a request made, or forget the key when it made none."""
    table = idempotency
    if session_id is None:
        connection.execute(sa.delete(table).where(table.c.key == key))
    else:
        connection.execute(sa.update(table).where(table.c.key == key).values(session_id=session_id))
