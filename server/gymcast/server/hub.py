"""Fan-out of live messages. No I/O in here: sockets are reached through :class:`Sink`.

A message is encoded once and framed once. All messages of one turn of the event loop form a tick, and each client gets
a tick in one write. There is no queue, no task and no timer per client: a client that reads too slowly shows by its own
backlog, and one timer for all of them finds those that are silent.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from datetime import datetime
from typing import Any, Final

from gymcast.training.events import utc_now

from .channels import Channel, Client, HubFullError, LiveMessage, NextOnes
from .messages import (
    CLOSE_ENDED,
    CLOSE_SLOW,
    PING,
    batched,
    encode,
    frame_text,
)

SOFT_BACKLOG: Final = 64 << 10
HARD_BACKLOG: Final = 256 << 10
SLOW_SECONDS: Final = 5.0
HEARTBEAT_SECONDS: Final = 20.0
_WATCH_SECONDS: Final = 0.05


class Hub:
    """All channels of one server process.

    A client that says nothing for ``heartbeat`` seconds is pinged, and closed when it says nothing for half as long
    again. ``epoch_of`` names the numbering of a session's messages.
    """

    def __init__(
        self,
        *,
        per_session: int = 50,
        total: int = 1000,
        heartbeat: float = HEARTBEAT_SECONDS,
        epoch_of: Callable[[str], str] = lambda _session_id: secrets.token_hex(8),
    ) -> None:
        self._epoch_of = epoch_of
        self._loop = asyncio.get_running_loop()
        self.per_session = per_session
        self.total = total
        self.heartbeat = heartbeat
        self.connections = 0
        self.writes = 0
        self.slow_closed = 0
        self._channels: dict[str, Channel] = {}
        self._rooms: dict[str, set[Client]] = {}
        self._elsewhere: Mapping[str, int] = {}
        self._dirty: set[Channel] = set()
        self._watched: set[Client] = set()
        self._watching = False
        self._beating = False

    def channel(self, session_id: str) -> Channel:
        """The channel of a session, made on first use."""
        channel = self._channels.get(session_id)
        if channel is None:
            channel = self._channels[session_id] = Channel(session_id, self._epoch_of(session_id))
        return channel

    def find(self, session_id: str) -> Channel | None:
        """The channel of a session, if it has one."""
        return self._channels.get(session_id)

    def watched(self) -> dict[str, int]:
        """How many clients watch each session that has any here."""
        return {session_id: len(channel.clients) for session_id, channel in self._channels.items() if channel.clients}

    def counts(self) -> dict[str, int]:
        """What other processes are told: :meth:`watched`, and the guests of each room as ``room:CODE``."""
        return self.watched() | {f"room:{code}": len(guests) for code, guests in self._rooms.items()}

    def spectators(self, session_id: str) -> int:
        """How many clients watch a session, here and at other server processes."""
        channel = self._channels.get(session_id)
        return len(channel.clients) + channel.elsewhere if channel else 0

    def watched_elsewhere(self, counts: Mapping[str, int]) -> None:
        """Note how many clients watch each session and room at other server processes, as :meth:`counts` has it."""
        self._elsewhere = counts
        for session_id, channel in self._channels.items():
            if channel.elsewhere != counts.get(session_id, 0):
                channel.elsewhere = counts.get(session_id, 0)
                self._count_changed(session_id)

    # Rooms

    def guests(self, code: str) -> int:
        """How many clients watch through a room, here and at other server processes."""
        return len(self._rooms.get(code, ())) + self._elsewhere.get(f"room:{code}", 0)

    def rooms(self) -> set[str]:
        """Codes of the rooms through which somebody watches."""
        return set(self._rooms)

    def drop_room(self, code: str, close_code: int, reason: str) -> None:
        """Close every client that watches through a room; one that is only just connecting stays until called again."""
        for client in tuple(self._rooms.get(code, ())):
            if client.sink is not None:
                self._close(client, close_code, reason)

    # Publishing

    def publish(
        self,
        session_id: str,
        kind: str,
        data: dict[str, Any],
        *,
        key: str | None = None,
        ts: datetime | None = None,
        seq: int | None = None,
    ) -> bool:
        """Number a message, encode it once, and send it to everyone at the end of this turn of the loop.

        ``seq`` is its number when the database gave it one. Returns whether it was sent: a number that came before
        is not sent again. A number that leaves others out is sent; who asks for those left out is told that they are
        gone.
        """
        channel = self.channel(session_id)
        head = channel.heads.get(kind, 0)
        if seq is None:
            seq = head + 1
        elif seq <= head:
            return False
        moment = ts or utc_now()
        channel.add(LiveMessage(session_id, channel.epoch, kind, key or kind, seq, self._loop.time(), moment, data))
        if channel not in self._dirty:
            if not self._dirty:
                self._loop.call_soon(self._tick)
            self._dirty.add(channel)
        return True

    def direct(self, client: Client, kind: str, data: dict[str, Any], *, seq: int = 0) -> bytes:
        """A framed message for one client; it is not part of the numbered stream."""
        channel = self.channel(client.session_id)
        return frame_text(encode(client.session_id, channel.epoch, kind, seq, utc_now(), data))

    def send(self, client: Client, frame: bytes) -> None:
        """Send a framed message to one client, as long as it can take it."""
        if client.sink is not None and client in self.channel(client.session_id).clients:
            self._write(client, frame)

    def _tick(self) -> None:
        dirty, self._dirty = self._dirty, set()
        for channel in dirty:
            pending, channel.pending = channel.pending, []
            if not (pending and channel.clients):
                continue
            joined = b"".join(message.frame for message in pending)
            batch: bytes | None = None
            for client in tuple(channel.clients):
                if client.plain:
                    if not client.batch:
                        # As _write does it for one that is not slow; a thousand times for each message.
                        if client.sink is not None and client.sink.write(joined) > SOFT_BACKLOG:
                            self._is_slow(client, len(joined))
                        self.writes += 1
                        continue
                    if batch is None:
                        batch = self._batched(client, pending)
                    self._write(client, batch)
                elif client.joining is None:
                    self._deliver(client, pending)

    def _batched(self, client: Client, messages: Iterable[LiveMessage]) -> bytes:
        channel = self.channel(client.session_id)
        return batched(client.session_id, channel.epoch, utc_now(), [message.frame for message in messages])

    # Clients

    def join(
        self, session_id: str, *, user_name: str | None = None, room: str | None = None, room_limit: int | None = None
    ) -> Client:
        """Take a place for a client; its live messages begin with :meth:`start`. Raises :class:`HubFullError`.

        ``room`` is the code of the room it comes through, which has ``room_limit`` places.
        """
        if room is not None and room_limit is not None and len(self._rooms.get(room, ())) >= room_limit:
            raise HubFullError("room", room_limit)
        channel = self._channels.get(session_id)
        if channel is not None and len(channel.clients) >= self.per_session:
            raise HubFullError("session", self.per_session)
        if self.connections >= self.total:
            raise HubFullError("server", self.total)
        client = Client(secrets.token_hex(8), session_id, user_name, room)
        client.joining = dict(self.channel(session_id).heads)
        if room is not None:
            self._rooms.setdefault(room, set()).add(client)
        # Pings to clients that all connected at once are spread over some seconds.
        client.heard = self._loop.time() - random.random() * self.heartbeat / 2
        self.channel(session_id).clients.add(client)
        self.connections += 1
        self._count_changed(session_id)
        if not self._beating:
            self._beating = True
            self._loop.call_later(self.heartbeat / 20, self._beat)
        return client

    def hold(self, client: Client) -> None:
        """Stop a client's live messages until :meth:`start`: it is about to get the state anew."""
        self._tick()
        client.joining = dict(self.channel(client.session_id).heads)
        client.held.clear()

    def start(self, client: Client, snapshot: Iterable[bytes], floors: Mapping[str, int]) -> bool:
        """Send the snapshot, then what came meanwhile, then go live.

        ``floors`` tells up to which number of each type the snapshot goes; only later messages follow it. They come
        from the ring: nothing is kept for a client that waits. ``False``, and nothing done, where the ring has a hole.
        """
        self._tick()
        channel = self.channel(client.session_id)
        following = channel.rest(channel.epoch, {**(client.joining or {}), **floors}, client.wants)
        if following is None:
            return False
        client.joining = None
        data = b"".join(snapshot)
        late = sum(len(message.frame) for message in following)
        client.bulk = len(data) + late
        if data:
            self._write(client, data)
        if late > SOFT_BACKLOG and client.slow_since is None:
            # Of so much it gets what a slow client does.
            self._is_slow(client, late)
        self._deliver(client, following)
        return True

    def leave(self, client: Client) -> None:
        """Give a client's place back; harmless when it was given back before."""
        channel = self._channels.get(client.session_id)
        self._watched.discard(client)
        if client.room is not None and client in (guests := self._rooms.get(client.room, set())):
            guests.discard(client)
            if not guests:
                del self._rooms[client.room]
        if channel is not None and client in channel.clients:
            channel.clients.remove(client)
            self.connections -= 1
            self._count_changed(client.session_id)

    def resume(self, client: Client, epoch: str, seen: dict[str, int]) -> list[bytes] | None:
        """Everything after ``seen`` in order, or ``None`` when any of it is gone: never a part of it."""
        self._tick()
        rest = self.channel(client.session_id).rest(epoch, seen, client.wants)
        if rest is None:
            return None
        client.held.clear()  # the rest has it
        return [message.frame for message in rest]

    def heard(self, client: Client) -> None:
        """Something came from a client, so it lives."""
        client.heard = self._loop.time()
        client.asked = None

    def drop_channel(self, session_id: str, code: int = CLOSE_ENDED, reason: str = "the session is deleted") -> None:
        """Close every client of a session and forget the channel."""
        channel = self._channels.get(session_id)
        if channel is None:
            return
        for client in tuple(channel.clients):
            self._close(client, code, reason)
        channel.end()
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
            channel.trim(now)
            if not (channel.clients or channel.ring or channel.listeners or channel.pending):
                del self._channels[session_id]

    def _close(self, client: Client, code: int, reason: str) -> None:
        self.leave(client)
        self.slow_closed += code == CLOSE_SLOW
        if client.sink is not None:
            client.sink.close(code, reason)

    # The slow-client policy

    def _deliver(self, client: Client, messages: Iterable[LiveMessage]) -> None:
        now = self._loop.time()
        out = [message for message in messages if client.takes(message, now)]
        if client.held:
            self._watch(client)
        if out:
            self._write(client, self._batched(client, out) if client.batch else b"".join(m.frame for m in out))

    def _write(self, client: Client, data: bytes) -> None:
        sink = client.sink
        if sink is None:
            return
        if client.slow_since is not None and sink.backlog() + len(data) > HARD_BACKLOG + client.bulk:
            self._close(client, CLOSE_SLOW, "reading too slowly")
            return
        self.writes += 1
        if sink.write(data) > SOFT_BACKLOG and client.slow_since is None:
            self._is_slow(client, len(data))

    def _is_slow(self, client: Client, size: int) -> None:
        client.slow_since = self._loop.time()
        client.bulk = max(client.bulk, size)
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
            if due := client.due(now):
                self._deliver(client, due)
            if not client.held and client.slow_since is None:
                self._watched.discard(client)
        self._watching = bool(self._watched)
        if self._watching:
            self._loop.call_later(_WATCH_SECONDS, self._look)

    # Signs of life

    def _beat(self) -> None:
        """Ping who has been silent; close who stays silent. Runs while there is anybody."""
        now, step = self._loop.time(), self.heartbeat / 20
        for channel in tuple(self._channels.values()):
            for client in tuple(channel.clients):
                if client.sink is None:
                    continue
                if client.asked is not None:
                    # Early enough that it is cut off, a second after this, when its time is over.
                    if now + 2 * step - client.asked > self.heartbeat / 2:
                        self._close(client, CLOSE_SLOW, "no answer to a ping")
                elif now + step - client.heard > self.heartbeat:
                    client.asked = now
                    self._write(client, PING)
        self._beating = self.connections > 0
        if self._beating:
            self._loop.call_later(step, self._beat)

    # Spectator count

    def _count_changed(self, session_id: str) -> None:
        channel = self.channel(session_id)
        if not channel.count_due:
            channel.count_due = True
            self._loop.call_later(1.0, self._tell_count, channel)

    def _tell_count(self, channel: Channel) -> None:
        channel.count_due = False
        data = {"status": "spectators", "spectator_count": self.spectators(channel.session_id)}
        frame = frame_text(encode(channel.session_id, channel.epoch, "connection_status", 0, utc_now(), data))
        for client in tuple(channel.clients):
            if client.joining is None and client.slow_since is None:
                self._write(client, frame)

    def listen(self, session_id: str, size: int = 1000) -> AbstractAsyncContextManager[NextOnes]:
        """Live messages for code in this process: see :meth:`Channel.listen`."""
        return self.channel(session_id).listen(size)
