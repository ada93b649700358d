"""A database that is locked, stopped or has no room while sessions run: nothing is lost, and they go on."""

from __future__ import annotations

import asyncio
import resource
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path

import pytest
from sqlalchemy.engine import make_url

from gymcast.training.config import TrainingConfig
from gymcast.training.events import ErrorData, Event
from gymcast.training.run_folder import OUTCOME_NAME, worker_of
from gymcast.training.sessions import SessionManager
from gymcast.training.sessions.leftovers import deliver_leftovers
from gymcast.training.sessions.process import is_alive
from gymcast.training.storage import Storage, StorageUnavailableError

from ..managed import (
    PACED,
    Keeper,
    check_rows,
    endless,
    records,
    rows,
    run_dir_of,
    seen,
    settled,
    statuses,
    weights,
)
from ..postgres_server import OwnServer, own_server_or_skip

HOLD = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None, timeout=30)
connection.execute("BEGIN EXCLUSIVE")
print("locked", flush=True)
sys.stdin.read()
"""


@asynccontextmanager
async def locked(url: str) -> AsyncIterator[None]:
    """Another process holds the SQLite file."""
    command = [sys.executable, "-c", HOLD, str(make_url(url).database)]
    pipe = asyncio.subprocess.PIPE
    other = await asyncio.create_subprocess_exec(*command, stdin=pipe, stdout=pipe)
    assert other.stdin is not None and other.stdout is not None
    assert await other.stdout.readline() == b"locked\n"
    try:
        yield
    finally:
        other.stdin.close()
        await other.wait()


@asynccontextmanager
async def stopped(server: OwnServer) -> AsyncIterator[None]:
    """The PostgreSQL server is not there."""
    await asyncio.to_thread(server.stop, "fast")
    try:
        yield
    finally:
        await asyncio.to_thread(server.start)


async def outlive(
    folder: Path,
    url: str,
    away: AbstractAsyncContextManager[None],
    weights_: str,
    seconds: float = 0.0,
    longer: float = 0.0,
) -> None:
    """Two sessions, one after the other. The database is ``away`` while the first one ends.

    It is for ``seconds`` or more, and for ``longer`` after that end.
    """
    keeper = await Keeper.start(folder, url, 2, [PACED], max_concurrent_sessions=1)
    async with await Storage.open(url) as storage:
        session_id = min(record.session_id for record in (await storage.list_sessions())[0])
        await seen(storage, session_id, lambda record: record.timesteps > 256)
    async with away, asyncio.timeout(seconds + 60):
        await asyncio.sleep(seconds)
        while not (folder / "0" / OUTCOME_NAME).exists():  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.sleep(longer)
        assert worker_of(folder / "1") is None, "the next one is not started before the first one's end is stored"
    await keeper.finish()
    for record in await records(url):
        assert (record.status, record.attempts) == ("completed", 1), record.reason
        check_rows(url, record)
        assert weights(run_dir_of(record)) == weights_
        async with await Storage.open(url) as storage:
            assert await statuses(storage, record.session_id) == ["queued", "starting", "running", "completed"]


async def test_sqlite_locked_by_another_process(tmp_path: Path, undisturbed: str) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    await outlive(tmp_path, url, locked(url), undisturbed)


async def test_what_a_worker_has_left_waits_until_the_database_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gymcast.training.storage.sqlite.WRITE_WAIT_S", 0.3)
    url = f"sqlite:///{tmp_path / 'a.db'}"
    (tmp_path / "spool").mkdir()
    left = tmp_path / "spool" / "worker.jsonl"
    fact = Event(seq=1, type="error", data=ErrorData(code="x", message="y"))
    left.write_text(fact.model_dump_json() + "\n")
    async with await Storage.open(url) as storage:
        session_id = (await storage.create_session(kind="external", algorithm="ppo")).session_id
        async with locked(url):
            with pytest.raises(StorageUnavailableError):
                await deliver_leftovers(storage, session_id, tmp_path)
        assert left.exists()
        await deliver_leftovers(storage, session_id, tmp_path)
        assert not left.exists()
    assert rows(url, "SELECT count(*) FROM events") == [(1,)]


async def test_a_manager_ends_in_time_although_the_database_takes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it could not store is left as by a manager that was killed: to whoever takes the lease over."""
    monkeypatch.setattr("gymcast.training.storage.sqlite.WRITE_WAIT_S", 0.3)
    monkeypatch.setattr("gymcast.training.sessions.pool.SETTLE_SECONDS", 0.5)
    url = f"sqlite:///{tmp_path / 'a.db'}"
    async with await Storage.open(url) as storage:
        manager = SessionManager(storage=storage, runs_dir=tmp_path, keep_sessions=True)
        await manager.start()
        session_id = await manager.create_session(endless())
        await settled(manager, session_id, lambda record: "pid" in (record.resources or {}))
        owner, worker = manager.pool.me.owner, manager.worker_pids[session_id]
        async with locked(url), asyncio.timeout(30):
            await manager.stop(within=0.2)
            assert not is_alive(worker)
        left = await storage.get_session(session_id)
        assert (left.status, left.lease_owner) == ("starting", owner)


async def test_postgresql_stopped(tmp_path: Path, undisturbed: str) -> None:
    with own_server_or_skip() as server:
        # Longer than a write waits for the server: the end of the first session is tried to be stored again.
        await outlive(tmp_path, server.url, stopped(server), undisturbed, longer=7.0)


def allow(pid: int, bytes_: int) -> None:
    """What a full disk does to a writer: its files stay below this size, writing more is refused."""
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (bytes_, resource.prlimit(pid, resource.RLIMIT_FSIZE)[1]))


async def test_a_disk_that_is_full_for_a_while(tmp_path: Path, undisturbed: str) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    config: TrainingConfig = PACED.model_copy(update={"speed_multiplier": 5.0})
    keeper = await Keeper.start(tmp_path, url, 1, [config])
    async with await Storage.open(url) as storage:
        (waiting,), _ = await storage.list_sessions()
        await seen(storage, waiting.session_id, lambda record: record.timesteps > 256)
    worker = worker_of(tmp_path / "0")
    assert worker is not None
    kept = resource.prlimit(worker, resource.RLIMIT_FSIZE)[0]
    allow(keeper.process.pid, 4096)
    allow(worker, 16_384)
    count = "SELECT count(*) FROM events"
    await asyncio.sleep(1.0)
    before = rows(url, count)
    await asyncio.sleep(1.5)
    assert rows(url, count) == before, "nothing can be stored"
    assert worker_of(tmp_path / "0") == worker
    allow(keeper.process.pid, kept)
    allow(worker, kept)
    await keeper.finish()
    (record,) = await records(url)
    assert (record.status, record.attempts) == ("completed", 1), record.reason
    check_rows(url, record)
    assert weights(run_dir_of(record)) == undisturbed
    failed = f"SELECT count(*) FROM events WHERE type = 'error' AND session_id = '{record.session_id}'"
    assert rows(url, failed)[0][0] > 0, "a checkpoint that could not be written is told"
