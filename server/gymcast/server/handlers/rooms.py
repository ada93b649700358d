"""Rooms: make, list, look at, close, and join with a password."""

from __future__ import annotations

from typing import Annotated

from aiohttp import hdrs, web
from pydantic import BaseModel, ConfigDict, Field

from gymcast.server.auth import AUTH, issue
from gymcast.server.rate_limits import address_of
from gymcast.server.rooms import MAX_PASSWORD, RoomWanted

from .common import SERVICES, answer, read_json, validate
from .queries import RoomsQuery


class JoinWanted(BaseModel):
    """What a guest knows."""

    model_config = ConfigDict(extra="forbid")

    password: Annotated[str, Field(max_length=MAX_PASSWORD)] | None = Field(
        default=None, description="null for a room without one", repr=False
    )


async def create(request: web.Request) -> web.Response:
    """Make a room. Its password is told this once."""
    services = request.app[SERVICES]
    wanted = validate(RoomWanted, await read_json(request))
    made = await services.rooms.create(wanted)
    room = {**services.rooms.info(made.room), "password": made.password}
    return answer(room, status=201, headers={hdrs.LOCATION: f"/api/rooms/{made.room.code}"})


async def listing(request: web.Request, query: RoomsQuery) -> web.Response:
    """Open rooms, newest first."""
    services = request.app[SERVICES]
    page = await services.storage.rooms.page(session_id=query.session, cursor=query.cursor, limit=query.limit)
    return answer({"rooms": [services.rooms.info(room) for room in page.items], "next_cursor": page.next_cursor})


async def read(request: web.Request) -> web.Response:
    """One room."""
    services = request.app[SERVICES]
    return answer(services.rooms.info(await services.storage.rooms.get(_code(request))))


async def close(request: web.Request) -> web.Response:
    """Close a room.

    Its viewers are closed with 4410, and its tokens open nothing any more.
    """
    await request.app[SERVICES].rooms.close(_code(request))
    return web.Response(status=204)


async def join(request: web.Request) -> web.Response:
    """Join a room: a token that opens the room's session, to read, for the password.

    A wrong code and a wrong password get the same 404; after five wrong passwords a minute there is a 429.
    """
    services = request.app[SERVICES]
    wanted = validate(JoinWanted, await read_json(request))
    code = _code(request)
    room = await services.rooms.enter(code, wanted.password, address_of(request))
    seconds = services.rooms.token_seconds(room)
    token = issue(
        request.app[AUTH].secret, subject=f"guest of room {code}", scopes=["read"], seconds=seconds, room=code
    )
    joined = {
        "token": token,
        "token_type": "Bearer",
        "expires_in": int(seconds),
        "session_id": room.session_id,
        "room": services.rooms.info(room),
    }
    return answer(joined)


def _code(request: web.Request) -> str:
    # Codes have no small letters, but whoever types one may.
    return request.match_info["code"].upper()
