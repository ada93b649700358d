"""What the hub keeps of each session and each viewer: numbers, the newest messages, who is connected."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

from .messages import LATEST_WINS, SKIPPED_WHEN_SLOW, encode, frame_text

RING_MESSAGES: Final = 1_000
RING_SECONDS: Final = 60.0
RING_BYTES: Final = 8 << 20
_LOSSY: Final = LATEST_WINS | SKIPPED_WHEN_SLOW
# Types whose messages have a small bound: without it the ring has to know how large each one is.
_SMALL: Final = frozenset({"training_metrics", "training_status"})


class Sink(Protocol):
    """Where a client's bytes go."""

    def write(self, data: bytes) -> int:
        """Send without waiting; what the socket does not take is kept. Returns the backlog."""

    def backlog(self) -> int:
        """Bytes kept because the socket did not take them."""

    def close(self, code: int, reason: str) -> None:
        """Begin to close, and cut the connection if the peer does not follow."""


class HubFullError(Exception):
    """A limit of connections is reached. ``scope`` is ``"room"``, ``"session"`` or ``"server"``."""

    def __init__(self, scope: str, limit: int) -> None:
        self.scope = scope
        self.limit = limit
        super().__init__(f"this {scope} has its {limit} viewers already")


@dataclass(frozen=True, slots=True)
class Numbered:
    """One live message with its number; of messages with the same ``key`` a newer one replaces an older one."""

    session_id: str
    kind: str
    key: str
    seq: int
    ts: datetime
    data: dict[str, Any]


@dataclass(slots=True, eq=False)
class LiveMessage:
    """One message as it goes out; ``at`` is loop time. ``data`` must not change any more."""

    session_id: str
    epoch: str
    type: str
    key: str
    seq: int
    at: float
    ts: datetime
    data: dict[str, Any]
    _frame: bytes | None = None

    @property
    def frame(self) -> bytes:
        """The message encoded and framed, which is done once, when it is first wanted."""
        if self._frame is None:
            self._frame = frame_text(encode(self.session_id, self.epoch, self.type, self.seq, self.ts, self.data))
        return self._frame


@dataclass(slots=True, eq=False)
class Client:
    """One viewer. ``types`` is ``None`` for all; ``gap`` is the least time between lossy messages, in seconds."""

    id: str
    session_id: str
    user_name: str | None = None
    # Code of the room it came through.
    room: str | None = None
    sink: Sink | None = None
    types: frozenset[str] | None = None
    gap: float = 0.0
    # Whether several messages of one tick come as one.
    batch: bool = False
    # Until the snapshot is out: the newest numbers when it came. Later messages follow the snapshot. None once it is.
    joining: dict[str, int] | None = field(default_factory=dict)
    held: dict[str, LiveMessage] = field(default_factory=dict)
    sent_at: dict[str, float] = field(default_factory=dict)
    slow_since: float | None = None
    # Size of a write that is large by itself (a snapshot): its own bytes do not make a client slow.
    bulk: int = 0
    # Loop times: when anything last came from it, and when it was asked for a sign of life since then.
    heard: float = 0.0
    asked: float | None = None

    def wants(self, kind: str) -> bool:
        """Whether it subscribed to a type; errors always arrive."""
        return self.types is None or kind in self.types or kind == "error"

    def takes(self, message: LiveMessage, now: float) -> bool:
        """Whether a message is to go out at ``now``; one that is not is held until it is :meth:`due`, or left out."""
        if not self.wants(message.type):
            return False
        if message.type in _LOSSY:
            slow = self.slow_since is not None
            if slow and message.type in SKIPPED_WHEN_SLOW:
                return False
            if slow or (self.gap and now - self.sent_at.get(message.key, -self.gap) < self.gap):
                # Taken out first, so that held messages go out in the order of their newest version.
                self.held.pop(message.key, None)
                self.held[message.key] = message
                return False
            self.sent_at[message.key] = now
        return True

    def due(self, now: float) -> list[LiveMessage]:
        """Held messages whose time has come; they are held no more."""
        due = [held for held in self.held.values() if now - self.sent_at.get(held.key, -self.gap) >= self.gap]
        for message in due:
            del self.held[message.key]
        return due

    @property
    def plain(self) -> bool:
        """Whether it takes a tick as it is."""
        return (
            self.joining is None and self.types is None and not self.gap and not self.held and self.slow_since is None
        )


NextOnes = Callable[[], Awaitable[list[LiveMessage]]]


