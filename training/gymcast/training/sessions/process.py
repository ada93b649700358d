"""One worker process: started in a process group of its own, watched, and stopped step by step."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Final, Self

import psutil

log = logging.getLogger(__name__)

LOG_NAME: Final = "worker.log"
_TAIL_BYTES: Final = 4096


@dataclass(frozen=True)
class WorkerExit:
    """How a worker ended: its return code (negative: the number of the signal that killed it)."""

    code: int

    @property
    def by_signal(self) -> bool:
        """Whether it ended because of SIGINT or SIGTERM, with or without handling it."""
        return self.code in (-signal.SIGINT, -signal.SIGTERM, 128 + signal.SIGINT, 128 + signal.SIGTERM)

    @property
    def killed(self) -> bool:
        """Whether a signal ended it that nobody sends to ask for an end: a crash, or the system out of memory."""
        return self.code < 0 and not self.by_signal

    def describe(self) -> str:
        """For people: ``exit code 1`` or ``killed by SIGKILL``."""
        if self.code >= 0:
            return f"exit code {self.code}"
        name = signal.Signals(-self.code).name if -self.code in signal.valid_signals() else f"signal {-self.code}"
        hint = "; the system may have run out of memory" if self.code == -signal.SIGKILL else ""
        return f"killed by {name}{hint}"


class WorkerProcess:
    """A running ``python -m gymcast.training.worker``. Make one with :meth:`start`."""

    def __init__(self, process: asyncio.subprocess.Process, run_dir: Path) -> None:
        self._process = process
        self.run_dir = run_dir
        self.created: Final = creation_time(process.pid)
        """When the process was made, seconds since 1970: with the pid it names the process for good."""

    @classmethod
    async def start(
        cls, *, run_dir: Path, server_url: str, session_id: str, resume: bool = False, ends_with_parent: bool = True
    ) -> Self:
        """Start the worker of ``run_dir/config.yaml``. Its output goes to ``run_dir/worker.log``. Raises ``OSError``.

        The worker leads a process group (and session) of its own: a Ctrl-C in the terminal reaches only the process
        that owns the terminal, which then decides how the worker ends.
        """
        arguments = ["--run-dir", str(run_dir), "--server", server_url, "--session", session_id]
        if resume:
            arguments.append("--resume")
        parent = ["--parent", str(os.getpid())] if ends_with_parent else []
        with _open_log(run_dir) as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gymcast.training.sessions.launch",
                *parent,
                "--",
                *arguments,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return cls(process, run_dir)

    @property
    def pid(self) -> int:
        """Process id, which is also the id of the worker's process group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the process has not been seen to end."""
        return self._process.returncode is None

    async def wait(self) -> WorkerExit:
        """Wait for the end of the worker; what is left of its process group is then killed."""
        code = await self._process.wait()
        self._signal_group(signal.SIGKILL)
        return WorkerExit(code)

    def terminate(self) -> None:
        """Ask for an orderly end (SIGTERM to the worker itself): it writes a checkpoint and leaves."""
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            self._process.terminate()

    def kill(self) -> None:
        """End the worker and its children at once."""
        self._signal_group(signal.SIGKILL)

    def _signal_group(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):  # nobody is left
            os.killpg(self.pid, number)

    def log_tail(self, lines: int = 1) -> str:
        """The last non-empty lines the worker printed; empty when there are none."""
        return last_lines(self.run_dir / LOG_NAME, lines)


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


def creation_time(pid: int) -> float | None:
    """When the process was made, seconds since 1970; ``None`` when there is none."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def is_alive(pid: int, created: float | None) -> bool:
    """Whether the process ``pid`` made at ``created`` still runs (and is not another one that got its number)."""
    try:
        process = psutil.Process(pid)
        return process.status() != psutil.STATUS_ZOMBIE and (
            created is None or abs(process.create_time() - created) < 1.0
        )
    except psutil.NoSuchProcess:
        return False


def outcome(result: WorkerExit, stop_asked: bool) -> tuple[str, str | None]:
    """The status that a worker's exit means when it reported none itself, and the reason."""
    if result.code == 0:
        return ("cancelled", "stopped before its goal") if stop_asked else ("completed", None)
    if stop_asked:
        return "cancelled", f"stopped: {result.describe()}"
    if result.by_signal:
        return "cancelled", f"stopped by a signal: {result.describe()}"
    return "failed", result.describe()


def someone_watches(resources: Mapping[str, Any]) -> bool:
    """Whether the server or the worker of a session, as its ``resources`` name them, is alive."""
    server, worker = resources.get("server_pid"), resources.get("pid")
    if isinstance(server, int) and is_alive(server, resources.get("server_created")):
        return True
    return isinstance(worker, int) and is_alive(worker, resources.get("pid_created"))
