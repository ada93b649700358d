"""The URL that says which database it is."""

from __future__ import annotations

from typing import Final

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from .engine import Database
from .errors import StorageUnavailableError
from .sqlite import SqliteDatabase

_POSTGRES: Final = frozenset({"postgres", "postgresql", "postgresql+asyncpg"})
_FORMS: Final = "sqlite:///data/training_metrics.db or postgresql://user:password@host:5432/name"


def make_database(text: str) -> Database:
    """The database at a URL. Raises :class:`StorageUnavailableError` for one that cannot be used."""
    url = database_url(text)
    if url.get_backend_name() == "sqlite":
        return SqliteDatabase(url)
    from .postgres import PostgresDatabase  # its driver is an extra

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
