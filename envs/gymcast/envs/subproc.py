"""Workers of a subprocess vector environment: asking them, and what is said when they fail."""

from __future__ import annotations

import contextlib
import pickle
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cloudpickle

from gymcast.envs.bell import ParentBell
from gymcast.envs.channel import ChannelClosed, ChannelTimeout, framed
from gymcast.envs.shared_arrays import ArraySpec, SharedArrays
from gymcast.envs.subproc_lanes import Described, Failure, WorkerStart
from gymcast.envs.subproc_process import WorkerProcess
from gymcast.envs.subproc_worker import DONE, FAILED, RAISED, STEP_FRAME

_FIRST_DELAY = 0.2  # seconds
_IN_A_ROW = 5  # restarts of a worker without a completed step in between
_LOOK_SECONDS = 0.5  # how often a silent worker is looked at


class WorkerError(RuntimeError):
    """A worker process of a subprocess vector environment failed for good."""


class WorkerDown(Exception):
    """A worker died, gave up or hangs; it has been ended."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


@dataclass(frozen=True)
class WorkerRestart:
    """A worker that was started again, or one environment that was made anew in a worker that went on."""

    worker: int
    lanes: tuple[int, ...]
    reason: str
    traceback: str
    """The worker's own, empty when it left none (SIGKILL)."""
    restarts: int
    """Restarts of all workers so far, this one included."""
    seconds: float
    """How long the other lanes waited for it."""
    output: str = ""
    """The last lines that were printed in the worker, where that is captured."""


class RestartBudget:
    """How often workers may be started again: in all, within a minute, and in a row without a completed step.

    Delays double with each restart in a row; the first one has none.
    """

    def __init__(self, total: int | None = 100, per_minute: int = 20) -> None:
        self.total, self.per_minute = total, per_minute
        self.spent = 0
        self._recent: deque[float] = deque()

    def spend(self, in_a_row: int) -> float:
        """Take one restart; returns the seconds to wait before it. Raises WorkerError saying which limit is reached."""
        now = time.monotonic()
        while self._recent and now - self._recent[0] > 60.0:
            self._recent.popleft()
        if self.total is not None and self.spent >= self.total:
            raise WorkerError(f"the {self.total} restarts allowed (max_restarts) are spent")
        if len(self._recent) >= self.per_minute:
            raise WorkerError(
                f"workers were started again {self.per_minute} times within a minute (max_restarts_per_minute)"
            )
        if in_a_row >= _IN_A_ROW:
            raise WorkerError(f"it was started again {in_a_row} times in a row without completing a step")
        self.spent += 1
        self._recent.append(now)
        return _FIRST_DELAY * 2 ** (in_a_row - 1) if in_a_row else 0.0


