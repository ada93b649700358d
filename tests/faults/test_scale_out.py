"""Two ``gymcast serve`` processes on one PostgreSQL database, sharing live messages through a Redis of their own."""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from ..postgres_server import fresh_database
from ..redis_server import OwnRedis, own_redis_or_skip
from ..reference_examples import DECISION, METRICS
from .conftest import Cli
from .redis_proxy import LossyProxy

SESSION_LIMIT = 6
SESSIONS = "/api/training/sessions"
EXTERNAL = {"training_session_id": "t1", "model_generation": 2, "algorithm": "DQN", "total_episodes": 1000}


@dataclass
class Pair:
    """The two processes; ``two`` reaches Redis through ``proxy``."""

    one: str
    two: str
    redis: OwnRedis
    proxy: LossyProxy


@pytest.fixture(scope="module")
def pair(postgres_server: str) -> Iterator[Pair]:
    with (
        fresh_database(postgres_server) as database,
        tempfile.TemporaryDirectory(prefix="gymcast-pair-") as folder,
    ):
        redises = own_redis_or_skip()
        redis = next(redises)
        proxy = LossyProxy(redis.port)
        servers = []
        for name, port in (("one", redis.port), ("two", proxy.port)):
            settings = Path(folder) / f"{name}.json"
            limits = {"max_connections_per_session": SESSION_LIMIT}
            redis_url = {"url": f"redis://127.0.0.1:{port}"}
            settings.write_text(json.dumps({"port": 0, "redis": redis_url, "performance": limits}))
            servers.append(Cli(["serve", "--config", str(settings), "--database", database], Path(folder)))
        try:
            urls = [server.read_until(r"Watch  (http://\S+)/\s")[1] for server in servers]
            yield Pair(urls[0], urls[1], redis, proxy)
        finally:
            for server in servers:
                server.close()
            proxy.close()
            redises.close()


@dataclass
class Both:
    """Clients of both processes and a session that both know."""

    one: aiohttp.ClientSession
    two: aiohttp.ClientSession
    session_id: str

    async def report(self, client: aiohttp.ClientSession, *episodes: int) -> None:
        await post(client, f"{SESSIONS}/{self.session_id}/metrics", [{**METRICS, "episode": n} for n in episodes])


@pytest.fixture
async def both(pair: Pair) -> AsyncIterator[Both]:
    async with aiohttp.ClientSession(pair.one) as one, aiohttp.ClientSession(pair.two) as two:
        for client in (one, two):
            await until(lambda client=client: readiness(client), "ready")  # type: ignore[misc]
        created = await post(one, SESSIONS, EXTERNAL)
        yield Both(one, two, created["session_id"])


async def post(client: aiohttp.ClientSession, path: str, body: Any = None) -> dict[str, Any]:
    async with client.post(path, json=body) as answer:
        assert answer.status < 300, await answer.text()
        return dict(await answer.json())


async def get(client: aiohttp.ClientSession, path: str) -> dict[str, Any]:
    async with client.get(path) as answer:
        return dict(await answer.json())


async def readiness(client: aiohttp.ClientSession) -> str:
    return str((await get(client, "/health/ready"))["status"])


