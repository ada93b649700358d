"""How much one caller may ask of the server: budgets per minute, counted here or in Redis for all server processes.

Counted is the last minute, approximately: this minute's requests and a share of the last one's (a sliding window, as
the library ``limits`` has it).
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Literal

from aiohttp import web
from limits import RateLimitItem, RateLimitItemPerMinute
from limits.aio.storage import MemoryStorage, RedisStorage
from limits.aio.strategies import SlidingWindowCounterRateLimiter
from limits.errors import StorageError

from .config import PerformanceConfig
from .problems import Problem

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger(__name__)

Budget = Literal["reads", "control", "ingest", "tickets", "failures"]

_SWEEP_S: Final = 10.0
_REDIS_WAIT_S: Final = 0.5
# Without Redis each process counts for itself, and looks for Redis again after so long.
_WITHOUT_REDIS_S: Final = 5.0


class _Counters(MemoryStorage):
    """Counters in memory. The library's own looks through all of them at each request."""

    def __init__(self) -> None:
        super().__init__()
        self._swept = time.time()

    async def incr(self, key: str, expiry: float, amount: int = 1) -> int:
        now = time.time()
        if now > self._swept + _SWEEP_S:
            self._swept = now
            for old in [name for name, ends in self.expirations.items() if ends <= now]:
                del self.expirations[old], self.storage[old]
        if key not in self.expirations:
            self.expirations[key] = now + expiry
        self.storage[key] += amount
        return self.storage[key]

    async def decr(self, key: str, amount: int = 1) -> int:
        self.storage[key] = max(self.storage[key] - amount, 0)
        return self.storage[key]


def redis_counters(redis: Redis, prefix: str) -> RedisStorage:
    """Counters that every server process with this Redis and ``prefix`` shares."""
    return RedisStorage(
        "redis://",
        wrap_exceptions=True,
        implementation="redispy",
        key_prefix=f"{prefix}:limits",
        connection_pool=redis.connection_pool,  # type: ignore[arg-type]  # the library's own option
    )


class RateLimits:
    """The budgets of one server."""

    def __init__(self, settings: PerformanceConfig) -> None:
        self._items: dict[Budget, RateLimitItem] = {
            "reads": RateLimitItemPerMinute(settings.reads_per_minute),
            "control": RateLimitItemPerMinute(settings.control_per_minute),
            "ingest": RateLimitItemPerMinute(settings.ingest_per_minute),
            "tickets": RateLimitItemPerMinute(settings.tickets_per_minute),
            "failures": RateLimitItemPerMinute(settings.failed_tokens_per_minute),
        }
        self._memory = SlidingWindowCounterRateLimiter(_Counters())
        self._shared: SlidingWindowCounterRateLimiter | None = None
        self._alone_until = 0.0

    def share(self, redis: Redis, prefix: str) -> None:
        """From now on count in Redis, under keys that begin with ``prefix``."""
        self._shared = SlidingWindowCounterRateLimiter(redis_counters(redis, prefix))

    async def take(self, budget: Budget, who: str) -> None:
        """Count one request of ``who``. Raises a 429 when the budget is spent."""
        if self._shared is not None and time.monotonic() >= self._alone_until:
            try:
                async with asyncio.timeout(_REDIS_WAIT_S):
                    await self._take(self._shared, budget, who)
            except (StorageError, OSError) as error:  # a timeout is an OSError
                log.warning("requests are counted by each process alone, Redis is away: %s", type(error).__name__)
                self._alone_until = time.monotonic() + _WITHOUT_REDIS_S
            else:
                return
        await self._take(self._memory, budget, who)

    async def _take(self, limiter: SlidingWindowCounterRateLimiter, budget: Budget, who: str) -> None:
        item = self._items[budget]
        if await limiter.hit(item, budget, who):
            return
        stats = await limiter.get_window_stats(item, budget, who)
        wait = max(1, math.ceil(stats.reset_time - time.time()))
        raise Problem(
            "too-many-requests",
            f"More than {item.amount} requests of the kind {budget!r} within a minute; wait {wait} seconds.",
            headers={
                "Retry-After": str(wait),
                "RateLimit-Policy": f'"{budget}";q={item.amount};w={item.get_expiry()}',
                "RateLimit": f'"{budget}";r={stats.remaining};t={wait}',
            },
        )


LIMITS: Final = web.AppKey("limits", RateLimits)


TRUSTED: Final = web.AppKey("trusted_proxies", tuple)


def address_of(request: web.Request) -> str:
    """Where a request comes from, as far as the connection itself tells, or a proxy that is trusted.

    Each proxy adds to X-Forwarded-For whom it has the request from. Whatever stands before that anybody can write.
    """
    peer = request.remote or ""
    trusted = request.app[TRUSTED]
    if trusted and _is_in(peer, trusted):
        hops = [hop.strip() for line in request.headers.getall("X-Forwarded-For", []) for hop in line.split(",")]
        while hops and _is_in(peer, trusted):
            peer = hops.pop()
    return network_of(peer)


def _is_in(peer: str, networks: Iterable[ipaddress.IPv4Network | ipaddress.IPv6Network]) -> bool:
    try:
        address = ipaddress.ip_address(peer)
    except ValueError:
        return False
    return any(address in network for network in networks)


def network_of(peer: str) -> str:
    """The address, or its network where everybody has a whole one (IPv6 /64)."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return peer
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((address, 64), strict=False))


def budget_of(request: web.Request, scope: str) -> Budget:
    """Which budget a request to an address with this scope is taken from."""
    if request.path == "/api/tickets":
        return "tickets"
    if request.method in ("GET", "HEAD"):
        return "reads"
    if scope == "ingest" and request.method == "POST" and "session_id" in request.match_info:
        return "ingest"
    return "control"
