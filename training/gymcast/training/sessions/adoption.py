"""What a manager finds in the database that nobody looks after, and what it does about it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gymcast.training.run_folder import Outcome, holder, worker_of
from gymcast.training.storage import ACTIVE, WAITING, LeaseLostError, NotFoundError, SessionRecord, StateError, Storage

from .leftovers import deliver_leftovers
from .process import WorkerExit
from .supervise import what_follows

log = logging.getLogger(__name__)

_PAGE: Final = 1000
_LOCKS_KEPT_SECONDS: Final = 86_400.0


@dataclass(frozen=True)
class Identity:
    """Who a manager is. ``owner`` names it in leases, ``lock`` is a file it has locked as long as it lives.

    ``keeps``: its sessions go on after it, in the hands of another manager that keeps too. It renews its leases every
    ``heartbeat_seconds``; ``lease_seconds`` after the last time they are anybody's.
    """

    owner: str
    host: str
    lock: Path
    keeps: bool
    heartbeat_seconds: float
    lease_seconds: float

    def mark(self) -> dict[str, Any]:
        """What a session's ``resources`` say of its manager."""
        return {"manager": self.owner, "manager_lock": str(self.lock), "host": self.host, "keeps": self.keeps}


@dataclass
class Found:
    """Sessions to look after from now on: those that wait, and those that have run without a manager."""

    waiting: list[SessionRecord] = field(default_factory=list)
    adopted: list[SessionRecord] = field(default_factory=list)


async def find_sessions(storage: Storage, me: Identity, known: Collection[str]) -> Found:
    """Look through all sessions that have not ended, but for those in ``known``. Raises ``StorageError``.

    Sessions on other machines are left alone, and so are those of a living manager, except that whoever keeps sessions
    may start what waits. Sessions of a dead manager that kept none are settled.
    """
    found = Found()
    cursor = None
    while True:
        records, cursor = await storage.list_sessions(cursor=cursor, limit=_PAGE, statuses=[*ACTIVE, *WAITING])
        for record in records:
            if record.kind == "managed" and record.session_id not in known:
                await _look_at(storage, me, record, found)
        if cursor is None:
            return found


async def _look_at(storage: Storage, me: Identity, record: SessionRecord, found: Found) -> None:
    resources = record.resources or {}
    if resources.get("host", me.host) != me.host:
        return
    if not resources.get("keeps", False):
        if await asyncio.to_thread(_creator_is_dead, resources):
            await _settle_abandoned(storage, record)
    elif not me.keeps:
        return
    elif record.status in WAITING:
        found.waiting.append(record)
    else:
        # While its owner lives, only a lease that has run out lets a session go.
        dead = await asyncio.to_thread(_owner_is_dead, record.lease_owner, resources)
        adopted = await storage.leases.adopt(
            record.session_id,
            me.owner,
            from_owner=record.lease_owner if dead else None,
            seconds=me.lease_seconds,
        )
        if adopted is not None:
            log.info("session %s is taken over, %s", record.session_id, record.status)
            found.adopted.append(adopted)


def _creator_is_dead(resources: dict[str, Any]) -> bool:
    """Whether the manager that a session's ``resources`` name has ended."""
    lock = resources.get("manager_lock")
    return lock is None or holder(Path(lock)) is None


def _owner_is_dead(owner: str | None, resources: dict[str, Any]) -> bool:
    """Whether who holds a session's lease is known to have been killed: its lock file is there, and not locked.

    Managers of one run folder keep their locks side by side, each named after the last part of its owner's name.
    """
    if owner is None or "manager_lock" not in resources:
        return False
    lock = Path(resources["manager_lock"]).with_name(owner.rpartition(":")[2])
    return lock.exists() and holder(lock) is None


def remove_old_locks(folder: Path) -> None:
    """Delete the lock files of managers that were killed long ago; nobody asks for them any more."""
    for lock in folder.iterdir():
        if time.time() - lock.stat().st_mtime > _LOCKS_KEPT_SECONDS and holder(lock) is None:
            lock.unlink(missing_ok=True)


async def _settle_abandoned(storage: Storage, record: SessionRecord) -> None:
    """Store the end of a session whose manager has died and wanted it to end with it."""
    run_dir = Path((record.resources or {}).get("run_dir", ""))
    if await asyncio.to_thread(worker_of, run_dir) is not None:
        return  # it saves its checkpoint
    outcome = await asyncio.to_thread(Outcome.read, run_dir, record.attempts)
    hint = f"the process that ran it has ended; go on with: gymcast train --resume {run_dir}"
    status, reason = "failed", hint
    if outcome is not None:
        following = what_follows(WorkerExit(None), outcome, None, 0, 0, keeps=False)
        status, reason = following.status, hint if following.status == "cancelled" else following.reason or ""
    with contextlib.suppress(StateError, NotFoundError, LeaseLostError):  # somebody else has settled it
        await deliver_leftovers(storage, record.session_id, run_dir)
        await storage.update_session(record.session_id, status=status, reason=reason or None)
