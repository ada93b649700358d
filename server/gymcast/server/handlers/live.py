"""``/ws/{session_id}``: the WebSocket side of the hub."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from aiohttp import WSMsgType, hdrs, web
from pydantic import ValidationError

from gymcast.server.auth import PRINCIPAL, ROOM
from gymcast.server.channels import Client, HubFullError
from gymcast.server.masks import masked_frames_only
from gymcast.server.messages import (
    CHANNEL_TYPES,
    CLOSE_FAILED,
    CLOSE_RATE,
    CLOSE_SIGNED_OUT,
    CLOSE_STATE_LOST,
    CLOSE_UNKNOWN,
    INBOUND,
    MAX_INBOUND_BYTES,
    Ping,
    Resume,
    Subscribe,
    Unsubscribe,
    frame_pong,
)
from gymcast.server.problems import Problem
from gymcast.server.viewer_socket import SocketSink, ViewerSocket
from gymcast.training.storage import NotFoundError, StorageError

from .common import SERVICES, Services, parse_json, session_id_of
from .queries import LiveQuery

log = logging.getLogger(__name__)

# Longer than the sink waits, which cuts off a peer that does not answer.
_CLOSE_WAIT_S: Final = 5.0
_RESUME_WAIT_S: Final = 5.0
# How often the state is read for a viewer while more is published than the ring holds.
_STATE_TRIES: Final = 3
_SEND_BUFFER: Final = 64 << 10
_TCP_USER_TIMEOUT_MS: Final = 15_000
# Messages a client may send: a burst, refilled at a steady rate.
_BURST: Final = 60
_PER_SECOND: Final = 20.0
_IN_SNAPSHOT: Final = ("training_status", "training_metrics", "graph_update", "bot_decision", "frame")


class _Budget:
    """How many messages a client may still send."""

    __slots__ = ("_at", "_left")

    def __init__(self, now: float) -> None:
        self._left = float(_BURST)
        self._at = now

    def take(self, now: float) -> bool:
        self._left = min(_BURST, self._left + (now - self._at) * _PER_SECOND)
        self._at = now
        self._left -= 1
        return self._left >= 0


async def live(request: web.Request, query: LiveQuery) -> web.WebSocketResponse:
    """Watch a session by WebSocket.

    Everything that can be refused is refused before the upgrade. The messages are explained above.
    """
    services = request.app[SERVICES]
    client = await _admit(request, query, services)
    # Pings come from the hub, by one timer for all: one for each connection costs more than the messages do.
    ws = ViewerSocket(autoping=False, compress=False, max_msg_size=MAX_INBOUND_BYTES, timeout=_CLOSE_WAIT_S)
    sink = ends = None
    try:
        transport = request.transport
        if transport is None:
            return ws  # nobody is there any more
        with masked_frames_only(request, transport):
            await ws.prepare(request)
        ws.headers.clear()  # they are sent, and would be kept as long as the connection
        _tune(transport)
        sink = client.sink = SocketSink(ws, transport)
        ends = _end_with_token(request, sink)
        await _converse(services, client, ws, waits=query.resume is not None)
    except Exception as error:
        # After the upgrade there is no HTTP answer any more. A client that comes back gets one.
        if sink is None:
            raise
        if isinstance(error, NotFoundError):
            sink.close(CLOSE_UNKNOWN, "there is no such session any more")
        elif isinstance(error, StorageError):
            log.warning("viewer of session %s closed: %s", client.session_id, error)
            sink.close(CLOSE_FAILED, "the session cannot be read")
        else:
            log.exception("viewer of session %s failed", client.session_id)
            sink.close(CLOSE_FAILED, "the server failed")
    finally:
        services.leave(client)
        if ends is not None:
            ends.cancel()
        if sink is not None:
            await sink.closed()
    return ws


def _end_with_token(request: web.Request, sink: SocketSink) -> asyncio.TimerHandle | None:
    """Close the connection when the token that opened it ends."""
    expires = request[PRINCIPAL].expires_at
    if expires is None:
        return None
    left = max(0.0, expires - time.time())
    return asyncio.get_running_loop().call_later(left, sink.close, CLOSE_SIGNED_OUT, "the token has ended")


async def _admit(request: web.Request, query: LiveQuery, services: Services) -> Client:
    """A place for a viewer. Raises :class:`Problem` or ``StorageError``: refusals by HTTP."""
    session_id = session_id_of(request)
    if request.headers.get(hdrs.UPGRADE, "").lower() != "websocket":
        raise Problem("upgrade-required", "Connect here with WebSocket.", headers={"Upgrade": "websocket"})
    record = await services.storage.get_session(session_id)
    if not record.enable_spectators:
        raise Problem("conflict", "This session takes no spectators (enable_spectators is false).")
    room = request.get(ROOM)
    code, places = (None, None) if room is None else (room.code, room.max_spectators)
    services.hub.channel(session_id).know_heads(record.heads)
    try:
        client = await services.join(session_id, user_name=query.user_name, room=code, room_limit=places)
    except HubFullError as error:
        raise Problem("no-capacity", f"{str(error).capitalize()}.", headers={"Retry-After": "10"}) from None
    if record.kind == "managed":
        services.frames.prepare()
    return client


def _tune(transport: asyncio.Transport) -> None:
    """A small kernel buffer, so that the backlog seen here is the client's; a dead peer is noticed soon."""
    raw = transport.get_extra_info("socket")
    if raw is None:
        return
    with contextlib.suppress(OSError):  # not every kind of socket and system has these
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _TCP_USER_TIMEOUT_MS)


