"""Tickets: how a browser opens a WebSocket on a server that asks for tokens."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from gymcast.server import RunningServer, auth, running_server

from .conftest import expect_problem, external, server_config
from .test_auth import SECRET, SESSIONS, bearer, forged, token


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A server that asks for tokens."""
    async with running_server(server_config(tmp_path, enable_auth=True, jwt_secret_key=SECRET)) as running:
        yield running


@pytest.fixture
async def session_id(client: aiohttp.ClientSession) -> str:
    async with client.post(SESSIONS, json=external(), headers=bearer(token("ingest"))) as answer:
        return str((await answer.json())["session_id"])


async def ticket(client: aiohttp.ClientSession, headers: dict[str, str] | None = None, **wanted: Any) -> str:
    async with client.post("/api/tickets", json=wanted, headers=headers or bearer(token("read"))) as answer:
        assert answer.status == 200, await answer.text()
        document = await answer.json()
        assert document["expires_in"] == 30
        return str(document["ticket"])


async def opens(client: aiohttp.ClientSession, session_id: str, given: str) -> bool:
    """Whether a ticket opens the session's WebSocket; a refusal has to come before the upgrade."""
    try:
        async with client.ws_connect(f"/ws/{session_id}", params={"ticket": given}) as ws:
            assert (await ws.receive_json(timeout=5))["type"] == "connection_status"
            return True
    except aiohttp.WSServerHandshakeError as refused:
        assert refused.status == 401
        return False


async def test_a_ticket_works_once(client: aiohttp.ClientSession, session_id: str) -> None:
    given = await ticket(client)
    assert await opens(client, session_id, given)
    assert not await opens(client, session_id, given)
    both = await ticket(client)
    assert sorted(await asyncio.gather(*(opens(client, session_id, both) for _ in range(8)))) == [False] * 7 + [True]


async def test_a_ticket_for_one_session_opens_no_other(client: aiohttp.ClientSession, session_id: str) -> None:
    async with client.post(SESSIONS, json=external(), headers=bearer(token("ingest"))) as answer:
        other = (await answer.json())["session_id"]
    given = await ticket(client, session_id=session_id)
    assert not await opens(client, other, given)
    assert await opens(client, session_id, given)


async def test_a_room_and_its_guest(client: aiohttp.ClientSession, session_id: str) -> None:
    control = bearer(token("control"))
    async with client.post("/api/rooms", json={"session_id": session_id}, headers=control) as answer:
        code = (await answer.json())["code"]
    guest = bearer(token("read", room=code))
    assert await opens(client, session_id, await ticket(client, guest))
    assert await opens(client, session_id, await ticket(client, room=code))
    async with client.post("/api/tickets", json={"room": "ABCDEF"}, headers=guest) as answer:
        await expect_problem(answer, 404)
    given = await ticket(client, room="ABCDEF")
    async with client.get(f"/ws/{session_id}", params={"ticket": given}, headers={"Upgrade": "websocket"}) as answer:
        await expect_problem(answer, 404)


async def test_a_ticket_ends_after_30_seconds(
    client: aiohttp.ClientSession, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 29)
    young = await ticket(client)
    monkeypatch.setattr(time, "time", lambda: now - 30.5)
    old = await ticket(client)
    monkeypatch.undo()
    assert await opens(client, session_id, young)
    assert not await opens(client, session_id, old)


async def test_wrong_tickets(client: aiohttp.ClientSession, session_id: str) -> None:
    good = await ticket(client)
    head, body, signature = good.split(".")
    claims = jwt.decode(good, options={"verify_signature": False})
    wrong = {
        "another body": ".".join((head, token("admin").split(".")[1], signature)),
        "signature of another ticket": ".".join((head, body, (await ticket(client)).split(".")[2])),
        "no signature": jwt.encode(claims, None, algorithm="none"),
        "another secret": jwt.encode(claims, "another-secret-that-is-long-enough-to-count", algorithm="HS256"),
        "a token": token("admin"),
        "without a number": forged(aud="gymcast-ticket"),
        "empty": "",
        "rubbish": "x.y.z",
    }
    for name, given in wrong.items():
        assert not await opens(client, session_id, given), name
    assert await opens(client, session_id, good)


async def test_a_ticket_opens_nothing_else(client: aiohttp.ClientSession, session_id: str) -> None:
    given = await ticket(client)
    for path in (SESSIONS, f"{SESSIONS}/{session_id}", "/status"):
        async with client.get(path, params={"ticket": given}) as answer:
            await expect_problem(answer, 401)
        async with client.get(path, headers=bearer(given)) as answer:
            await expect_problem(answer, 401)
    async with client.post("/api/tickets", json={}, headers=bearer(given)) as answer:
        await expect_problem(answer, 401)
    assert await opens(client, session_id, given)


async def test_what_takes_no_ticket(client: aiohttp.ClientSession, session_id: str) -> None:
    async with client.ws_connect(f"/ws/{session_id}", headers=bearer(token("read"))) as ws:
        await ws.receive_json(timeout=5)
    for query in ("", f"?token={token('admin')}", f"?access_token={token('admin')}"):
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.ws_connect(f"/ws/{session_id}{query}")
        assert refused.value.status == 401
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client.ws_connect(f"/ws/{session_id}", headers=bearer(token("ingest")))
    assert refused.value.status == 403


@pytest.mark.parametrize("body", [{"session_id": "../x"}, {"session_id": 7}, {"room": ""}, {"surprise": 1}, []])
async def test_bad_wishes(client: aiohttp.ClientSession, body: Any) -> None:
    async with client.post("/api/tickets", json=body, headers=bearer(token("read"))) as answer:
        await expect_problem(answer, 422)
    async with client.post("/api/tickets", headers=bearer(token("read"))) as answer:
        await expect_problem(answer, 415)


async def test_a_connection_ends_with_the_token_that_opened_it(
    client: aiohttp.ClientSession, session_id: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "_LEEWAY_S", 1)
    short = bearer(auth.issue(SECRET, subject="short", scopes=["read"], seconds=2))
    given = await ticket(client, short)
    async with client.ws_connect(f"/ws/{session_id}", params={"ticket": given}) as ws:
        async with asyncio.timeout(30):
            async for _message in ws:
                pass
    assert ws.close_code == 4401


async def test_an_open_server_gives_tickets_too(tmp_path: Path) -> None:
    async with running_server(server_config(tmp_path)) as server, aiohttp.ClientSession(server.url) as client:
        async with client.post(SESSIONS, json=external()) as answer:
            session_id = (await answer.json())["session_id"]
        async with client.post("/api/tickets", json={}) as answer:
            given = (await answer.json())["ticket"]
        assert await opens(client, session_id, given)
