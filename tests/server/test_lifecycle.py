"""Starting and stopping: ports, databases that cannot be used, signals, what the process imports."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import aiohttp
import pytest

from gymcast.server import DatabaseConfig, PortTakenError, ServerConfig, running_server
from gymcast.training.storage import HistoryRange, StorageUnavailableError

from .conftest import external, metrics, server_config

SESSIONS = "/api/training/sessions"


async def test_taken_port_offers_the_next_free_one(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        config = ServerConfig(port=taken, database={"url": f"sqlite:///{tmp_path / 'a.db'}"})
        with pytest.raises(PortTakenError, match=f"port {taken} is taken") as raised:
            async with running_server(config):
                pass
        assert raised.value.suggestion is not None and raised.value.suggestion > taken
        assert str(raised.value.suggestion) in str(raised.value)
        async with running_server(config.model_copy(update={"port": raised.value.suggestion})) as server:
            assert server.port == raised.value.suggestion


async def test_same_port_right_after_the_end(tmp_path: Path) -> None:
    async with running_server(server_config(tmp_path)) as server:
        port = server.port
        async with aiohttp.ClientSession(server.url) as client, client.get("/health") as answer:
            assert answer.status == 200
    async with running_server(server_config(tmp_path).model_copy(update={"port": port})) as server:
        assert server.port == port


@pytest.mark.parametrize("kind", ["folder is a file", "not a database", "memory", "unknown"])
async def test_unusable_databases_are_told_at_the_start(tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("this is no database, only text of some length " * 100)
    url = {
        "folder is a file": f"sqlite:///{tmp_path / 'file' / 'a.db'}",
        "not a database": f"sqlite:///{tmp_path / 'file'}",
        "memory": "sqlite://",
        "unknown": "mysql://localhost/x",
    }[kind]
    with pytest.raises(StorageUnavailableError):
        async with running_server(ServerConfig(port=0, database={"url": url})):
            pass


async def test_without_a_database_nothing_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = ServerConfig(port=0, database=DatabaseConfig(enabled=False))
    async with (
        running_server(config) as server,
        aiohttp.ClientSession(server.url) as client,
        client.post(SESSIONS, json=external()) as answer,
    ):
        assert answer.status == 201
    assert os.listdir(tmp_path) == []


async def test_requests_at_work_are_answered_and_kept(tmp_path: Path) -> None:
    config = server_config(tmp_path)
    async with aiohttp.ClientSession() as client:
        async with running_server(config) as server:
            async with client.post(f"{server.url}{SESSIONS}", json=external()) as answer:
                session_id = (await answer.json())["session_id"]
            posting = [
                asyncio.create_task(_post(client, f"{server.url}{SESSIONS}/{session_id}/metrics", number))
                for number in range(20)
            ]
            await asyncio.sleep(0.02)
        statuses = await asyncio.gather(*posting)
        async with (
            running_server(config) as server,
            client.get(f"{server.url}{SESSIONS}/{session_id}/history?limit=1000") as answer,
        ):
            kept = {reading["episode"] for reading in (await answer.json())["metrics_data"]}
    acknowledged = {number for number, status in enumerate(statuses) if status == 201}
    assert acknowledged <= kept


async def _post(client: aiohttp.ClientSession, url: str, number: int) -> int:
    try:
        async with client.post(url, json=metrics(number)) as answer:
            return answer.status
    except aiohttp.ClientConnectionError:
        return 0


SERVE = """
import sys
from gymcast.server import ServerConfig, TrainingMetricsServer
TrainingMetricsServer(ServerConfig(port=0, database={"url": sys.argv[1]})).run()
print("torch" in sys.modules, "numba" in sys.modules, "plotly" in sys.modules)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_server_process_ends_on_a_signal_and_never_imports_torch(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", SERVE, f"sqlite:///{tmp_path / 'a.db'}"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        request = urllib.request.Request(
            url + SESSIONS, json.dumps(external()).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 201
        process.send_signal(number)
        output, _ = process.communicate(timeout=20)
    finally:
        process.kill()
    assert process.returncode == 0
    assert output.split() == ["False", "False", "False"]


def test_killed_server_loses_no_acknowledged_row(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'a.db'}"
    process = subprocess.Popen([sys.executable, "-c", SERVE, url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        address = process.stdout.readline().split()[-1]
        acknowledged = asyncio.run(_post_until_killed(address, process))
    finally:
        process.kill()
        process.communicate(timeout=20)
    assert len(acknowledged) >= 20
    kept = asyncio.run(_kept(url))
    assert acknowledged <= kept


async def _post_until_killed(address: str, process: subprocess.Popen[str]) -> set[int]:
    async with aiohttp.ClientSession(address) as client:
        async with client.post(SESSIONS, json=external()) as answer:
            session_id = (await answer.json())["session_id"]
        acknowledged: set[int] = set()
        enough = asyncio.Event()

        async def post(first: int) -> None:
            for number in range(first, 10_000, 4):
                if await _post(client, f"{SESSIONS}/{session_id}/metrics", number) != 201:
                    return
                acknowledged.add(number)
                if len(acknowledged) >= 20:
                    enough.set()

        posting = [asyncio.create_task(post(first)) for first in range(4)]
        await asyncio.wait_for(enough.wait(), 20)
        process.kill()
        await asyncio.gather(*posting)
    return acknowledged


async def _kept(url: str) -> set[int]:
    config = ServerConfig(port=0, database={"url": url})
    async with running_server(config) as server:
        sessions, _ = await server.storage.list_sessions()
        found = set()
        cursor = None
        while True:
            page = await server.storage.history_raw(sessions[0].session_id, HistoryRange(), limit=1000, cursor=cursor)
            found |= {reading["episode"] for reading in page.items}
            cursor = page.next_cursor
            if cursor is None:
                return found
