"""The application: its parts put together, started on a socket, and stopped without losing anything."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import secrets
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from aiohttp import web

from gymcast.training.sessions import SessionManager
from gymcast.training.storage import Storage, StorageError

from .auth import AUTH, Authenticator, authenticate, everybody, limited
from .config import ServerConfig
from .fanout import FanOut, epoch_of
from .guard import add_headers, errors, origins
from .handlers.common import CONFIG, MAX_BODY_BYTES, SERVICES, Services
from .handlers.live import restart
from .hub import Hub
from .messages import CLOSE_SHUTDOWN
from .prometheus import REQUESTS, Requests
from .rate_limits import LIMITS, TRUSTED, RateLimits
from .redis_link import RedisLink, connect
from .routes import add_routes
from .seats import Seats

log = logging.getLogger(__name__)

T = TypeVar("T")

# For requests that were begun before the end; then for those that have arrived whole.
_FINISH_S: Final = 3.0
_SHUTDOWN_S: Final = 3.0
# How long a client whose body was refused may go on sending it before the connection is cut.
_LINGER_S: Final = 2.0
_PORTS_TRIED: Final = 100


class PortTakenError(OSError):
    """Another program listens on the port. ``suggestion`` is the next free one, or ``None`` when none was found."""

    def __init__(self, port: int, suggestion: int | None) -> None:
        self.port = port
        self.suggestion = suggestion
        super().__init__(
            errno.EADDRINUSE,
            f"port {port} is taken" + (f"; port {suggestion} is free" if suggestion is not None else ""),
        )

    def __str__(self) -> str:
        return str(self.strerror)


def create_app(config: ServerConfig | None = None) -> web.Application:
    """The application for ``config``. Raises :class:`ServerConfigError` for settings it cannot run with.

    It answers managed sessions with 503 and says what to do, until :attr:`RunningServer.manager` is set.
    """
    config = config or ServerConfig()
    config.check_startable()
    who = authenticate if config.security.enable_auth else everybody
    middlewares = [errors, origins, who]
    if config.performance.enable_rate_limiting:
        middlewares.append(limited)
    app = web.Application(middlewares=middlewares, client_max_size=MAX_BODY_BYTES)
    app[CONFIG] = config
    app[TRUSTED] = config.security.trusted_proxies
    app[REQUESTS] = Requests()
    app[AUTH] = Authenticator(config.jwt_secret)
    if config.performance.enable_rate_limiting:
        app[LIMITS] = RateLimits(config.performance)
    add_routes(app)
    app.on_response_prepare.append(add_headers)

    async def parts(app: web.Application) -> AsyncIterator[None]:
        async with _services(config) as services:
            app[SERVICES] = services
            if config.jwt_secret is None:
                app[AUTH].secret = await services.storage.mark("secret", _random)
            if services.redis is not None:
                app[AUTH].used.share(services.redis, config.redis.prefix)
                services.rooms.tries.share(services.redis, config.redis.prefix)
                if (limits := app.get(LIMITS)) is not None:
                    limits.share(services.redis, config.redis.prefix)
            yield

    async def close_viewers(app: web.Application) -> None:
        app[SERVICES].hub.close_all(CLOSE_SHUTDOWN, "the server is shutting down")

    app.cleanup_ctx.append(parts)
    app.on_shutdown.append(close_viewers)
    return app


def _random() -> str:
    return secrets.token_urlsafe(48)


@asynccontextmanager
async def _services(config: ServerConfig) -> AsyncIterator[Services]:
    async with AsyncExitStack() as stack:
        url = config.database_url
        if not config.database.enabled:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="gymcast-"))
            url = f"sqlite:///{Path(folder) / 'session.db'}"
        storage = await stack.enter_async_context(await Storage.open(url))
        hub = Hub(
            per_session=config.performance.max_connections_per_session,
            total=config.performance.max_total_connections,
            heartbeat=config.performance.heartbeat_seconds,
            epoch_of=partial(epoch_of, await storage.mark("incarnation", _random)),
        )
        services = Services(config, storage, hub, time.monotonic())
        stack.push_async_callback(services.frames.close)
        link = None
        if config.redis_url is not None:
            services.redis = connect(config.redis_url)
            stack.push_async_callback(services.redis.aclose)
            link = RedisLink(services.redis, config.redis.prefix, hub.watched_elsewhere)
            link.counts = hub.counts
            services.seats = Seats(services.redis, config.redis.prefix, lambda: link.is_connected)
            link.connected.append(services.seats.renew_now)
        services.fan_out = FanOut(hub, storage, info=services.info, restart=partial(restart, services), link=link)
        await stack.enter_async_context(services.fan_out.running())
        stack.push_async_callback(services.rooms.stop)
        works = [_sweep(services), services.rooms.watch()]
        if services.seats is not None:
            stack.push_async_callback(services.seats.close)  # while the link still says that Redis is there
            works.append(services.seats.run())
        for work in works:
            stack.push_async_callback(_cancel, asyncio.create_task(work))
        yield services


async def _sweep(services: Services) -> None:
    settings = services.config.performance
    while True:
        await asyncio.sleep(settings.cleanup_interval_seconds)
        services.hub.sweep()
        try:
            await services.storage.clean_up(settings.metrics_history_size)
        except StorageError as error:
            log.warning("the clean-up of old data has to wait: %s", error)


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


class ServerNotRunningError(RuntimeError):
    """A server was asked to do something before it was started or after it had ended."""


class RunningServer:
    """A server that listens. ``url`` is the page's address; ``leave`` takes it out of reach of its clients, once."""

    def __init__(
        self, host: str, port: int, services: Services, leave: Callable[[], Coroutine[Any, Any, None]]
    ) -> None:
        self.host = host
        self.port = port
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self.services = services
        self._loop = asyncio.get_running_loop()
        self._leave = leave
        self._leaving: asyncio.Task[None] | None = None

    async def leave(self) -> None:
        """Take no more connections, tell viewers, and wait a while for requests at work; the storage stays open."""
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave())
        await self._leaving

    async def work(self, job: Callable[[Services], Coroutine[Any, Any, T]]) -> T:
        """The result of ``job`` with the server's parts, done in the server's event loop; called from any loop.

        Raises what ``job`` raises, and :class:`ServerNotRunningError` when the server ends meanwhile.
        """
        if self._loop is asyncio.get_running_loop():
            return await job(self.services)
        work = job(self.services)
        try:
            done = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError:  # the loop is closed
            work.close()
            raise ServerNotRunningError("the server has ended") from None
        try:
            return await asyncio.wrap_future(done)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise ServerNotRunningError("the server ended before this was done") from None

    @property
    def storage(self) -> Storage:
        """Its database."""
        return self.services.storage

    @property
    def hub(self) -> Hub:
        """Its live messages."""
        return self.services.hub

    @property
    def manager(self) -> SessionManager | None:
        """Who runs managed sessions; set once the server listens, since a manager uses the server's storage."""
        return self.services.api.manager

    @manager.setter
    def manager(self, manager: SessionManager | None) -> None:
        self.services.api.manager = manager

    async def subscribe(self, session_id: str) -> AsyncIterator[dict[str, Any]]:
        """Live messages of a session as ``{type, seq, ts, data}``, until the session is deleted or the server ends."""
        async with self.hub.listen(session_id) as next_ones:
            while messages := await next_ones():
                for message in messages:
                    yield {"type": message.type, "seq": message.seq, "ts": message.ts, "data": message.data}


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises :class:`PortTakenError`, or ``OSError`` for an address that is not this machine's."""
    try:
        return _bind(host, port)
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
    for candidate in range(port + 1, min(port + _PORTS_TRIED, 65_535) + 1):
        try:
            _bind(host, candidate).close()
        except OSError:
            continue
        raise PortTakenError(port, candidate)
    raise PortTakenError(port, None)


