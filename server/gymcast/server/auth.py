"""Who is asking and what they may do: signed tokens (JWT), scopes, and the middleware that checks both.

A token is signed with the server's secret (HMAC-SHA-256, no other algorithm) and names its holder (``sub``), what it
may do (``scope``), and when it ends. docs/security.md has the table of scopes.
"""

from __future__ import annotations

import hashlib
import logging
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import jwt
from aiohttp import hdrs, web
from aiohttp.web_urldispatcher import AbstractRoute

from gymcast.training.storage import NotFoundError, RoomRecord

from .config import check_secret
from .handlers.common import SERVICES
from .problems import Problem
from .rate_limits import LIMITS, address_of, budget_of
from .tickets import TICKET_SECONDS, UsedTickets

log = logging.getLogger(__name__)

Scope = Literal["read", "ingest", "control", "admin"]
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

SCOPES: Final[tuple[Scope, ...]] = ("read", "ingest", "control", "admin")
# Who may stop a session may also look at it and report to it; who may do everything may do that too.
_INCLUDES: Final[dict[str, frozenset[str]]] = {
    "read": frozenset({"read"}),
    "ingest": frozenset({"ingest"}),
    "control": frozenset({"read", "ingest", "control"}),
    "admin": frozenset(SCOPES),
}
ALGORITHM: Final = "HS256"
AUDIENCE: Final = "gymcast"
ISSUER: Final = "gymcast"
MAX_TOKEN_CHARACTERS: Final = 4096
_MAX_SUBJECT: Final = 128
# How far the clocks of two machines may differ.
_LEEWAY_S: Final = 5
_TICKET_AUDIENCE: Final = "gymcast-ticket"
_TICKET_REQUIRED: Final = ("exp", "iat", "sub", "aud", "iss", "scope", "jti")
_REQUIRED: Final = ["exp", "iat", "sub", "aud", "iss", "scope"]
_LAST_YEAR: Final = 253_402_300_800  # 10000-01-01
_CACHED_TOKENS: Final = 4096
_CACHED_SESSIONS: Final = 4096
_REALM: Final = 'Bearer realm="gymcast"'
# Where the holder of a room's token may go apart from that room's session.
_ROOM_OPEN: Final = ("/api/envs", "/api/tickets")


class TokenError(ValueError):
    """A token that proves nothing. The text says why and never repeats the token."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request. ``room`` is the only room it may see; ``expires_at``, in seconds since 1970, is when
    its token is refused."""

    subject: str
    scopes: frozenset[str]
    room: str | None = None
    expires_at: float | None = None


LOCAL: Final = Principal("local", frozenset(SCOPES))
"""Everybody, where authentication is off."""


def issue(secret: str, *, subject: str, scopes: Iterable[str], seconds: float, room: str | None = None) -> str:
    """A token for ``subject`` that ends after ``seconds``. Raises ``ValueError`` for what no token can say."""
    given = list(dict.fromkeys(scopes))
    if not given or (unknown := [scope for scope in given if scope not in SCOPES]):
        named = ", ".join(unknown) if given else "none"
        raise ValueError(f"scopes: got {named}; allowed: {', '.join(SCOPES)}")
    if not _is_subject(subject):
        raise ValueError(f"subject: expected 1 to {_MAX_SUBJECT} printable characters")
    if room is not None and given != ["read"]:
        raise ValueError("a room's token has the scope read and no other")
    claims: dict[str, Any] = {"sub": subject, "scope": " ".join(given)}
    if room is not None:
        claims["room"] = room
    return sign(secret, claims, audience=AUDIENCE, seconds=seconds)


def sign(secret: str, claims: Mapping[str, Any], *, audience: str, seconds: float) -> str:
    """``claims`` with issuer, audience and times, signed. Raises ``ValueError`` for a secret that is too weak."""
    check_secret(secret)
    now = time.time()
    stamped = {**claims, "iss": ISSUER, "aud": audience, "iat": int(now), "exp": int(now + seconds)}
    return jwt.encode(stamped, secret, algorithm=ALGORITHM)


def claims_of(secret: str, token: str, *, audience: str, require: Iterable[str] = _REQUIRED) -> dict[str, Any]:
    """The claims of a token for ``audience`` whose signature and times are right. Raises :class:`TokenError`."""
    if len(token) > MAX_TOKEN_CHARACTERS:
        raise TokenError(f"longer than {MAX_TOKEN_CHARACTERS} characters")
    try:
        found: dict[str, Any] = jwt.decode(
            token,
            secret,
            algorithms=[ALGORITHM],
            audience=audience,
            issuer=ISSUER,
            leeway=_LEEWAY_S,
            options={"require": list(require), "strict_aud": True},
        )
    except jwt.ExpiredSignatureError:
        raise TokenError("it has ended") from None
    except jwt.ImmatureSignatureError:
        raise TokenError("it is not valid yet; compare the clocks of the two machines") from None
    except jwt.MissingRequiredClaimError as error:
        raise TokenError(f"it has no {error.claim}") from None
    except (jwt.InvalidAudienceError, jwt.InvalidIssuerError):
        raise TokenError("it was made for something else") from None
    except (jwt.PyJWTError, ValueError, TypeError, OverflowError, RecursionError):
        raise TokenError("it was not signed by this server, or not as a token") from None
    return found


