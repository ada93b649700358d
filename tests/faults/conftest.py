"""Real ``gymcast`` processes, in a terminal of their own or without one."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import psutil
import pytest

from gymcast.training.sessions import SessionManager

from ..managed import PACED, Keeper, run_dir_of, weights

# Processes inherit a signal that is ignored, as it is under nohup.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


class Cli:
    """A running ``gymcast`` command. Its output is collected in ``text``; every process it starts is remembered."""

    def __init__(self, arguments: list[str], folder: Path, *, terminal: bool = False) -> None:
        self.text = ""
        self._seen: dict[int, float] = {}
        self._master, slave = pty.openpty() if terminal else os.pipe()

        def own_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            [sys.executable, "-m", "gymcast.server.cli", *arguments],
            cwd=folder,
            stdin=slave if terminal else subprocess.DEVNULL,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=own_terminal if terminal else None,
            env={**os.environ, "COLUMNS": "120", "LINES": "40", "TERM": "xterm-256color", "PYTHONUNBUFFERED": "1"},
        )
        os.close(slave)

    def read_until(self, pattern: str, seconds: float = 120.0) -> re.Match[str]:
        """Read until ``pattern`` occurs in the output; fails with the output when it does not."""
        deadline = time.monotonic() + seconds
        while (found := re.search(pattern, self.text)) is None:
            if time.monotonic() > deadline or not self._read(0.1):
                raise AssertionError(f"{pattern!r} did not appear in:\n{self.text}")
        return found

    def _read(self, seconds: float) -> bool:
        """Take what the command has printed; false once it has closed its output."""
        self.remember_children()
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return True
        try:
            part = os.read(self._master, 65536)
        except OSError:  # what a pseudo-terminal says when its other side is closed
            return False
        self.text += part.decode("utf-8", errors="replace")
        return bool(part)

    def remember_children(self) -> None:
        """Note every process below the command."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in psutil.Process(self.process.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    self._seen[child.pid] = child.create_time()

    def type_ctrl_c(self) -> None:
        """What a person does: the terminal sends SIGINT to its foreground process group."""
        os.write(self._master, b"\x03")

    def hang_up(self) -> None:
        """Close the terminal, as closing its window does: the system sends SIGHUP."""
        os.close(self._master)
        self._master = -1

    def finish(self, seconds: float = 60.0) -> int:
        """Read to the end and return the exit code."""
        deadline = time.monotonic() + seconds
        while self._read(0.1):
            if time.monotonic() > deadline:
                raise AssertionError(f"the command did not end:\n{self.text}")
        return self.process.wait(30.0)

    def orphans(self, seconds: float = 30.0) -> list[str]:
        """Processes the command started that outlive it."""
        deadline = time.monotonic() + seconds
        while True:
            left = [text for pid, created in self._seen.items() if (text := _alive(pid, created)) is not None]
            if not left or time.monotonic() > deadline:
                return left
            time.sleep(0.05)

    @property
    def children_seen(self) -> int:
        """How many processes the command was seen to start."""
        return len(self._seen)

    def close(self) -> None:
        """End whatever is left, so that one failed test does not disturb the next."""
        self.remember_children()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        for pid, created in self._seen.items():
            if _alive(pid, created) is not None:
                os.kill(pid, signal.SIGKILL)
        if self._master >= 0:
            os.close(self._master)


def _alive(pid: int, created: float) -> str | None:
    try:
        process = psutil.Process(pid)
        if process.create_time() != created or process.status() == psutil.STATUS_ZOMBIE:
            return None
        return f"{pid}: {' '.join(process.cmdline())}"
    except psutil.NoSuchProcess:
        return None


@pytest.fixture
def cli(tmp_path: Path) -> Iterator[Callable[..., Cli]]:
    """Start ``gymcast`` with arguments in an empty folder."""
    started: list[Cli] = []

    def start(*arguments: str, terminal: bool = False) -> Cli:
        started.append(Cli(list(arguments), tmp_path, terminal=terminal))
        return started[-1]

    yield start
    for command in started:
        command.close()


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The weights that the sessions of ``PACED`` come to when nobody disturbs them."""

    async def run() -> str:
        async with SessionManager(runs_dir=tmp_path_factory.mktemp("undisturbed")) as manager, asyncio.timeout(120):
            ended = await manager.wait(
                await manager.create_session(PACED.model_copy(update={"speed_multiplier": None}))
            )
        assert ended.status == "completed"
        return weights(run_dir_of(ended))

    return asyncio.run(run())


@pytest.fixture(autouse=True)
async def no_keeper_left() -> AsyncIterator[None]:
    """One failed test must not disturb the next."""
    yield
    for keeper in list(Keeper.running):
        await keeper.kill()
