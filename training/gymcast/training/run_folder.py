"""What the manager and the worker of a session leave for each other in the run folder.

``config.yaml``
    the configuration; the worker adds the seed it draws.
``session.json``
    the worker's orders: which session it is, where its events go, what it reports. Written again when another manager
    takes the session over, and read again by a worker whose server is away.
``worker.lock``
    locked by the worker as long as it or a child of it lives, so a run folder never has two workers; names its process.
``progress.mark``
    what the worker is doing, and since when it has not got on with it (:mod:`gymcast.training.hang_watch`).
``outcome.json``
    how an attempt ended, in the worker's own words. Without it the worker was killed.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Self

from gymcast.training.config import TrainingConfig
from gymcast.training.events import SessionStatus

CONFIG_NAME: Final = "config.yaml"
ORDERS_NAME: Final = "session.json"
LOCK_NAME: Final = "worker.lock"
OUTCOME_NAME: Final = "outcome.json"
LOG_NAME: Final = "worker.log"
_LOCK_WAIT_SECONDS: Final = 2.0


class RunTakenError(RuntimeError):
    """Another worker has the run folder."""


@dataclass(frozen=True)
class Orders:
    """What a worker has to know beside its configuration."""

    session_id: str
    server_url: str
    token: str | None = None
    """Proof for the receiver of the events that they come from this session's worker."""
    report_episodes: bool = False
    """Whether every finished episode is reported, and not only their averages."""

    def write(self, run_dir: Path) -> None:
        """Leave the orders for the worker; only this user can read them. Raises ``OSError``."""
        _replace(run_dir / ORDERS_NAME, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, run_dir: Path) -> Self:
        """The orders in ``run_dir``. Raises ``OSError``, ``ValueError``."""
        return cls(**_read_object(run_dir / ORDERS_NAME))


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended. ``retry`` says whether another attempt from the newest checkpoint may end otherwise."""

    attempt: int
    status: SessionStatus
    reason: str | None
    retry: bool = False
    events: int = 0
    """Events the worker has sent or spooled."""

    def write(self, run_dir: Path) -> None:
        """Leave the outcome for the manager. Raises ``OSError``."""
        _replace(run_dir / OUTCOME_NAME, json.dumps(asdict(self)) + "\n")

    @classmethod
    def read(cls, run_dir: Path, attempt: int) -> Self | None:
        """The outcome of ``attempt``; ``None`` when its worker left none."""
        try:
            found = cls(**_read_object(run_dir / OUTCOME_NAME))
        except (OSError, ValueError):
            return None
        return found if found.attempt == attempt else None


def write_config(run_dir: Path, config: TrainingConfig) -> None:
    """Make the run folder with its configuration. Raises ``OSError``."""
    run_dir.mkdir(parents=True, exist_ok=True)
    _replace(run_dir / CONFIG_NAME, config.to_yaml())


def _replace(path: Path, text: str) -> None:
    """Write a file that is there whole or not at all, readable by this user only."""
    part = path.with_name(f".{path.name}.part")
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    part.replace(path)


def _read_object(path: Path) -> dict[str, Any]:
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no object")
    known = {"session_id", "server_url", "token", "report_episodes", "attempt", "status", "reason", "retry", "events"}
    return {name: item for name, item in value.items() if name in known}


class FileLock:
    """A file locked by this process. The kernel gives it back when the process and its forked children are gone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: int | None = None

    def take(self) -> None:
        """Lock the file and write this process's number in it. Raises :class:`RunTakenError`, ``OSError``."""
        number = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + _LOCK_WAIT_SECONDS
        while not _locked(number):
            # Somebody who only looks holds the lock for a moment.
            if time.monotonic() > deadline:
                os.close(number)
                raise RunTakenError(f"{self.path.parent} has a worker already: process {holder(self.path)}")
            time.sleep(0.02)
        os.ftruncate(number, 0)
        os.write(number, str(os.getpid()).encode())
        self._file = number

    def give_back(self) -> None:
        """Unlock and delete the file."""
        if self._file is not None:
            self.path.unlink(missing_ok=True)
            os.close(self._file)
            self._file = None


def _locked(number: int) -> bool:
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def holder(path: Path) -> int | None:
    """The id of the process that has locked the file; ``None`` when nobody has, 0 when it has not said its number."""
    try:
        number = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        for _ in range(20):
            if _locked(number):
                return None  # closing the file gives the lock back
            if text := os.pread(number, 32, 0):
                return int(text)
            time.sleep(0.01)  # it has just been locked
        return 0
    finally:
        os.close(number)


def worker_of(run_dir: Path) -> int | None:
    """The process id of the worker that has ``run_dir`` now; ``None`` when it has none."""
    return holder(run_dir / LOCK_NAME)
