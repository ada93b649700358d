"""Which tickets have been used: in this process, or in Redis for all server processes together."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Final

from .problems import Problem

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

TICKET_SECONDS: Final = 30
# Longer than any ticket lives, so that none can be used again after it was forgotten.
_REMEMBERED_S: Final = 2 * TICKET_SECONDS
_REDIS_WAIT_S: Final = 2.0


class UsedTickets:
    """Remembers tickets until they have ended anyway."""

    def __init__(self) -> None:
        self._used: dict[str, float] = {}
        self._redis: Redis | None = None
        self._prefix = ""

    def share(self, redis: Redis, prefix: str) -> None:
        """From now on remember them in Redis, under keys that begin with ``prefix``."""
        self._redis, self._prefix = redis, prefix

    async def take(self, ticket_id: str) -> bool:
        """Use a ticket up; ``False`` when it was used before. Raises a 503 when Redis cannot say."""
        if self._redis is None:
            return self._take(ticket_id)
        from redis.exceptions import RedisError

        try:
            async with asyncio.timeout(_REDIS_WAIT_S):
                return bool(await self._redis.set(self._key(ticket_id), b"1", nx=True, ex=_REMEMBERED_S))
        except (RedisError, OSError) as error:
            # To let it in would let it in once at every process.
            log.warning("a ticket cannot be checked, Redis is away: %s", type(error).__name__)
            raise Problem("busy", "Tickets cannot be checked now.", headers={"Retry-After": "1"}) from None

    def _key(self, ticket_id: str) -> str:
        return f"{self._prefix}:ticket:{ticket_id}"

    def _take(self, ticket_id: str) -> bool:
        now = time.monotonic()
        # The oldest come first.
        while self._used and now > next(iter(self._used.values())):
            del self._used[next(iter(self._used))]
        if ticket_id in self._used:
            return False
        self._used[ticket_id] = now + _REMEMBERED_S
        return True
