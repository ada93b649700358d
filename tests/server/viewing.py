"""What tests of the WebSocket share: reading messages, posting, viewers that read nothing."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import count
from typing import Any

import aiohttp
from aiohttp import WSMsgType

from gymcast.server import RunningServer

SESSIONS = "/api/training/sessions"


async def next_message(ws: aiohttp.ClientWebSocketResponse, *kinds: str) -> dict[str, Any]:
    """The next message; of ``kinds`` only when given."""
    while True:
        message = await ws.receive(timeout=20)
        assert message.type is WSMsgType.TEXT, message
        value: dict[str, Any] = json.loads(message.data)
        assert set(value) == {"v", "type", "session", "epoch", "seq", "ts", "data"}
        assert value["v"] == 1
        if not kinds or value["type"] in kinds:
            return value


async def on_connect(ws: aiohttp.ClientWebSocketResponse, number: int) -> dict[str, dict[str, Any]]:
    """The first ``number`` messages by type."""
    found = [await next_message(ws) for _ in range(number)]
    return {message["type"]: message for message in found}


async def post(client: aiohttp.ClientSession, session_id: str, what: str, body: Any) -> None:
    """Report ``body`` to one of the session's addresses."""
    async with client.post(f"{SESSIONS}/{session_id}/{what}", json=body) as answer:
        assert answer.status in (200, 201), await answer.text()


async def until(true: Callable[[], bool]) -> None:
    """Wait for something that comes about by itself."""
    async with asyncio.timeout(30):
        for _ in count():
            if true():
                return
            await asyncio.sleep(0.02)


async def until_closed(ws: aiohttp.ClientWebSocketResponse) -> int | None:
    """The code that the server closes with, whatever it sends before."""
    while not ws.closed:
        await ws.receive(timeout=20)
    return ws.close_code


async def handshake(server: RunningServer, session_id: str, *, receive_buffer: int | None = None) -> socket.socket:
    """A plain socket after the upgrade, with the server's first messages still unread."""
    raw = socket.socket()
    if receive_buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(raw, ("127.0.0.1", server.port))
    key = base64.b64encode(os.urandom(16)).decode()
    request = (
        f"GET /ws/{session_id} HTTP/1.1\r\nHost: 127.0.0.1:{server.port}\r\nUpgrade: websocket\r\n"
        f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n"
    )
    await loop.sock_sendall(raw, request.encode())
    assert (await loop.sock_recv(raw, 12)).startswith(b"HTTP/1.1 101")
    return raw


async def read_to_end(raw: socket.socket) -> bytes:
    """Everything that still comes until the server has closed or reset the connection."""
    loop = asyncio.get_running_loop()
    data = b""
    async with asyncio.timeout(30):
        try:
            while some := await loop.sock_recv(raw, 1 << 16):
                data += some
        except ConnectionError:
            pass
    return data


@asynccontextmanager
async def stalled_viewer(server: RunningServer, session_id: str) -> AsyncIterator[socket.socket]:
    """A viewer that finishes the handshake, then reads nothing."""
    raw = await handshake(server, session_id, receive_buffer=4096)
    try:
        yield raw
    finally:
        raw.close()