async def until(ask: Callable[[], Awaitable[Any]], wanted: Any, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while (found := await ask()) != wanted:
        assert time.monotonic() < deadline, f"{found!r} did not become {wanted!r}"
        await asyncio.sleep(0.05)


@asynccontextmanager
async def watching(client: aiohttp.ClientSession, session_id: str, query: str = "") -> AsyncIterator[Viewer]:
    async with client.ws_connect(f"/ws/{session_id}{query}") as ws:
        yield Viewer(ws)


class Viewer:
    """One WebSocket."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.restarts = 0

    async def next(self, *kinds: str) -> dict[str, Any]:
        """The next message of one of these types."""
        while True:
            message = await self.ws.receive(timeout=20)
            assert message.type is aiohttp.WSMsgType.TEXT, message
            value: dict[str, Any] = json.loads(message.data)
            self.restarts += value["data"].get("recovered") is False
            if value["type"] in kinds:
                return value

    async def readings(self, first: int, last: int) -> list[int]:
        """The episodes of the readings with these numbers; fails when one is missing or out of order."""
        found = [await self.next("training_metrics") for _ in range(first, last + 1)]
        assert [message["seq"] for message in found] == list(range(first, last + 1))
        return [message["data"]["episode"] for message in found]


async def test_viewers_see_what_the_other_process_commits(both: Both) -> None:
    async with watching(both.one, both.session_id) as here, watching(both.two, both.session_id) as there:
        for viewer in (here, there):
            await viewer.next("training_status")
        for number in range(1, 11):
            await both.report(both.one, number)
        await both.report(both.one, *range(11, 61))
        await post(both.one, f"{SESSIONS}/{both.session_id}/bot_decision", DECISION)
        for viewer in (here, there):
            assert await viewer.readings(1, 60) == list(range(1, 61))
            assert (await viewer.next("bot_decision"))["seq"] == 1

        async def counts() -> list[int]:
            found = [await get(client, f"{SESSIONS}/{both.session_id}") for client in (both.one, both.two)]
            return [info["spectator_count"] for info in found]

        await until(counts, [2, 2])
        async with both.one.delete(f"{SESSIONS}/{both.session_id}") as answer:
            assert answer.status == 204
        for viewer in (here, there):
            while (message := await viewer.ws.receive(timeout=5)).type is aiohttp.WSMsgType.TEXT:
                pass
            assert message.type is aiohttp.WSMsgType.CLOSE and viewer.ws.close_code == 4410


async def test_a_viewer_moves_to_the_other_process_without_a_gap(both: Both) -> None:
    async with watching(both.one, both.session_id) as viewer:
        status = await viewer.next("training_status")
        await both.report(both.one, *range(1, 6))
        await viewer.readings(1, 5)
    await both.report(both.two, *range(6, 11))
    seen = {"training_status": status["seq"], "training_metrics": 5}
    for client in (both.two, both.one):
        async with watching(client, both.session_id, "?resume=1") as viewer:
            await viewer.ws.send_json({"type": "resume", "epoch": status["epoch"], "seq": seen})
            await viewer.next("connection_status")
            assert (await viewer.next("connection_status"))["data"]["recovered"] is True
            assert await viewer.readings(6, 10) == list(range(6, 11))


async def test_both_processes_may_be_reported_to_at_once(both: Both) -> None:
    async def produce(client: aiohttp.ClientSession, first: int) -> None:
        for number in range(first, first + 40):
            await both.report(client, number)

    async with watching(both.one, both.session_id) as here, watching(both.two, both.session_id) as there:
        for viewer in (here, there):
            await viewer.next("training_status")
        _none, _none, one, two = await asyncio.gather(
            produce(both.one, 100), produce(both.two, 200), here.readings(1, 80), there.readings(1, 80)
        )
        assert one == two
        assert [number for number in one if number < 200] == list(range(100, 140))
        assert [number for number in one if number >= 200] == list(range(200, 240))
        assert here.restarts == there.restarts == 0


async def test_a_lost_message_is_read_back_from_the_database(both: Both, pair: Pair) -> None:
    async with watching(both.two, both.session_id) as viewer:
        await viewer.next("training_status")
        await both.report(both.one, 1)
        assert await viewer.readings(1, 1) == [1]
        lost = pair.proxy.lost
        pair.proxy.lose = 1
        await both.report(both.one, 2, 3)
        await until(lambda: _value(pair.proxy.lost), lost + 1)
        await both.report(both.one, 4)
        assert await viewer.readings(2, 4) == [2, 3, 4]
        # Nothing follows the last one.
        pair.proxy.lose = 1
        await both.report(both.one, 5)
        assert await viewer.readings(5, 5) == [5]
        assert pair.proxy.lost == lost + 2
        assert viewer.restarts == 0


@asynccontextmanager
async def crowd(path: str, *clients: aiohttp.ClientSession, guest: str = "") -> AsyncIterator[int]:
    """Viewers that come all at once; how many of them get in, to stay while the context lasts."""
    headers = {"Authorization": f"Bearer {guest}"} if guest else {}
    answers = await asyncio.gather(
        *(client.ws_connect(path, headers=headers) for client in clients), return_exceptions=True
    )
    inside = [ws for ws in answers if isinstance(ws, aiohttp.ClientWebSocketResponse)]
    refused = [error.status for error in answers if isinstance(error, aiohttp.WSServerHandshakeError)]
    assert refused == [503] * (len(clients) - len(inside)), answers
    try:
        yield len(inside)
    finally:
        for ws in inside:
            await ws.close()


async def guest_of_a_room(both: Both, places: int) -> tuple[str, str]:
    """The code of a new room and the token of a guest."""
    room = await post(both.one, "/api/rooms", {"session_id": both.session_id, "max_spectators": places})
    return room["code"], (await post(both.two, f"/api/rooms/{room['code']}/join", {}))["token"]


async def test_places_are_counted_over_both_processes(both: Both) -> None:
    path = f"/ws/{both.session_id}"
    code, guest = await guest_of_a_room(both, 2)

    async def guests() -> list[int]:
        return [(await get(client, f"/api/rooms/{code}"))["spectator_count"] for client in (both.one, both.two)]

    for _ in range(3):
        async with crowd(path, *(both.one, both.two) * 3, guest=guest) as inside:
            assert inside == 2
            await until(guests, [2, 2])
            # Of the session's places two are taken.
            async with crowd(path, *(both.two, both.one) * 4) as others:
                assert others == SESSION_LIMIT - 2
        await until(guests, [0, 0])


async def _value(value: int) -> int:
    return value


async def test_what_is_kept_merged_only_is_sent_anew(both: Both, pair: Pair) -> None:
    async with watching(both.two, both.session_id) as viewer:
        await viewer.next("training_status")
        lost = pair.proxy.lost
        pair.proxy.lose = 1
        async with both.one.put(f"{SESSIONS}/{both.session_id}", json={"current_episode": 77}) as answer:
            assert answer.status == 200
        status = await viewer.next("training_status")
        assert (pair.proxy.lost, viewer.restarts) == (lost + 1, 1)
        assert (status["seq"], status["data"]["current_episode"]) == (2, 77)


async def test_redis_dies_and_comes_back(both: Both, pair: Pair) -> None:
    _code, guest = await guest_of_a_room(both, 1)
    async with watching(both.one, both.session_id) as here, watching(both.two, both.session_id) as there:
        for viewer in (here, there):
            await viewer.next("training_status")
        # A subscription that is cut while messages are on their way.
        for number in range(1, 11):
            await both.report(both.one, number)
            if number == 5:
                pair.redis.command("CLIENT", "KILL", "TYPE", "pubsub")
        for viewer in (here, there):
            assert await viewer.readings(1, 10) == list(range(1, 11))
        pair.redis.kill()
        for client in (both.one, both.two):
            await until(lambda client=client: readiness(client), "degraded")  # type: ignore[misc]
        # Now each process counts for itself.
        async with crowd(f"/ws/{both.session_id}", *(both.one, both.two) * 2, guest=guest) as inside:
            assert inside == 2
        await both.report(both.one, 11)
        assert await here.readings(11, 11) == [11]
        # Only the database can tell the other process of it.
        assert await there.readings(11, 11) == [11]
        await both.report(both.two, 12)
        assert await there.readings(12, 12) == [12]
        pair.redis.start()
        for client in (both.one, both.two):
            await until(lambda client=client: readiness(client), "ready")  # type: ignore[misc]
        await both.report(both.one, 13)
        assert await here.readings(12, 13) == [12, 13]
        assert await there.readings(13, 13) == [13]
        assert here.restarts == there.restarts == 0


async def test_a_redis_that_hangs_is_noticed(both: Both, pair: Pair) -> None:
    async with watching(both.one, both.session_id) as here, watching(both.two, both.session_id) as there:
        for viewer in (here, there):
            await viewer.next("training_status")
        pair.redis.freeze()
        try:
            await both.report(both.one, 1, 2)
            # Before anybody knows: the sender at once, the others by comparing with the database.
            for viewer in (here, there):
                assert await viewer.readings(1, 2) == [1, 2]
            for client in (both.one, both.two):
                await until(lambda client=client: readiness(client), "degraded", 30.0)  # type: ignore[misc]
        finally:
            pair.redis.thaw()
        for client in (both.one, both.two):
            await until(lambda client=client: readiness(client), "ready", 30.0)  # type: ignore[misc]
        await both.report(both.two, 3)
        for viewer in (here, there):
            assert await viewer.readings(3, 3) == [3]
            assert viewer.restarts == 0


async def test_either_process_steers_a_training(both: Both) -> None:
    config = {"envId": "CartPole-v1", "totalTimesteps": 10**12, "parallelEpisodes": 2, "evaluationGames": 0}
    session_id = (await post(both.one, SESSIONS, {"config": config}))["session_id"]

    async def status() -> str:
        return str((await get(both.one, f"{SESSIONS}/{session_id}"))["status"])

    async with watching(both.two, session_id) as viewer:
        await until(status, "running", 60.0)
        for wish, becomes in (("pause", "paused"), ("resume", "running"), ("stop", "cancelled")):
            await post(both.two, f"{SESSIONS}/{session_id}/{wish}")
            async with asyncio.timeout(30):
                while (await viewer.next("training_status"))["data"]["status"] != becomes:
                    pass
            await until(status, becomes)
