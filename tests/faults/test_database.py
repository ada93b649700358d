"""Faults of the database: a writer that is killed, locks, broken connections, a server that is away for a while."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import asyncpg
import pytest

from gymcast.server import ServerConfig, running_server
from gymcast.training.events import Event
from gymcast.training.storage import HistoryRange, Storage, StorageBusyError, StorageUnavailableError
from gymcast.training.storage import postgres as postgres_module
from gymcast.training.storage import sqlite as sqlite_module

from ..postgres_server import OwnServer, own_server_or_skip, query

READING = {
    **dict.fromkeys(
        ("total_episodes", "current_reward", "average_reward", "best_reward", "episode_length", "win_rate")
    ),
    "learning_rate": None,
    "algorithm": "PPO",
    "training_time_elapsed": 1.0,
}

# Commits numbered readings of several producers and prints each number once it is acknowledged.
WRITER = """
import asyncio, json, sys
from gymcast.training.events import Event
from gymcast.training.storage import Storage

async def main(url, session_id, start, reading):
    async with await Storage.open(url) as storage:
        async def produce(name, number):
            while True:
                data = {**json.loads(reading), "episode": number}
                event = Event.model_validate({"seq": number, "type": "training_metrics", "data": data})
                await storage.add_events(session_id, name, [event])
                print(name, number, flush=True)
                number += 1
        await asyncio.gather(*(produce(name, number + 1) for name, number in json.loads(start).items()))

