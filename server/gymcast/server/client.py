"""A client of a gymcast server, for scripts: :class:`AsyncClient`, and :class:`Client` without ``async``.

Both speak REST and follow sessions live. What is not answered, refused or over is an exception of
:class:`ClientError`'s tree, with a message that can be shown as it is. docs/client.md has examples.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Coroutine, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

from .async_client import (
    DEFAULT_SERVER,
    TERMINAL,
    AsyncClient,
    ClientError,
    Json,
    LiveMessage,
    RequestRefused,
    ServerUnreachable,
    WatchEnded,
)

__all__ = [
    "DEFAULT_SERVER",
    "TERMINAL",
    "AsyncClient",
    "Client",
    "ClientError",
    "LiveMessage",
    "RequestRefused",
    "ServerUnreachable",
    "WatchEnded",
]

T = TypeVar("T")


class Client:
    """``with Client("http://host:8000") as client``: :class:`AsyncClient` for code without ``async``.

    Its methods take, return and raise the same; :meth:`watch` is an iterator. An event loop of its own runs in a
    thread.
    """

    def __init__(self, server: str = DEFAULT_SERVER, *, token: str | None = None, timeout: float = 10.0) -> None:
        self._client = AsyncClient(server, token=token, timeout=timeout)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gymcast-client", daemon=True)
        self._thread.start()
        self._run(self._client.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop, thread = self._loop, self._thread
        if loop is None or thread is None:
            return
        self._run(self._client.__aexit__(None, None, None))
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        self._loop = None

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if self._loop is None:
            work.close()
            raise RuntimeError("use it as: with Client(...) as client")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except KeyboardInterrupt:
            future.cancel()
            raise

    def request(self, method: str, path: str, body: Any = None, **query: Any) -> Any:
        """See :meth:`AsyncClient.request`."""
        return self._run(self._client.request(method, path, body, **query))

    def create_session(self, training_session_id: str, algorithm: str, **more: Any) -> Json:
        """See :meth:`AsyncClient.create_session`."""
        return self._run(self._client.create_session(training_session_id, algorithm, **more))

    def submit(self, config: Mapping[str, Any], *, priority: int = 0) -> Json:
        """See :meth:`AsyncClient.submit`."""
        return self._run(self._client.submit(config, priority=priority))

    def sessions(self, *, status: str | None = None, limit: int = 100, cursor: str | None = None) -> Json:
        """See :meth:`AsyncClient.sessions`."""
        return self._run(self._client.sessions(status=status, limit=limit, cursor=cursor))

    def session(self, session_id: str) -> Json:
        """See :meth:`AsyncClient.session`."""
        return self._run(self._client.session(session_id))

    def pause(self, session_id: str) -> Json:
        """See :meth:`AsyncClient.pause`."""
        return self._run(self._client.pause(session_id))

    def resume(self, session_id: str) -> Json:
        """See :meth:`AsyncClient.resume`."""
        return self._run(self._client.resume(session_id))

    def stop(self, session_id: str) -> Json:
        """See :meth:`AsyncClient.stop`."""
        return self._run(self._client.stop(session_id))

    def delete(self, session_id: str) -> None:
        """See :meth:`AsyncClient.delete`."""
        self._run(self._client.delete(session_id))

    def history(self, session_id: str, **query: Any) -> Json:
        """See :meth:`AsyncClient.history`."""
        return self._run(self._client.history(session_id, **query))

    def post_metrics(
        self, session_id: str, readings: Mapping[str, Any] | Sequence[Mapping[str, Any]], **numbered: Any
    ) -> Json:
        """See :meth:`AsyncClient.post_metrics`."""
        return self._run(self._client.post_metrics(session_id, readings, **numbered))

    def post_decision(self, session_id: str, decision: Mapping[str, Any]) -> Json:
        """See :meth:`AsyncClient.post_decision`."""
        return self._run(self._client.post_decision(session_id, decision))

    def post_graph(self, session_id: str, graph: Mapping[str, Any]) -> Json:
        """See :meth:`AsyncClient.post_graph`."""
        return self._run(self._client.post_graph(session_id, graph))

    def watch(self, session_id: str, **more: Any) -> Iterator[LiveMessage]:
        """See :meth:`AsyncClient.watch`. Leaving the loop ends the connection."""
        messages = self._client.watch(session_id, **more)
        try:
            while (message := self._run(_next(messages))) is not None:
                yield message
        finally:
            self._run(messages.aclose())


async def _next(messages: AsyncGenerator[LiveMessage, None]) -> LiveMessage | None:
    return await anext(messages, None)
