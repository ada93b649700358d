"""Wall-clock pacing: a game held to so many game seconds per second by sleeping between its decisions.

The time step of a game is fixed, so its speed changes nothing but when things happen: at real time, at 100 times real
time and as fast as the machine allows, the same seed and the same actions give the same trajectory
(`gymcast verify-speed` checks it).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

FASTEST = 100.0
CATCH_UP_SECONDS = 0.25  # of wall-clock time; what is later than this is given up, and counted as lag
WINDOW_SECONDS = 10.0
_MARK_SECONDS = 0.5


class Pacer:
    """Sleeps so that decisions come at the rate asked for, on a schedule of deadlines that does not drift.

    A decision that comes late moves the next ones closer, up to `CATCH_UP_SECONDS`: that evens out the uneven sleeps of
    an operating system. What is lost beyond (a slow game, the update of a network) is not made up for, so the game
    never races after a stall; `lag` says how much it was.

    Args:
        step_seconds: game time of one decision, s.
        multiplier: game seconds per wall-clock second, 1 to 100, or None to hold nothing back.
        clock, sleep: what tells the time and sleeps, both in seconds.

    Raises:
        ValueError: a multiplier outside 1 to 100, or a decision that takes no time.
    """

    def __init__(
        self,
        step_seconds: float,
        multiplier: float | None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if not step_seconds > 0.0:
            raise ValueError(f"step_seconds={step_seconds!r} is not allowed: give the game time of a decision.")
        if multiplier is not None and not 1.0 <= multiplier <= FASTEST:
            raise ValueError(f"multiplier={multiplier!r} is not allowed: give 1 to {FASTEST:g}, or None for no limit.")
        self.multiplier = multiplier
        self._step_seconds = step_seconds
        self._interval = 0.0 if multiplier is None else step_seconds / multiplier
        self._clock = clock
        self._sleep = sleep
        self._lost = 0.0
        self._steps = 0
        self.restart()

    def restart(self) -> None:
        """Begin a new schedule with the next decision, as after a pause; lag so far stays counted."""
        self._due: float | None = None
        self._behind = 0.0
        self._marks: deque[tuple[float, int]] = deque()

    def wait(self) -> None:
        """Sleep until the next decision is due. To be called once after each decision (of all lanes of a batch)."""
        now = self._clock()
        self._steps += 1
        self._mark(now)
        if self.multiplier is None:
            return
        due = (now if self._due is None else self._due) + self._interval
        self._behind = max(0.0, now - due)
        if self._behind > CATCH_UP_SECONDS:
            self._lost += self._behind - CATCH_UP_SECONDS
            self._behind = CATCH_UP_SECONDS
            due = now - CATCH_UP_SECONDS
        self._due = due
        if due > now:
            self._sleep(due - now)

    @property
    def lag(self) -> float:
        """Wall-clock seconds by which the game is behind where its rate would have it, all stalls so far together."""
        return self._lost + self._behind

    @property
    def rate(self) -> float | None:
        """Game seconds per wall-clock second over about the last ten seconds; None at the very beginning."""
        if not self._marks:
            return None
        then, steps = self._marks[0]
        seconds = self._clock() - then
        return (self._steps - steps) * self._step_seconds / seconds if seconds >= _MARK_SECONDS else None

    def _mark(self, now: float) -> None:
        marks = self._marks
        if not marks or now - marks[-1][0] >= _MARK_SECONDS:
            marks.append((now, self._steps))
            # The oldest mark kept is just beyond the window.
            while len(marks) > 2 and now - marks[1][0] > WINDOW_SECONDS:
                marks.popleft()
