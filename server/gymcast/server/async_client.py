"""A client of a gymcast server with ``async``; :mod:`gymcast.server.client` is where to import it from."""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self
from urllib.parse import quote

import aiohttp

from gymcast.training.http_client import check_url

TOKEN_VARIABLE: Final = "GYMCAST_TOKEN"
DEFAULT_SERVER: Final = "http://127.0.0.1:8000"
FIRST_DELAY_SECONDS: Final = 0.5
LONGEST_DELAY_SECONDS: Final = 15.0
# The server pings every 20 s; a connection without any sign of life for this long is dead.
SILENCE_SECONDS: Final = 45.0
_MAX_MESSAGE: Final = 16 << 20
_SESSIONS: Final = "/api/training/sessions"
_ENDED: Final = 4410
_ENDS: Final = (aiohttp.WSMsgType.CLOSE, aiohttp.WSMsgType.CLOSING, aiohttp.WSMsgType.CLOSED, aiohttp.WSMsgType.ERROR)
TERMINAL: Final = {
    4400: "the server refused the connection",
    4401: "the token is missing, wrong or too old; set GYMCAST_TOKEN, or give token=...",
    4403: "this token may not watch the session",
    4404: "there is no such session",
    4409: "the seat is taken",
}
"""Close codes after which connecting again makes no sense, and what they mean. 4410 ends a session's messages."""
# Refusals of the HTTP request before the upgrade that waiting does not cure, as close codes.
_REFUSALS: Final = {400: 4400, 401: 4401, 403: 4403, 404: 4404, 409: 4409, 422: 4400}

Json = dict[str, Any]


class ClientError(Exception):
    """Something with the server did not go as asked."""


class ServerUnreachable(ClientError):
    """Nothing answers at the server's address."""


class RequestRefused(ClientError):
    """The server has answered with a problem document (RFC 9457), in ``problem``, or something else."""

    def __init__(self, status: int, problem: Json) -> None:
        self.status = status
        self.problem = problem
        text = problem.get("detail") or problem.get("title") or "no reason given"
        errors = "".join(f"; {item.get('pointer')}: {item.get('message')}" for item in problem.get("errors") or [])
        super().__init__(f"{status}: {text}{errors}")


class WatchEnded(ClientError):
    """The server will not let this session be watched; ``code`` is the close code (4400 to 4409)."""

    def __init__(self, code: int, reason: str) -> None:
        self.code = code
        super().__init__(f"{TERMINAL.get(code, 'the connection was ended')} ({code}{f', {reason}' if reason else ''})")


@dataclass(frozen=True)
class LiveMessage:
    """One message of a session; ``seq`` counts for each type (0: the message has no number), ``ts`` is RFC 3339."""

    type: str
    seq: int
    ts: str
    data: Json

    @property
    def gap(self) -> bool:
        """Whether messages before this one were lost, and a snapshot of now follows: read the history anew."""
        return self.type == "connection_status" and self.data.get("recovered") is False


