"""Rooms over REST and WebSocket: made, joined, guessed at, full, ended."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gymcast.server import RunningServer, auth, running_server

from .conftest import NewSession, expect_problem, external, metrics, server_config

ROOMS = "/api/rooms"
SESSIONS = "/api/training/sessions"
SECRET = "a-secret-of-these-tests-and-of-nothing-else"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


async def make(client: aiohttp.ClientSession, session_id: str, **wanted: Any) -> dict[str, Any]:
    async with client.post(ROOMS, json={"session_id": session_id, **wanted}) as answer:
        assert answer.status == 201, await answer.text()
        made: dict[str, Any] = await answer.json()
        assert answer.headers["Location"] == f"{ROOMS}/{made['code']}"
        return made


async def join(client: aiohttp.ClientSession, code: str, **known: Any) -> dict[str, Any]:
    async with client.post(f"{ROOMS}/{code}/join", json=known) as answer:
        assert answer.status == 200, await answer.text()
        joined: dict[str, Any] = await answer.json()
        return joined


@pytest.fixture
async def closed_server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A server that asks for tokens."""
    async with running_server(server_config(tmp_path, enable_auth=True, jwt_secret_key=SECRET)) as running:
        yield running


async def test_a_room_is_made_listed_joined_and_closed(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    session_id = await new_session()
    made = await make(client, session_id, password_protected=True, max_spectators=5, expires_in=60)
    assert re.fullmatch(r"[a-z0-9]{4}-[a-z0-9]{4}-[a-z0-9]{4}", made["password"])
    room = {name: value for name, value in made.items() if name != "password"}
    assert (room["session_id"], room["kind"], room["max_spectators"]) == (session_id, "spectator", 5)
    assert (room["password_protected"], room["spectator_count"]) == (True, 0)
    async with client.get(f"{ROOMS}/{made['code'].lower()}") as answer:
        assert await answer.json() == room
    async with client.get(f"{SESSIONS}/{session_id}") as answer:
        assert (await answer.json())["room_code"] == made["code"]
    open_to_all = await make(client, session_id)
    own = await make(client, session_id, password="open sesame")
    assert (open_to_all["password"], own["password"]) == (None, "open sesame")
    async with client.get(ROOMS, params={"session": session_id, "limit": "2"}) as answer:
        page = await answer.json()
    assert [item["code"] for item in page["rooms"]] == [own["code"], open_to_all["code"]]
    async with client.get(ROOMS, params={"cursor": page["next_cursor"]}) as answer:
        assert [item["code"] for item in (await answer.json())["rooms"]] == [made["code"]]
    for code, known in ((made["code"], {"password": made["password"]}), (open_to_all["code"], {})):
        joined = await join(client, code, **known)
        assert (joined["session_id"], joined["room"]["code"]) == (session_id, code)
        assert 0 < joined["expires_in"] <= (60 if code == made["code"] else 12 * 3600)
    async with client.delete(f"{ROOMS}/{made['code']}") as answer:
        assert answer.status == 204
    async with client.delete(f"{ROOMS}/{made['code']}") as answer:
        await expect_problem(answer, 404)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"kind": "play"}, "no rooms for human players; the kind has to be 'spectator'"),
        ({"kind": "other"}, "should be 'spectator'"),
        ({"password": "s3krt"}, "at least 6"),
        ({"password": "x" * 129}, "at most 128"),
        ({"password": "long enough", "password_protected": False}, "leave one of them out"),
        ({"max_spectators": 0}, "greater than or equal to 1"),
        ({"expires_in": 0.5}, "greater than or equal to 1"),
        ({"expires_in": 1e9}, "less than or equal"),
        ({"seats": 2}, "Extra inputs"),
    ],
)
async def test_rooms_that_cannot_be(
    client: aiohttp.ClientSession, new_session: NewSession, wanted: dict[str, Any], message: str
) -> None:
    session_id = await new_session()
    async with client.post(ROOMS, json={"session_id": session_id, **wanted}) as answer:
        document = await expect_problem(answer, 422, "invalid-values")
    assert message in document["detail"]
    if "password" in wanted:
        assert wanted["password"] not in str(document)
    async with client.get(ROOMS) as answer:
        assert (await answer.json())["rooms"] == []


async def test_sessions_that_take_no_guests(
    client: aiohttp.ClientSession, new_session: NewSession, tmp_path: Path
) -> None:
    async with client.post(ROOMS, json={"session_id": "nobody"}) as answer:
        await expect_problem(answer, 404)
    async with client.post(ROOMS, json={"session_id": await new_session(enable_spectators=False)}) as answer:
        assert "takes no spectators" in (await expect_problem(answer, 409))["detail"]
    without = server_config(tmp_path / "b", integration={"enable_spectator_integration": False})
    async with running_server(without) as server, aiohttp.ClientSession(server.url) as other:
        async with other.post(SESSIONS, json=external()) as answer:
            session_id = (await answer.json())["session_id"]
        async with other.post(ROOMS, json={"session_id": session_id}) as answer:
            assert "enable_spectator_integration" in (await expect_problem(answer, 409))["detail"]