def _bind(host: str, port: int) -> socket.socket:
    # "localhost" may stand for two addresses; browsers try both, so one is enough.
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        if sys.platform != "win32":
            # Without it a port stays taken for a minute after a server ended. (On Windows it would allow two servers.)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host.strip("[]"), port))
        listener.listen(128)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener


@asynccontextmanager
async def running_server(config: ServerConfig | None = None) -> AsyncIterator[RunningServer]:
    """A server for the length of the context, in the running event loop. Port 0 takes any free port.

    Raises :class:`PortTakenError`, :class:`ServerConfigError`, ``StorageUnavailableError``. At the end viewers are told
    (close code 1001), requests at work are answered, and what they stored is committed.
    """
    config = config or ServerConfig()
    app = create_app(config)
    listener = bind(config.host, config.port)
    runner = web.AppRunner(
        app,
        handle_signals=False,
        access_log=None,
        shutdown_timeout=_SHUTDOWN_S,
        lingering_time=_LINGER_S,
        # aiohttp has no time limit for headers, but its keep-alive timer runs until a request is complete up to its
        # body, from the connection's beginning or the last answer on, however slowly bytes come in.
        keepalive_timeout=config.performance.request_wait_seconds,
    )
    try:
        await runner.setup()
        site = web.SockSite(runner, listener)
        await site.start()

        async def leave() -> None:
            await site.stop()
            await _finish_requests(app)

        server = RunningServer(config.host.strip("[]"), listener.getsockname()[1], app[SERVICES], leave)
        try:
            yield server
        finally:
            await server.leave()
    finally:
        await runner.cleanup()
        listener.close()


async def _finish_requests(app: web.Application) -> None:
    """Tell viewers that the server ends, and wait a while for requests whose bodies are still on their way.

    From the runner's clean-up on, aiohttp takes no more bytes from clients.
    """
    app[SERVICES].hub.close_all(CLOSE_SHUTDOWN, "the server is shutting down")
    with suppress(TimeoutError):
        async with asyncio.timeout(_FINISH_S):
            await app[REQUESTS].none_at_work()


async def run_server(
    config: ServerConfig | None = None,
    *,
    started: Callable[[RunningServer], None] | None = None,
    ended: asyncio.Future[int] | None = None,
) -> int:
    """Serve until SIGINT or SIGTERM; returns the signal's number. ``started`` is called once the server listens.

    Signals reach the main thread only; elsewhere, and there too, a result of ``ended`` ends the server.
    """
    loop = asyncio.get_running_loop()
    ended = ended if ended is not None else loop.create_future()
    signals = (signal.SIGINT, signal.SIGTERM) if threading.current_thread() is threading.main_thread() else ()

    def end(number: int) -> None:
        if not ended.done():
            ended.set_result(number)

    async with running_server(config) as server:
        for number in signals:
            loop.add_signal_handler(number, end, number)
        # What is there by now stays, so the collector need not look through it again and again: every other long
        # history waited for that as long as for itself.
        gc.collect()
        gc.freeze()
        try:
            log.info("listening on %s", server.url)
            if started is not None:
                started(server)
            return await ended
        finally:
            for number in signals:
                loop.remove_signal_handler(number)
