"""What every handler uses: the application's parts, reading bodies and queries, JSON answers."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

from aiohttp import hdrs, web
from pydantic import BaseModel, ValidationError
from pydantic_core import to_json

from gymcast.server.channels import Client
from gymcast.server.config import ServerConfig
from gymcast.server.episodes import EpisodeShelf
from gymcast.server.fanout import FanOut
from gymcast.server.hub import Hub
from gymcast.server.problems import Problem, from_validation, invalid
from gymcast.server.replays import FrameCache
from gymcast.server.rooms import RoomKeeper
from gymcast.server.seats import Seats
from gymcast.training.sessions import TrainingAPI
from gymcast.training.storage import Storage

if TYPE_CHECKING:
    from redis.asyncio import Redis

MAX_BODY_BYTES: Final = 1 << 20
BODY_SECONDS: Final = 10.0
# Deeper JSON than any message needs, shallower than what the JSON encoder can write back.
_MAX_DEPTH: Final = 64
_MAX_INTEGER: Final = 2**63 - 1
_EXACT: Final = 2**53  # up to here a float holds every integer
_NO_BRACKETS: Final = re.compile(rb'"(?:[^"\\]|\\.)*"|[^\[\]{}"]+')

M = TypeVar("M", bound=BaseModel)


class Services:
    """The parts of one running server; handlers reach them as ``request.app[SERVICES]``.

    ``redis`` is the Redis that several server processes share, and ``seats`` the viewers' places there; ``None`` when
    there is only this one.
    """

    fan_out: FanOut

    def __init__(self, config: ServerConfig, storage: Storage, hub: Hub, started: float) -> None:
        self.config = config
        self.storage = storage
        self.hub = hub
        self.episodes = EpisodeShelf(storage)
        self.frames = FrameCache(self.episodes.find, self.episodes.settings)
        self.started = started
        self.rooms = RoomKeeper(storage, hub, enabled=config.integration.enable_spectator_integration)
        self.redis: Redis | None = None
        self.seats: Seats | None = None
        self.api = TrainingAPI(storage=storage, gym_packages=config.security.gym_packages)

    def info(self, session: dict[str, Any]) -> dict[str, Any]:
        """The session info of the contract: what the API says, and the count that only the hub knows."""
        return {**session, "spectator_count": self.hub.spectators(session["session_id"])}

    async def join(self, session_id: str, *, user_name: str | None, room: str | None, room_limit: int | None) -> Client:
        """A place for a viewer, here and among all server processes. Raises :class:`HubFullError`."""
        client = self.hub.join(session_id, user_name=user_name, room=room, room_limit=room_limit)
        if self.seats is not None:
            try:
                await self.seats.take(client, session_limit=self.hub.per_session, room_limit=room_limit)
            except BaseException:
                self.hub.leave(client)
                raise
        return client

    def leave(self, client: Client) -> None:
        """Give a viewer's place back."""
        self.hub.leave(client)
        if self.seats is not None:
            self.seats.give_back(client)


SERVICES: Final = web.AppKey("services", Services)
CONFIG: Final = web.AppKey("config", ServerConfig)


