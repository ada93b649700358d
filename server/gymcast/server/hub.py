"""Fan-out of live messages. No I/O in here: sockets are reached through :class:`Sink`.

A message is encoded once and framed once. All messages of one turn of the event loop form a tick, and each client gets
a tick in one write. There is no queue and no task per client: a client that reads too slowly shows by its own backlog.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

from gymcast.training.events import utc_now

from .messages import CLOSE_ENDED, CLOSE_SLOW, LATEST_WINS, SKIPPED_WHEN_SLOW, encode, frame_text

log = logging.getLogger(__name__)

RING_MESSAGES: Final = 1_000
RING_SECONDS: Final = 60.0
RING_BYTES: Final = 8 << 20
SOFT_BACKLOG: Final = 64 << 10
HARD_BACKLOG: Final = 256 << 10
SLOW_SECONDS: Final = 5.0
_WATCH_SECONDS: Final = 0.05
_LOSSY: Final = LATEST_WINS | SKIPPED_WHEN_SLOW


class Sink(Protocol):
    """Where a client's bytes go."""

    def write(self, data: bytes) -> None:
        """Send without waiting; what the socket does not take is kept."""

    def backlog(self) -> int:
        """Bytes kept because the socket did not take them."""

    def close(self, code: int, reason: str) -> None:
        """Begin to close, and cut the connection if the peer does not follow."""


class HubFullError(Exception):
    """A limit of connections is reached. ``scope`` is ``"session"`` or ``"server"``."""

    def __init__(self, scope: str, limit: int) -> None:
        self.scope = scope
        self.limit = limit
        super().__init__(f"this {scope} has its {limit} viewers already")


@dataclass(frozen=True, slots=True)
class LiveMessage:
    """One message as it goes out; ``at`` is loop time."""

    type: str
    key: str
    seq: int
    at: float
    ts: datetime
    data: dict[str, Any]
    frame: bytes


@dataclass(slots=True, eq=False)
class Client:
    """One viewer. ``types`` is ``None`` for all; ``gap`` is the least time between lossy messages, in seconds."""

    id: str
    session_id: str
    user_name: str | None = None
    sink: Sink | None = None
    types: frozenset[str] | None = None
    gap: float = 0.0
    # Messages that arrive before the snapshot is out; None once it is.
    joining: list[LiveMessage] | None = field(default_factory=list)
    held: dict[str, LiveMessage] = field(default_factory=dict)
    sent_at: dict[str, float] = field(default_factory=dict)
    slow_since: float | None = None
    # Size of a write that is large by itself (a snapshot): its own bytes do not make a client slow.
    bulk: int = 0

    def wants(self, kind: str) -> bool:
        """Whether it subscribed to a type; errors always arrive."""
        return self.types is None or kind in self.types or kind == "error"

    @property
    def plain(self) -> bool:
        """Whether it takes a tick as it is."""
        return (
            self.joining is None and self.types is None and not self.gap and not self.held and self.slow_since is None
        )


@dataclass(slots=True, eq=False)
class Listener:
    """Code in this process that follows a session."""

    queue: deque[LiveMessage]
    wake: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class Channel:
    """Everything live about one session."""

    session_id: str
    epoch: str
    heads: dict[str, int] = field(default_factory=dict)
    ring: deque[LiveMessage] = field(default_factory=deque)
    ring_bytes: int = 0
    last: dict[str, LiveMessage] = field(default_factory=dict)
    pending: list[LiveMessage] = field(default_factory=list)
    clients: set[Client] = field(default_factory=set)
    listeners: set[Listener] = field(default_factory=set)
    count_due: bool = False


