"""The parent's side of worker processes: starting, asking, and ending them, whatever they do."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import select
import signal
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle

from gymcast.envs.channel import Channel, ChannelClosed, ChannelTimeout
from gymcast.envs.shared_arrays import ArraySpec, SharedArrays
from gymcast.envs.subproc_lanes import WorkerStart
from gymcast.envs.subproc_worker import FAILED, RAISED, Failure, main

_TRACEBACK_SECONDS = 0.3  # for a hanging worker to say where it hangs
_LIFELINES: set[socket.socket] = set()  # ends whose closing ends a worker
_FIRST_DELAY = 0.2  # seconds
_IN_A_ROW = 5  # restarts of a worker without a completed step in between


def _leave_lifelines() -> None:
    """A child that was forked must not keep the workers of its parent alive."""
    for lifeline in _LIFELINES:
        lifeline.close()
    _LIFELINES.clear()


os.register_at_fork(after_in_child=_leave_lifelines)


class WorkerError(RuntimeError):
    """A worker process of a subprocess vector environment failed for good."""


class WorkerDown(Exception):
    """A worker died, gave up or hangs; it has been ended."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


@dataclass(frozen=True)
class WorkerRestart:
    """A worker that was started again."""

    worker: int
    lanes: tuple[int, ...]
    reason: str
    traceback: str
    """The worker's own, empty when it left none (SIGKILL)."""
    restarts: int
    """Restarts of all workers so far, this one included."""
    seconds: float
    """How long the other lanes waited for it."""


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
    """One worker process and the lanes it steps. Methods that talk to it raise WorkerDown, and then it has ended.

    Args:
        number: its place among the workers.
        lanes: the lanes it steps, side by side.
        factories: one function per lane that makes its environment.
        method: "fork", "spawn" or "forkserver".
        memory: descriptor of the memory the arrays are in.
        episode_timeout: seconds after which it truncates an episode, or None.
        spin: seconds for which it looks for the next step before it sleeps.
    """

    def __init__(
        self,
        number: int,
        lanes: range,
        factories: Sequence[Callable[[], Any]],
        method: str,
        memory: int,
        episode_timeout: float | None,
        spin: float = 0.0,
    ) -> None:
        self.number, self.lanes = number, lanes
        self.in_a_row = 0
        """Restarts since it last completed a step."""
        self._context: Any = multiprocessing.get_context(method)
        self._memory = memory
        pickled = tuple(cloudpickle.dumps(factory) for factory in factories)
        self._start = WorkerStart(number, lanes[0], pickled, os.getpid(), episode_timeout, spin)
        self.arrays: SharedArrays | None = None
        self.process: Any = None
        self._channel: Channel | None = None
        self._lifeline: socket.socket
        self._pidfd = self._log = -1

    def start(self) -> None:
        """Start the process; `greet` waits for it."""
        ours, theirs = socket.socketpair()
        self._lifeline, their_lifeline = socket.socketpair()
        _LIFELINES.add(self._lifeline)
        # Not a daemon: environments may start processes of their own. Whoever holds this ends it before the exit.
        self.process = self._context.Process(
            target=main, args=(theirs, their_lifeline, self._start), daemon=False, name=f"gymcast-worker-{self.number}"
        )
        try:
            self.process.start()
        finally:
            theirs.close()
            their_lifeline.close()
        self._log = os.memfd_create("gymcast-worker-log")
        try:
            self._pidfd = os.pidfd_open(self.process.pid)
            socket.send_fds(ours, [b"!"], [self._memory, self._log])
        except OSError as error:
            ours.close()
            raise self._down(f"its process ended at once ({error})") from None
        self._channel = Channel(ours, self._pidfd)

    def greet(self, seconds: float | None) -> tuple[Any, Any, int]:
        """Observation space, action space and mask size, once its environments are made."""
        described: tuple[Any, Any, int] = self.receive_reply(seconds, "making its environments")
        return described

    def attach(self, spec: ArraySpec, arrays: SharedArrays) -> None:
        """Tell it what is where in the memory."""
        self.arrays = arrays
        self.send(pickle.dumps(spec))

    def send(self, message: bytes, seconds: float | None = 60.0) -> None:
        """Send a message."""
        if self._channel is None:
            raise self._down("it is not running")
        try:
            self._channel.send(message, seconds)
        except (ChannelClosed, ChannelTimeout):
            raise self._down(self._how_it_ended()) from None

    def receive(self, seconds: float | None, doing: str) -> bytes:
        """Its next message."""
        if self._channel is None:
            raise self._down("it is not running")
        try:
            message = self._channel.receive(seconds)
        except ChannelTimeout:
            lane = self._busy_lane()  # before the signal, which may wake the environment
            self._ask_for_traceback()
            raise self._down(f"it hangs: {doing} took longer than {seconds:g} s", lane) from None
        except ChannelClosed:
            raise self._down(self._how_it_ended()) from None
        if message[:1] == FAILED:
            failure: Failure = pickle.loads(memoryview(message)[1:])  # noqa: S301 - from a process this one started
            self.end()
            raise WorkerDown(failure)
        return message

    def receive_reply(self, seconds: float | None, doing: str) -> Any:
        """The value it replies with; raises the exception that it was asked to pass on."""
        message = self.receive(seconds, doing)
        value = pickle.loads(memoryview(message)[1:])  # noqa: S301 - from a process this one started
        if message[:1] == RAISED:
            raise value
        return value

    def say_close(self) -> None:
        """Ask it to close its environments and end."""
        with contextlib.suppress(WorkerDown):
            self.send(pickle.dumps(("close", None)), 1.0)

    def end(self, seconds: float = 0.0) -> None:
        """End the process and what it started, after waiting `seconds` for it to end by itself. Does not raise."""
        if self.process is None:
            return
        if self._pidfd >= 0 and seconds > 0:
            select.select([self._pidfd], [], [], seconds)
        with contextlib.suppress(ProcessLookupError):  # the group is there from the moment the worker made it
            os.killpg(self.process.pid, signal.SIGKILL)
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.join()
        self.process.close()
        self.process = None
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        for fd in (self._pidfd, self._log):
            if fd >= 0:
                os.close(fd)
        self._pidfd = self._log = -1
        self._lifeline.close()
        _LIFELINES.discard(self._lifeline)

    def named(self, failure: Failure) -> str:
        """What failed where, in words."""
        lanes = self.lanes
        which = f"lane {lanes[0]}" if len(lanes) == 1 else f"lanes {lanes[0]} to {lanes[-1]}"
        where = "" if failure.lane is None else f"lane {failure.lane}: "
        return f"worker {self.number} ({which}) failed: {where}{failure.reason}"

    def given_up(self, failure: Failure, more: str = "") -> WorkerError:
        """The error for a failure that is not mended, with the worker's own traceback."""
        own = f"\nThe worker's own traceback:\n{failure.traceback}" if failure.traceback else ""
        return WorkerError(f"{self.named(failure)}{more}{own}")

    def _how_it_ended(self) -> str:
        if self._pidfd >= 0:
            select.select([self._pidfd], [], [], 1.0)
        self.process.join(1.0)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process ended by itself with exit code {code}"

    def _ask_for_traceback(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.process.pid, signal.SIGUSR1)
            deadline = time.monotonic() + _TRACEBACK_SECONDS
            while time.monotonic() < deadline and os.fstat(self._log).st_size == 0:
                time.sleep(0.01)
            time.sleep(0.01)  # the rest of it

    def _busy_lane(self) -> int | None:
        lane = -1 if self.arrays is None else int(self.arrays.current[self.number])
        return lane if lane >= 0 else None

    def _down(self, reason: str, lane: int | None = None) -> WorkerDown:
        """End the process and say what is known about why."""
        text = ""
        if self._log >= 0:
            text = os.pread(self._log, 65536, 0).decode("utf-8", errors="replace")
        lane = self._busy_lane() if lane is None else lane
        self.end()
        return WorkerDown(Failure(lane, reason, text, False))


def end_all(workers: Sequence[Worker], seconds: float) -> None:
    """End all workers, giving them `seconds` together to close their environments."""
    for worker in workers:
        worker.say_close()
    deadline = time.monotonic() + seconds
    for worker in workers:
        worker.end(max(0.0, deadline - time.monotonic()))
