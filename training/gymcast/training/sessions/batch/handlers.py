"""Event handlers that cannot disturb anyone: each has a bounded queue, and a task or thread, of its own."""

from __future__ import annotations

import asyncio
import inspect
import logging
import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from gymcast.training.sessions.batch.types import check_callable

log = logging.getLogger(__name__)

WAITING: Final = 10_000
"""Events that wait for one handler; further ones are dropped, and counted."""


@dataclass
class HandlerCounts:
    """What became of the events of one handler."""

    name: str
    handled: int = 0
    failed: int = 0
    """Events for which it raised."""
    dropped: int = 0
    """Events that came while ``WAITING`` others waited."""


class Handlers:
    """The handlers of several kinds of events."""

    def __init__(self, *kinds: str) -> None:
        self._of: dict[str, list[Handler]] = {kind: [] for kind in kinds}

    def register(self, kind: str, function: Callable[[Any], Any]) -> None:
        """Have a function, or a coroutine function, called with every event of a kind."""
        self._of[kind].append(Handler(check_callable("handler", function)))

    def wanted(self, kind: str) -> bool:
        """Whether anyone is told of events of this kind."""
        return bool(self._of[kind])

    def emit(self, kind: str, event: Any) -> None:
        """Tell everyone. Never waits."""
        for handler in self._of[kind]:
            handler.put(event)

    def counts(self) -> list[HandlerCounts]:
        """What became of the events, handler by handler."""
        return [handler.counts for group in self._of.values() for handler in group]

    async def close(self, seconds: float) -> None:
        """Wait up to ``seconds`` until all have handled what waits for them, then leave them alone."""
        await asyncio.gather(*(handler.close(seconds) for group in self._of.values() for handler in group))


class Handler:
    """Calls one function with every event, in order, and beside everything else.

    A coroutine function runs in the event loop, as a task; any other function in a thread of its own. What it raises is
    logged and counted.
    """

    def __init__(self, function: Callable[[Any], Any]) -> None:
        name = getattr(function, "__qualname__", type(function).__name__)
        self.counts = HandlerCounts(name)
        self._function = function
        call = getattr(function, "__call__", None)  # noqa: B004 - an object's own call may be a coroutine function
        self._is_async = inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)
        self._events: queue.Queue[Any] = queue.Queue(WAITING)
        self._arrived = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._taken = 0

    def put(self, event: Any) -> None:
        """Hand it an event. Never waits."""
        try:
            self._events.put_nowait(event)
        except queue.Full:
            self.counts.dropped += 1
            if self.counts.dropped == 1:
                log.warning("handler %s is too slow: events are dropped", self.counts.name)
            return
        self._taken += 1
        if self._is_async:
            self._arrived.set()
            if self._task is None:
                self._task = asyncio.get_running_loop().create_task(
                    self._run_task(), name=f"handler {self.counts.name}"
                )
        elif self._thread is None:
            # A daemon: one that blocks for ever must not keep the program from ending.
            self._thread = threading.Thread(target=self._run_thread, daemon=True, name=f"handler {self.counts.name}")
            self._thread.start()

    @property
    def _left(self) -> int:
        """Events taken and not yet handled."""
        return self._taken - self.counts.handled - self.counts.failed

    async def close(self, seconds: float) -> None:
        """Wait up to ``seconds`` until it has handled what waits for it, then leave it alone."""
        deadline = time.monotonic() + seconds
        while self._left and time.monotonic() < deadline:  # noqa: ASYNC110 - a thread may have it
            await asyncio.sleep(0.01)
        self._closing = True
        if self._left:
            log.warning("handler %s did not finish: %d events were not handled", self.counts.name, self._left)
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task], timeout=1.0)
        if self._thread is not None and not self._left:
            self._events.put_nowait(None)
            self._thread.join(1.0)

    async def _run_task(self) -> None:
        while True:
            while not self._events.empty():
                event = self._events.get_nowait()
                try:
                    await self._function(event)
                    self.counts.handled += 1
                except Exception:  # noqa: BLE001 - it is someone else's code
                    self._note_failure()
                await asyncio.sleep(0)  # others have their turn, whatever it does
            self._arrived.clear()
            await self._arrived.wait()

    def _run_thread(self) -> None:
        while not self._closing:
            event = self._events.get()
            if event is None:
                return
            try:
                self._function(event)
                self.counts.handled += 1
            except Exception:  # noqa: BLE001 - it is someone else's code
                self._note_failure()

    def _note_failure(self) -> None:
        self.counts.failed += 1
        if self.counts.failed <= 3:
            more = "; further ones are only counted" if self.counts.failed == 3 else ""
            log.exception("handler %s raised%s", self.counts.name, more)