asyncio.run(main(*sys.argv[1:]))
"""


def start_writer(url: str, session_id: str, acknowledged: dict[str, int]) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, url, session_id, json.dumps(acknowledged), json.dumps(READING)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def kill_in_the_middle(url: str, session_id: str, acknowledged: dict[str, int], lines: int) -> None:
    """Let a writer commit ``lines`` readings, SIGKILL it, and note what it had acknowledged."""
    writer = start_writer(url, session_id, acknowledged)
    assert writer.stdout is not None
    try:
        told = [writer.stdout.readline() for _ in range(lines)]
    finally:
        writer.send_signal(signal.SIGKILL)
    told += writer.stdout.readlines()
    writer.stdout.close()
    assert writer.wait() == -signal.SIGKILL
    for line in told:
        if line.endswith("\n"):
            name, number = line.split()
            acknowledged[name] = int(number)


async def kill_again_and_again(url: str, kills: int) -> int:
    """SIGKILL writers on a database; returns how many readings were acknowledged, all of which are there."""
    async with await Storage.open(url) as storage:
        session_id = (await storage.create_session(kind="external", algorithm="PPO")).session_id
    acknowledged = dict.fromkeys(("a", "b", "c"), 0)
    dice = random.Random(kills)
    for _ in range(kills):
        await asyncio.to_thread(kill_in_the_middle, url, session_id, acknowledged, dice.randrange(3, 60))
    async with await Storage.open(url) as storage:
        stored = await storage.count_readings(session_id, HistoryRange())
        surplus = 0
        for name, number in acknowledged.items():
            for first in range(1, number + 1, 500):
                sent = [reading_event(n) for n in range(first, min(first + 500, number + 1))]
                assert (await storage.add_events(session_id, name, sent)).accepted == 0, f"{name}: a reading was lost"
            surplus += (await storage.add_events(session_id, name, [])).last_seq - number
        assert 0 <= surplus <= 3, "only what was about to be acknowledged"
        assert stored == sum(acknowledged.values()) + surplus
        buckets = await storage.history(session_id, HistoryRange(), points=5, max_raw_rows=0)
        assert sum(bucket["count"] for bucket in buckets) == stored, "the sums have each reading once"
    return sum(acknowledged.values())


async def test_no_acknowledged_reading_is_lost_when_the_writer_is_killed(database_url: str) -> None:
    assert await kill_again_and_again(database_url, 5) > 15


def reading_event(number: int) -> Event:
    data = {**READING, "episode": number}
    return Event.model_validate({"seq": number, "type": "training_metrics", "data": data})


@contextlib.contextmanager
def sqlite_locked(path: Path) -> Iterator[None]:
    """Another process in the middle of a long write, as far as SQLite can tell."""
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


async def test_sqlite_locked_by_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_module, "WRITE_WAIT_S", 1.5)
    path = tmp_path / "a.db"
    async with await Storage.open(f"sqlite:///{path}") as storage:
        session_id = (await storage.create_session(kind="external", algorithm="PPO")).session_id
        with sqlite_locked(path):
            waiting = asyncio.create_task(storage.add_events(session_id, "w", [reading_event(1)]))
            await asyncio.sleep(0.5)
            assert not waiting.done(), "a short lock is waited for"
            assert (await storage.get_session(session_id)).current_episode == 0, "reads go on"
        assert (await waiting).accepted == 1
        with sqlite_locked(path):
            group = [asyncio.create_task(storage.add_events(session_id, str(n), [reading_event(2)])) for n in range(20)]
            begun = time.monotonic()
            results = await asyncio.gather(*group, return_exceptions=True)
            took = time.monotonic() - begun
        assert all(isinstance(result, StorageUnavailableError) for result in results)
        assert "locked" in str(results[0])
        assert took < 25, "one wait for all of them, not one after the other"
        assert (await storage.add_events(session_id, "w", [reading_event(2)])).accepted == 1
        assert await storage.count_readings(session_id, HistoryRange()) == 2


async def test_a_locked_table_of_postgresql(postgres_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "WRITE_WAIT_S", 0.5)
    async with await Storage.open(postgres_url) as storage:
        session_id = (await storage.create_session(kind="external", algorithm="PPO")).session_id
        other = await asyncpg.connect(postgres_url)
        async with other.transaction():
            await other.execute("LOCK TABLE sessions, metrics IN ACCESS EXCLUSIVE MODE")
            with pytest.raises(StorageUnavailableError, match="lock timeout"):
                await storage.add_events(session_id, "w", [reading_event(1)])
            with pytest.raises(StorageUnavailableError, match="lock timeout"):
                await storage.get_session(session_id)
        await other.close()
        assert (await storage.add_events(session_id, "w", [reading_event(1)])).accepted == 1


@pytest.fixture(scope="module")
def own_server() -> Iterator[OwnServer]:
    with own_server_or_skip() as server:
        yield server


async def post_until(url: str, session_id: str, stop: asyncio.Event, acknowledged: list[int]) -> set[int]:
    """Post readings one after the other, each again until it is acknowledged; returns the other answers seen."""
    refused = set()
    number = 0
    async with aiohttp.ClientSession(url) as client:
        while not stop.is_set():
            number += 1
            body = {"producer": "w", "events": [json.loads(reading_event(number).model_dump_json())]}
            while True:
                async with client.post(f"/api/training/sessions/{session_id}/events", json=body) as answer:
                    if answer.status == 201:
                        break
                    refused.add(answer.status)
                await asyncio.sleep(0.05)
            acknowledged.append(number)
    return refused


@contextlib.asynccontextmanager
async def posting(url: str) -> AsyncIterator[tuple[str, str, list[int], set[int]]]:
    """A server on the database at ``url`` and a client that posts; afterwards everything acknowledged is there once."""
    async with running_server(ServerConfig(port=0, database={"url": url})) as server:
        session_id = (await server.storage.create_session(kind="external", algorithm="PPO")).session_id
        stop, acknowledged, refused = asyncio.Event(), list[int](), set[int]()
        client = asyncio.create_task(post_until(server.url, session_id, stop, acknowledged))
        yield server.url, session_id, acknowledged, refused
        done = len(acknowledged)
        while len(acknowledged) < done + 3 and not client.done():  # noqa: ASYNC110 - it works again on its own
            await asyncio.sleep(0.02)
        stop.set()
        refused |= await client
        page = await server.storage.history_raw(session_id, HistoryRange(), limit=1000)
        assert [item["episode"] for item in page.items] == acknowledged[:1000]


async def get_status(url: str, path: str) -> tuple[int, float]:
    begun = time.monotonic()
    async with aiohttp.ClientSession(url) as client, client.get(path) as answer:
        return answer.status, time.monotonic() - begun


async def test_postgresql_stopped_and_back(own_server: OwnServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "WRITE_WAIT_S", 0.3)
    async with posting(own_server.url) as (url, session_id, acknowledged, refused):
        for mode in ("fast", "immediate"):
            done = len(acknowledged)
            while len(acknowledged) < done + 5:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            await asyncio.to_thread(own_server.stop, mode)
            try:
                done = len(acknowledged)
                for path in (f"/api/training/sessions/{session_id}", "/health/ready"):
                    status, took = await get_status(url, path)
                    assert status == 503
                    assert took < 30
                assert (await get_status(url, "/health"))[0] == 200
                await asyncio.sleep(0.8)
                assert len(acknowledged) <= done + 1
            finally:
                await asyncio.to_thread(own_server.start)
    assert refused == {503}


async def test_connections_that_are_cut_off(postgres_url: str) -> None:
    cut = f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{postgres_url.rsplit('/')[-1]}'"
    cut += " AND application_name = 'gymcast'"
    async with posting(postgres_url) as (url, session_id, acknowledged, refused):
        server = postgres_url.rsplit("/", 1)[0] + "/postgres"
        for _ in range(10):
            done = len(acknowledged)
            while len(acknowledged) < done + 3:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            await asyncio.to_thread(query, server, cut)
            status, _ = await get_status(url, f"/api/training/sessions/{session_id}")
            assert status == 200, "a read finds another connection"
    assert refused <= {503}


async def test_a_full_queue_while_the_database_is_away_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    async with await Storage.open(f"sqlite:///{path}") as storage:
        session_id = (await storage.create_session(kind="external", algorithm="PPO")).session_id
        with sqlite_locked(path):
            waiting = asyncio.create_task(storage.add_events(session_id, "w", [reading_event(1)]))
            while storage.lag_seconds < 2.1:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            with pytest.raises(StorageBusyError):
                await storage.add_events(session_id, "v", [reading_event(1)])
        assert (await waiting).accepted == 1


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"database": "nobody_made_it"}, r"has no database 'nobody_made_it'; make it: createdb -h 127.0.0.1 -p \d+ -U"),
        ({"port": 1}, r"no PostgreSQL answers at 127.0.0.1:1 .*is it running"),
        ({"host": "nowhere.invalid"}, r"the host of the database, nowhere.invalid, cannot be found"),
        ({"username": "secret_user"}, r"refuses the password of user 'secret_user'; it belongs into the URL"),
    ],
)
async def test_bad_urls_say_what_to_do(
    own_server: OwnServer, change: dict[str, Any], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    from sqlalchemy.engine import make_url

    hba = own_server.folder / "data" / "pg_hba.conf"
    if "username" in change:
        hba.write_text("host all secret_user 127.0.0.1/32 scram-sha-256\n" + hba.read_text())
        query(own_server.url, "CREATE ROLE secret_user LOGIN PASSWORD 'right'", "SELECT pg_reload_conf()")
    wrong = make_url(own_server.url).set(password="hunter2", **change)
    with pytest.raises(StorageUnavailableError, match=text) as raised:
        await Storage.open(wrong.render_as_string(hide_password=False))
    assert "hunter2" not in str(raised.value) + caplog.text


async def test_a_server_that_says_nothing_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres_module, "_CONNECT_S", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(StorageUnavailableError, match="does not answer in time"):
            await Storage.open(f"postgresql://u:hunter2@127.0.0.1:{silent.getsockname()[1]}/x")
