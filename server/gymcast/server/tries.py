"""Wrong tries of guests: counted here, or in Redis for all server processes together."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from typing import TYPE_CHECKING, Final

from limits import RateLimitItem
from limits.aio.storage import MemoryStorage
from limits.aio.strategies import MovingWindowRateLimiter
from limits.errors import StorageError

from .problems import Problem
from .rate_limits import redis_counters

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

_REDIS_WAIT_S: Final = 0.5


class WrongTries:
    """How often somebody was wrong within the last minute. In this process they are counted with Redis or without."""

    def __init__(self) -> None:
        self._own = MovingWindowRateLimiter(MemoryStorage())
        self._shared: MovingWindowRateLimiter | None = None

    def share(self, redis: Redis, prefix: str) -> None:
        """From now on count in Redis as well."""
        self._shared = MovingWindowRateLimiter(redis_counters(redis, prefix))

    async def check(self, limit: RateLimitItem, *who: str) -> None:
        """Raise a 429 when ``who`` has been wrong ``limit`` times."""
        await self._check(self._own, limit, *who)
        if self._shared is not None:
            try:
                async with asyncio.timeout(_REDIS_WAIT_S):
                    await self._check(self._shared, limit, *who)
            except (StorageError, OSError) as error:  # a timeout is an OSError
                log.warning("wrong tries are counted by each process alone, Redis is away: %s", type(error).__name__)

    async def add(self, limit: RateLimitItem, *who: str) -> None:
        """Count a wrong try."""
        await self._own.hit(limit, *who)
        if self._shared is not None:
            try:
                async with asyncio.timeout(_REDIS_WAIT_S):
                    await self._shared.hit(limit, *who)
            except (StorageError, OSError) as error:
                log.warning("a wrong try is not known to other processes, Redis is away: %s", type(error).__name__)

    @staticmethod
    async def _check(limiter: MovingWindowRateLimiter, limit: RateLimitItem, *who: str) -> None:
        if await limiter.test(limit, *who):
            return
        stats = await limiter.get_window_stats(limit, *who)
        wait = max(1, math.ceil(stats.reset_time - time.time()))
        raise Problem(
            "too-many-requests",
            f"Too many wrong tries: {limit.amount} a minute are allowed. Try again in {wait} seconds.",
            headers={"Retry-After": str(wait)},
        )
