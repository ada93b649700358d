"""Rooms: a code and, if wanted, a password for a token that lets a guest watch one session.

docs/rooms.md has the whole story. Who joins is answered in the same words and after the same work whether the code or
the password is wrong, so that guessing tells nothing.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal, Self, TypeVar

from argon2 import PasswordHasher
from argon2.exceptions import VerifyMismatchError
from limits import RateLimitItemPerMinute
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from gymcast.training.storage import CODE_ALPHABET, NotFoundError, RoomRecord, Storage, StorageError, to_us

from .hub import Hub
from .messages import CLOSE_ENDED
from .problems import Problem
from .tries import WrongTries

log = logging.getLogger(__name__)

T = TypeVar("T")

MIN_PASSWORD: Final = 6
MAX_PASSWORD: Final = 128
DEFAULT_SECONDS: Final = 24 * 3600.0
MAX_SECONDS: Final = 90 * 24 * 3600.0
TOKEN_SECONDS: Final = 12 * 3600.0
# Wrong passwords of one address for one room, and wrong codes and passwords of one address in all.
TRIES: Final = RateLimitItemPerMinute(5)
MISSES: Final = RateLimitItemPerMinute(60)
# How soon viewers of a room that ended, here or in another server process, are closed.
_WATCH_SECONDS: Final = 2.0
# Lower case without look-alikes, for passwords that are made here: 4 x 3 of them are 53 bits.
_PASSWORD_ALPHABET: Final = CODE_ALPHABET.lower()
_WAITING_CHECKS: Final = 200


class RoomWanted(BaseModel):
    """A room for guests who watch one session."""

    model_config = ConfigDict(extra="forbid")

    session_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] = Field(description="session to watch")
    kind: Literal["spectator"] = Field(default="spectator", description="what guests may do: watch")
    password: Annotated[str, Field(min_length=MIN_PASSWORD, max_length=MAX_PASSWORD)] | None = Field(
        default=None, description="password guests have to know", repr=False
    )
    password_protected: bool | None = Field(
        default=None, description="true: a password is wanted, and made when none is given"
    )
    max_spectators: Annotated[int, Field(ge=1, le=100_000)] | None = Field(
        default=None, description="guests at a time; null: as many as the server's limits allow"
    )
    expires_in: Annotated[float, Field(ge=1, le=MAX_SECONDS, allow_inf_nan=False)] | None = Field(
        default=DEFAULT_SECONDS,
        description="seconds until the room ends; null: when it is closed",
    )

    @field_validator("kind", mode="before")
    @classmethod
    def _only_spectators(cls, value: Any) -> Any:
        if value == "play":
            raise ValueError("this version has no rooms for human players; the kind has to be 'spectator'")
        return value

    @model_validator(mode="after")
    def _password_and_protection_agree(self) -> Self:
        if self.password is not None and self.password_protected is False:
            raise ValueError("password is given, but password_protected is false; leave one of them out")
        return self


def new_password() -> str:
    """A random password that can be read aloud, such as ``k7mw-r4tx-93hc``."""
    return "-".join("".join(secrets.choice(_PASSWORD_ALPHABET) for _ in range(4)) for _ in range(3))


@dataclass(frozen=True, slots=True)
class NewRoom:
    """A room that was just made; ``password`` is not kept anywhere else."""

    room: RoomRecord
    password: str | None


class Passwords:
    """argon2id with 19 MiB and 2 passes (OWASP's password storage cheat sheet), one at a time in a thread.

    Not more, and one at a time, because guests who are wrong cost the cores that trainings want.
    """

    def __init__(self) -> None:
        self._hasher = PasswordHasher(time_cost=2, memory_cost=19_456, parallelism=1)
        self._thread = ThreadPoolExecutor(1, "gymcast-passwords")
        self._waiting = 0
        # Checked where there is no room, so that it takes as long.
        self._nobody: str | None = None

    async def hash(self, password: str) -> str:
        """What is stored of a password."""
        return await self._work(self._hasher.hash, password)

    async def matches(self, stored: str | None, password: str) -> bool:
        """Whether ``password`` is the one; for ``None`` never, after as much work."""
        return await self._work(self._matches, stored, password)

    def _matches(self, stored: str | None, password: str) -> bool:
        if self._nobody is None:
            self._nobody = self._hasher.hash(secrets.token_hex(16))
        try:
            self._hasher.verify(self._nobody if stored is None else stored, password)
        except VerifyMismatchError:
            return False
        return stored is not None

    async def _work(self, job: Callable[..., T], *arguments: str | None) -> T:
        if self._waiting >= _WAITING_CHECKS:
            raise Problem("busy", "Too many passwords are being checked.", headers={"Retry-After": "5"})
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._thread, job, *arguments)
        finally:
            self._waiting -= 1

    async def close(self) -> None:
        """End the thread."""
        await asyncio.to_thread(self._thread.shutdown)


class RoomKeeper:
    """The rooms of one server: made, joined, watched until they end."""

    def __init__(self, storage: Storage, hub: Hub, *, enabled: bool = True) -> None:
        self._storage = storage
        self._hub = hub
        self._enabled = enabled
        self._passwords = Passwords()
        self.tries = WrongTries()
        # One try after the other for each room and address, so that tries at the same time are counted as well.
        self._turns: dict[tuple[str, str], tuple[asyncio.Lock, int]] = {}

    async def create(self, wanted: RoomWanted) -> NewRoom:
        """Open a room. A password is made when one is wanted and none is given.

        Raises ``NotFoundError``, ``TooManyRoomsError``, and a 409 where spectators are not let in.
        """
        if not self._enabled:
            raise Problem("conflict", "This server opens no rooms (integration.enable_spectator_integration is false).")
        session = await self._storage.get_session(wanted.session_id)
        if not session.enable_spectators:
            raise Problem("conflict", "This session takes no spectators (enable_spectators is false).")
        password = wanted.password
        if password is None and wanted.password_protected:
            password = new_password()
        room = await self._storage.rooms.create(
            wanted.session_id,
            kind=wanted.kind,
            password_hash=None if password is None else await self._passwords.hash(password),
            max_spectators=wanted.max_spectators,
            seconds=wanted.expires_in,
        )
        return NewRoom(room, password)

    def info(self, room: RoomRecord) -> dict[str, Any]:
        """A room as the REST paths show it."""
        return {**room.to_json(), "spectator_count": self._hub.guests(room.code)}

    async def close(self, code: str) -> None:
        """Close a room; its viewers are sent away. Raises ``NotFoundError``."""
        await self._storage.rooms.close(code)
        self._send_away([code])

    async def enter(self, code: str, password: str | None, address: str) -> RoomRecord:
        """The room, for who knows its password. Raises a 404 for a wrong code or password, a 429 for too many."""
        await self.tries.check(MISSES, address)
        lock, waiting = self._turns.get((code, address), (asyncio.Lock(), 0))
        self._turns[code, address] = lock, waiting + 1
        try:
            async with lock:
                return await self._enter(code, password, address)
        finally:
            lock, waiting = self._turns.pop((code, address))
            if waiting > 1:
                self._turns[code, address] = lock, waiting - 1

    async def _enter(self, code: str, password: str | None, address: str) -> RoomRecord:
        await self.tries.check(TRIES, code, address)
        try:
            room = await self._storage.rooms.get(code)
        except NotFoundError:
            room = None
        if room is not None and room.password_hash is None:
            return room
        good = await self._passwords.matches(None if room is None else room.password_hash, password or "")
        if room is not None and good:
            return room
        await self.tries.add(MISSES, address)
        if password:
            await self.tries.add(TRIES, code, address)
        raise Problem(
            "not-found", f"There is no open room {code} with this password. The code is six characters; rooms end."
        )

    def token_seconds(self, room: RoomRecord) -> float:
        """How long a guest's token lives: never beyond its room."""
        if room.expires is None:
            return TOKEN_SECONDS
        return min(TOKEN_SECONDS, to_us(room.expires) / 1e6 - time.time())

    async def watch(self) -> None:
        """Send viewers of rooms that have ended away, whichever process ended them; runs until it is cancelled."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            try:
                for code in await self._storage.rooms.expired():
                    await self._close_quietly(code)
                if watched := self._hub.rooms():
                    self._send_away(watched - await self._storage.rooms.still_open(watched))
            except StorageError as error:
                log.warning("rooms that have ended have to wait: %s", error)

    async def _close_quietly(self, code: str) -> None:
        try:
            await self.close(code)
        except NotFoundError:
            log.debug("room %s was closed by somebody else", code)

    def _send_away(self, codes: Collection[str]) -> None:
        for code in codes:
            self._hub.drop_room(code, CLOSE_ENDED, "the room has ended")

    async def stop(self) -> None:
        """Let go of the thread that checks passwords."""
        await self._passwords.close()