def answer(data: Any, *, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    """A JSON answer. A number that is not finite is null, as everywhere."""
    # A quarter of the time that the standard library takes: a long history is a megabyte, and everybody waits for it.
    body = to_json(data, inf_nan_mode="null")
    return web.Response(status=status, body=body, content_type="application/json", headers=headers)


# Bodies


async def read_body(request: web.Request) -> bytes:
    """The body of a JSON request. Raises :class:`Problem` when it is not JSON by name, too large, too slow or empty."""
    if request.content_type != "application/json":
        raise Problem("unsupported-media-type", "Send the body with Content-Type: application/json.")
    if (request.content_length or 0) > MAX_BODY_BYTES:
        raise _too_large()
    if request.content.is_eof():  # all of it is here, as with most requests
        found: bytes = request.content.read_nowait()
        if len(found) > MAX_BODY_BYTES:
            raise _too_large()
        if not found:
            raise _empty()
        return found
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.content.iter_any():
                size += len(chunk)
                if size > MAX_BODY_BYTES:
                    raise _too_large()
                chunks.append(chunk)
    except TimeoutError:
        raise Problem(
            "request-timeout",
            f"The body did not arrive within {BODY_SECONDS:g} seconds.",
            headers={"Connection": "close"},
        ) from None
    if not size:
        raise _empty()
    return b"".join(chunks)


def _too_large() -> Problem:
    return Problem("body-too-large", f"The body may have at most {MAX_BODY_BYTES} bytes.")


def _empty() -> Problem:
    return Problem("malformed-request", "The body is empty; it has to be JSON.")


def parse_json(body: bytes) -> Any:
    """Strict JSON. Raises :class:`Problem`: 400 for what is not JSON, 422 for values that cannot be kept."""
    try:
        text = body.decode("utf-8")
        value = (_CAREFUL if _unusual(body) else _QUICK).decode(text)
    except UnicodeDecodeError as error:
        raise Problem("malformed-request", f"The body is not UTF-8 (byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise Problem(
            "malformed-request", f"The body is not JSON: {error.msg} at line {error.lineno}, column {error.colno}."
        ) from None
    except RecursionError:
        raise _too_deep() from None
    if body.count(b"[") + body.count(b"{") > _MAX_DEPTH:
        _check_depth(body)
    if b"\\u" in body:
        _check_text(value)
    return value


async def read_json(request: web.Request) -> Any:
    """The request's body as strict JSON."""
    return parse_json(await read_body(request))


def validate(model: type[M], value: Any, prefix: str = "") -> M:
    """``value`` as ``model``; a 422 with every problem otherwise, each pointer beginning with ``prefix``."""
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error
    if any(item["type"] == "int_type" and whole(item["input"]) is not item["input"] for item in found.errors()):
        try:
            return model.model_validate(_whole_numbers(value))
        except ValidationError as error:
            found = error
    raise from_validation(found, prefix)


def whole(value: Any) -> Any:
    """In JSON 5.0 is the integer 5, and languages without integers write it so: such a float as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT else value


def _whole_numbers(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _whole_numbers(item) for name, item in value.items()}
    return [_whole_numbers(item) for item in value] if isinstance(value, list) else whole(value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _value in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise Problem("malformed-request", f"The key {twice[:100]!r} stands twice in one object.")
    return found


def _not_finite(text: str) -> float:
    raise invalid("", "finite_number", f"{text} is not a JSON number; send null where there is no value")


def _bounded_int(text: str) -> int:
    if len(text) > 20 or abs(int(text)) > _MAX_INTEGER:
        raise invalid("", "integer_range", f"an integer of {len(text)} characters is out of range (64 bits)")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise invalid("", "finite_number", f"{text[:40]} is out of range of a 64-bit float")
    return value


def _too_deep() -> Problem:
    return Problem("malformed-request", f"The JSON is nested deeper than {_MAX_DEPTH} levels.")


def _check_depth(body: bytes) -> None:
    depth = 0
    for bracket in _NO_BRACKETS.sub(b"", body):
        if bracket in b"[{":
            depth += 1
            if depth > _MAX_DEPTH:
                raise _too_deep()
        else:
            depth -= 1


def _check_text(value: Any) -> None:
    """Refuse text that no database keeps: half of a surrogate pair, or the character NUL."""
    for text in _texts(value):
        if "\0" in text:
            raise invalid("", "text", "text may not contain the character U+0000")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise invalid("", "text", "text contains half of a surrogate pair") from None


def _texts(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            waiting.extend(item)
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)


def _unusual(body: bytes) -> bool:
    """Whether a number in JSON may be out of range or not finite: then each is looked at, which takes longer."""
    shape = body.translate(_DIGITS)
    return (
        b"0e000" in shape
        or b"0e+000" in shape
        or b"0000000000000000000" in shape
        or b"NaN" in body
        or b"Infinity" in body
    )


# Every digit as 0, and E as e: so that long runs and large exponents are found by looking for a few texts.
_DIGITS: Final = bytes.maketrans(b"123456789E", b"000000000e")
_QUICK: Final = json.JSONDecoder(object_pairs_hook=_unique)
_CAREFUL: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_not_finite, parse_int=_bounded_int, parse_float=_finite
)


# Conditional requests


def etag(session: dict[str, Any]) -> str:
    """The version as an entity tag."""
    return f'"{session["version"]}"'


def if_match(request: web.Request) -> tuple[int, ...] | None:
    """The versions that ``If-Match`` names, at least one; ``None`` without the header or for ``*``."""
    given = request.headers.getall(hdrs.IF_MATCH, [])
    tags = [tag.strip() for part in given for tag in part.split(",") if tag.strip()]
    if not given or tags == ["*"]:
        return None
    # A weak tag (W/"7") never matches here, as RFC 9110 has it.
    versions = tuple(int(tag[1:-1]) for tag in tags if re.fullmatch(r'"\d{1,18}"', tag))
    if not versions:
        raise Problem("version-mismatch", 'If-Match has to be the ETag of the session, such as "7".')
    return versions


def session_id_of(request: web.Request) -> str:
    """The session id in the path; the route's pattern has checked its form."""
    return request.match_info["session_id"]