class Hub:
    """All channels of one server process."""

    def __init__(self, *, per_session: int = 50, total: int = 1000) -> None:
        self._loop = asyncio.get_running_loop()
        self.per_session = per_session
        self.total = total
        self.connections = 0
        self._channels: dict[str, Channel] = {}
        self._dirty: set[Channel] = set()
        self._watched: set[Client] = set()
        self._watching = False

    def channel(self, session_id: str) -> Channel:
        """The channel of a session, made on first use."""
        channel = self._channels.get(session_id)
        if channel is None:
            channel = self._channels[session_id] = Channel(session_id, secrets.token_hex(8))
        return channel

    def spectators(self, session_id: str) -> int:
        """How many clients watch a session."""
        channel = self._channels.get(session_id)
        return len(channel.clients) if channel else 0

    # Publishing

    def publish(
        self, session_id: str, kind: str, data: dict[str, Any], *, key: str | None = None, ts: datetime | None = None
    ) -> None:
        """Number, encode and frame a message, and send it to everyone at the end of this turn of the loop."""
        channel = self.channel(session_id)
        seq = channel.heads[kind] = channel.heads.get(kind, 0) + 1
        moment = ts or utc_now()
        frame = frame_text(encode(session_id, channel.epoch, kind, seq, moment, data))
        message = LiveMessage(kind, key or kind, seq, self._loop.time(), moment, data, frame)
        channel.last[message.key] = message
        channel.ring.append(message)
        channel.ring_bytes += len(frame)
        self._trim(channel, message.at)
        channel.pending.append(message)
        for listener in channel.listeners:
            listener.queue.append(message)
            listener.wake.set()
        if channel not in self._dirty:
            if not self._dirty:
                self._loop.call_soon(self._tick)
            self._dirty.add(channel)

    def direct(self, client: Client, kind: str, data: dict[str, Any], *, seq: int = 0) -> bytes:
        """A framed message for one client; it is not part of the numbered stream."""
        channel = self.channel(client.session_id)
        return frame_text(encode(client.session_id, channel.epoch, kind, seq, utc_now(), data))

    def send(self, client: Client, frame: bytes) -> None:
        """Send a framed message to one client, as long as it can take it."""
        if client.sink is not None and client in self.channel(client.session_id).clients:
            self._write(client, frame)

    @staticmethod
    def _trim(channel: Channel, now: float) -> None:
        ring = channel.ring
        while ring and (
            len(ring) > RING_MESSAGES or channel.ring_bytes > RING_BYTES or now - ring[0].at > RING_SECONDS
        ):
            channel.ring_bytes -= len(ring.popleft().frame)

    def _tick(self) -> None:
        dirty, self._dirty = self._dirty, set()
        for channel in dirty:
            pending, channel.pending = channel.pending, []
            joined = b"".join(message.frame for message in pending)
            for client in tuple(channel.clients):
                if client.plain:
                    self._write(client, joined)
                elif client.joining is not None:
                    client.joining.extend(pending)
                else:
                    self._deliver(client, pending)

    # Clients

    def join(self, session_id: str, *, user_name: str | None = None) -> Client:
        """Take a place for a client; its live messages are kept until :meth:`start`. Raises :class:`HubFullError`."""
        channel = self._channels.get(session_id)
        if channel is not None and len(channel.clients) >= self.per_session:
            raise HubFullError("session", self.per_session)
        if self.connections >= self.total:
            raise HubFullError("server", self.total)
        client = Client(secrets.token_hex(8), session_id, user_name)
        self.channel(session_id).clients.add(client)
        self.connections += 1
        self._count_changed(session_id)
        return client

    def start(self, client: Client, snapshot: Iterable[bytes], floors: Mapping[str, int]) -> None:
        """Send the snapshot, then what arrived meanwhile, then go live.

        ``floors`` tells up to which number of each type the snapshot goes; only later messages follow it.
        """
        self._tick()
        waiting, client.joining = client.joining or [], None
        data = b"".join(snapshot)
        client.bulk = len(data)
        if data:
            self._write(client, data)
        self._deliver(client, [message for message in waiting if message.seq > floors.get(message.type, 0)])

    def leave(self, client: Client) -> None:
        """Give a client's place back; harmless when it was given back before."""
        channel = self._channels.get(client.session_id)
        self._watched.discard(client)
        if channel is not None and client in channel.clients:
            channel.clients.remove(client)
            self.connections -= 1
            self._count_changed(client.session_id)

    def resume(self, client: Client, epoch: str, seen: dict[str, int]) -> list[bytes] | None:
        """Everything after ``seen`` in order, or ``None`` when any of it is gone: never a part of it."""
        self._tick()
        channel = self.channel(client.session_id)
        if epoch != channel.epoch:
            return None
        wanted = {kind: head for kind, head in channel.heads.items() if client.wants(kind)}
        if any(seen.get(kind, 0) > head for kind, head in wanted.items()):
            return None
        rest = [
            message for message in channel.ring if message.type in wanted and message.seq > seen.get(message.type, 0)
        ]
        if len(rest) != sum(head - seen.get(kind, 0) for kind, head in wanted.items()):
            return None
        return [message.frame for message in rest]

    def drop_channel(self, session_id: str, code: int = CLOSE_ENDED, reason: str = "the session is deleted") -> None:
        """Close every client of a session and forget the channel."""
        channel = self._channels.get(session_id)
        if channel is None:
            return
        for client in tuple(channel.clients):
            self._close(client, code, reason)
        for listener in channel.listeners:
            listener.wake.set()
        self._dirty.discard(channel)
        del self._channels[session_id]

    def close_all(self, code: int, reason: str) -> None:
        """Close every client of every session."""
        for session_id in tuple(self._channels):
            self.drop_channel(session_id, code, reason)

    def sweep(self) -> None:
        """Forget channels that nobody watches and whose ring has run out."""
        now = self._loop.time()
        for session_id, channel in tuple(self._channels.items()):
            self._trim(channel, now)
            if not (channel.clients or channel.ring or channel.listeners or channel.pending):
                del self._channels[session_id]

    def _close(self, client: Client, code: int, reason: str) -> None:
        self.leave(client)
        if client.sink is not None:
            client.sink.close(code, reason)

    # The slow-client policy

    def _deliver(self, client: Client, messages: Iterable[LiveMessage]) -> None:
        now = self._loop.time()
        slow = client.slow_since is not None
        out = []
        for message in messages:
            if not client.wants(message.type):
                continue
            if message.type in _LOSSY:
                if slow and message.type in SKIPPED_WHEN_SLOW:
                    continue
                if slow or (client.gap and now - client.sent_at.get(message.key, -client.gap) < client.gap):
                    # Taken out first, so that held messages go out in the order of their newest version.
                    client.held.pop(message.key, None)
                    client.held[message.key] = message
                    continue
                client.sent_at[message.key] = now
            out.append(message.frame)
        if client.held:
            self._watch(client)
        if out:
            self._write(client, b"".join(out))

    def _write(self, client: Client, data: bytes) -> None:
        sink = client.sink
        if sink is None:
            return
        if client.slow_since is not None and sink.backlog() + len(data) > HARD_BACKLOG + client.bulk:
            self._close(client, CLOSE_SLOW, "reading too slowly")
            return
        sink.write(data)
        if client.slow_since is None and sink.backlog() > SOFT_BACKLOG:
            client.slow_since = self._loop.time()
            client.bulk = max(client.bulk, len(data))
            self._watch(client)

    def _watch(self, client: Client) -> None:
        self._watched.add(client)
        if not self._watching:
            self._watching = True
            self._loop.call_later(_WATCH_SECONDS, self._look)

    def _look(self) -> None:
        """Close clients that stay slow; give the others what was held back for them."""
        now = self._loop.time()
        for client in tuple(self._watched):
            backlog = client.sink.backlog() if client.sink is not None else 0
            if client.slow_since is not None:
                if now - client.slow_since > SLOW_SECONDS or backlog > HARD_BACKLOG + client.bulk:
                    self._close(client, CLOSE_SLOW, "reading too slowly")
                    continue
                if backlog > SOFT_BACKLOG:
                    continue
                client.slow_since = None
                client.bulk = 0
            due = [m for m in client.held.values() if now - client.sent_at.get(m.key, -client.gap) >= client.gap]
            for message in due:
                del client.held[message.key]
            if due:
                self._deliver(client, due)
            if not client.held and client.slow_since is None:
                self._watched.discard(client)
        self._watching = bool(self._watched)
        if self._watching:
            self._loop.call_later(_WATCH_SECONDS, self._look)

    # Spectator count

    def _count_changed(self, session_id: str) -> None:
        channel = self.channel(session_id)
        if not channel.count_due:
            channel.count_due = True
            self._loop.call_later(1.0, self._tell_count, channel)

    def _tell_count(self, channel: Channel) -> None:
        channel.count_due = False
        data = {"status": "spectators", "spectator_count": len(channel.clients)}
        frame = frame_text(encode(channel.session_id, channel.epoch, "connection_status", 0, utc_now(), data))
        for client in tuple(channel.clients):
            if client.joining is None and client.slow_since is None:
                self._write(client, frame)

    # Listening in the same process

    @asynccontextmanager
    async def listen(
        self, session_id: str, size: int = 1000
    ) -> AsyncIterator[Callable[[], Awaitable[list[LiveMessage]]]]:
        """Live messages for code in this process: the context gives an async function that waits for the next ones.

        It returns a list of :class:`LiveMessage`; of more than ``size`` waiting ones the oldest are lost.
        """
        channel = self.channel(session_id)
        listener = Listener(deque(maxlen=size))
        channel.listeners.add(listener)

        async def next_ones() -> list[LiveMessage]:
            while not listener.queue and self._channels.get(session_id) is channel:
                listener.wake.clear()
                await listener.wake.wait()
            found = list(listener.queue)
            listener.queue.clear()
            return found

        try:
            yield next_ones
        finally:
            channel.listeners.discard(listener)