async def _converse(services: Services, client: Client, ws: web.WebSocketResponse, *, waits: bool) -> None:
    hub = services.hub
    loop = asyncio.get_running_loop()
    hello = _connection(services, client, "connected")
    snapshot_timer = None
    if waits:
        # The client is about to say where it stopped. It gets the rest, or everything if it says nothing.
        hub_send(client, hub.direct(client, "connection_status", hello))
        snapshot_timer = asyncio.create_task(_start_later(services, client))
    else:
        await _start(services, client, hello)
    budget = _Budget(loop.time())
    try:
        async for message in ws:
            if not budget.take(loop.time()):
                hub.leave(client)
                if client.sink is not None:
                    client.sink.close(CLOSE_RATE, "too many messages")
                return
            hub.heard(client)
            if message.type is WSMsgType.TEXT:
                await _handle(services, client, message.data)
            elif message.type is WSMsgType.PING:
                hub.send(client, frame_pong(bytes(message.data)))
            elif message.type is WSMsgType.BINARY:
                _complain(services, client, "not_text", "Send JSON as text, not binary messages.")
    finally:
        if snapshot_timer is not None:
            snapshot_timer.cancel()


def hub_send(client: Client, frame: bytes) -> None:
    """Send to a client that has not started yet."""
    if client.sink is not None:
        client.sink.write(frame)


async def _start_later(services: Services, client: Client) -> None:
    await asyncio.sleep(_RESUME_WAIT_S)
    if client.joining is not None:
        await _start(services, client, None)


async def _start(services: Services, client: Client, hello: dict[str, Any] | None) -> None:
    """Send the state of the session, then go live. What is published meanwhile follows, from the ring."""
    hub = services.hub
    frames = [] if hello is None else [hub.direct(client, "connection_status", hello)]
    for _ in range(_STATE_TRIES):
        state, floors = await _snapshot(services, client)
        if client.joining is None or hub.start(client, frames + state, floors):
            return
        hub.hold(client)
    hub.leave(client)
    if client.sink is not None:
        client.sink.close(CLOSE_STATE_LOST, "more happens than is kept while the state is read")


async def _snapshot(services: Services, client: Client) -> tuple[list[bytes], dict[str, int]]:
    """Session, newest metrics, graphs, newest decision and footage, as far as the client wants them.

    With the frames comes the number up to which they stand for each type. It is taken before the database is read, so a
    change that comes in between may be sent twice but is never left out.
    """
    hub, storage, session_id = services.hub, services.storage, client.session_id
    floors = {kind: hub.channel(session_id).heads.get(kind, 0) for kind in _IN_SNAPSHOT}
    record = await storage.get_session(session_id)
    graphs = await storage.graphs(session_id)
    last = hub.channel(session_id).last
    kept: dict[str, dict[str, Any] | None] = {}
    if "training_metrics" not in last:
        kept["training_metrics"] = await storage.last_metrics(session_id)
    if "bot_decision" not in last:
        decisions = await storage.decisions(session_id, limit=1)
        kept["bot_decision"] = decisions[0] if decisions else None
    if "frame" not in last:
        replays = (await storage.replays(session_id, limit=1)).items
        kept["frame"] = _announcement(replays[0]) if replays else None
    channel = hub.channel(session_id)

    def newest(kind: str) -> Iterator[bytes]:
        if kind in channel.last:
            floors[kind] = channel.last[kind].seq
            yield channel.last[kind].frame
        elif (data := kept.get(kind)) is not None:
            yield hub.direct(client, kind, data, seq=floors[kind])

    found = {
        "training_status": [
            hub.direct(client, "training_status", services.info(record.to_json()), seq=floors["training_status"])
        ],
        "training_metrics": list(newest("training_metrics")),
        "graph_update": [hub.direct(client, "graph_update", graph, seq=floors["graph_update"]) for graph in graphs],
        "bot_decision": list(newest("bot_decision")),
        "frame": list(newest("frame")),
        "picture": list(newest("picture")),
    }
    return [frame for kind, frames in found.items() if client.wants(kind) for frame in frames], floors


