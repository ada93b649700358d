"""What the hub keeps of each session and each viewer: numbers, the newest messages, who is connected."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final, Protocol

from .messages import encode, frame_text

RING_MESSAGES: Final = 1_000
RING_SECONDS: Final = 60.0
RING_BYTES: Final = 8 << 20
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
class Place:
    """A message's place in a session's stream, when somebody else has numbered it."""

    epoch: str
    seq: int


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
    # Messages that arrive before the snapshot is out; None once it is.
    joining: list[LiveMessage] | None = field(default_factory=list)
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
        """Take messages of one type, in order, that are older than the ring, for a client that resumes there."""
        oldest = self.oldest(older[0].type) if older else 0
        for message in reversed(older):
            if message.seq < oldest:
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

    def renumber(self, epoch: str, heads: dict[str, int]) -> None:
        """Begin a stream anew."""
        self.epoch, self.heads = epoch, dict(heads)
        self.ring.clear()
        self.ring_bytes = 0
        self.last.clear()
        self.pending.clear()