def verify(secret: str, token: str) -> Principal:
    """The holder of ``token``. Raises :class:`TokenError`."""
    claims = claims_of(secret, token, audience=AUDIENCE)
    subject, scope, room = claims["sub"], claims["scope"], claims.get("room")
    if not _is_subject(subject):
        raise TokenError("its sub is no name")
    if not isinstance(scope, str) or not (room is None or isinstance(room, str)):
        raise TokenError("its scope or room is no text")
    named = [name for name in scope.split(" ") if name in SCOPES]
    if not named:
        raise TokenError(f"its scope names none of {', '.join(SCOPES)}")
    granted = frozenset().union(*(_INCLUDES[name] for name in named))
    if not 0 < claims["exp"] < _LAST_YEAR:
        raise TokenError("its exp is out of range")
    # However such a token was made, it opens a room and nothing else.
    return Principal(subject, granted if room is None else granted & {"read"}, room, claims["exp"] + _LEEWAY_S)


def _is_subject(subject: Any) -> bool:
    return isinstance(subject, str) and 1 <= len(subject) <= _MAX_SUBJECT and subject.isprintable()


class Authenticator:
    """Tokens of one server: makes them, checks them, and remembers those it has checked until they end.

    Without a configured secret it gets the database's own, before the first request.
    """

    def __init__(self, secret: str | None) -> None:
        self.secret = secret or ""
        self._known: OrderedDict[bytes, Principal] = OrderedDict()
        self.used = UsedTickets()
        self.external: set[str] = set()
        """Sessions known to be external, which they stay for good."""

    def verify(self, token: str) -> Principal:
        """As :func:`verify`; a token that was seen before costs one hash."""
        # By its hash, so that the time a look-up takes tells nothing about a token.
        key = hashlib.sha256(token.encode("utf-8", "surrogateescape")).digest()
        known = self._known.get(key)
        if known is not None and known.expires_at is not None and time.time() < known.expires_at:
            self._known.move_to_end(key)
            return known
        self._known.pop(key, None)
        principal = verify(self.secret, token)
        self._known[key] = principal
        if len(self._known) > _CACHED_TOKENS:
            self._known.popitem(last=False)
        return principal

    def ticket(self, principal: Principal, *, session_id: str | None = None, room: str | None = None) -> str:
        """Something that opens one WebSocket once, soon, with what ``principal`` may do; of one session or room."""
        claims = {
            "jti": secrets.token_hex(16),
            "sub": principal.subject,
            "scope": " ".join(sorted(principal.scopes)),
            "room": principal.room or room,
            "session": session_id,
            "until": principal.expires_at,
        }
        given = {name: value for name, value in claims.items() if value is not None}
        return sign(self.secret, given, audience=_TICKET_AUDIENCE, seconds=TICKET_SECONDS)

    def read_ticket(self, ticket: str, session_id: str) -> tuple[str, Principal]:
        """The number of a ticket for this session and its holder. Raises :class:`TokenError`."""
        claims = claims_of(self.secret, ticket, audience=_TICKET_AUDIENCE, require=_TICKET_REQUIRED)
        # Between two machines' clocks a ticket may seem young, but never lives longer.
        if time.time() >= claims["exp"]:
            raise TokenError("it has ended")
        if claims.get("session", session_id) != session_id:
            raise TokenError("it is for another session")
        return claims["jti"], Principal(
            claims["sub"], frozenset(claims["scope"].split(" ")), claims.get("room"), claims.get("until")
        )


AUTH: Final = web.AppKey("auth", Authenticator)
PRINCIPAL: Final = web.RequestKey("principal", Principal)
"""``request[PRINCIPAL]``: who asks; every handler can rely on it."""
ROOM: Final = web.RequestKey("room", RoomRecord)
"""``request.get(ROOM)``: the room whose guest asks."""
ROUTE_SCOPES: Final = web.AppKey("route_scopes", dict[AbstractRoute, Scope | None])


