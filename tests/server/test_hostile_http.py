"""Raw HTTP that tries something: smuggled requests, floods of headers, paths out of a folder, endless bodies."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from gymcast.server import RunningServer, running_server

from .conftest import external, server_config
from .test_auth import SECRET, SESSIONS, bearer, token

HOST = b"Host: 127.0.0.1\r\n"


async def raw(server: RunningServer, sent: bytes, seconds: float = 3) -> bytes:
    """What the server answers to these bytes, until it closes or says nothing more for half a second."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    found = b""
    try:
        writer.write(sent)
        async with asyncio.timeout(seconds):
            while part := await asyncio.wait_for(reader.read(1 << 16), 0.5 if found else seconds):
                found += part
    except (TimeoutError, ConnectionError):
        pass
    finally:
        writer.transport.abort()
    return found


def statuses(answer: bytes) -> list[int]:
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


SMUGGLED = b"DELETE /api/training/sessions/%s HTTP/1.1\r\n" + HOST + b"\r\n"


@pytest.mark.parametrize(
    "head",
    [
        b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
        b"Content-Length: 5\r\nContent-Length: 6\r\n",
        b"Content-Length: 5, 6\r\n",
        b"Content-Length: +5\r\n",
        b"Content-Length: -5\r\n",
        b"Content-Length: 0x5\r\n",
        b"Content-Length: 5_0\r\n",
        b"Content-Length: \xb2\r\n",
        b"Transfer-Encoding: chunked, identity\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer-Encoding:\x0bchunked\r\n",
        b"X: y\r\n Transfer-Encoding: chunked\r\n",
        b"X: y\rTransfer-Encoding: chunked\r\n",
        b"X: \0\r\n",
        b"Host: evil.example\r\n",
        b"Bad Name: x\r\n",
        b": x\r\n",
    ],
)
async def test_requests_that_two_readers_would_read_differently(
    server: RunningServer, client: aiohttp.ClientSession, head: bytes
) -> None:
    async with client.post(SESSIONS, json=external()) as answer:
        session_id = (await answer.json())["session_id"]
    smuggled = SMUGGLED % session_id.encode()
    begin = b"POST /api/training/sessions HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n"
    found = statuses(await raw(server, begin + head + b"\r\n0\r\n\r\n" + smuggled))
    # One refusal, after which nothing on the connection is believed.
    assert len(found) <= 1 and all(400 <= status < 500 for status in found), found
    async with client.get(f"{SESSIONS}/{session_id}") as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /health HTTP/1.1\r\n" + HOST + b"X: " + b"x" * 10_000 + b"\r\n\r\n",
        b"GET /health HTTP/1.1\r\n" + HOST + b"x" * 10_000 + b": y\r\n\r\n",
        b"GET /" + b"x" * 10_000 + b" HTTP/1.1\r\n" + HOST + b"\r\n",
        b"GET /health HTTP/1.1\r\n" + HOST + b"".join(b"X-%d: y\r\n" % number for number in range(100_000)) + b"\r\n",
        b"GET /health HTTP/9.9\r\n" + HOST + b"\r\n",
        b"GET /health\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET http://evil.example/health HTTP/1.1\r\nHost: evil.example\r\n\r\n",
        b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
        b"\r\n" * 10_000,
    ],
    ids=["long value", "long name", "long path", "100,000 headers", "9.9", "0.9", "TLS", "proxy", "CONNECT", "lines"],
)
async def test_what_is_hardly_http(server: RunningServer, client: aiohttp.ClientSession, sent: bytes) -> None:
    found = statuses(await raw(server, sent))
    assert len(found) <= 1 and all(400 <= status < 500 for status in found), found
    async with client.get("/health") as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    "path",
    [
        "/static/../config.py",
        "/static/%2e%2e/config.py",
        "/static/%2e%2e%2fconfig.py",
        "/static/..%2fconfig.py",
        "/static/..%252fconfig.py",
        "/static/%252e%252e/config.py",
        "/static/..%5cconfig.py",
        "/static/..%c0%afconfig.py",
        "/static/..%ef%bc%8fconfig.py",
        "/static/....//config.py",
        "/static/js/../../config.py",
        "/static//etc/passwd",
        "/static/%2fetc/passwd",
        "/static/file:///etc/passwd",
        "/static/js/api.js%00.txt",
        "/static/js%2f..%2f..%2fconfig.py",
        "/static/.",
        "/static/js",
        "/api/replays/..%2f..%2fetc%2fpasswd",
        "/api/replays/%2e%2e",
        f"{SESSIONS}/..%2f..%2fstatus",
        "/api/envs/..%2f..%2f..%2fetc%2fpasswd",
        "/problems/..%2f..%2fstatus",
    ],
)
async def test_paths_lead_nowhere_else(server: RunningServer, path: str) -> None:
    found = await raw(server, f"GET {path} HTTP/1.1\r\n".encode() + HOST + b"Connection: close\r\n\r\n")
    assert statuses(found) in ([400], [404]), found[:200]
    assert b"root:" not in found and b"MIN_SECRET_BYTES" not in found


