"""What the writer and the readers need of a database, and the URL that says which one it is."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.util import CommandError
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from .errors import StorageUnavailableError

MIGRATIONS: Final = Path(__file__).parent / "migrations"
READERS: Final = 4
# How long a write waits for a lock that someone else holds, or for a server that is away.
WRITE_WAIT_S: Final = 5.0
# How long a start waits while another process migrates.
MIGRATE_WAIT_S: Final = 60.0
_POSTGRES: Final = frozenset({"postgres", "postgresql", "postgresql+asyncpg"})
_FORMS: Final = "sqlite:///data/training_metrics.db or postgresql://user:password@host:5432/name"

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


def make_database(text: str) -> Database:
    """The database at a URL. Raises :class:`StorageUnavailableError` for one that cannot be used."""
    url = database_url(text)
    if url.get_backend_name() == "sqlite":
        from .sqlite import SqliteDatabase

        return SqliteDatabase(url)
    from .postgres import PostgresDatabase

    return PostgresDatabase(url)


def database_url(text: str) -> URL:
    """``text`` taken apart. Messages never repeat it: it may hold a password."""
    scheme = text.partition("://")[0]
    if scheme == "postgres":
        text = "postgresql" + text.removeprefix("postgres")
    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        raise StorageUnavailableError(
            f"the database URL is not one SQLAlchemy can read; write {_FORMS}, and %40, %2F, %3A for @, / and : in a"
            " password"
        ) from None
    if scheme in _POSTGRES:
        return url.set(drivername="postgresql")
    if url.get_backend_name() == "postgresql":
        raise StorageUnavailableError(f"the driver of {scheme}:// is not supported; write postgresql://")
    if url.get_backend_name() != "sqlite":
        raise StorageUnavailableError(f"database {url.get_backend_name()!r} is not supported; use {_FORMS}")
    if not url.database or url.database == ":memory:" or url.database.startswith("file:"):
        raise StorageUnavailableError(
            "an in-memory SQLite database cannot be shared by a writer and readers; name a file: sqlite:///data/x.db"
        )
    return url.set(drivername="sqlite")


def migrate(connection: sa.Connection, revision: str = "head") -> None:
    """Bring the schema up to ``revision``, by default that of this version of gymcast, in the running transaction."""
    config = Config()
    # Alembic treats '%' in option values as interpolation.
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, revision)
    except CommandError as error:
        raise StorageUnavailableError(
            f"the database was written by another version of gymcast ({error}); update gymcast or use another database"
        ) from error
