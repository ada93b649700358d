"""Since when a training process waits for a game that it steps itself, for whoever looks after the process.

A game in a worker process (:mod:`gymcast.training.subproc`) is watched from outside. One that is stepped inside the
training process may hold it for ever, with every thread of it, so nothing in there could tell. The process therefore
keeps a mark in its run folder, in memory that is shared with whoever reads the file: no write, no system call.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from pathlib import Path
from types import TracebackType
from typing import Final

MARK_NAME: Final = "game.mark"
REMEDY: Final = "with --workers 2 (the setting workers) a game that raises, crashes or hangs is started again"
# Process id, and nanoseconds of the monotonic clock, which all processes share; 0: it does not wait for a game.
_MARK: Final = struct.Struct("=qq")


class GameWatch:
    """Entered around every step and reset of a game; does nothing until :meth:`open`."""

    def __init__(self) -> None:
        self._mark: memoryview | None = None

    def open(self, run_dir: Path) -> None:
        """Keep the mark in ``run_dir`` from now on. Raises ``OSError``."""
        with open(run_dir / MARK_NAME, "w+b") as file:
            file.write(_MARK.pack(os.getpid(), 0))
            file.flush()
            self._mark = memoryview(mmap.mmap(file.fileno(), _MARK.size)).cast("q")

    def __enter__(self) -> None:
        if self._mark is not None:
            self._mark[1] = time.monotonic_ns()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._mark is not None:
            self._mark[1] = 0


WATCH: Final = GameWatch()
"""The mark of this process."""


def seconds_in_game(run_dir: Path, pid: int) -> float | None:
    """How long the process ``pid`` has been waiting for its game; ``None`` when it does not, or keeps no mark."""
    try:
        holder, since = _MARK.unpack((run_dir / MARK_NAME).read_bytes())
    except (OSError, struct.error):
        return None
    return (time.monotonic_ns() - since) / 1e9 if holder == pid and since else None
