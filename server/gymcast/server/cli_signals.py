"""SIGINT, SIGTERM and SIGHUP while an event loop runs: the first asks for an orderly end, a second for one at once."""

from __future__ import annotations

import asyncio
import faulthandler
import signal
from collections.abc import Container
from types import TracebackType
from typing import Any, Final, Self

HANDLED: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
STOP_SECONDS: Final = 15.0
"""From a signal to the end of a server's process, whatever hangs."""
# The end comes a little earlier, so that it has come by then.
_LAST_SECONDS: Final = STOP_SECONDS - 0.5


class StopRequests:
    """While entered, signals are counted instead of ending the process. Enter it in the main thread's event loop.

    After one of ``in_time`` the process ends within :data:`STOP_SECONDS`: what has not ended in order by then is cut
    off, with the functions that it hangs in on standard error and exit code 1.
    """

    def __init__(self, in_time: Container[signal.Signals] = ()) -> None:
        self._in_time = in_time
        self.first: signal.Signals | None = None
        self.count = 0
        self._changed = asyncio.Event()
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        for number in HANDLED:
            handler = signal.getsignal(number)
            # With nohup a command is to outlive its terminal.
            if number != signal.SIGHUP or handler is not signal.SIG_IGN:
                self._previous[number] = handler
                loop.add_signal_handler(number, self._note, number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        loop = asyncio.get_running_loop()
        for number, handler in self._previous.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)

    def _note(self, number: signal.Signals) -> None:
        if number in self._in_time and self.first not in self._in_time:
            faulthandler.dump_traceback_later(_LAST_SECONDS, exit=True)
        self.first = self.first or number
        self.count += 1
        self._changed.set()

    async def wait_for_more(self, seen: int) -> None:
        """Wait until more than ``seen`` signals have arrived."""
        while self.count <= seen:
            self._changed.clear()
            await self._changed.wait()

    @property
    def exit_code(self) -> int:
        """128 + the number of the first signal; 0 when there was none."""
        return 0 if self.first is None else 128 + self.first.value
