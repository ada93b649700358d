"""From what was committed, here or at another server process, to what viewers get: each message once, in order.

The database numbers live messages in the transaction that stores what they tell. Whatever way a message comes here (own
commit, Redis, read back from the database), its number says whether it is the next one, a repeat, or early. What is
early waits a moment for those before it; then they are read back from the database. See docs/scale-out.md.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final

from gymcast.training.events import utc_now
from gymcast.training.storage import STATES, Committed, Storage, StorageError

from .channels import RING_MESSAGES, LiveMessage, Numbered
from .hub import Hub
from .messages import outgoing
from .redis_link import RedisLink

log = logging.getLogger(__name__)

# How long a message may be overtaken by later ones. Over Redis it is usually milliseconds.
PATIENCE_S: Final = 0.2
# How often the numbers of watched sessions are compared with the database: a lost message that nothing follows.
COMPARE_S: Final = 2.0
COMPARE_ALONE_S: Final = 0.5  # without Redis
# Not stored, and the next one replaces it.
_FLEETING: Final = frozenset({"picture"})


def epoch_of(incarnation: str, session_id: str) -> str:
    """The name of a session's numbering: the same at every server process and after every restart.

    ``incarnation`` is the database's, which loses it when it is restored: then the numbers are others.
    """
    return hashlib.blake2b(f"{incarnation}/{session_id}".encode(), digest_size=8).hexdigest()


@dataclass(slots=True)
class Gap:
    """Numbers of one session and type that have not come: those up to ``target``, but for the ``held`` ones."""

    since: float  # loop time
    target: int = 0
    held: dict[int, Numbered] = field(default_factory=dict)


class Sequencer:
    """Hands messages to the hub in the order of their numbers. No I/O."""

    def __init__(self, hub: Hub) -> None:
        self._hub = hub
        self._loop = asyncio.get_running_loop()
        self.gaps: dict[tuple[str, str], Gap] = {}

    def offer(self, message: Numbered) -> None:
        """Publish ``message`` if it is the next one, keep it if it is early, drop it if it is a repeat."""
        channel = self._hub.channel(message.session_id)
        head = channel.heads.get(message.kind, 0 if channel.heads_known else message.seq - 1)
        if message.seq > head + 1:
            gap = self.missing(message.session_id, message.kind, message.seq)
            gap.held[message.seq] = message
        elif message.seq == head + 1:
            self._publish(message)
            self._go_on(message.session_id, message.kind)

    def missing(self, session_id: str, kind: str, target: int) -> Gap:
        """Note that numbers up to ``target`` exist."""
        gap = self.gaps.get((session_id, kind))
        if gap is None:
            gap = self.gaps[session_id, kind] = Gap(self._loop.time())
        gap.target = max(gap.target, target)
        return gap

    def give_up(self, session_id: str, kind: str, upto: int) -> None:
        """Go on behind numbers that will not come: those up to ``upto``."""
        self._hub.channel(session_id).skip(kind, upto)
        self._go_on(session_id, kind)

    def forget(self, session_id: str) -> None:
        """The session is gone."""
        for key in [key for key in self.gaps if key[0] == session_id]:
            del self.gaps[key]

    def _go_on(self, session_id: str, kind: str) -> None:
        gap = self.gaps.get((session_id, kind))
        if gap is None:
            return
        heads = self._hub.channel(session_id).heads
        while (following := gap.held.pop(heads[kind] + 1, None)) is not None:
            self._publish(following)
        gap.held = {seq: message for seq, message in gap.held.items() if seq > heads[kind]}
        gap.since = self._loop.time()
        if heads[kind] >= gap.target:
            del self.gaps[session_id, kind]

    def _publish(self, message: Numbered) -> None:
        self._hub.publish(
            message.session_id, message.kind, message.data, key=message.key, ts=message.ts, seq=message.seq
        )


class FanOut:
    """Everything live of one server process. ``info`` makes the session info, ``restart`` gives viewers a new state."""

    def __init__(
        self,
        hub: Hub,
        storage: Storage,
        *,
        info: Callable[[dict[str, Any]], dict[str, Any]],
        restart: Callable[[str], Awaitable[None]],
        link: RedisLink | None,
    ) -> None:
        self._hub = hub
        self._storage = storage
        self._info = info
        self._restart = restart
        self.link = link
        self._sequencer = Sequencer(hub)
        self._hurry = asyncio.Event()
        self.refilled = 0
        """Messages that were read back from the database."""
        self.restarted = 0
        """How often viewers of a session got a new state, because what they missed is not kept one by one."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """While entered, what is committed here and elsewhere reaches the hub."""
        unlisten = self._storage.listen(self._committed)
        linked = None if self.link is None else asyncio.create_task(self._stay_linked(self.link), name="fan-out")
        try:
            yield
        finally:
            unlisten()
            if linked is not None:
                linked.cancel()
                with suppress(asyncio.CancelledError):
                    await linked

    async def _stay_linked(self, link: RedisLink) -> None:
        link.receive = self._received
        link.connected.append(self._hurry.set)
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(link.run())
                tasks.create_task(self._mend(link))
        except Exception:
            log.exception("live messages of other server processes have stopped")

    # Coming in

    def _committed(self, committed: Committed) -> None:
        session_id = committed.session_id
        if committed.state is None:
            self._gone(session_id)
            if self.link is not None:
                self.link.send_gone(session_id)
            return
        messages = self._messages_of(committed)
        for message in messages:
            self._sequencer.offer(message)
        if self.link is not None:
            for message in messages:
                self.link.send(message)
            self._hurry_if_needed()

    def _messages_of(self, committed: Committed) -> list[Numbered]:
        """What viewers are told about a commit. The last of each type has the number that the session's row has."""
        told = [(event.ts, message) for event in committed.events if (message := outgoing(event)) is not None]
        session = committed.session if committed.session_changed else None
        if session is not None:
            told.append((session.updated, ("training_status", "training_status", self._info(session.to_json()))))
        left = dict(committed.heads)
        found = []
        for ts, (kind, key, data) in reversed(told):
            found.append(Numbered(committed.session_id, kind, key, left[kind], ts, data))
            left[kind] -= 1
        return found[::-1]

    def _received(self, message: Numbered | str) -> None:
        """From another server process: a message, or the id of a session that was deleted."""
        if isinstance(message, str):
            self._gone(message)
            return
        self._sequencer.offer(message)
        self._hurry_if_needed()

    def _gone(self, session_id: str) -> None:
        self._sequencer.forget(session_id)
        self._hub.drop_channel(session_id)

    def _hurry_if_needed(self) -> None:
        if self._sequencer.gaps:
            self._hurry.set()

    # Looking for what is missing

    async def _mend(self, link: RedisLink) -> None:
        loop = asyncio.get_running_loop()
        compared = 0.0
        alone = True
        while True:
            with_gaps = bool(self._sequencer.gaps)
            self._hurry.clear()
            pause = PATIENCE_S if with_gaps else COMPARE_S if link.is_connected else COMPARE_ALONE_S
            if with_gaps:
                await asyncio.sleep(pause)
            else:
                await _wait(self._hurry, pause)
            back = alone and link.is_connected
            alone = not link.is_connected
            try:
                if back or loop.time() - compared >= (COMPARE_ALONE_S if alone else COMPARE_S):
                    compared = loop.time()
                    await self._compare()
                for (session_id, kind), gap in tuple(self._sequencer.gaps.items()):
                    if loop.time() - gap.since >= PATIENCE_S:
                        await self._fill(session_id, kind, gap)
            except StorageError as error:
                log.warning("live messages that were missed have to wait for the database: %s", error)

    async def _compare(self) -> None:
        """Find numbers of watched sessions that are in the database and did not come here."""
        watched = self._hub.watched()
        if not watched:
            return
        found = await self._storage.heads(list(watched))
        for session_id in watched:
            channel = self._hub.find(session_id)
            if channel is None:
                continue
            if session_id not in found:
                self._gone(session_id)
                continue
            for kind, head in found[session_id].items():
                if head > channel.heads.get(kind, 0):
                    self._sequencer.missing(session_id, kind, head)

    async def _fill(self, session_id: str, kind: str, gap: Gap) -> None:
        """Read back what is missing of one type, or else give its viewers the state anew."""
        channel = self._hub.channel(session_id)
        lost = False
        rows = [] if kind in STATES else await self._read_back(session_id, kind, channel.heads.get(kind, 0))
        if rows and rows[0].seq > channel.heads.get(kind, 0) + 1:
            self._sequencer.give_up(session_id, kind, rows[0].seq - 1)
            lost = True
        for row in rows:
            self._sequencer.offer(row)
        self.refilled += len(rows)
        if self._sequencer.gaps.get((session_id, kind)) is gap and channel.heads.get(kind, 0) < gap.target:
            self._sequencer.give_up(session_id, kind, min(gap.held, default=gap.target + 1) - 1)
            lost = True
        if lost and kind not in _FLEETING:
            self.restarted += 1
            await self._restart(session_id)

    async def _read_back(self, session_id: str, kind: str, after: int) -> list[Numbered]:
        found = await self._storage.read_back(session_id, kind, after, RING_MESSAGES)
        keys = [f"error/{one.data['code']}" if kind == "error" else kind for one in found]
        return [
            Numbered(session_id, kind, key, one.seq, one.ts, one.data) for key, one in zip(keys, found, strict=True)
        ]

    async def reach_back(self, session_id: str, seen: Mapping[str, int], wants: Callable[[str], bool]) -> None:
        """Fill the ring from the database with what followed ``seen``, as far as it is kept one by one."""
        channel = self._hub.channel(session_id)
        found: list[LiveMessage] = []
        for kind, head in tuple(channel.heads.items()):
            after = seen.get(kind, 0)
            missing = channel.oldest(kind) - 1 - after
            if wants(kind) and kind not in STATES and missing > 0 and head - after <= RING_MESSAGES:
                found += self._live(await self._read_back(session_id, kind, after), channel.epoch)
        # At once, and last: who resumes takes it before the ring lets go what is too old for it.
        channel.put_back(sorted(found, key=lambda message: message.at))

    @staticmethod
    def _live(rows: Iterable[Numbered], epoch: str) -> Iterator[LiveMessage]:
        """With the times they are from, as far as producers' clocks tell: never before a message that they follow."""
        now, moment = asyncio.get_running_loop().time(), utc_now()
        at = -math.inf
        for row in rows:
            at = max(at, now - max(0.0, (moment - row.ts).total_seconds()))
            yield LiveMessage(row.session_id, epoch, row.kind, row.key, row.seq, at, row.ts, row.data)


async def _wait(event: asyncio.Event, seconds: float) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
