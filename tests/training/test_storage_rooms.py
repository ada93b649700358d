"""Rooms in the database: codes, ends, and the session that names the newest of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from gymcast.training.storage import (
    CODE_ALPHABET,
    BadCursorError,
    Committed,
    NotFoundError,
    Storage,
    TooManyRoomsError,
)
from gymcast.training.storage.rooms import MAX_ROOMS_PER_SESSION, new_room_code


@pytest.fixture
async def storage(database_url: str) -> AsyncIterator[Storage]:
    async with await Storage.open(database_url) as opened:
        yield opened


async def session(storage: Storage) -> str:
    return (await storage.create_session(kind="external", algorithm="PPO")).session_id


def test_codes_have_no_look_alikes() -> None:
    assert not set(CODE_ALPHABET) & set("0OQD1IL2Z5S8BUV")
    codes = {new_room_code() for _ in range(2000)}
    assert all(len(code) == 6 and set(code) <= set(CODE_ALPHABET) for code in codes)
    assert len(codes) >= 1999  # of 86 million
    assert set("".join(codes)) == set(CODE_ALPHABET)


async def test_a_room_opens_ends_and_is_told_with_its_session(storage: Storage) -> None:
    told: list[Committed] = []
    storage.listen(told.append)
    session_id = await session(storage)
    room = await storage.rooms.create(session_id, password_hash="hash", max_spectators=3, seconds=3600)
    assert "hash" not in repr(room)
    assert await storage.rooms.get(room.code) == room
    assert (room.session_id, room.kind, room.max_spectators) == (session_id, "spectator", 3)
    assert room.expires is not None and (room.expires - room.created).total_seconds() == 3600
    assert room.to_json()["password_protected"] is True
    second = await storage.rooms.create(session_id)
    assert (second.expires, second.to_json()["password_protected"]) == (None, False)
    assert (await storage.get_session(session_id)).room_code == second.code
    await storage.rooms.close(second.code)
    assert (await storage.get_session(session_id)).room_code == room.code
    await storage.rooms.close(room.code)
    record = await storage.get_session(session_id)
    assert (record.room_code, record.version) == (None, 5)
    codes = [one.session.room_code for one in told if one.session is not None and one.session_changed]
    assert codes[-4:] == [room.code, second.code, room.code, None]
    for wrong in (room.code, "AAAAAA"):
        with pytest.raises(NotFoundError, match="no room"):
            await storage.rooms.get(wrong)
        with pytest.raises(NotFoundError, match="no room"):
            await storage.rooms.close(wrong)


async def test_a_room_whose_time_is_over_is_not_there(storage: Storage) -> None:
    session_id = await session(storage)
    short = await storage.rooms.create(session_id, seconds=0.05)
    long = await storage.rooms.create(session_id, seconds=100)
    await asyncio.sleep(0.1)
    with pytest.raises(NotFoundError):
        await storage.rooms.get(short.code)
    assert await storage.rooms.still_open([short.code, long.code]) == {long.code}
    assert [room.code for room in (await storage.rooms.page()).items] == [long.code]
    assert await storage.rooms.expired() == [short.code]
    await storage.rooms.close(short.code)
    assert await storage.rooms.expired() == []


async def test_rooms_end_with_their_session(storage: Storage) -> None:
    session_id = await session(storage)
    room = await storage.rooms.create(session_id)
    await storage.delete_session(session_id)
    with pytest.raises(NotFoundError):
        await storage.rooms.get(room.code)
    with pytest.raises(NotFoundError, match="no session"):
        await storage.rooms.create(session_id)


async def test_rooms_come_in_pages_and_are_limited(storage: Storage) -> None:
    first, other = await session(storage), await session(storage)
    await storage.rooms.create(other)
    made = [(await storage.rooms.create(first)).code for _ in range(MAX_ROOMS_PER_SESSION)]
    with pytest.raises(TooManyRoomsError, match="20 rooms"):
        await storage.rooms.create(first)
    found: list[str] = []
    cursor = None
    while True:
        page = await storage.rooms.page(session_id=first, cursor=cursor, limit=7)
        found += [room.code for room in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == made[::-1]
    assert len((await storage.rooms.page()).items) == MAX_ROOMS_PER_SESSION + 1
    with pytest.raises(BadCursorError):
        await storage.rooms.page(cursor="nonsense")
