"""Asking a worker process for a step, and being answered, by words of shared memory instead of messages.

A message costs a system call at each end and mostly a wake-up, together more than a step of a cheap game. While both
sides look at the words, they need none; whoever has waited in vain for a moment says so in its word and sleeps until a
message comes, and the other side sends one only then. A message may come too late, when its step is long done: the
words tell. Both look only as long as that has paid the last time, and give the processor to whoever else can use it.
"""

from __future__ import annotations

import os
import threading
import time

import numpy as np
from numpy.typing import NDArray

WORDS = 8  # of int64 for each worker: a cache line
_ASKED, _ANSWERED, _SAID, _WORKER_SLEEPS, _PARENT_SLEEPS = range(5)
_PATIENCE = 5  # times as long as it looks may a wait have been for looking to pay


class _Bell:
    """One side.

    Args:
        words: int64 (WORDS,) of the shared memory.
        spin: seconds to look before sleeping; 0 to sleep at once.
    """

    def __init__(self, words: NDArray[np.int64], spin: float) -> None:
        self._words = words.data
        self._spin = spin
        self._spins = spin > 0
        self._barrier = threading.Lock()
        self._last = 0
        """The latest number asked for that this side knows: twice the count of steps, and the turn in the last bit."""

    def _look(self, place: int, until_equal: bool) -> bool:
        """Look at a word until it is (not) the latest number; false when that took too long."""
        words, last = self._words, self._last
        if (words[place] == last) is until_equal:
            return True
        if not self._spins:
            return False
        until = time.perf_counter() + self._spin
        while time.perf_counter() < until:
            os.sched_yield()
            if (words[place] == last) is until_equal:
                return True
        return False

    def _publish(self) -> None:
        """Let the other side see what was written before this side reads what the other has written."""
        with self._barrier:  # a locked instruction
            pass


class ParentBell(_Bell):
    """The side that asks."""

    def begin(self) -> None:
        """Before a worker process looks for the first time."""
        for place in range(WORDS):
            self._words[place] = 0
        self._words[_WORKER_SLEEPS] = 1
        self._last = 0

    def ask(self, turn: int) -> bool:
        """Ask for a step; returns whether the worker sleeps and wants a message."""
        self._began = time.perf_counter()
        self._last = ((self._last >> 1) + 1) << 1 | turn
        self._words[_PARENT_SLEEPS] = 0
        self._words[_ASKED] = self._last
        self._publish()
        return bool(self._words[_WORKER_SLEEPS])

    def is_answered(self) -> bool:
        """Whether the step that was asked for is done."""
        return bool(self._words[_ANSWERED] == self._last)

    def wait(self) -> bool:
        """Look for the answer; when false, sleep for a message."""
        if self._look(_ANSWERED, True):
            self._spins = self._spin > 0 and time.perf_counter() - self._began < _PATIENCE * self._spin
            return True
        self._words[_PARENT_SLEEPS] = 1
        self._publish()
        return self.is_answered()

    def said(self) -> bool:
        """Whether a message came with the answer."""
        return bool(self._words[_SAID])


class WorkerBell(_Bell):
    """The side that answers."""

    def __init__(self, words: NDArray[np.int64], spin: float) -> None:
        super().__init__(words, spin)
        self._done = time.perf_counter()

    def wait(self) -> int | None:
        """Look for the next step; returns its turn, or None: sleep for a message."""
        if self._look(_ASKED, False):
            return self.asked()
        self._words[_WORKER_SLEEPS] = 1
        self._publish()
        return self.asked()

    def asked(self) -> int | None:
        """The turn of a step that waits, None when there is none."""
        now = self._words[_ASKED]
        if now == self._last:
            return None
        self._last = now
        self._spins = self._spin > 0 and time.perf_counter() - self._done < _PATIENCE * self._spin
        self._words[_WORKER_SLEEPS] = 0
        return now & 1

    def answer(self, said: bool) -> bool:
        """The step is done; returns whether the parent sleeps and wants a message."""
        self._done = time.perf_counter()
        self._words[_SAID] = said
        self._words[_ANSWERED] = self._last
        self._publish()
        return bool(self._words[_PARENT_SLEEPS])
