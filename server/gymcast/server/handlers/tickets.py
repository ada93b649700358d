"""``POST /api/tickets``: what a browser opens a WebSocket with, since it cannot send a header there."""

from __future__ import annotations

from typing import Annotated

from aiohttp import web
from pydantic import BaseModel, ConfigDict, Field

from gymcast.server.auth import AUTH, PRINCIPAL
from gymcast.server.problems import Problem
from gymcast.server.tickets import TICKET_SECONDS

from .common import answer, read_json, validate


class TicketWanted(BaseModel):
    """What the ticket is to open; ``{}`` means any session that its holder may see."""

    model_config = ConfigDict(extra="forbid")

    session_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = None
    room: Annotated[str, Field(min_length=1, max_length=64)] | None = Field(default=None, description="code of a room")


class Ticket(BaseModel):
    """A ticket for `/ws/{session_id}?ticket=...`; it works once."""

    ticket: str
    expires_in: int = Field(description="seconds until it ends")


async def create(request: web.Request) -> web.Response:
    """Make a ticket for a WebSocket.

    It opens one connection, once, within 30 seconds: browsers cannot send a header there, and a token does not belong
    in an address.
    """
    wanted = validate(TicketWanted, await read_json(request))
    principal = request[PRINCIPAL]
    if principal.room is not None and wanted.room not in (None, principal.room):
        raise Problem("not-found", f"There is no room {wanted.room} for a guest of room {principal.room}.")
    ticket = request.app[AUTH].ticket(principal, session_id=wanted.session_id, room=wanted.room)
    return answer(Ticket(ticket=ticket, expires_in=TICKET_SECONDS).model_dump())