@dataclass(slots=True, eq=False)
class Listener:
    """Code in this process that follows a session."""

    queue: deque[LiveMessage]
    wake: asyncio.Event = field(default_factory=asyncio.Event)


@dataclass(slots=True, eq=False)
class Channel:
    """Everything live about one session. ``heads`` tells the number of the newest message of each type."""

    session_id: str
    epoch: str
    heads: dict[str, int] = field(default_factory=dict)
    # With the size that each one counts with.
    ring: deque[tuple[LiveMessage, int]] = field(default_factory=deque)
    ring_bytes: int = 0
    last: dict[str, LiveMessage] = field(default_factory=dict)
    pending: list[LiveMessage] = field(default_factory=list)
    clients: set[Client] = field(default_factory=set)
    listeners: set[Listener] = field(default_factory=set)
    # Clients at other server processes.
    elsewhere: int = 0
    # Whether a type without a head has had no message yet, rather than none that came here.
    heads_known: bool = False
    count_due: bool = False
    ended: bool = False

    def add(self, message: LiveMessage) -> None:
        """Put a message at the end of the stream."""
        self.heads[message.type] = message.seq
        self.last[message.key] = message
        # Nobody is there in most cases, and then a small message is not worth encoding.
        small = message.type in _SMALL and not (self.clients or self.listeners)
        size = 0 if small else len(message.frame)
        self.ring.append((message, size))
        self.ring_bytes += size
        self.trim(message.at)
        self.pending.append(message)
        for listener in self.listeners:
            listener.queue.append(message)
            listener.wake.set()

    @asynccontextmanager
    async def listen(self, size: int) -> AsyncIterator[NextOnes]:
        """For code in this process: the context gives an async function that waits for the next messages.

        It returns a list of :class:`LiveMessage`, empty once the channel has ended; of more than ``size`` waiting ones
        the oldest are lost.
        """
        listener = Listener(deque(maxlen=size))
        self.listeners.add(listener)

        async def next_ones() -> list[LiveMessage]:
            while not (listener.queue or self.ended):
                listener.wake.clear()
                await listener.wake.wait()
            found = list(listener.queue)
            listener.queue.clear()
            return found

        try:
            yield next_ones
        finally:
            self.listeners.discard(listener)

    def end(self) -> None:
        """The hub has dropped it: nothing more comes."""
        self.ended = True
        for listener in self.listeners:
            listener.wake.set()

    def know_heads(self, heads: Mapping[str, int]) -> None:
        """Numbers that were given before a message of the session came here; what came here is known better."""
        if not self.heads_known:
            self.heads = {**heads, **self.heads}
            self.heads_known = True

    def skip(self, kind: str, seq: int) -> None:
        """Numbers of a type up to ``seq`` will not come: who resumes from before them is told that they are gone."""
        self.heads[kind] = max(seq, self.heads.get(kind, 0))
        for key in [key for key, message in self.last.items() if message.type == kind]:
            del self.last[key]

    def oldest(self, kind: str) -> int:
        """The first number of a type that the ring has; the next one to come when it has none."""
        return min((held.seq for held, _size in self.ring if held.type == kind), default=self.heads.get(kind, 0) + 1)

    def put_back(self, older: Sequence[LiveMessage]) -> None:
        """Take messages, in order, that are older than those of the ring, for a client that resumes there."""
        oldest = {kind: self.oldest(kind) for kind in {message.type for message in older}}
        for message in reversed(older):
            if message.seq < oldest[message.type]:
                self.ring.appendleft((message, len(message.frame)))
                self.ring_bytes += len(message.frame)

    def trim(self, now: float) -> None:
        """Let go what the ring has no room or no time for."""
        ring = self.ring
        while ring and (
            len(ring) > RING_MESSAGES or self.ring_bytes > RING_BYTES or now - ring[0][0].at > RING_SECONDS
        ):
            self.ring_bytes -= ring.popleft()[1]

    def rest(self, epoch: str, seen: dict[str, int], wants: Callable[[str], bool]) -> list[LiveMessage] | None:
        """Everything after ``seen`` in order, or ``None`` when any of it is gone: never a part of it."""
        if epoch != self.epoch:
            return None
        wanted = {kind: head for kind, head in self.heads.items() if wants(kind)}
        if any(seen.get(kind, 0) > head for kind, head in wanted.items()):
            return None
        rest = [m for m, _size in self.ring if m.type in wanted and m.seq > seen.get(m.type, 0)]
        # A number that was jumped over counts as gone too.
        return rest if len(rest) == sum(head - seen.get(kind, 0) for kind, head in wanted.items()) else None