class AsyncClient:
    """``async with AsyncClient("http://host:8000") as client``. ``token`` defaults to ``GYMCAST_TOKEN``.

    ``timeout`` is of single requests, in seconds. Raises ``ValueError`` for a URL that is none.
    """

    def __init__(self, server: str = DEFAULT_SERVER, *, token: str | None = None, timeout: float = 10.0) -> None:
        check_url(server)
        self.server = server.rstrip("/")
        self._token = token or os.environ.get(TOKEN_VARIABLE)
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        headers = {} if self._token is None else {"Authorization": f"Bearer {self._token.strip()}"}
        self._http = aiohttp.ClientSession(headers=headers, timeout=self._timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._http is not None:
            await self._http.close()
            self._http = None

    @property
    def _open(self) -> aiohttp.ClientSession:
        if self._http is None:
            raise RuntimeError("use it as: async with AsyncClient(...) as client")
        return self._http

    async def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """The JSON answer to any request; ``None`` for an empty one. Query values that are ``None`` are left out.

        Raises :class:`ServerUnreachable`, :class:`RequestRefused`.
        """
        given = {name: str(value) for name, value in query.items() if value is not None}
        try:
            async with self._open.request(method, self.server + path, json=body, params=given) as answer:
                text = await answer.text()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or type(error).__name__
            raise ServerUnreachable(f"no gymcast server answers at {self.server} ({why})") from error
        try:
            found = json.loads(text) if text else None
        except ValueError:
            raise ClientError(f"{self.server} answered {answer.status} with something that is not JSON") from None
        if answer.status >= 400:
            raise RequestRefused(answer.status, found if isinstance(found, dict) else {})
        return found

    # Sessions

    async def create_session(
        self,
        training_session_id: str,
        algorithm: str,
        *,
        total_episodes: int | None = None,
        model_generation: int = 1,
        env_id: str | None = None,
        **more: Any,
    ) -> Json:
        """Announce a training that runs elsewhere and reports here; returns the session's info."""
        body = {
            "training_session_id": training_session_id,
            "algorithm": algorithm,
            "total_episodes": total_episodes,
            "model_generation": model_generation,
            **({} if env_id is None else {"env_id": env_id}),
            **more,
        }
        return _object(await self.request("POST", _SESSIONS, body))

    async def submit(self, config: Mapping[str, Any], *, priority: int = 0) -> Json:
        """Queue a training that the server runs; ``config`` are fields of ``TrainingConfig`` (docs/settings.md)."""
        return _object(await self.request("POST", _SESSIONS, {"config": dict(config), "priority": priority}))

    async def sessions(self, *, status: str | None = None, limit: int = 100, cursor: str | None = None) -> Json:
        """One page of sessions, newest first: ``{"sessions": [...], "next_cursor": ...}``."""
        return _object(await self.request("GET", _SESSIONS, status=status, limit=limit, cursor=cursor))

    async def session(self, session_id: str) -> Json:
        """A session's info."""
        return _object(await self.request("GET", _path(session_id)))

    async def pause(self, session_id: str) -> Json:
        """Ask for a pause; returns the session's info."""
        return _object(await self.request("POST", _path(session_id, "pause")))

    async def resume(self, session_id: str) -> Json:
        """Let a paused session go on; returns its info."""
        return _object(await self.request("POST", _path(session_id, "resume")))

    async def stop(self, session_id: str) -> Json:
        """Ask for the end; returns the session's info."""
        return _object(await self.request("POST", _path(session_id, "stop")))

    async def delete(self, session_id: str) -> None:
        """Delete a session with everything stored for it."""
        await self.request("DELETE", _path(session_id))

    async def history(self, session_id: str, **query: Any) -> Json:
        """Readings and graphs; ``points=``, ``start_time=``, ``resolution="raw"`` and so on, see docs/rest.md."""
        return _object(await self.request("GET", _path(session_id, "history"), **query))

    # Reports

    async def post_metrics(
        self,
        session_id: str,
        readings: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        producer: str | None = None,
        seq: int | None = None,
    ) -> Json:
        """Report one reading or up to 500; returns the receipt, whose ``desired`` is what the server wishes.

        With ``producer`` and ``seq``, the number of the first one, sending them again stores nothing twice.
        """
        body = dict(readings) if isinstance(readings, Mapping) else [dict(reading) for reading in readings]
        return _object(await self.request("POST", _path(session_id, "metrics"), body, producer=producer, seq=seq))

    async def post_decision(self, session_id: str, decision: Mapping[str, Any]) -> Json:
        """Report what a bot considered; returns the receipt."""
        return _object(await self.request("POST", _path(session_id, "bot_decision"), dict(decision)))

    async def post_graph(self, session_id: str, graph: Mapping[str, Any]) -> Json:
        """Report points of a graph; returns the receipt."""
        return _object(await self.request("POST", _path(session_id, "graph_update"), dict(graph)))

    # Live

    async def watch(
        self,
        session_id: str,
        *,
        types: Sequence[str] | None = None,
        max_hz: float | None = None,
        patience: float | None = None,
    ) -> AsyncGenerator[LiveMessage, None]:
        """A session's messages: how it stands, then live, each once and in order for its type.

        A lost connection is made again, with growing, random waits, and goes on where it was. When that is not
        possible, a message whose ``gap`` is true says so, and a snapshot follows. ``types`` are those wanted,
        ``max_hz`` is the most often that readings and the like come. Ends when the session's messages do (4410); raises
        :class:`WatchEnded` when the server will not have it watched, and :class:`ServerUnreachable` after ``patience``
        seconds without a connection (``None``: never).
        """
        track = _Track()
        lost_since, attempts = time.monotonic(), 0
        while True:
            code: int | None = None
            try:
                async with self._connect(session_id, track) as socket:
                    async for message in self._messages(socket, track, types, max_hz):
                        lost_since, attempts = time.monotonic(), 0
                        if types is None or message.type in types or message.type in ("connection_status", "error"):
                            yield message
                    code = track.close_code
            except aiohttp.WSServerHandshakeError as error:
                code = _REFUSALS.get(error.status)
            except (aiohttp.ClientError, TimeoutError, OSError):
                pass  # away; it is tried again
            if code == _ENDED:
                return
            if code is not None and 4400 <= code < 4500:
                raise WatchEnded(code, "")
            if patience is not None and time.monotonic() - lost_since > patience:
                raise ServerUnreachable(f"no gymcast server answers at {self.server}")
            await asyncio.sleep(full_jitter(attempts))
            attempts += 1

    def _connect(self, session_id: str, track: _Track) -> Any:
        address = f"{self.server}/ws/{quote(session_id, safe='')}"
        return self._open.ws_connect(
            address,
            # With it the server waits to hear where this client stopped before it sends anything.
            params={} if track.epoch is None else {"resume": "1"},
            max_msg_size=_MAX_MESSAGE,
            timeout=aiohttp.ClientWSTimeout(ws_receive=SILENCE_SECONDS, ws_close=1.0),
        )

    async def _messages(
        self,
        socket: aiohttp.ClientWebSocketResponse[Any],
        track: _Track,
        types: Sequence[str] | None,
        max_hz: float | None,
    ) -> AsyncGenerator[LiveMessage, None]:
        while (frame := await socket.receive()).type not in _ENDS:
            if frame.type is not aiohttp.WSMsgType.TEXT:
                continue
            for message in track.take(frame.json()):
                if message.type == "connection_status" and message.data.get("status") == "connected":
                    if types is not None or max_hz is not None:
                        wish = {"type": "subscribe", "types": None if types is None else list(types), "max_hz": max_hz}
                        await socket.send_json(wish)
                    if track.epoch is not None:
                        await socket.send_json({"type": "resume", "epoch": track.epoch, "seq": track.heads})
                    else:
                        track.begin()
                yield message
        # Not socket.close_code: that is 1006 where the connection was gone before the answer to the close frame.
        track.close_code = frame.data if frame.type is aiohttp.WSMsgType.CLOSE else None


class _Track:
    """Where a client is in the messages of a session: the epoch and, in it, the newest number of each type."""

    def __init__(self) -> None:
        self.epoch: str | None = None
        self.heads: dict[str, int] = {}
        self.close_code: int | None = None
        self._offered: str | None = None

    def begin(self) -> None:
        """The first connection: everything it brings is new."""
        self.epoch = self._offered

    def take(self, envelope: Json) -> list[LiveMessage]:
        """The new messages in what has arrived."""
        if envelope["type"] == "batch":
            return [message for part in envelope["data"]["messages"] for message in self.take(part)]
        message = LiveMessage(envelope["type"], envelope.get("seq") or 0, envelope["ts"], envelope["data"])
        if message.type == "connection_status":
            return [message] if self._joins(message, envelope["epoch"]) else []
        seen = self.heads.get(message.type, 0)
        # A snapshot holds all graphs with the number they stand for.
        if message.seq and (message.seq < seen or (message.seq == seen and message.type != "graph_update")):
            return []
        if message.seq:
            self.heads[message.type] = message.seq
        return [message]

    def _joins(self, message: LiveMessage, epoch: str) -> bool:
        """Note what the server says of the connection; whether it is news (what the subscription is, is none)."""
        status = message.data.get("status")
        if status == "connected":
            self._offered = epoch
        elif status == "resumed":
            # Only now: whoever is cut off before this answer stands where it stood.
            self.epoch = self._offered
            if message.gap:
                self.heads = {}
        return status in ("connected", "resumed")


def full_jitter(attempts: int) -> float:
    """Seconds to wait after so many attempts in vain: anything up to a ceiling that doubles, so that not all come."""
    return random.uniform(0.0, min(LONGEST_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(attempts, 10)))


def _path(session_id: str, part: str = "") -> str:
    return f"{_SESSIONS}/{quote(session_id, safe='')}{f'/{part}' if part else ''}"


def _object(value: Any) -> Json:
    if not isinstance(value, dict):
        raise ClientError("the server does not answer like a gymcast server")
    return value