def _announcement(replay: Mapping[str, Any]) -> dict[str, Any]:
    wanted = ("replay_id", "env_id", "episode", "timesteps", "summary")
    return {**{name: replay[name] for name in wanted}, "frames_url": f"/api/replays/{replay['replay_id']}/frames"}


def _connection(services: Services, client: Client, status: str, **more: Any) -> dict[str, Any]:
    channel = services.hub.channel(client.session_id)
    return {
        "status": status,
        "client_id": client.id,
        "user_name": client.user_name,
        "epoch": channel.epoch,
        "heads": dict(channel.heads),
        "types": sorted(client.types) if client.types is not None else list(CHANNEL_TYPES),
        "max_hz": 1 / client.gap if client.gap else None,
        "batch": client.batch,
        "spectator_count": services.hub.spectators(client.session_id),
        "limits": {
            "connections_per_session": services.hub.per_session,
            "total_connections": services.hub.total,
            "message_bytes": MAX_INBOUND_BYTES,
            "messages_per_second": _PER_SECOND,
            "heartbeat_seconds": services.hub.heartbeat,
        },
        **more,
    }


def _tell(services: Services, client: Client, status: str, **more: Any) -> None:
    services.hub.send(
        client, services.hub.direct(client, "connection_status", _connection(services, client, status, **more))
    )


def _complain(services: Services, client: Client, code: str, message: str) -> None:
    data = {"code": code, "message": message, "detail": None}
    services.hub.send(client, services.hub.direct(client, "error", data))


async def _handle(services: Services, client: Client, text: str) -> None:
    try:
        value = parse_json(text.encode("utf-8", "surrogatepass"))
        if isinstance(value, dict) and isinstance(value.get("data"), dict):
            # {"type": ..., "data": {...}} means the same as {"type": ..., ...}
            value = {**value.pop("data"), **value}
        message = INBOUND.validate_python(value)
    except Problem as problem:
        _complain(services, client, "malformed", problem.detail)
        return
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        _complain(services, client, "invalid", f"{where or 'message'}: {first['msg']}")
        return
    match message:
        case Subscribe():
            client.types = None if message.types is None else frozenset(message.types)
            client.gap = 0.0 if message.max_hz is None else 1 / message.max_hz
            client.batch = message.batch
            _tell(services, client, "subscribed")
        case Unsubscribe():
            held = frozenset(CHANNEL_TYPES) if client.types is None else client.types
            client.types = held - frozenset(message.types)
            _tell(services, client, "subscribed")
        case Ping():
            _tell(services, client, "pong", id=message.id)
        case Resume():
            await _resume(services, client, message)


async def restart(services: Services, session_id: str) -> None:
    """Give every viewer of a session its state anew, because messages were lost on the way here."""
    channel = services.hub.find(session_id)
    for client in tuple(channel.clients) if channel is not None else ():
        if client.joining is None:
            await _start_anew(services, client)


async def _start_anew(services: Services, client: Client) -> None:
    _tell(services, client, "resumed", recovered=False)
    services.hub.hold(client)
    await _start(services, client, None)


async def _resume(services: Services, client: Client, message: Resume) -> None:
    hub = services.hub
    seen = {str(kind): seq for kind, seq in message.seq.items()}
    if message.epoch == hub.channel(client.session_id).epoch:
        await services.fan_out.reach_back(client.session_id, seen, client.wants)
    rest = hub.resume(client, message.epoch, seen)
    if rest is None:
        await _start_anew(services, client)
        return
    _tell(services, client, "resumed", recovered=True)
    if client.joining is not None:
        # The rest has everything up to now, so nothing that waits in the client is to follow it.
        hub.start(client, rest, hub.channel(client.session_id).heads)
    else:
        hub.send(client, b"".join(rest))
