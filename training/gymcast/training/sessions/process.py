"""One worker process: started in a process group of its own, watched, and stopped step by step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Self

import psutil

from gymcast.training.hang_watch import REMEDY
from gymcast.training.launch import worker_environment
from gymcast.training.run_folder import LOG_NAME, worker_of

log = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.2
# As long as writing down its stack takes a process.
_DUMP_SECONDS: Final = 0.3
_TAIL_BYTES: Final = 4096
# What a fault in native code ends with; other signals come from outside.
_CRASHES: Final = (signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGILL)


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended: its return code (negative: the number of the signal that killed it).

    ``None`` for a worker that another manager had started: only its parent learns a process's return code. ``why`` is
    what it was killed for, and ``in_game`` names the game that had not returned when it ended.
    """

    code: int | None
    why: str | None = None
    in_game: str | None = None

    def describe(self) -> str:
        """For people: ``exit code 1`` or ``killed by SIGKILL``."""
        if self.why is not None:
            return self.why
        if self.code is None:
            return "its process has ended without a word"
        if self.code >= 0:
            return f"exit code {self.code}"
        name = signal.Signals(-self.code).name if -self.code in signal.valid_signals() else f"signal {-self.code}"
        if self.in_game is not None and -self.code in _CRASHES:
            return f"killed by {name} inside {self.in_game}; {REMEDY}"
        hint = "; the system may have run out of memory" if self.code == -signal.SIGKILL else ""
        return f"killed by {name}{hint}"


class WorkerProcess:
    """A running ``python -m gymcast.training.worker``: one of our own (:meth:`start`) or a found one (:meth:`find`)."""

    def __init__(self, pid: int, run_dir: Path, process: asyncio.subprocess.Process | None) -> None:
        self.pid: Final = pid
        """Process id, which is also the id of the worker's process group."""
        self.run_dir = run_dir
        self._process = process
        self._ended = False
        self._left = False

    @classmethod
    async def start(cls, run_dir: Path, *, attempt: int, resume: bool, ends_with_parent: bool) -> Self:
        """Start the worker of ``run_dir``. Its output goes to ``run_dir/worker.log``. Raises ``OSError``.

        The worker leads a process group (and session) of its own: a Ctrl-C in the terminal reaches only the process
        that owns the terminal, which then decides how the worker ends.
        """
        arguments = ["--run-dir", str(run_dir), "--attempt", str(attempt)]
        if resume:
            arguments.append("--resume")
        parent = ["--parent", str(os.getpid())] if ends_with_parent else []
        with _open_log(run_dir) as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gymcast.training.launch",
                *parent,
                "--",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=worker_environment(),
            )
        return cls(process.pid, run_dir, process)

    @classmethod
    def find(cls, run_dir: Path) -> Self | None:
        """The worker that has ``run_dir`` now, whoever started it; ``None`` when it has none."""
        pid = worker_of(run_dir)
        return None if pid is None else cls(pid, run_dir, None)

    @property
    def running(self) -> bool:
        """Whether the process has not been seen to end."""
        return not self._ended

    async def wait(self) -> WorkerExit:
        """Wait for the end of the worker; what is left of its process group is then killed."""
        if self._process is not None:
            code: int | None = await self._process.wait()
        else:
            code = None
            while self._stranger_runs():  # noqa: ASYNC110 - nobody but its parent is told of the end of a process
                await asyncio.sleep(_LOOK_SECONDS)
        self._ended = True
        self._signal_group(signal.SIGKILL)
        return WorkerExit(code)

    def _stranger_runs(self) -> bool:
        return not self._left and is_alive(self.pid) and worker_of(self.run_dir) == self.pid

    def leave(self) -> None:
        """Let nobody wait for it any more; it goes on."""
        self._left = True

    def terminate(self) -> None:
        """Ask for an orderly end (SIGTERM to the worker itself): it writes a checkpoint and leaves."""
        if not self._ended:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, signal.SIGTERM)

    async def kill_hanging(self) -> None:
        """End a worker that will not end itself; where it hangs it leaves in its log."""
        if not self._ended:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, signal.SIGUSR1)
            await asyncio.sleep(_DUMP_SECONDS)
        self.kill()

    def kill(self) -> None:
        """End the worker and its children at once."""
        if not self._ended:
            self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # nobody is left
            os.killpg(self.pid, number)


def _open_log(run_dir: Path) -> BinaryIO:
    return open(run_dir / LOG_NAME, "ab")


def last_lines(path: Path, lines: int) -> str:
    """The last non-empty ``lines`` of a log file, read from its end."""
    try:
        with open(path, "rb") as file:
            file.seek(0, os.SEEK_END)
            file.seek(max(0, file.tell() - _TAIL_BYTES))
            text = file.read().decode("utf-8", errors="replace")
    except OSError as error:
        log.warning("cannot read %s: %s", path, error)
        return ""
    found = [line.strip() for line in text.splitlines() if line.strip()]
    return "\n".join(found[-lines:])


def is_alive(pid: int) -> bool:
    """Whether the process ``pid`` runs. A zombie, which nobody waits for, does not."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
