"""Two servers behind one address: tickets and budgets are shared through Redis, and what happens without it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack

import aiohttp
import pytest

from gymcast.server import RunningServer, ServerConfig, running_server

from ..redis_server import OwnRedis, own_redis_or_skip
from .conftest import expect_problem, external
from .test_auth import SECRET, SESSIONS, bearer, token
from .test_rate_limits import who
from .test_tickets import opens, ticket

Pair = tuple[RunningServer, RunningServer]


@pytest.fixture
def redis() -> Iterator[OwnRedis]:
    yield from own_redis_or_skip()


@pytest.fixture
async def pair(redis: OwnRedis, postgres_url: str) -> AsyncIterator[Pair]:
    config = ServerConfig(
        port=0,
        database={"url": postgres_url},
        redis={"url": f"redis://127.0.0.1:{redis.port}"},
        security={"enable_auth": True, "jwt_secret_key": SECRET},
        performance={"enable_rate_limiting": True, "control_per_minute": 6},
    )
    async with running_server(config) as one, running_server(config) as two:
        yield one, two


@pytest.fixture
async def clients(pair: Pair) -> AsyncIterator[list[aiohttp.ClientSession]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(aiohttp.ClientSession(server.url)) for server in pair]


async def test_tickets_and_budgets_hold_for_both(clients: list[aiohttp.ClientSession], redis: OwnRedis) -> None:
    one, two = clients
    async with one.post(SESSIONS, json=external(), headers=who("maker")) as answer:
        session_id = (await answer.json())["session_id"]
    given = await ticket(one)
    assert await opens(two, session_id, given)
    assert not await opens(one, session_id, given) and not await opens(two, session_id, given)
    both = await ticket(two)
    assert sorted(await asyncio.gather(*(opens(client, session_id, both) for client in clients * 4))).count(True) == 1

    answered = 0
    for number in range(12):
        async with clients[number % 2].post(SESSIONS, json=external(), headers=who("ada")) as answer:
            answered += answer.status == 201
            last = answer.status
    assert answered in (6, 7) and last == 429  # seven where a minute of the clock begins in between
    assert "gymcast:ticket:" in redis.command("KEYS", "*") and "gymcast:limits" in redis.command("KEYS", "*")

    waiting = await ticket(one)
    redis.kill()
    async with one.get(f"/ws/{session_id}", params={"ticket": waiting}, headers={"Upgrade": "websocket"}) as answer:
        await expect_problem(answer, 503, "busy")
        assert answer.headers["Retry-After"] == "1"
    async with one.ws_connect(f"/ws/{session_id}", headers=bearer(token("read"))) as ws:
        await ws.receive_json(timeout=5)
    async with two.get(SESSIONS, headers=bearer(token("read"))) as answer:
        assert answer.status == 200
    redis.start()
    async with asyncio.timeout(20):
        while True:
            async with one.get(f"/ws/{session_id}", params={"ticket": waiting}, headers={"Upgrade": "x"}) as answer:
                if answer.status != 503:
                    break
            await asyncio.sleep(0.2)
    assert answer.status == 426


async def test_wrong_passwords_of_rooms_count_for_both(clients: list[aiohttp.ClientSession], redis: OwnRedis) -> None:
    async with clients[0].post(SESSIONS, json=external(), headers=who("maker")) as answer:
        wanted = {"session_id": (await answer.json())["session_id"], "password": "open sesame"}
    async with clients[0].post("/api/rooms", json=wanted, headers=bearer(token("control"))) as answer:
        join = f"/api/rooms/{(await answer.json())['code']}/join"

    async def guess(client: aiohttp.ClientSession, password: str) -> int:
        async with client.post(join, json={"password": password}) as answer:
            return answer.status

    assert [await guess(clients[number % 2], f"guess {number}") for number in range(6)] == [404] * 5 + [429]
    assert await guess(clients[1], "open sesame") == 429
    redis.kill()  # the second process has seen two of the guesses
    assert [await guess(clients[1], "another guess") for _ in range(4)] == [404] * 3 + [429]
