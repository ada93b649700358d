"""Viewers' places, counted over all server processes: each one is a lease in Redis that its process renews.

A session and a room each have a sorted set there, of their viewers by the time until which the lease holds. Taking a
place looks and takes in one script, so that two processes never both get the last one; a process that is killed renews
nothing, and its places are free when they run out.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from .channels import Client, HubFullError
from .redis_link import end_if_cancelled

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

LEASE_S: Final = 15.0
# A hung Redis holds a viewer up for so long; then it is let in.
_WAIT_S: Final = 2.0

# All times are Redis's own: the clocks of machines differ.
_NOW: Final = "local t = redis.call('TIME') local now = t[1] * 1000 + math.floor(t[2] / 1000)"
# ARGV: milliseconds, the viewer, the limit of each key. Returns which key is full, or 0.
_TAKE: Final = f"""{_NOW}
for i, key in ipairs(KEYS) do
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
  if redis.call('ZCARD', key) >= tonumber(ARGV[i + 2]) then return i end
end
for _, key in ipairs(KEYS) do
  redis.call('ZADD', key, now + ARGV[1], ARGV[2])
  redis.call('PEXPIRE', key, ARGV[1])
end
return 0
"""
# ARGV: milliseconds, viewers.
_RENEW: Final = f"""{_NOW}
for i = 2, #ARGV do redis.call('ZADD', KEYS[1], now + ARGV[1], ARGV[i]) end
redis.call('PEXPIRE', KEYS[1], ARGV[1])
"""


class Seats:
    """The places that one server process holds. While ``is_up`` says that Redis is away, everybody gets one."""

    def __init__(self, redis: Redis, prefix: str, is_up: Callable[[], bool], *, lease_seconds: float = LEASE_S) -> None:
        self._redis = redis
        self._prefix = f"{prefix}:seats"
        self._is_up = is_up
        self._lease_s = lease_seconds
        self._take = redis.register_script(_TAKE)
        self._renew = redis.register_script(_RENEW)
        # The sets in which each viewer is.
        self._held: dict[str, list[str]] = {}
        self._returned: list[tuple[str, list[str]]] = []
        self._hurry = asyncio.Event()
        self._due = 0.0

    async def take(self, client: Client, *, session_limit: int, room_limit: int | None) -> None:
        """A place for a viewer that has one in this process. Raises :class:`HubFullError`."""
        limits = {"session": (client.session_id, session_limit)}
        if client.room is not None and room_limit is not None:
            limits["room"] = (client.room, room_limit)
        keys = [f"{self._prefix}:{scope}:{name}" for scope, (name, _limit) in limits.items()]
        full = 0
        if self._is_up():
            try:
                full = await self._ask(client.id, keys, [limit for _name, limit in limits.values()])
            except BaseException:
                self._returned.append((client.id, keys))
                raise
        if full:
            scope, (_name, limit) = list(limits.items())[full - 1]
            raise HubFullError(scope, limit)
        self._held[client.id] = keys

    async def _ask(self, client_id: str, keys: list[str], limits: list[int]) -> int:
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(_WAIT_S):
                return int(await self._take(keys, [self._milliseconds, client_id, *limits]))
        except (RedisError, OSError) as error:
            log.warning("Redis: viewers are counted in this process only: %s", str(error) or type(error).__name__)
            return 0

    @property
    def _milliseconds(self) -> int:
        return int(self._lease_s * 1000)

    def give_back(self, client: Client) -> None:
        """The viewer is gone; harmless when it has no place."""
        keys = self._held.pop(client.id, None)
        if keys is not None:
            self._returned.append((client.id, keys))
            self._hurry.set()

    def renew_now(self) -> None:
        """Redis is back, perhaps without what it knew."""
        self._due = 0.0
        self._hurry.set()

    async def run(self) -> None:
        """Renew the places held here, and give back those of viewers that are gone, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            end_if_cancelled()
            with suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, self._due - loop.time())):
                    await self._hurry.wait()
            self._hurry.clear()
            renews = loop.time() >= self._due
            if renews:
                self._due = loop.time() + self._lease_s / 3
            await self._tell(renews)

    async def close(self) -> None:
        """Give everything back: the process ends."""
        self._returned += self._held.items()
        self._held.clear()
        await self._tell(False)

    async def _tell(self, renews: bool) -> None:
        from redis.exceptions import RedisError

        returned, self._returned = self._returned, []
        if not self._is_up():
            return  # what is not renewed runs out
        try:
            async with asyncio.timeout(_WAIT_S):
                await self._send(returned, renews)
        except (RedisError, OSError) as error:
            log.warning("Redis: places of viewers are not renewed: %s", str(error) or type(error).__name__)

    async def _send(self, returned: list[tuple[str, list[str]]], renews: bool) -> None:
        async with self._redis.pipeline(transaction=False) as pipeline:
            for client_id, keys in returned:
                for key in keys:
                    pipeline.zrem(key, client_id)
            if renews:
                viewers = defaultdict[str, list[str]](list)
                for client_id, keys in self._held.items():
                    for key in keys:
                        viewers[key].append(client_id)
                for key, ids in viewers.items():
                    await self._renew([key], [self._milliseconds, *ids], client=pipeline)
            await pipeline.execute()
