"""SIGTERM while people watch and reports are on their way: everybody is told, nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from gymcast.training.storage import HistoryRange, Storage

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
    """A report whose last bytes have not been sent; these come with it."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body[:-20])
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
        await asyncio.sleep(0.5)  # until the server has them
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


async def _close_code(viewer: aiohttp.ClientWebSocketResponse) -> int | None:
    async with asyncio.timeout(15):
        while not viewer.closed:
            await viewer.receive()
    return viewer.close_code
