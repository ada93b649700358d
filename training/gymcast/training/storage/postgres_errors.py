"""What PostgreSQL and its driver say, told apart and put so that the reader knows what to do. Never a password."""

from __future__ import annotations

import os
import socket
from importlib import import_module
from types import ModuleType
from typing import Final

from sqlalchemy.engine import URL
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from .errors import StorageUnavailableError

# Classes of SQLSTATE that are not the statement's fault: connection, authorisation, no such database, resources,
# operator intervention, system, internal. Then: a lock, a read-only server (a standby), a missing permission.
_UNAVAILABLE_CLASSES: Final = frozenset({"08", "28", "3D", "53", "57", "58", "XX"})
_UNAVAILABLE_STATES: Final = frozenset({"55P03", "25006", "42501"})
# The server is going, gone, or not there yet.
_GONE_STATES: Final = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03"})


def asyncpg() -> ModuleType:
    """The driver. Raises :class:`StorageUnavailableError` with the remedy when it is not installed."""
    try:
        return import_module("asyncpg")
    except ImportError:
        raise StorageUnavailableError(
            "PostgreSQL needs the driver asyncpg, which is not installed: pip install 'gymcast[postgres]'"
        ) from None


def faults() -> tuple[type[Exception], ...]:
    """Every exception in which the driver, the network or the pool speaks."""
    driver = asyncpg()
    return DBAPIError, OSError, PoolTimeoutError, driver.PostgresError, driver.InterfaceError


def sqlstate(error: BaseException) -> str:
    """The five characters of SQLSTATE, or an empty text."""
    return str(getattr(getattr(error, "orig", None) or error, "sqlstate", None) or "")


def is_gone(error: Exception) -> bool:
    """Whether there is no connection (any more), so that trying again with another one makes sense."""
    if isinstance(error, OSError) or getattr(error, "connection_invalidated", False):
        return True
    state = sqlstate(error)
    return state.startswith("08") or state in _GONE_STATES or _is_interface(error)


def is_unavailable(error: Exception) -> bool:
    """Whether the database is at fault and not the statement."""
    state = sqlstate(error)
    return (
        is_gone(error)
        or isinstance(error, PoolTimeoutError)
        or state[:2] in _UNAVAILABLE_CLASSES
        or state in _UNAVAILABLE_STATES
    )


def _is_interface(error: Exception) -> bool:
    # asyncpg's own complaints about a connection that is closed or in the middle of something have no SQLSTATE.
    told = getattr(error, "orig", None) or error
    return not sqlstate(error) and isinstance(
        getattr(told, "__cause__", None) or told, (asyncpg().InterfaceError, asyncpg().InternalClientError)
    )


def said(error: Exception) -> str:
    """The server's own words in one line, without the statement and its values."""
    told = getattr(error, "orig", None) or error
    told = told.__cause__ or told if isinstance(error, DBAPIError) else told
    text = " ".join(str(told).split())
    return text or type(told).__name__


def cannot_open(url: URL, error: Exception) -> StorageUnavailableError:
    """Why the database at ``url`` cannot be used, and what to do."""
    if isinstance(error, StorageUnavailableError):
        return error
    user, name = url.username or "(the system's user)", url.database or url.username or "(the user's)"
    host = url.query.get("host", url.host or "localhost")
    place = f"{host if isinstance(host, str) else ','.join(host)}:{url.port or 5432}"
    state = sqlstate(error)
    if state == "28P01" or (state == "28000" and "password" in said(error)):
        text = f"PostgreSQL at {place} refuses the password of user {user!r}; it belongs into the URL (or PGPASSWORD)"
    elif state == "28000":
        text = f"PostgreSQL at {place} does not let user {user!r} in: {said(error)}"
    elif state == "3D000":
        text = (
            f"PostgreSQL at {place} has no database {name!r}; make it: createdb -h {host} -p {url.port or 5432}"
            f" -U {user} {name}"
        )
    elif state == "42501":
        text = f"user {user!r} may not make tables in {name!r} at {place}: {said(error)}; make it the owner: " + (
            f'ALTER DATABASE "{name}" OWNER TO "{user}"'
        )
    elif isinstance(error, TimeoutError):
        text = f"PostgreSQL at {place} does not answer in time; is the address right, and the way to it open?"
    elif isinstance(error, socket.gaierror):
        text = f"the host of the database, {host}, cannot be found: {error.strerror}"
    elif isinstance(error, OSError) and error.errno is not None:
        text = f"no PostgreSQL answers at {place} ({os.strerror(error.errno)}); is it running?"
    else:
        text = f"the database {name!r} at {place} cannot be opened: {said(error)}"
    return StorageUnavailableError(text)
