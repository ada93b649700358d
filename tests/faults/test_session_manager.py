"""Managed sessions with real worker processes: queue, limits, failures, stops, and what a dead server leaves."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from gymcast.training.limits import ResourceLimits
from gymcast.training.sessions import SessionLimitError, SessionManager
from gymcast.training.storage import SessionRecord, StateError, Storage

from ..managed import endless, records, settled, short, until


@asynccontextmanager
async def managing(folder: Path, **more: object) -> AsyncIterator[SessionManager]:
    """A manager with its runs in ``folder``, and its database unless ``database_url`` names another one."""
    url = str(more.pop("database_url", f"sqlite:///{folder / 'runs.db'}"))
    async with (
        await Storage.open(url) as storage,
        SessionManager(storage=storage, runs_dir=folder / "runs", **more) as manager,  # type: ignore[arg-type]
    ):
        yield manager


async def process_of(manager: SessionManager, session_id: str) -> psutil.Process:
    await settled(manager, session_id, lambda record: "pid" in (record.resources or {}))
    return psutil.Process(manager.worker_pids[session_id])


async def test_sessions_wait_for_a_free_place_in_order_of_priority(tmp_path: Path, database_url: str) -> None:
    hasty = {"polite_seconds": 0.0, "grace_seconds": 0.2}
    limits = ResourceLimits(max_concurrent_sessions=1)
    async with managing(tmp_path, resource_limits=limits, database_url=database_url, **hasty) as manager:
        first = await manager.create_session(endless())
        await until(manager, first, "starting", "running")
        low = await manager.create_session(endless(), priority=1)
        high = await manager.create_session(endless(), priority=5)
        unwanted = await manager.create_session(endless())
        waits = await settled(manager, low, lambda record: record.wait_reason is not None)
        assert waits.wait_reason == "max_concurrent_sessions: 1 of 1 taken"
        assert [one["session_id"] for one in manager.get_queue()] == [high, low, unwanted]
        # A session that waits is gone at once; nothing was started for it.
        stopped = await manager.stop_session(unwanted)
        assert (stopped.status, stopped.reason) == ("cancelled", "stopped by request")
        assert stopped.attempts == 0
        with pytest.raises(StateError, match="it has ended"):
            await manager.stop_session(unwanted)
        with pytest.raises(StateError, match="a session that is queued cannot become paused"):
            await manager.pause_session(low)
        manager.kill_session(first)
        ended = await manager.wait(first)
        assert ended.status == "cancelled"
        await until(manager, high, "starting", "running")
        assert (await manager.storage.get_session(low)).status == "queued"
    # Leaving the context ended the rest.
    assert {record.status for record in await records(database_url)} == {"cancelled"}


async def test_a_big_session_does_not_hold_back_a_small_one(tmp_path: Path) -> None:
    limits = ResourceLimits(max_total_parallel_episodes=10, max_parallel_episodes_per_session=9)
    async with managing(tmp_path, resource_limits=limits, polite_seconds=0.0, grace_seconds=0.2) as manager:
        await manager.create_session(endless(lanes=4))
        big = await manager.create_session(endless(lanes=8))
        small = await manager.create_session(endless(lanes=4))
        await until(manager, small, "starting", "running")
        waits = await settled(manager, big, lambda record: record.wait_reason is not None)
        assert waits.status == "queued" and "max_total_parallel_episodes: 8 wanted" in str(waits.wait_reason)
        with pytest.raises(SessionLimitError, match="max_parallel_episodes_per_session"):
            await manager.create_session(endless(lanes=10))


async def test_a_worker_that_hangs_is_killed_after_its_grace_time(tmp_path: Path) -> None:
    async with managing(tmp_path, polite_seconds=0.1, grace_seconds=0.3) as manager:
        session_id = await manager.create_session(endless())
        worker = await process_of(manager, session_id)
        worker.suspend()
        stopping = await manager.stop_session(session_id, reason="enough")
        assert stopping.status == "stopping"
        assert stopping.desired == "stopping"
        ended = await manager.wait(session_id)
        assert (ended.status, ended.reason) == ("cancelled", "enough; it did not end in time and was killed")
        assert not worker.is_running()


async def test_a_failed_start_says_why(tmp_path: Path) -> None:
    async with managing(tmp_path) as manager:
        # What the settings alone do not tell: this game has no masks.
        session_id = await manager.create_session(endless(algorithm="maskable_ppo"))
        ended = await asyncio.wait_for(manager.wait(session_id), 60)
        assert ended.status == "failed"
        assert ended.reason is not None
        assert "maskable_ppo needs action_masks(), which the environment does not have" in ended.reason


async def test_a_killed_worker_is_followed_by_one_that_goes_on_from_its_checkpoint(
    tmp_path: Path, database_url: str
) -> None:
    async with managing(tmp_path, database_url=database_url) as manager:
        session_id = await manager.create_session(short(10**9, checkpoint_interval_steps=512))
        first = await process_of(manager, session_id)
        await settled(manager, session_id, lambda record: record.timesteps > 1024)  # a checkpoint comes every 512
        first.send_signal(signal.SIGKILL)
        again = await settled(manager, session_id, lambda record: record.attempts == 2 and record.status == "running")
        assert again.reason is None or "resumed from step-" in again.reason
        assert manager.worker_pids[session_id] != first.pid
        assert "resumed from step-" in (manager.runs_dir / session_id / "log.txt").read_text()
        moves = [move["to_status"] for move in await manager.storage.transitions(session_id)]
        assert moves == ["queued", "starting", "running", "retrying", "starting", "running"]
        assert (await asyncio.wait_for(_stopped(manager, session_id), 60)).status == "cancelled"


async def _stopped(manager: SessionManager, session_id: str) -> SessionRecord:
    await manager.stop_session(session_id, urgent=True)
    return await manager.wait(session_id)


async def test_a_worker_killed_too_often_is_a_failure(tmp_path: Path) -> None:
    async with managing(tmp_path) as manager:
        session_id = await manager.create_session(endless(max_retries=0))
        (await process_of(manager, session_id)).send_signal(signal.SIGKILL)
        ended = await asyncio.wait_for(manager.wait(session_id), 60)
        assert ended.status == "failed"
        assert ended.reason is not None
        assert "SIGKILL" in ended.reason


async def test_a_worker_that_somebody_terminates_goes_on_and_uses_no_retry(tmp_path: Path) -> None:
    async with managing(tmp_path, keep_sessions=True) as manager:
        session_id = await manager.create_session(short(10**9, max_retries=0))
        worker = await process_of(manager, session_id)
        await settled(manager, session_id, lambda record: record.timesteps > 0)
        worker.terminate()
        again = await settled(manager, session_id, lambda record: record.attempts == 2 and record.status == "running")
        assert "retries" not in (again.resources or {})
        moves = await manager.storage.transitions(session_id)
        assert [move["to_status"] for move in moves][2:] == ["running", "stopping", "retrying", "starting", "running"]
        assert moves[4]["reason"] == (
            "stopped by a signal: received SIGTERM; it goes on from its checkpoint, to end it use stop or cancel"
        )
        assert (await asyncio.wait_for(_stopped(manager, session_id), 60)).status == "cancelled"