@pytest.fixture
async def guarded(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A server that asks for tokens."""
    settings = server_config(
        tmp_path, enable_auth=True, jwt_secret_key=SECRET, performance={"request_wait_seconds": 0.5}
    )
    async with running_server(settings) as running:
        yield running


async def test_a_stranger_cannot_make_the_server_read_on(guarded: RunningServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port)
    writer.write(b"POST /api/training/sessions HTTP/1.1\r\n" + HOST + b"Content-Type: application/json\r\n")
    writer.write(b"Transfer-Encoding: chunked\r\n\r\n")
    sent = 0
    block = b"10000\r\n" + b"x" * (1 << 16) + b"\r\n"
    with pytest.raises(ConnectionError):
        async with asyncio.timeout(15):
            while sent < 1 << 30:
                writer.write(block)
                await writer.drain()
                sent += len(block)
                await asyncio.sleep(0.02)
    writer.transport.abort()
    assert reader.at_eof() or sent < 1 << 28


async def test_slow_headers_are_cut_off_before_anybody_is_asked_who_he_is(guarded: RunningServer) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", guarded.port)
    writer.write(b"GET /api/training/sessions HTTP/1.1\r\n" + HOST + b"Authorization: Bearer ")

    async def trickle() -> None:
        for sign in token("read"):
            writer.write(sign.encode())
            await asyncio.sleep(0.05)

    slow = asyncio.create_task(trickle())
    assert await asyncio.wait_for(reader.read(), 5) == b""
    slow.cancel()
    writer.transport.abort()


async def test_two_tokens_at_once_are_none(guarded: RunningServer) -> None:
    header = b"Authorization: Bearer " + token("read").encode() + b"\r\n"
    found = await raw(guarded, b"GET /status HTTP/1.1\r\n" + HOST + header * 2 + b"\r\n")
    assert statuses(found) == [401]
    found = await raw(guarded, b"GET /status HTTP/1.1\r\n" + HOST + header + b"\r\n")
    assert statuses(found) == [200]


async def test_no_secret_is_in_the_log(
    guarded: RunningServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level("DEBUG")
    good = token("admin")
    async with aiohttp.ClientSession(guarded.url) as client:
        async with client.post("/api/tickets", json={}, headers=bearer(good)) as answer:
            ticket = (await answer.json())["ticket"]
        for headers in (bearer(good), bearer(good + "x"), bearer(f"{good}{good}")):
            for query in ({}, {"token": good}, {"ticket": ticket}):
                for path in (SESSIONS, "/ws/nobody", "/nowhere", "/api/envs/x%0AERROR forged line"):
                    async with client.get(path, params=query, headers=headers) as answer:
                        text = await answer.text()
                        assert good not in text and ticket not in text and SECRET not in text
    # A fault of the server writes a traceback.
    monkeypatch.setattr(guarded.services.api, "list_training_sessions", None)
    request = f"GET {SESSIONS} HTTP/1.1\r\n".encode() + HOST + b"Authorization: Bearer " + good.encode() + b"\r\n\r\n"
    assert statuses(await raw(guarded, request)) == [500]
    assert "TypeError" in caplog.text and "is not let in" in caplog.text
    assert not any("\n" in record.getMessage() for record in caplog.records)
    for secret in (SECRET, good, ticket, good.split(".")[2], ticket.split(".")[2]):
        assert secret not in caplog.text
