"""Opening databases: fresh, old, of a newer version, at once; URLs that cannot be used."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy.ext.asyncio import create_async_engine

from gymcast.training.events import Event
from gymcast.training.storage import HistoryRange, Storage, StorageUnavailableError
from gymcast.training.storage.copy import copy
from gymcast.training.storage.engine import migrate
from gymcast.training.storage.schema import metadata


@pytest.fixture(params=["sqlite", "postgresql"])
def new_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'a.db'}"
    url: str = request.getfixturevalue("new_postgres_url")
    return url


async def external(storage: Storage) -> str:
    return (await storage.create_session(kind="external", algorithm="PPO")).session_id


async def execute(storage: Storage, statement: str) -> None:
    await storage._database.write(lambda connection: connection.exec_driver_sql(statement))


async def test_schema_is_what_the_migrations_make(new_url: str) -> None:
    def differences(connection: sa.Connection) -> list[Any]:
        return compare_metadata(MigrationContext.configure(connection, opts={"compare_type": True}), metadata)

    async with await Storage.open(new_url) as storage:
        assert await storage._database.read(differences) == []


async def test_an_old_database_is_migrated_with_its_data(new_url: str) -> None:
    await _first_schema(new_url)
    async with await Storage.open(new_url) as storage:
        record = await storage.get_session("s1")
        assert (record.status, record.current_episode, record.lease_owner, record.wait_reason) == (
            "running",
            7,
            None,
            None,
        )
        (move,) = await storage.transitions("s1")
        assert (move["to_status"], move["version"]) == ("running", None)
        # Numbers 1, 2, 3 and 5 of producer w are known, 1 holds data of its own.
        receipt = await storage.add_events("s1", "w", [status(n) for n in (1, 2, 3, 4, 5)])
        assert (receipt.accepted, receipt.duplicates, receipt.last_seq) == (1, 4, 5)
        receipt = await storage.add_events("s1", "late", [status(1), status(9)])
        assert (receipt.accepted, receipt.last_seq) == (1, 9)
        (bucket,) = await storage.history("s1", HistoryRange(), points=1, max_raw_rows=0)
        assert (bucket["count"], bucket["metrics"]["episode"]["max"]) == (1, 7)
        assert (await storage.history_raw("s1", HistoryRange())).items == [{"episode": 7}]


def status(number: int) -> Event:
    return Event.model_validate({"seq": number, "type": "training_status", "data": {"status": "running"}})


async def _first_schema(url: str) -> None:
    """A database as the first version made it, with a few rows."""

    def make(connection: sa.Connection) -> None:
        migrate(connection, "0001")
        session = {
            "session_id": "s1", "training_session_id": "t", "kind": "external", "algorithm": "PPO", "phase": "",
            "status": "running", "desired": "running", "model_generation": 1, "created_us": 1, "updated_us": 1,
            "timesteps": 0, "current_episode": 7, "progress": 0.5, "enable_spectators": True, "priority": 0,
            "attempts": 0, "version": 3,
        }  # fmt: skip
        insert(connection, "sessions", session)
        insert(connection, "transitions", {"session_id": "s1", "ts_us": 1, "to_status": "running"})
        for producer, number, data in (
            ("w", 1, "{}"),
            ("w", 2, None),
            ("w", 3, None),
            ("w", 5, None),
            ("late", 9, None),
        ):
            row = {"session_id": "s1", "producer": producer, "seq": number, "type": "checkpoint", "ts_us": 1}
            insert(connection, "events", row | ({} if data is None else {"data": data}))
        insert(connection, "metrics", {"session_id": "s1", "ts_us": 15_000_000, "episode": 7, "data": '{"episode": 7}'})
        rollup = {"session_id": "s1", "width_s": 10, "bucket": 1, "rows": 1, "data": '{"episode": [1, 7, 7, 7]}'}
        insert(connection, "metric_rollups", rollup)

    if url.startswith("sqlite"):
        engine = sa.create_engine(url)
        with engine.begin() as connection:
            make(connection)
        engine.dispose()
        return
    other = create_async_engine(url.replace("postgresql://", "postgresql+asyncpg://"))
    async with other.begin() as asynchronous:
        await asynchronous.run_sync(make)
    await other.dispose()


def insert(connection: sa.Connection, table: str, row: dict[str, Any]) -> None:
    """With the values written out: the tables of the first version are not in the schema any more."""
    columns = [sa.column(name) for name in row]
    values = {name: sa.literal_column(_literal(value)) for name, value in row.items()}
    connection.execute(sa.insert(sa.table(table, *columns)).values(values))


def _literal(value: Any) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


async def test_opening_twice_and_at_once_migrates_once(new_url: str) -> None:
    opened = await asyncio.gather(*(Storage.open(new_url) for _ in range(4)))
    session_id = await external(opened[0])
    assert (await opened[3].get_session(session_id)).status == "running"
    for storage in opened:
        await storage.close()


async def test_several_databases_are_opened_at_once(tmp_path: Path) -> None:
    opened = await asyncio.gather(*(Storage.open(f"sqlite:///{tmp_path / str(n)}.db") for n in range(4)))
    for storage in opened:
        await external(storage)
        await storage.close()


async def test_database_of_a_newer_version_is_refused_and_left_alone(new_url: str) -> None:
    async with await Storage.open(new_url) as storage:
        await external(storage)
        await execute(storage, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(StorageUnavailableError, match=r"another version of gymcast.*update gymcast"):
        await Storage.open(new_url)


@pytest.mark.parametrize(
    ("url", "text"),
    [
        ("sqlite://", "in-memory"),
        ("sqlite:///:memory:", "in-memory"),
        ("mysql://localhost/x", "'mysql' is not supported; use sqlite"),
        ("nonsense", "not one SQLAlchemy can read"),
        ("postgresql+psycopg2://localhost/x", r"postgresql\+psycopg2:// is not supported; write postgresql://"),
        ("postgresql://u:secret@localhost:port/x", "%2F"),
    ],
)
async def test_urls_that_cannot_be_used_say_what_can(url: str, text: str) -> None:
    with pytest.raises(StorageUnavailableError, match=text) as raised:
        await Storage.open(url)
    assert "cret" not in str(raised.value)


async def test_a_database_is_copied_into_an_empty_one(tmp_path: Path, new_postgres_url: str) -> None:
    first, last = f"sqlite:///{tmp_path / 'first.db'}", f"sqlite:///{tmp_path / 'last.db'}"
    async with await Storage.open(first) as storage:
        session_id = await external(storage)
        await storage.update_session(session_id, status="paused", config={"seed": 7})
        await storage.add_events(session_id, "w", [status(1), status(2)])
        await storage.add_episodes(session_id, [{"episode_id": "e", "status": "failed", "error": "hung"}])
        record, moves = await storage.get_session(session_id), await storage.transitions(session_id)
    assert (await copy(first, new_postgres_url))["events"] == 2
    with pytest.raises(StorageUnavailableError, match="has sessions already"):
        await copy(first, new_postgres_url)
    await copy(new_postgres_url, last)
    for url in (new_postgres_url, last):
        async with await Storage.open(url) as storage:
            assert await storage.get_session(session_id) == record
            assert await storage.transitions(session_id) == moves
            receipt = await storage.add_events(session_id, "w", [status(2), status(3)])
            assert (receipt.accepted, receipt.duplicates) == (1, 1)
            await storage.update_session(session_id, status="cancelled")
            assert len(await storage.transitions(session_id)) == len(moves) + 1
