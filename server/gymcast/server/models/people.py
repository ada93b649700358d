"""Rooms for guests, and the ladder of players."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AwareDatetime, Field

from gymcast.training.events import (
    Count,
    Number,
)

from .base import Answer, Cursor

# Rooms


class RoomInfo(Answer):
    """A room through which guests watch a session."""

    code: str = Field(description="six letters and digits without look-alikes", examples=["K7WXR3"])
    session_id: str
    kind: Literal["spectator"] = Field(description="what guests may do: watch")
    password_protected: bool
    max_spectators: int | None = Field(description="guests at a time; null: as many as the server's limits allow")
    created_at: AwareDatetime
    expires_at: AwareDatetime | None = Field(description="when the room ends; null: when it is closed")
    spectator_count: Count = Field(description="guests who watch now, through this server process")


class NewRoomInfo(RoomInfo):
    """A room that was just made."""

    password: str | None = Field(description="the password, told this once; null without one")


class RoomList(Answer):
    """Open rooms, newest first."""

    rooms: list[RoomInfo]
    next_cursor: Cursor


class JoinedRoom(Answer):
    """What a guest needs to watch."""

    token: str = Field(description="opens the room's session, to read, as Authorization: Bearer")
    token_type: Literal["Bearer"]
    expires_in: Annotated[int, Field(ge=0)] = Field(description="seconds the token is good for")
    session_id: str
    room: RoomInfo


# Ratings


class RatedPlayer(Answer):
    """A bot or a scripted opponent; numbers of games are those the ladder is made of."""

    kind: Literal["bot", "scripted"]
    name: str = Field(description="a bot's training_session_id, or the name of the scripted opponent")
    session_id: str | None = Field(description="session of a bot; null for a scripted opponent")
    games: Count
    wins: Count
    losses: Count
    draws: Count
    rating: Number | None = Field(description="Elo points; null when no games connect it to the anchor")
    ci_low: Number | None = Field(description="lower end of the 95 % interval")
    ci_high: Number | None = Field(description="upper end of the 95 % interval")
    standard_error: Number | None = Field(description="standard error, in points; 0 for the anchor")


class Ladder(Answer):
    """The players of one environment, best first."""

    env_id: str
    anchor: str = Field(description="the scripted opponent whose rating is fixed")
    anchor_rating: Number
    players: list[RatedPlayer]


class Ladders(Answer):
    """One ladder for each environment."""

    ladders: list[Ladder]
