"""What the writer and the readers need of a database, and bringing its schema up to date."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError

from .errors import StorageUnavailableError

MIGRATIONS: Final = Path(__file__).parent / "migrations"
READERS: Final = 4
# How long a write waits for a lock that someone else holds, or for a server that is away.
WRITE_WAIT_S: Final = 5.0
# How long a start waits while another process migrates.
MIGRATE_WAIT_S: Final = 60.0
# Alembic keeps what it works on in global variables. Every database migrates in a thread of its own.
_MIGRATING: Final = threading.Lock()

T = TypeVar("T")


class Database(Protocol):
    """One database: one connection that writes, a few that read.

    A transaction is a plain function of a SQLAlchemy connection and runs from beginning to end beside the caller's
    event loop, so its statements cost that loop no turn each. Every method raises :class:`StorageUnavailableError` for
    what is the database's own fault (locked, full, gone) and hands on whatever else the function raises.
    """

    async def open(self) -> None:
        """Connect and bring the schema up to date."""

    async def write(self, job: Callable[[sa.Connection], T]) -> T:
        """Run ``job`` in a transaction of its own on the writer's connection; commit, or roll back when it raises.

        Waits at most about :data:`WRITE_WAIT_S` for a lock or a server; until its commit has begun, ``job`` may be run
        again.
        """
        ...

    async def read(self, query: Callable[[sa.Connection], T]) -> T:
        """Run ``query`` on a consistent view of what is committed."""
        ...

    async def close(self) -> None:
        """Close every connection; jobs at work end first."""


def migrate(connection: sa.Connection, revision: str = "head") -> None:
    """Bring the schema up to ``revision``, by default that of this version of gymcast, in the running transaction."""
    config = Config()
    # Alembic treats '%' in option values as interpolation.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        with _MIGRATING:
            command.upgrade(config, revision)
    except CommandError as error:
        raise StorageUnavailableError(
            f"the database was written by another version of gymcast ({error}); update gymcast or use another database"
        ) from error
