"""What ``GET /metrics`` tells Prometheus (docs/deployment.md has the table). Each application counts for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

from aiohttp import web
from prometheus_client import CollectorRegistry, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gymcast.training.storage import SessionLoad

if TYPE_CHECKING:
    from .handlers.common import Services

# A report takes about a millisecond, a long history some tens, an evaluation list never seconds.
_BUCKETS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0)
_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS"})
_SWITCHING: Final = 101


class Requests:
    """Counts requests by address, method and status, with the time they took."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._seconds = Histogram(
            "gymcast_http_request_duration_seconds",
            "Time from a request's headers to its answer",
            ("method", "route", "status"),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        # Looking a child up by its labels costs more than counting.
        self._children: dict[tuple[str, object, int], Histogram] = {}
        self._at_work = 0
        self._rest = asyncio.Event()

    def begin(self) -> None:
        """A request has come."""
        self._at_work += 1

    def end(self) -> None:
        """It is answered, or its client has gone."""
        self._at_work -= 1
        if not self._at_work:
            self._rest.set()

    async def none_at_work(self) -> None:
        """Wait until no request is at work."""
        while self._at_work:
            self._rest.clear()
            await self._rest.wait()

    def note(self, request: web.Request, status: int, seconds: float) -> None:
        """Count an answer. A WebSocket is none: it lasts as long as somebody watches."""
        if status == _SWITCHING:
            return
        resource = request.match_info.route.resource
        key = (request.method, resource, status)
        child = self._children.get(key)
        if child is None:
            # Whatever a client invents is counted together, or it could fill the memory.
            method = request.method if request.method in _METHODS else "other"
            route = resource.canonical if resource is not None else "other"
            child = self._seconds.labels(method, route, str(status))
            if method != "other":
                self._children[key] = child
        child.observe(seconds)


REQUESTS: Final = web.AppKey("requests", Requests)


class _State(Collector):
    """What the parts of a server count themselves, read when asked."""

    def __init__(self, services: Services, load: SessionLoad) -> None:
        self._services = services
        self._load = load

    def collect(self) -> Iterator[Metric]:
        services, hub, storage = self._services, self._services.hub, self._services.storage
        sessions = GaugeMetricFamily("gymcast_sessions", "Sessions in the database", labels=["status"])
        for status, count in self._load.by_status.items():
            sessions.add_metric([status], count)
        yield sessions
        steps = GaugeMetricFamily(
            "gymcast_session_timesteps", "Decisions trained so far, of active sessions", labels=["session_id"]
        )
        for session_id, timesteps in self._load.timesteps.items():
            steps.add_metric([session_id], timesteps)
        yield steps
        queue = 0 if services.api.manager is None else len(services.api.manager.get_queue())
        link = services.fan_out.link
        counts = storage.counts
        for name, text, value in (
            ("gymcast_queue_length", "Managed sessions that wait to be started by this process", queue),
            ("gymcast_websocket_connections", "Viewers connected to this process", hub.connections),
            ("gymcast_writer_queue_rows", "Rows that wait to be committed", storage.waiting_rows),
            ("gymcast_writer_lag_seconds", "How long the oldest of them has been waiting", storage.lag_seconds),
            ("gymcast_redis_connected", "1: linked to Redis, 0: not, or none is used", link and link.is_connected),
        ):
            yield GaugeMetricFamily(name, text, value=float(value or 0))
        for name, text, value in (
            ("gymcast_websocket_writes", "Writes to viewers; several messages of one tick are one", hub.writes),
            ("gymcast_websocket_slow_closed", "Viewers closed for reading too slowly", hub.slow_closed),
            ("gymcast_events_received", "Reported events that were new and committed", counts.accepted),
            ("gymcast_events_repeated", "Reported events that were known already", counts.repeated),
            ("gymcast_rows_written", "Rows committed", counts.rows),
            ("gymcast_live_read_back", "Live messages read back from the database", services.fan_out.refilled),
            ("gymcast_live_restarts", "Times that viewers got the state anew", services.fan_out.restarted),
        ):
            yield CounterMetricFamily(name, text, value=value)


async def expose(services: Services, requests: Requests) -> bytes:
    """The text of ``GET /metrics``. Raises ``StorageError``."""
    state = CollectorRegistry()
    state.register(_State(services, await services.storage.session_load()))
    return generate_latest(requests.registry) + generate_latest(state)