class Worker:
    """One worker and the lanes it steps. Methods that talk to it raise WorkerDown, and then its process has ended.

    Args:
        number: its place among the workers.
        lanes: the lanes it steps, side by side.
        factories: one function per lane that makes its environment.
        episode_timeout: seconds after which it truncates an episode, or None.
        spin: seconds for which both sides look for each other before they sleep.
    """

    def __init__(
        self,
        number: int,
        lanes: range,
        factories: Sequence[Callable[[], Any]],
        episode_timeout: float | None,
        spin: float = 0.0,
    ) -> None:
        self.number, self.lanes = number, lanes
        self.turn = 0
        """Which of the two sets of observations its latest step has written."""
        pickled = tuple(cloudpickle.dumps(factory) for factory in factories)
        self._start = WorkerStart(number, lanes[0], pickled, episode_timeout, spin)
        self.arrays: SharedArrays | None = None
        self.own: WorkerProcess | None = None
        self._looked = 0.0

    def begin(self, process: WorkerProcess) -> None:
        """Let it begin in a fresh process; `greet` waits for it."""
        self.own = process
        if self.arrays is not None:
            self.arrays.current[self.number] = -1
        self.send(pickle.dumps(self._start))

    def greet(self, seconds: float | None) -> tuple[list[Described], list[str]]:
        """Once its environments are made: what its lanes are like, and the modules that they have imported."""
        said: tuple[list[Described], list[str]] = self.receive_reply(seconds, "making its environments")
        return said

    def attach(self, spec: ArraySpec, arrays: SharedArrays) -> None:
        """Tell it what is where in the memory."""
        self.arrays = arrays
        self._bell = ParentBell(arrays.bells[self.number], self._start.spin)
        self._bell.begin()
        self.send(pickle.dumps(spec))

    def ask_step(self) -> None:
        """Ask for a step with the actions in the shared memory."""
        if self.own is None:
            raise self._down("it is not running")
        if self._bell.ask(self.turn):
            self.send_frame(STEP_FRAME)

    def receive_step(self, seconds: float | None) -> bytes:
        """What it says about the step it was asked for: DONE, with a pickle where there is something to say."""
        bell = self._bell
        while not bell.wait():
            message = self.receive(seconds, "a step", bell.is_answered)
            if len(message) > 1:
                return message
        while bell.said():
            message = self.receive(seconds, "a step")
            if len(message) > 1:
                return message
        return DONE

    def send(self, message: bytes, seconds: float | None = 60.0) -> None:
        """Send a message."""
        self.send_frame(framed(message), seconds)

    def send_frame(self, frame: bytes, seconds: float | None = 60.0) -> None:
        """Send a message that is framed already."""
        if self.own is None:
            raise self._down("it is not running")
        try:
            self.own.channel.send_frame(frame, seconds)
        except (ChannelClosed, ChannelTimeout):
            raise self._down(self.own.how_it_ended()) from None

    def receive(self, seconds: float | None, doing: str, enough: Callable[[], bool] | None = None) -> bytes:
        """Its next message, empty when `enough` says that none is needed; notices within about a second that it was
        stopped."""
        if self.own is None:
            raise self._down("it is not running")
        deadline = None if seconds is None else time.monotonic() + seconds
        stopped = False
        while True:
            left = _LOOK_SECONDS if deadline is None else min(_LOOK_SECONDS, deadline - time.monotonic())
            try:
                message = self.own.channel.receive(max(0.0, left))
                break
            except ChannelTimeout:
                if enough is not None and enough():
                    return b""
                self.own.trim_output()
                if not self.own.is_stopped():
                    stopped = False
                elif stopped:  # twice, half a second apart: nobody is about to let it go on
                    raise self._down("its process was stopped (SIGSTOP)") from None
                else:
                    stopped = True
                if deadline is not None and time.monotonic() >= deadline:
                    lane = self._busy_lane()  # before the signal, which may wake the environment
                    self.own.ask_for_traceback()
                    raise self._down(f"it hangs: {doing} took longer than {seconds:g} s", lane) from None
            except ChannelClosed:
                raise self._down(self.own.how_it_ended()) from None
        if message[:1] == FAILED:
            failure: Failure = pickle.loads(memoryview(message)[1:])  # noqa: S301 - from a process this one started
            failure = replace(failure, output=self.own.last_output())
            self.end()
            raise WorkerDown(failure)
        return message

    def receive_reply(self, seconds: float | None, doing: str) -> Any:
        """The value it replies with; raises the exception that it was asked to pass on."""
        while (message := self.receive(seconds, doing)) == DONE:
            pass  # of a step that had been seen to be done before the message came
        value = pickle.loads(memoryview(message)[1:])  # noqa: S301 - from a process this one started
        if message[:1] == RAISED:
            raise value
        return value

    def look(self, now: float) -> None:
        """Now and then, keep what it printed within bounds; `now` is `time.monotonic()`."""
        if now - self._looked > _LOOK_SECONDS and self.own is not None:
            self._looked = now
            self.own.trim_output()

    def say_close(self) -> None:
        """Ask it to close its environments and end."""
        with contextlib.suppress(WorkerDown):
            self.send(pickle.dumps(("close", None)), 1.0)

    def end(self, seconds: float = 0.0) -> None:
        """End the process and what it started, after waiting `seconds` for it to end by itself. Does not raise."""
        if self.own is not None:
            self.own.end(seconds)
            self.own = None

    def last_output(self) -> str:
        """The last lines that were printed in it."""
        return "" if self.own is None else self.own.last_output()

    def named(self, failure: Failure, alone: bool = False) -> str:
        """What failed where, in words; `alone` when only the lane is concerned."""
        lanes = self.lanes
        which = f"lane {lanes[0]}" if len(lanes) == 1 else f"lanes {lanes[0]} to {lanes[-1]}"
        where = "" if failure.lane is None else f"lane {failure.lane}: "
        if failure.lane is not None and (alone or failure.is_fault):
            return f"worker {self.number}, {where}{failure.reason}"
        return f"worker {self.number} ({which}) failed: {where}{failure.reason}"

    def given_up(self, failure: Failure, more: str = "", alone: bool = False) -> WorkerError:
        """The error for a failure that is not mended, with the worker's own traceback and its last output."""
        own = f"\nThe worker's own traceback:\n{failure.traceback.rstrip()}" if failure.traceback else ""
        output = failure.output or self.last_output()
        printed = f"\nThe last lines it printed:\n{output}" if output else ""
        return WorkerError(f"{self.named(failure, alone)}{more}{own}{printed}")

    def _busy_lane(self) -> int | None:
        lane = -1 if self.arrays is None else int(self.arrays.current[self.number])
        return lane if lane >= 0 else None

    def _down(self, reason: str, lane: int | None = None) -> WorkerDown:
        """End the process and say what is known about why."""
        text = output = ""
        if self.own is not None:
            text, output = self.own.traceback(), self.own.last_output()
        lane = self._busy_lane() if lane is None else lane
        self.end()
        return WorkerDown(Failure(lane, reason, text, False, output))


def end_all(workers: Sequence[Worker], seconds: float) -> None:
    """End all workers, giving them `seconds` together to close their environments."""
    for worker in workers:
        worker.say_close()
    deadline = time.monotonic() + seconds
    for worker in workers:
        worker.end(max(0.0, deadline - time.monotonic()))
