"""Viewers' places in a Redis that several processes share: the last one, leases that run out, a Redis that forgets."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from gymcast.server.channels import Client, HubFullError
from gymcast.server.redis_link import RedisLink, connect
from gymcast.server.seats import Seats

from ..redis_server import OwnRedis, own_redis_or_skip


@pytest.fixture
def redis() -> Iterator[OwnRedis]:
    yield from own_redis_or_skip()


@asynccontextmanager
async def process(redis: OwnRedis, lease_seconds: float = 60.0) -> AsyncIterator[Seats]:
    """The places of one server process that is killed at the end: it gives nothing back."""
    connection = connect(redis.url)
    seats = Seats(connection, "test", lambda: True, lease_seconds=lease_seconds)
    work = asyncio.create_task(seats.run())
    try:
        yield seats
    finally:
        work.cancel()
        with suppress(asyncio.CancelledError):
            await work
        await connection.aclose()


async def takes(seats: Seats, name: str, *, room: str | None = "ROOM", limit: int = 2) -> bool:
    try:
        await seats.take(Client(name, "session", room=room), session_limit=5, room_limit=limit)
    except HubFullError:
        return False
    return True


async def until(true: Callable[[], Awaitable[bool]], pause: float = 0.02) -> None:
    async with asyncio.timeout(20):
        while True:
            if await true():
                return
            await asyncio.sleep(pause)


async def test_the_last_places_go_to_nobody_twice(redis: OwnRedis) -> None:
    async with process(redis) as one, process(redis) as two:
        tries = [takes(seats, f"{place}") for place, seats in enumerate((one, two) * 10)]
        assert sum(await asyncio.gather(*tries)) == 2
        # A room's places are the session's as well, which has more.
        tries = [takes(seats, f"other {place}", room=None) for place, seats in enumerate((one, two) * 10)]
        assert sum(await asyncio.gather(*tries)) == 3
        with pytest.raises(HubFullError, match="this session has its 5 viewers already"):
            await one.take(Client("one more", "session"), session_limit=5, room_limit=None)
        with pytest.raises(HubFullError, match="this room has its 2 viewers already"):
            await one.take(Client("one more", "session", room="ROOM"), session_limit=6, room_limit=2)


async def test_places_of_a_process_that_was_killed_run_out_and_those_of_others_do_not(redis: OwnRedis) -> None:
    async with process(redis, 0.6) as one:
        assert await takes(one, "a")
        async with process(redis, 0.6) as two:
            assert await takes(two, "b") and not await takes(one, "c")
        await until(lambda: takes(one, "c"))
        assert not await takes(one, "d")
        one.give_back(Client("c", "session", room="ROOM"))
        await until(lambda: takes(one, "d"))
        await one.close()
        assert await takes(one, "e") and await takes(one, "f") and not await takes(one, "g")


async def test_a_redis_that_forgot_is_told_again(redis: OwnRedis) -> None:
    async with process(redis) as one:
        assert await takes(one, "a") and await takes(one, "b")
        redis.kill()
        assert await takes(one, "let in without Redis")
        redis.start()
        one.renew_now()

        async def all_are_counted() -> bool:
            return ":3" in redis.command("ZCARD", "test:seats:room:ROOM")

        await until(all_are_counted)
        assert not await takes(one, "c")


@pytest.mark.parametrize("what", ["link", "seats"])
async def test_work_with_redis_ends_at_whatever_moment_it_is_cancelled(redis: OwnRedis, what: str) -> None:
    connection = connect(redis.url)
    seats = Seats(connection, "test", lambda: True)
    link = RedisLink(connection, "test", lambda _counts: None)
    await takes(seats, "a")

    async def ready() -> bool:
        return what == "seats" or link.is_connected

    for turns in range(30):
        work = asyncio.create_task(link.run() if what == "link" else seats.run())
        await until(ready, 0)
        link.send_gone("session")
        seats.renew_now()
        for _ in range(turns):
            await asyncio.sleep(0)
        work.cancel()
        await asyncio.wait([work], timeout=5)
        assert work.done(), f"cancelled after {turns} turns, it goes on"
    await connection.aclose()
