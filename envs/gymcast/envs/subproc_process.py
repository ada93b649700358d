"""A worker process as its parent sees it: started, watched and ended, whatever the environments in it do."""

from __future__ import annotations

import contextlib
import fcntl
import multiprocessing
import os
import pickle
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from gymcast.envs.channel import Channel, ChannelClosed, ChannelTimeout
from gymcast.envs.subproc_worker import LOST_DESCRIPTORS, main

Target = Callable[[socket.socket, socket.socket, int], None]

_TRACEBACK_SECONDS = 0.3  # for a hanging worker to say where it hangs
_LIFELINES: set[socket.socket] = set()  # ends whose closing ends a worker
_OUTPUT_BYTES, _OUTPUT_KEPT = 1 << 20, 1 << 16  # what its environments printed is cut to the latter beyond the former
_LAST_LINES, _LINE = 20, 500


def _leave_lifelines() -> None:
    """A child that was forked must not keep the workers of its parent alive."""
    for lifeline in _LIFELINES:
        lifeline.close()
    _LIFELINES.clear()


os.register_at_fork(after_in_child=_leave_lifelines)


class WorkerProcess:
    """A process that runs `target`, by default one that waits for a `WorkerStart`.

    Args:
        method: "fork", "spawn" or "forkserver".
        memory: descriptor of the memory the arrays are in.
        capture: whether to keep what its environments print, rather than let it go where the parent's goes.
        target: what it runs, given its ends of the channel and of the lifeline and the parent's process id; it calls
            `enter_worker` first.

    Raises:
        OSError: its process ended at once; it has been cleared away.
    """

    def __init__(self, method: str, memory: int, capture: bool = True, target: Target = main) -> None:
        ours, theirs = socket.socketpair()
        self._lifeline, their_lifeline = socket.socketpair()
        _LIFELINES.add(self._lifeline)
        context: Any = multiprocessing.get_context(method)
        # Not a daemon: environments may start processes of their own. Whoever holds this ends it before the exit.
        self.process: Any = context.Process(
            target=target, args=(theirs, their_lifeline, os.getpid()), daemon=False, name="gymcast-worker"
        )
        try:
            self.process.start()
        finally:
            theirs.close()
            their_lifeline.close()
        self.pid: int = self.process.pid
        self._log = os.memfd_create("gymcast-worker-log")
        self._output = -1
        self.pidfd = -1
        """Readable when the process has ended."""
        given = [memory, self._log]
        if capture:
            self._output = os.memfd_create("gymcast-worker-output")
            fcntl.fcntl(self._output, fcntl.F_SETFL, fcntl.fcntl(self._output, fcntl.F_GETFL) | os.O_APPEND)
            given.append(self._output)
        self.channel = Channel(ours)
        try:
            self.pidfd = os.pidfd_open(self.pid)
            self.channel = Channel(ours, self.pidfd)
            socket.send_fds(ours, [b"!"], given)
        except OSError:
            self.end()
            raise

    def warm(self, modules: Sequence[str]) -> None:
        """Let it import `modules` while it waits, so that it makes environments in a moment."""
        with contextlib.suppress(ChannelClosed, ChannelTimeout):
            self.channel.send(pickle.dumps(list(modules)), 1.0)

    def is_alive(self) -> bool:
        """Whether it has not ended."""
        return not select.select([self.pidfd], [], [], 0)[0]

    def is_stopped(self) -> bool:
        """Whether it was stopped (SIGSTOP), so that it will not go on by itself."""
        try:
            with open(f"/proc/{self.pid}/stat", "rb") as file:
                return file.read().rpartition(b") ")[2][:1] == b"T"
        except OSError:
            return False

    def trim_output(self) -> None:
        """Keep what its environments print within bounds. Nothing blocks where nobody reads: it is a file in memory."""
        if self._output >= 0 and (size := os.fstat(self._output).st_size) > _OUTPUT_BYTES:
            rest = os.pread(self._output, _OUTPUT_KEPT, size - _OUTPUT_KEPT)
            os.ftruncate(self._output, 0)
            os.write(self._output, rest)

    def last_output(self) -> str:
        """The last lines its environments printed, on both streams."""
        if self._output < 0:
            return ""
        size = os.fstat(self._output).st_size
        data = os.pread(self._output, _OUTPUT_KEPT, max(0, size - _OUTPUT_KEPT))
        lines = data.decode("utf-8", errors="replace").splitlines()[-_LAST_LINES:]
        shown = ["".join(sign if sign.isprintable() or sign == "\t" else "\ufffd" for sign in line) for line in lines]
        return "\n".join(
            line if len(line) <= _LINE else f"{line[: _LINE // 2]} ... {line[-_LINE // 2 :]}" for line in shown
        )

    def traceback(self) -> str:
        """What Python wrote when it crashed or was asked where it is."""
        return os.pread(self._log, 65536, 0).decode("utf-8", errors="replace")

    def ask_for_traceback(self) -> None:
        """Wait for a moment for it to write where it is."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGUSR1)
            deadline = time.monotonic() + _TRACEBACK_SECONDS
            while time.monotonic() < deadline and os.fstat(self._log).st_size == 0:
                time.sleep(0.01)
            time.sleep(0.01)  # the rest of it

    def how_it_ended(self) -> str:
        """In words; waits for the end for a second."""
        select.select([self.pidfd], [], [], 1.0)
        self.process.join(1.0)
        code = self.process.exitcode
        if code is not None and code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        if code == LOST_DESCRIPTORS:
            return "an environment closed the file descriptors of its process, which could not go on"
        return f"its process ended by itself with exit code {code}"

    def end(self, seconds: float = 0.0) -> None:
        """End the process and what it started, after waiting `seconds` for it to end by itself. Does not raise."""
        if self.pidfd >= 0 and seconds > 0:
            select.select([self.pidfd], [], [], seconds)
        with contextlib.suppress(ProcessLookupError):  # the group is there from the moment the worker made it
            os.killpg(self.pid, signal.SIGKILL)
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)
        else:
            self.process.kill()
        self.process.join()
        self.process.close()
        self.channel.close()
        for fd in (self.pidfd, self._log, self._output):
            if fd >= 0:
                os.close(fd)
        self.pidfd = self._log = self._output = -1
        self._lifeline.close()
        _LIFELINES.discard(self._lifeline)