async def test_guessing_passwords_and_codes_is_slow_and_tells_nothing(
    client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    made = await make(client, await new_session(), password_protected=True)
    answers = []
    for code in (made["code"], "AAAAAA"):
        async with client.post(f"{ROOMS}/{code}/join", json={"password": "a wrong one"}) as answer:
            problem = await expect_problem(answer, 404, "not-found")
            answers.append(problem["detail"].replace(code, "CODE"))
        async with client.post(f"{ROOMS}/{code}/join", json={}) as answer:
            answers.append((await expect_problem(answer, 404, "not-found"))["detail"].replace(code, "CODE"))
    assert len(set(answers)) == 1
    # Four more at once: all are counted, whatever their order.
    statuses = await asyncio.gather(*(_try(client, made["code"], f"guess {number}") for number in range(8)))
    assert sorted(statuses) == [404] * 4 + [429] * 4
    async with client.post(f"{ROOMS}/{made['code']}/join", json={"password": made["password"]}) as answer:
        problem = await expect_problem(answer, 429, "too-many-requests")
        assert "5 a minute" in problem["detail"] and 1 <= int(answer.headers["Retry-After"]) <= 61
    # Another room is not held up by it, and good tries do not count.
    second = await make(client, await new_session(training_session_id="t2"), password_protected=True)
    for _ in range(7):
        await join(client, second["code"], password=second["password"])


async def _try(client: aiohttp.ClientSession, code: str, password: str) -> int:
    async with client.post(f"{ROOMS}/{code}/join", json={"password": password}) as answer:
        return answer.status


async def test_a_guest_watches_one_session_and_does_nothing_else(
    client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    session_id, other = await new_session(), await new_session(training_session_id="t2")
    made = await make(client, session_id)
    guest = bearer((await join(client, made["code"]))["token"])
    for path in (f"{SESSIONS}/{session_id}", f"{SESSIONS}/{session_id}/history", f"{ROOMS}/{made['code']}"):
        async with client.get(path, headers=guest) as answer:
            assert answer.status == 200, path
    for path in (SESSIONS, f"{SESSIONS}/{other}", f"/ws/{other}", ROOMS, "/status"):
        async with client.get(path, headers=guest) as answer:
            await expect_problem(answer, 404)
    async with client.post(f"{SESSIONS}/{session_id}/metrics", json=metrics(), headers=guest) as answer:
        await expect_problem(answer, 403, "forbidden")
    async with client.delete(f"{ROOMS}/{made['code']}", headers=guest) as answer:
        await expect_problem(answer, 403, "forbidden")


async def test_a_full_room_refuses_before_the_upgrade(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    session_id = await new_session()
    made = await make(client, session_id, max_spectators=1)
    guest = bearer((await join(client, made["code"]))["token"])
    async with client.ws_connect(f"/ws/{session_id}", headers=guest) as first:
        assert (await first.receive_json(timeout=5))["type"] == "connection_status"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.ws_connect(f"/ws/{session_id}", headers=guest)
        assert (refused.value.status, refused.value.headers["Retry-After"]) == (503, "10")  # type: ignore[index]
        async with client.ws_connect(f"/ws/{session_id}") as host:  # who comes otherwise takes no place in the room
            assert (await host.receive_json(timeout=5))["type"] == "connection_status"
        async with client.get(f"{ROOMS}/{made['code']}") as answer:
            assert (await answer.json())["spectator_count"] == 1
    async with asyncio.timeout(5):
        while True:
            async with client.get(f"{ROOMS}/{made['code']}") as answer:
                if (await answer.json())["spectator_count"] == 0:
                    break
    async with client.ws_connect(f"/ws/{session_id}", headers=guest) as again:
        assert (await again.receive_json(timeout=5))["type"] == "connection_status"


async def test_a_guests_ticket_takes_a_place_in_the_room(
    client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    session_id, other = await new_session(), await new_session(training_session_id="t2")
    made = await make(client, session_id)
    guest = bearer((await join(client, made["code"]))["token"])
    tickets = []
    for _ in range(2):
        async with client.post("/api/tickets", json={}, headers=guest) as answer:
            tickets.append((await answer.json())["ticket"])
    async with client.ws_connect(f"/ws/{session_id}", params={"ticket": tickets[0]}) as ws:
        assert (await ws.receive_json(timeout=5))["type"] == "connection_status"
        async with client.get(f"{ROOMS}/{made['code']}") as answer:
            assert (await answer.json())["spectator_count"] == 1
    with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
        await client.ws_connect(f"/ws/{other}", params={"ticket": tickets[1]})
    assert refused.value.status == 404


async def close_code(ws: aiohttp.ClientWebSocketResponse) -> tuple[int | None, str]:
    async with asyncio.timeout(10):
        while True:
            message = await ws.receive()
            if message.type is aiohttp.WSMsgType.CLOSE:
                return message.data, message.extra or ""


@pytest.mark.parametrize("end", ["closed", "expired", "closed elsewhere", "session deleted"])
async def test_guests_of_a_room_that_ends_are_sent_away(
    server: RunningServer, client: aiohttp.ClientSession, new_session: NewSession, end: str, server_database: str
) -> None:
    session_id = await new_session()
    made = await make(client, session_id, expires_in=1.5 if end == "expired" else None)
    guest = bearer((await join(client, made["code"]))["token"])
    async with (
        client.ws_connect(f"/ws/{session_id}") as host,
        client.ws_connect(f"/ws/{session_id}", headers=guest) as ws,
    ):
        await ws.receive_json(timeout=5)
        if end == "closed":
            await client.delete(f"{ROOMS}/{made['code']}")
        elif end == "closed elsewhere":
            await server.storage.rooms.close(made["code"])  # as another server process on the same database does
        elif end == "session deleted":
            await client.delete(f"{SESSIONS}/{session_id}")
        code, reason = await close_code(ws)
        assert (code, "ended" in reason or "deleted" in reason) == (4410, True)
        if end != "session deleted":
            await host.ping()
            assert not host.closed
    async with client.get(f"{SESSIONS}/{session_id}", headers=guest) as answer:
        assert f"Room {made['code']} has ended" in (await expect_problem(answer, 404))["detail"]
    async with client.post(f"{ROOMS}/{made['code']}/join", json={}) as answer:
        await expect_problem(answer, 404)
    async with client.get(f"{ROOMS}/{made['code']}") as answer:
        await expect_problem(answer, 404)
    if end != "session deleted":
        async with client.get(f"{SESSIONS}/{session_id}") as answer:
            assert (await answer.json())["room_code"] is None


async def test_where_tokens_are_asked_for(closed_server: RunningServer) -> None:
    host = bearer(auth.issue(SECRET, subject="host", scopes=["control"], seconds=60))
    reader = bearer(auth.issue(SECRET, subject="reader", scopes=["read"], seconds=60))
    async with aiohttp.ClientSession(closed_server.url) as client:
        async with client.post(SESSIONS, json=external(), headers=host) as answer:
            session_id = (await answer.json())["session_id"]
        for headers, status in (({}, 401), (reader, 403), (host, 201)):
            async with client.post(
                ROOMS, json={"session_id": session_id, "password": "open sesame"}, headers=headers
            ) as answer:
                assert answer.status == status
                made = await answer.json()
        joined = await join(client, made["code"].lower(), password="open sesame")
        assert auth.verify(SECRET, joined["token"]).room == made["code"]
        async with client.ws_connect(f"/ws/{session_id}", headers=bearer(joined["token"])) as ws:
            assert (await ws.receive_json(timeout=5))["type"] == "connection_status"
        async with client.get(ROOMS) as answer:
            await expect_problem(answer, 401)


async def test_a_guests_token_is_good_at_every_process_and_after_a_restart(
    tmp_path: Path, server_database: str
) -> None:
    config = server_config(tmp_path, database={"url": server_database})
    async with running_server(config) as one, running_server(config) as two:
        async with aiohttp.ClientSession(one.url) as client, client.post(SESSIONS, json=external()) as answer:
            session_id = (await answer.json())["session_id"]
            code = (await make(client, session_id))["code"]
            guest = bearer((await join(client, code))["token"])
        assert await _guests(two, session_id, code, guest) == 1
    async with running_server(config) as again:
        assert await _guests(again, session_id, code, guest) == 1


async def _guests(server: RunningServer, session_id: str, code: str, guest: dict[str, str]) -> int:
    """The guests of a room while one more watches. A token of another secret would watch as nobody's guest."""
    async with (
        aiohttp.ClientSession(server.url) as client,
        client.ws_connect(f"/ws/{session_id}", headers=guest),
        client.get(f"{ROOMS}/{code}") as answer,
    ):
        found: int = (await answer.json())["spectator_count"]
        return found


async def test_passwords_are_stored_as_argon2id(server: RunningServer, client: aiohttp.ClientSession) -> None:
    async with client.post(SESSIONS, json=external()) as answer:
        made = await make(client, (await answer.json())["session_id"], password="open sesame")
    stored = (await server.storage.rooms.get(made["code"])).password_hash
    assert stored is not None and stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
    assert "open sesame" not in stored
