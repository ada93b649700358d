"""Where the events of a script wait until a server has them, and how they get there when the script is gone.

Each session of a script has a folder of its own below :func:`spool_root`, with ``session.json`` (what was announced,
and where), ``script.lock`` (locked while the script lives) and the events of :mod:`gymcast.training.spool`. It is
deleted once everything has arrived.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Self

from gymcast.training.announce import Announcement
from gymcast.training.broadcast import EventSink
from gymcast.training.events import utc_now
from gymcast.training.http_client import HttpClient, ServerAway
from gymcast.training.run_folder import FileLock, RunTakenError, holder

SPOOL_VARIABLE: Final = "GYMCAST_SPOOL"
NOTE_NAME: Final = "session.json"
LOCK_NAME: Final = "script.lock"
LOST: Final = "the script ended without saying how, such as by being killed"


def spool_root() -> Path:
    """Folder of all scripts' spools: ``GYMCAST_SPOOL``, else ``~/.local/state/gymcast/spool``."""
    if given := os.environ.get(SPOOL_VARIABLE):
        return Path(given)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "gymcast" / "spool"


@dataclass(frozen=True)
class ScriptNote:
    """What a script leaves in its folder for whoever delivers its events. It holds no token."""

    server: str
    announcement: Announcement
    session_id: str | None = None
    ended: bool = False
    """Whether the script's last word on how it ended is among its events."""

    def write(self, folder: Path) -> None:
        """Raises ``OSError``."""
        part = folder / f".{NOTE_NAME}.part"
        part.write_text(json.dumps(asdict(self)) + "\n", encoding="utf-8")
        part.replace(folder / NOTE_NAME)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Raises ``OSError``, ``ValueError`` for what is no note."""
        try:
            value: dict[str, Any] = json.loads((folder / NOTE_NAME).read_text(encoding="utf-8"))
            return cls(**{**value, "announcement": Announcement(**value["announcement"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"{folder / NOTE_NAME} is no note of a script: {error}") from None


class ScriptFolder:
    """The folder of one session of this process's script, locked while it lives. Raises ``OSError``."""

    def __init__(self, path: Path, note: ScriptNote) -> None:
        path.mkdir(parents=True, mode=0o700)
        self.path = path
        self.note = note
        self._lock = FileLock(path / LOCK_NAME)
        self._lock.take()
        note.write(path)

    def change(self, **changes: Any) -> None:
        """Keep what has become known. Raises ``OSError``."""
        self.note = replace(self.note, **changes)
        self.note.write(self.path)

    def close(self, delivered: bool) -> None:
        """Let go of the folder; one whose events have all arrived is deleted."""
        self._lock.give_back()
        if delivered:
            shutil.rmtree(self.path, ignore_errors=True)  # what stays is found, and is empty


@dataclass(frozen=True)
class Leftover:
    """A folder whose script is gone, and how many events wait there."""

    path: Path
    note: ScriptNote
    events: int


def leftovers(root: Path) -> Iterator[Leftover]:
    """The folders in ``root``, or ``root`` itself when it is one; those of living scripts are left out.

    Raises ``OSError``, and ``ValueError`` for a note that cannot be read.
    """
    folders = [root] if (root / NOTE_NAME).exists() else sorted(path.parent for path in root.glob(f"*/{NOTE_NAME}"))
    for folder in folders:
        if holder(folder / LOCK_NAME) is None:
            events = sum(path.read_bytes().count(b"\n") for path in folder.glob("*.jsonl"))
            yield Leftover(folder, ScriptNote.read(folder), events)


def deliver(left: Leftover, *, server: str | None = None, token: str | None = None, timeout: float = 60.0) -> str:
    """Send what waits in a folder, say that its script is gone unless it said so itself, and delete the folder.

    Returns the session's id. What the server has already is counted there and not stored again. Raises
    :class:`~gymcast.training.http_client.ServerAway`, :class:`~gymcast.training.run_folder.RunTakenError` when another
    process does the same, ``OSError``.
    """
    lock = FileLock(left.path / LOCK_NAME)
    lock.take()
    note = left.note

    def announce(client: HttpClient) -> str:
        session_id = note.announcement(client)
        replace(note, session_id=session_id).write(left.path)
        return session_id

    if not note.ended:
        _say_lost(left.path)
    sink = EventSink(server or note.server, note.session_id or announce, spool_dir=left.path, token=token)
    try:
        _wait(sink, timeout)
    finally:
        arrived = sink.close(1.0)
        lock.give_back()
    if not arrived or sink.session_id is None:
        raise ServerAway(f"not everything in {left.path} arrived within {timeout:g} s")
    shutil.rmtree(left.path)
    return sink.session_id


def _say_lost(folder: Path) -> None:
    """Leave the script's missing last word among its events; fields that are left out stay as they are."""
    data = {"status": "failed", "reason": LOST}
    event = {"seq": 1, "ts": utc_now().isoformat(), "type": "training_status", "data": data}
    # Folders are delivered in the order of their files' names, so this one comes last.
    (folder / f"z-{secrets.token_hex(8)}.jsonl").write_text(json.dumps(event) + "\n", encoding="utf-8")


def _wait(sink: EventSink, timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while not sink.flush(0.2) and time.monotonic() < deadline:
        if sink.trouble is not None:
            raise ServerAway(str(sink.trouble))


__all__ = ["Leftover", "RunTakenError", "ScriptFolder", "ScriptNote", "deliver", "leftovers", "spool_root"]
