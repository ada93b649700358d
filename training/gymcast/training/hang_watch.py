"""What a training process is doing and since when it has not got on with it, for whoever looks after the process.

A process that hangs, in a game that holds it with every thread of it, cannot tell so itself. It therefore keeps a mark
in its run folder, in memory that is shared with whoever reads the file: no write, no system call. Games in worker
processes (:mod:`gymcast.training.subproc`) are watched by this process.
"""

from __future__ import annotations

import mmap
import os
import struct
from enum import IntEnum
from pathlib import Path
from time import monotonic_ns
from types import TracebackType
from typing import Final

MARK_NAME: Final = "progress.mark"
REMEDY: Final = "with --workers 2 (the setting workers) a game that raises, crashes or hangs is started again"
# Process id, and nanoseconds of the monotonic clock, which all processes share, with the place in the lowest bits: one
# number, so that nobody reads the time of one place with the name of another.
_MARK: Final = struct.Struct("=qq")
_PLACE_BITS: Final = 15
_TIME_BITS: Final = ~_PLACE_BITS


class Place(IntEnum):
    """Where a training process can hang."""

    STARTING = 0
    MAKING = 1
    """A game's constructor, or the import of its package."""
    RESETTING = 2
    STEPPING = 3
    TRAINING = 4
    """Between steps: the policy, updates, the log."""
    CALLBACKS = 5
    SAVING = 6
    EVALUATING = 7
    WAITING = 8
    """For a wish to go on, for the time of the next step, or for worker processes, which have limits of their own."""

    TRYING = 9
    """A reset and a few steps, to see whether a game can be used at all."""


GAME: Final = (Place.MAKING, Place.TRYING, Place.RESETTING, Place.STEPPING)
"""Where it is in the game's own code."""


class HangWatch:
    """Keeps the mark of this process; does nothing until :meth:`open`. For the thread that trains."""

    def __init__(self) -> None:
        self._mark: memoryview | None = None
        self._place: int = Place.STARTING

    def open(self, run_dir: Path) -> None:
        """Keep the mark in ``run_dir`` from now on; not while a place is entered. Raises ``OSError``."""
        with open(run_dir / MARK_NAME, "w+b") as file:
            file.write(_MARK.pack(os.getpid(), 0))
            file.flush()
            self._mark = memoryview(mmap.mmap(file.fileno(), _MARK.size)).cast("q")
        os.register_at_fork(after_in_child=self.close)
        self.get_on()

    def close(self) -> None:
        """Keep no mark any more."""
        self._mark = None

    def get_on(self) -> None:
        """Note that the process is getting on with what it does."""
        if self._mark is not None:
            self._mark[1] = monotonic_ns() & _TIME_BITS | self._place

    def at(self, place: Place) -> At:
        """Entered as long as the process is at ``place``; coming and going is getting on."""
        return At(self, place)


class At:
    """See :meth:`HangWatch.at`. May be entered again and again, also within itself."""

    __slots__ = ("_outer", "_place", "_watch")

    def __init__(self, watch: HangWatch, place: Place) -> None:
        self._watch = watch
        self._place = int(place)
        self._outer: list[int] = []

    def __enter__(self) -> None:
        watch = self._watch
        if watch._mark is not None:
            self._outer.append(watch._place)
            watch._place = self._place
            watch._mark[1] = monotonic_ns() & _TIME_BITS | self._place

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        watch = self._watch
        if watch._mark is not None:
            watch._place = self._outer.pop()
            watch._mark[1] = monotonic_ns() & _TIME_BITS | watch._place


WATCH: Final = HangWatch()
"""The mark of this process."""


def last_sign(run_dir: Path, pid: int) -> tuple[Place, float] | None:
    """Where the process ``pid`` is, and for how many seconds it has not got on; ``None`` when it keeps no mark."""
    try:
        holder, mark = _MARK.unpack((run_dir / MARK_NAME).read_bytes())
        place = Place(mark & _PLACE_BITS)
    except (OSError, struct.error, ValueError):
        return None
    return (place, (monotonic_ns() - mark) / 1e9) if holder == pid and mark else None
