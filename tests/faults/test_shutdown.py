"""SIGTERM while people watch, reports are on their way and trainings run: everybody is told, nothing is lost."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pytest

from gymcast.training.hang_watch import Place, last_sign
from gymcast.training.run_folder import worker_of
from gymcast.training.sessions import SessionManager
from gymcast.training.storage import HistoryRange, Storage

from ..managed import check_rows, run_dir_of, short
from ..reference_examples import METRICS

SESSIONS = "/api/training/sessions"
VIEWERS = 200


def silent_viewer(port: int, session_id: str) -> socket.socket:
    """A viewer that connects and then never reads."""
    viewer = socket.create_connection(("127.0.0.1", port))
    key = base64.b64encode(os.urandom(16)).decode()
    viewer.sendall(
        f"GET /ws/{session_id} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    assert viewer.recv(12) == b"HTTP/1.1 101"
    return viewer


async def half_a_report(port: int, path: str, body: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter, bytes]:
    """A report that the server has begun to read and whose last bytes have not been sent; these come with it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode())
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body[:-20])
    await writer.drain()
    return reader, writer, body[-20:]


async def test_sigterm_with_viewers_and_reports_on_their_way(
    cli: Callable[..., Any], free_port: int, tmp_path: Path
) -> None:
    settings = tmp_path / "settings.json"
    settings.write_text(json.dumps({"performance": {"max_connections_per_session": 500}}))
    server = cli("serve", "--port", str(free_port), "--config", str(settings))
    url = server.read_until(r"Watch  (http://\S+)/\s")[1]
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(
            aiohttp.ClientSession(url, connector=aiohttp.TCPConnector(limit=2 * VIEWERS))
        )
        body = {"training_session_id": "t1", "model_generation": 2, "algorithm": "DQN", "total_episodes": 1000}
        async with client.post(SESSIONS, json=body) as answer:
            session_id = (await answer.json())["session_id"]
        path = f"{SESSIONS}/{session_id}/metrics"
        stack.callback((await asyncio.to_thread(silent_viewer, free_port, session_id)).close)
        viewers = [await stack.enter_async_context(client.ws_connect(f"/ws/{session_id}")) for _ in range(VIEWERS - 1)]
        parts = [
            await half_a_report(free_port, path, json.dumps({**METRICS, "episode": number}).encode())
            for number in range(1, 11)
        ]
        begun = time.monotonic()
        os.kill(server.process.pid, signal.SIGTERM)
        codes = await asyncio.gather(*(_close_code(viewer) for viewer in viewers))
        for _reader, writer, rest in parts:
            writer.write(rest)
        answers = [(await reader.readline()).decode() for reader, _writer, _rest in parts]
        for _reader, writer, _rest in parts:
            writer.close()
        try:
            socket.create_connection(("127.0.0.1", free_port), 1).close()
            refused = False
        except ConnectionRefusedError:
            refused = True
        code = await asyncio.to_thread(server.finish, 30.0)
        took = time.monotonic() - begun
    assert set(codes) == {1001}
    assert refused
    assert answers == ["HTTP/1.1 201 Created\r\n"] * len(parts)
    assert code == 128 + signal.SIGTERM
    # A promise, not a measurement: with nothing in the way it takes about a second.
    assert took < 15
    assert not psutil.pid_exists(server.process.pid)
    async with await Storage.open(f"sqlite:///{tmp_path / 'runs' / 'gymcast.db'}") as storage:
        kept = (await storage.history_raw(session_id, HistoryRange())).items
    assert sorted(reading["episode"] for reading in kept) == list(range(1, 11))


HANGS = """
import asyncio, os, signal, time
from gymcast.server import cli_signals

async def main():
    with cli_signals.StopRequests(in_time=cli_signals.HANDLED) as stops:
        os.kill(os.getpid(), signal.SIGTERM)
        await stops.wait_for_more(0)
        time.sleep(600)

cli_signals._LAST_SECONDS = 0.2
asyncio.run(main())
"""


def test_a_shutdown_that_hangs_is_cut_off_and_says_where() -> None:
    process = subprocess.run([sys.executable, "-c", HANGS], stderr=subprocess.PIPE, text=True, timeout=60)
    assert process.returncode == 1
    assert "Timeout" in process.stderr and "in main" in process.stderr


async def _close_code(viewer: aiohttp.ClientWebSocketResponse) -> int | None:
    async with asyncio.timeout(15):
        while not viewer.closed:
            await viewer.receive()
    return viewer.close_code


def stalled(run_dir: Path, pid: int) -> bool:
    """Whether its game does not come back from a step."""
    sign = last_sign(run_dir, pid)
    return sign is not None and sign[0] is Place.STEPPING and sign[1] > 1.0


async def test_sigterm_waits_no_longer_for_a_training_in_a_step_that_takes_long(
    cli: Callable[..., Any], free_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is killed, and the next server goes on from its checkpoint."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "games"))
    monkeypatch.setenv("GYMCAST_GYM_PACKAGES", "bad_games")
    stalls = tmp_path / "stalls"
    stalls.touch()
    config = {
        **short(1024, lanes=1).model_dump(mode="json"),
        "env_id": "Bad-v0",
        "gym_packages": ["bad_games"],
        "workers": 0,
        "env_kwargs": {"fault": "stall", "after": 500, "burn": str(stalls)},
    }
    server = cli("serve", "--port", str(free_port))
    url = server.read_until(r"Watch  (http://\S+)/\s")[1]
    async with aiohttp.ClientSession(url) as client:
        async with client.post(SESSIONS, json={"config": config}) as answer:
            session_id = (await answer.json())["session_id"]
        run_dir = tmp_path / "runs" / session_id
        async with asyncio.timeout(60):
            while (pid := worker_of(run_dir)) is None or not stalled(run_dir, pid):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        server.remember_children()
        async with client.ws_connect(f"/ws/{session_id}") as viewer:
            server.process.send_signal(signal.SIGTERM)
            assert await _close_code(viewer) == 1001
            # Viewers are not kept waiting for trainings.
            assert worker_of(run_dir) == pid
    assert await asyncio.to_thread(server.finish, 30.0) == 128 + signal.SIGTERM, server.text
    assert server.orphans() == []
    stalls.unlink()
    database = f"sqlite:///{tmp_path / 'runs' / 'gymcast.db'}"
    async with (
        await Storage.open(database) as storage,
        SessionManager(storage=storage, runs_dir=tmp_path / "runs", keep_sessions=True) as following,
        asyncio.timeout(60),
    ):
        ended = await following.wait(session_id)
        moves = await storage.transitions(session_id)
    assert [move["to_status"] for move in moves] == [
        *("queued", "starting", "running", "stopping"),
        *("queued", "starting", "running", "completed"),
    ]
    assert moves[4]["reason"] == "its manager is shutting down; it did not end in time and was killed"
    assert (ended.status, ended.attempts, ended.timesteps) == ("completed", 2, 1024)
    assert "resumed from step-" in (run_dir_of(ended) / "log.txt").read_text()
    check_rows(database, ended)
