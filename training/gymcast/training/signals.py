"""SIGINT, SIGTERM and SIGHUP: finish the step, write a checkpoint, then leave. A second Ctrl-C leaves at once."""

from __future__ import annotations

import logging
import os
import signal
from types import FrameType, TracebackType
from typing import Any, Self

HANDLED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

log = logging.getLogger(__name__)


class StopSignals:
    """While entered, the first signal is only noted in ``received``; a SIGINT after it exits the process.

    Python delivers signals to the main thread, and only code there may install handlers. A training in another thread
    gets them by being handed a ``StopSignals`` that was entered in the main thread; one entered elsewhere does nothing,
    says so in the log, and whoever owns the main thread decides. A SIGHUP that is ignored when this is entered
    stays ignored: that is how ``nohup`` keeps a command alive when its terminal goes.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._depth = 0
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def exit_code(self) -> int:
        """128 + the number of the signal received; 0 when there was none."""
        return 0 if self.received is None else 128 + self.received.value

    def __enter__(self) -> Self:
        self._depth += 1
        if self._depth > 1:
            return self
        try:
            for number in HANDLED:
                if not (number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN):
                    self._previous[number] = signal.signal(number, self._handle)
        except ValueError:
            log.info("signals are left to the main thread: Python installs no handlers from this one")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._depth -= 1
        if self._depth > 0:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None and number == signal.SIGINT:
            # Asked twice: no clean-up, no buffered output, just out.
            os._exit(128 + number)
        if self.received is None:
            self.received = signal.Signals(number)
