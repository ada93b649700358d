"""The connection to Redis over which server processes tell each other what they committed and who watches.

Nothing is kept in Redis: it carries messages, and losing any of them is found by their numbers (see :mod:`.fanout`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from pydantic_core import from_json, to_json

from .channels import Numbered

if TYPE_CHECKING:
    from redis.asyncio import Redis


log = logging.getLogger(__name__)

BEAT_S: Final = 2.0
# Without a word of this process's own beat for so long, the connection is dead, or another process is.
SILENCE_S: Final = 6.0
_FIRST_DELAY_S: Final = 0.1
_LONGEST_DELAY_S: Final = 5.0
# What waits while one publish is under way; more than this is for the others to read back.
_MAX_WAITING: Final = 10_000


def connect(url: str) -> Redis:
    """A client for ``url``; it connects on first use. ``ValueError`` for a URL that is not Redis's."""
    from redis.asyncio import Redis
    from redis.asyncio.retry import Retry
    from redis.backoff import NoBackoff

    # A connection that breaks is noticed here, where what was missed meanwhile is looked for.
    return Redis.from_url(
        url, retry=Retry(NoBackoff(), 0), socket_connect_timeout=3.0, socket_timeout=SILENCE_S, decode_responses=False
    )


def end_if_cancelled() -> None:
    """Raise ``CancelledError`` when the running task has been cancelled and something below has lost that.

    ``asyncio.wait_for`` of Python 3.11, with which the client waits, loses it when what it waits for ends just then; a
    task that goes on in a loop would then never end.
    """
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


class RedisLink:
    """One server process's end. ``receive`` gets messages of the others, ``connected`` are called when it (re)connects.

    ``counts`` says how many clients watch each session (and each room) here; ``others`` gets the same of all other
    processes together.
    """

    def __init__(self, client: Redis, prefix: str, others: Callable[[Mapping[str, int]], None]) -> None:
        self._client = client
        self._channel = f"{prefix}:live"
        self._others = others
        self.node = secrets.token_hex(8)
        self.is_connected = False
        self.receive: Callable[[Numbered | str], None] = lambda _message: None
        self.connected: list[Callable[[], None]] = []
        self.counts: Callable[[], Mapping[str, int]] = dict
        self._loop = asyncio.get_running_loop()
        self._waiting: list[list[Any]] = []
        self._gone: list[str] = []
        self._wake = asyncio.Event()
        self._beat = 0.0
        self._peers: dict[str, tuple[float, Mapping[str, int]]] = {}

    def send(self, message: Numbered) -> None:
        """Tell the others, together with everything else of this turn of the event loop."""
        if self.is_connected and len(self._waiting) < _MAX_WAITING:
            ts = message.ts.isoformat()
            self._waiting.append([message.session_id, message.kind, message.key, message.seq, ts, message.data])
            self._wake.set()

    def send_gone(self, session_id: str) -> None:
        """Tell the others that a session is deleted."""
        if self.is_connected:
            self._gone.append(session_id)
            self._wake.set()

    async def run(self) -> None:
        """Stay connected until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._listen())
            tasks.create_task(self._tell())

    async def _listen(self) -> None:
        from redis.exceptions import RedisError

        delay = _FIRST_DELAY_S
        while True:
            try:
                async with self._client.pubsub() as subscription:
                    await subscription.subscribe(self._channel)
                    while True:
                        end_if_cancelled()
                        message = await subscription.get_message(timeout=SILENCE_S)
                        if message is None:
                            raise TimeoutError(f"silent for {SILENCE_S:g} s")
                        if message["type"] == "subscribe":
                            delay = _FIRST_DELAY_S
                            self._came_up()
                        elif message["type"] == "message":
                            self._receive(message["data"])
            except (RedisError, OSError) as error:
                if self.is_connected or delay == _FIRST_DELAY_S:
                    log.warning("Redis: %s; viewers get what is committed here, the rest by way of the database", error)
            finally:
                self._went_down()
            end_if_cancelled()
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))
            delay = min(_LONGEST_DELAY_S, 2 * delay)

    def _came_up(self) -> None:
        log.info("Redis: connected")
        self.is_connected = True
        self._beat = 0.0
        self._wake.set()
        for call in self.connected:
            call()

    def _went_down(self) -> None:
        self.is_connected = False
        self._waiting.clear()
        self._gone.clear()
        self._peers.clear()
        self._others({})

    async def _tell(self) -> None:
        """One publish per tick; what comes while it is under way goes with the next one."""
        from redis.exceptions import RedisError

        told: Mapping[str, int] = {}
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(BEAT_S / 4):
                    await self._wake.wait()
            self._wake.clear()
            counts = self.counts()
            due = counts != told or self._loop.time() - self._beat >= BEAT_S
            if not self.is_connected or not (self._waiting or self._gone or due):
                continue
            waiting, self._waiting = self._waiting, []
            gone, self._gone = self._gone, []
            body: dict[str, Any] = {"from": self.node, "messages": waiting, "gone": gone}
            if due:
                body["watched"] = told = counts
                self._beat = self._loop.time()
            try:
                await self._client.publish(self._channel, to_json(body))
            except (RedisError, OSError) as error:
                log.warning("Redis: %d messages were not sent: %s", len(waiting), error)
            end_if_cancelled()

    def _receive(self, data: bytes) -> None:
        try:
            body = from_json(data)
            if body["from"] == self.node:
                self._count()
                return
            if "watched" in body:
                self._peers[body["from"]] = (self._loop.time(), body["watched"])
                self._count()
            for session_id, kind, key, seq, ts, content in body["messages"]:
                self.receive(Numbered(session_id, kind, key, seq, datetime.fromisoformat(ts), content))
            for session_id in body["gone"]:
                self.receive(session_id)
        except (ValueError, KeyError, TypeError) as error:
            # Of another version, or another program; what it told is in the database as well.
            log.warning("Redis: a message on %s cannot be read: %r", self._channel, error)

    def _count(self) -> None:
        now = self._loop.time()
        self._peers = {node: peer for node, peer in self._peers.items() if now - peer[0] < 3 * BEAT_S}
        total: dict[str, int] = {}
        for _at, counts in self._peers.values():
            for session_id, count in counts.items():
                total[session_id] = total.get(session_id, 0) + count
        self._others(total)