@web.middleware
async def everybody(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Authentication is off: whoever reaches the server may do everything, but for who comes as a guest of a room."""
    request[PRINCIPAL] = LOCAL
    scope = request.app[ROUTE_SCOPES].get(request.match_info.route)
    if scope is not None and (hdrs.AUTHORIZATION in request.headers or "ticket" in request.query):
        await _let_guest_in(request, scope)
    return await handler(request)


async def _let_guest_in(request: web.Request, scope: Scope) -> None:
    """Hold the bearer of a room's token or ticket to that room; other tokens mean nothing here."""
    try:
        principal = await _identify(request)
    except Problem:
        return
    if principal.room is not None:
        request[PRINCIPAL] = principal
        require(principal, scope)
        await _check_room(request, principal.room)


@web.middleware
async def limited(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Count requests that are not open to everyone, by who asks: the token's holder, else the address."""
    scope = request.app[ROUTE_SCOPES].get(request.match_info.route)
    if scope is not None:
        principal = request[PRINCIPAL]
        # Everybody has the name "local", and the guests of a room may share one.
        alone = principal is LOCAL or principal.room is not None
        who = f"address {address_of(request)}" if alone else f"subject {principal.subject}"
        await request.app[LIMITS].take(budget_of(request, scope), who)
    return await handler(request)


@web.middleware
async def authenticate(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Find out who asks, and let them do what their token allows. Open addresses ask for no token."""
    # Addresses that do not exist have no scope; they are answered with 404 or 405 whoever asks.
    scope = request.app[ROUTE_SCOPES].get(request.match_info.route)
    if scope is None:
        request[PRINCIPAL] = _ANYONE
        return await handler(request)
    principal = request[PRINCIPAL] = await _identify(request)
    require(principal, scope)
    if principal.room is not None:
        await _check_room(request, principal.room)
    if scope == "ingest" and "control" not in principal.scopes and "session_id" in request.match_info:
        await _check_external(request, principal)
    return await handler(request)


_ANYONE: Final = Principal("anyone", frozenset())


async def _identify(request: web.Request) -> Principal:
    if request.query_string and not {"token", "access_token"}.isdisjoint(request.query):
        raise unauthorized(
            "A token in the address ends up in logs and histories. Send it as Authorization: Bearer TOKEN; for a"
            " WebSocket, POST /api/tickets gives a ticket."
        )
    given = request.headers.getall(hdrs.AUTHORIZATION, [])
    if not given:
        if "ticket" in request.query and request.path.startswith("/ws/"):
            return await _redeem(request)
        raise unauthorized(
            "This server asks for a token: Authorization: Bearer TOKEN. Make one with: gymcast token create"
        )
    kind, _, token = given[0].partition(" ")
    if len(given) > 1 or kind.lower() != "bearer" or not token:
        raise unauthorized("Expected one header of the form Authorization: Bearer TOKEN.", error="invalid_request")
    try:
        return request.app[AUTH].verify(token.strip())
    except TokenError as error:
        raise await _refused(request, f"The token is refused: {error}.") from None


async def _redeem(request: web.Request) -> Principal:
    auth = request.app[AUTH]
    try:
        number, principal = auth.read_ticket(request.query["ticket"], request.match_info["session_id"])
    except TokenError as error:
        raise await _refused(request, f"The ticket is refused: {error}.") from None
    if not await auth.used.take(number):
        raise await _refused(request, "The ticket is refused: it was used before.")
    return principal


async def _refused(request: web.Request, detail: str) -> Problem:
    """A 401 for something wrong, of which nobody may try many. What is right always gets in."""
    address = address_of(request)
    limits = request.app.get(LIMITS)
    if limits is not None:
        await limits.take("failures", f"address {address}")
    log.info("%s %s from %s is not let in: %s", request.method, request.rel_url.raw_path, address, detail)
    return unauthorized(detail, error="invalid_token")


def unauthorized(detail: str, *, error: str | None = None) -> Problem:
    """A 401; ``error`` is a code of RFC 6750."""
    challenge = _REALM if error is None else f'{_REALM}, error="{error}"'
    return Problem("unauthorized", detail, headers={hdrs.WWW_AUTHENTICATE: challenge})


def require(principal: Principal, scope: Scope) -> None:
    """Raise a 403 unless ``principal`` has ``scope``."""
    if scope not in principal.scopes:
        raise Problem(
            "forbidden",
            f"This takes a token with the scope {scope}; yours has {', '.join(sorted(principal.scopes)) or 'none'}.",
            headers={hdrs.WWW_AUTHENTICATE: f'{_REALM}, error="insufficient_scope", scope="{scope}"'},
        )


async def _check_external(request: web.Request, principal: Principal) -> None:
    """Who may only report does so for trainings of somebody else; those of this server have their own workers."""
    session_id = request.match_info["session_id"]
    external = request.app[AUTH].external
    if session_id in external:
        return
    if (await request.app[SERVICES].storage.get_session(session_id)).kind != "external":
        require(principal, "control")
    if len(external) >= _CACHED_SESSIONS:
        external.clear()
    external.add(session_id)


async def _check_room(request: web.Request, code: str) -> None:
    """A room's token opens the room's session with its replays while the room is open; nothing else is there."""
    names = request.match_info
    services = request.app[SERVICES]
    try:
        room = request[ROOM] = await services.storage.rooms.get(code)
    except NotFoundError:
        raise Problem("not-found", f"Room {code} has ended.") from None
    if "code" in names:
        allowed = names["code"].upper() == code
    elif "session_id" in names or "replay_id" in names:
        session_id = names.get("session_id") or (await services.episodes.find(names["replay_id"])).session_id
        allowed = session_id == room.session_id
    else:
        allowed = request.path.startswith(_ROOM_OPEN)
    if not allowed:
        raise Problem("not-found", f"There is nothing at {request.path} for a guest of room {code}.")
