"""The server as one object, for programs that bring it along.

``python -m gymcast.server.training_metrics_server`` serves with the settings of the environment variables.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Any, Final, Self, TypeVar

from .app import RunningServer, ServerNotRunningError, run_server, running_server
from .config import ServerConfig, ServerConfigError
from .handlers.common import Services
from .logs import configure

_START_SECONDS: Final = 10.0

T = TypeVar("T")


class TrainingMetricsServer:
    """A server that is started in one of two ways, and can be started again after it has ended.

    ``server.run()`` serves in the calling thread and returns when it ends: by SIGINT or SIGTERM in the main thread, by
    :meth:`stop` in any. ``async with server:`` (or ``await server.start()`` and ``await server.close()``) serves beside
    other work in the running event loop. What uses the server, such as ``TrainingEngineIntegration``, may live in the
    same event loop or in one of another thread.
    """

    def __init__(self, config: ServerConfig | None = None) -> None:
        self.config = config or ServerConfig()
        self._started: Future[RunningServer | ServerNotRunningError] = Future()
        self._stack = AsyncExitStack()
        self._stop: Callable[[], Any] = lambda: None

    def run(self) -> int:
        """Serve in this thread; returns the number of the signal that ended it, 0 after :meth:`stop`.

        Raises :class:`PortTakenError`, :class:`ServerConfigError`, ``StorageUnavailableError``.
        """
        configure("DEBUG" if self.config.debug else self.config.log_level, self.config.log_format)
        return asyncio.run(self._run())

    async def _run(self) -> int:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[int] = loop.create_future()

        def end() -> None:
            if not ended.done():
                ended.set_result(0)

        def begin(server: RunningServer) -> None:
            print(f"gymcast listens on {server.url}", flush=True)
            self._started.set_result(server)

        self._stop = lambda: loop.call_soon_threadsafe(end)
        try:
            return await run_server(self.config, started=begin, ended=ended)
        except BaseException as error:
            self._failed(error)
            raise
        finally:
            self._forget()

    def stop(self) -> None:
        """End a server that runs in a thread by :meth:`run`; called from any thread. Viewers are told."""
        self._stop()

    async def start(self) -> RunningServer:
        """Listen, in the running event loop. Raises as :meth:`run` does."""
        if self._started.done():
            raise RuntimeError("this server is running already")
        try:
            server = await self._stack.enter_async_context(running_server(self.config))
        except BaseException as error:
            self._failed(error)
            self._forget()
            raise
        self._started.set_result(server)
        return server

    async def close(self) -> None:
        """End what :meth:`start` began. Viewers are told, and what was reported is committed."""
        self._forget()
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def url(self) -> str:
        """The page's address. Raises :class:`ServerNotRunningError`."""
        server = self._started.result() if self._started.done() else None
        if not isinstance(server, RunningServer):
            raise ServerNotRunningError(_HOW_TO_START)
        return server.url

    async def work(self, job: Callable[[Services], Coroutine[Any, Any, T]]) -> T:
        """The result of ``job`` with the server's parts; see :meth:`RunningServer.work`.

        A server that another thread is just starting is waited for.
        """
        try:
            server = await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(self._started)), _START_SECONDS)
        except TimeoutError:
            raise ServerNotRunningError(_HOW_TO_START) from None
        if isinstance(server, ServerNotRunningError):
            raise server
        return await server.work(job)

    def _failed(self, error: BaseException) -> None:
        # Whoever waits for the start in another thread is told why there will be none.
        if not self._started.done():
            told = ServerNotRunningError(f"the server did not start: {error}")
            told.__cause__ = error
            self._started.set_result(told)

    def _forget(self) -> None:
        self._started = Future()
        self._stop = lambda: None


_HOW_TO_START: Final = (
    "the server is not running; start it first: 'async with server:' in this event loop, or server.run() in a thread"
)


def main() -> int:
    """Serve with the settings of the environment variables until SIGINT or SIGTERM."""
    try:
        TrainingMetricsServer(ServerConfig.load()).run()
    except (ServerConfigError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
