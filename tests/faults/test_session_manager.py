"""Managed sessions with real worker processes: queue, limits, failures, stops, and what a dead server leaves."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from gymcast.server import ServerConfig, running_server
from gymcast.training.config import ResourceLimits, TrainingConfig
from gymcast.training.sessions import SessionLimitError, SessionManager
from gymcast.training.storage import SessionRecord, Storage


def endless(lanes: int = 2, **more: object) -> TrainingConfig:
    given = {"total_timesteps": 10**12, "evaluation_games": 0, "parallel_episodes": lanes, **more}
    return TrainingConfig.for_env("CartPole-v1", **given)


@asynccontextmanager
async def managing(folder: Path, **more: object) -> AsyncIterator[SessionManager]:
    """A server with a database in ``folder`` and its manager."""
    config = ServerConfig(port=0, database={"url": f"sqlite:///{folder / 'sessions.db'}"})
    async with running_server(config) as server:
        manager = SessionManager(server.storage, runs_dir=folder / "runs", server_url=server.url, **more)  # type: ignore[arg-type]
        server.manager = manager
        async with manager:
            yield manager


async def settled(
    manager: SessionManager, session_id: str, wanted: Callable[[SessionRecord], bool], seconds: float = 60.0
) -> SessionRecord:
    """The session once it is as ``wanted``."""
    changed = asyncio.Event()
    unlisten = manager.storage.listen(lambda _committed: changed.set())
    try:
        async with asyncio.timeout(seconds):
            while not wanted(record := await manager.storage.get_session(session_id)):
                await changed.wait()
                changed.clear()
        return record
    finally:
        unlisten()


async def until(manager: SessionManager, session_id: str, *statuses: str) -> SessionRecord:
    return await settled(manager, session_id, lambda record: record.status in statuses)


async def process_of(manager: SessionManager, session_id: str) -> psutil.Process:
    await settled(manager, session_id, lambda record: "pid" in (record.resources or {}))
    return psutil.Process(manager.worker_pids[session_id])


@pytest.fixture
def ended_pid() -> int:
    """The id of a process that has ended."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    return gone.pid


async def test_sessions_wait_for_a_free_place_in_order_of_priority(tmp_path: Path) -> None:
    limits = ResourceLimits(max_concurrent_sessions=1)
    async with managing(tmp_path, limits=limits, polite_seconds=0.0, grace_seconds=0.2) as manager:
        first = await manager.create_session(endless())
        low = await manager.create_session(endless(), priority=1)
        high = await manager.create_session(endless(), priority=5)
        unwanted = await manager.create_session(endless())
        await until(manager, first.session_id, "starting", "running")
        assert [(await manager.storage.get_session(one.session_id)).status for one in (low, high, unwanted)] == [
            "queued"
        ] * 3
        # A session that waits is gone at once; nothing was started for it.
        stopped = await manager.stop_session(unwanted.session_id)
        assert (stopped.status, stopped.reason) == ("cancelled", "stopped by request")
        assert stopped.attempts == 0
        manager.kill_session(first.session_id)
        ended = await manager.wait(first.session_id)
        assert ended.status == "cancelled"
        await until(manager, high.session_id, "starting", "running")
        assert (await manager.storage.get_session(low.session_id)).status == "queued"
    # Leaving the context ended the rest.
    async with await Storage.open(f"sqlite:///{tmp_path / 'sessions.db'}") as storage:
        assert {record.status for record in (await storage.list_sessions())[0]} == {"cancelled"}


async def test_a_big_session_does_not_hold_back_a_small_one(tmp_path: Path) -> None:
    limits = ResourceLimits(max_total_parallel_episodes=10, max_parallel_episodes_per_session=9)
    async with managing(tmp_path, limits=limits, polite_seconds=0.0, grace_seconds=0.2) as manager:
        await manager.create_session(endless(lanes=4))
        big = await manager.create_session(endless(lanes=8))
        small = await manager.create_session(endless(lanes=4))
        await until(manager, small.session_id, "starting", "running")
        assert (await manager.storage.get_session(big.session_id)).status == "queued"
        with pytest.raises(SessionLimitError, match="max_parallel_episodes_per_session"):
            await manager.create_session(endless(lanes=10))


async def test_a_worker_that_hangs_is_killed_after_its_grace_time(tmp_path: Path) -> None:
    async with managing(tmp_path, polite_seconds=0.1, grace_seconds=0.3) as manager:
        record = await manager.create_session(endless())
        worker = await process_of(manager, record.session_id)
        worker.suspend()
        stopping = await manager.stop_session(record.session_id, reason="enough")
        assert stopping.status == "stopping"
        assert stopping.desired == "stopping"
        ended = await manager.wait(record.session_id)
        assert (ended.status, ended.reason) == ("cancelled", "enough")
        assert not worker.is_running()


async def test_a_stop_reaches_the_worker_through_its_reports(tmp_path: Path) -> None:
    """No signal is needed: the wish comes with the answer to the worker's events, and it saves a checkpoint."""
    async with managing(tmp_path, polite_seconds=60.0) as manager:
        record = await manager.create_session(endless())
        await until(manager, record.session_id, "running")
        await manager.stop_session(record.session_id)
        ended = await asyncio.wait_for(manager.wait(record.session_id), 30)
        assert ended.status == "cancelled"
        moves = [move["to_status"] for move in await manager.storage.transitions(record.session_id)]
        assert moves == ["queued", "starting", "running", "stopping", "cancelled"]
        assert (await manager.storage.checkpoints(record.session_id)).items


async def test_a_failed_start_says_why(tmp_path: Path) -> None:
    async with managing(tmp_path) as manager:
        # What the settings alone do not tell: this game has no masks.
        record = await manager.create_session(endless(algorithm="maskable_ppo"))
        ended = await asyncio.wait_for(manager.wait(record.session_id), 60)
        assert ended.status == "failed"
        assert ended.reason is not None
        assert "CartPole-v1 has no action_masks(); use ppo instead" in ended.reason


async def test_a_killed_worker_is_followed_by_one_that_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    async with managing(tmp_path) as manager:
        record = await manager.create_session(endless(checkpoint_interval_steps=512))
        session_id = record.session_id
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
        record = await manager.create_session(endless(max_retries=0))
        (await process_of(manager, record.session_id)).send_signal(signal.SIGKILL)
        ended = await asyncio.wait_for(manager.wait(record.session_id), 20)
        assert ended.status == "failed"
        assert ended.reason is not None
        assert "SIGKILL" in ended.reason


async def test_sessions_of_a_dead_server_are_settled_and_those_of_a_live_one_are_not(
    tmp_path: Path, ended_pid: int
) -> None:
    run_dir = str(tmp_path / "runs" / "left")
    async with await Storage.open(f"sqlite:///{tmp_path / 'sessions.db'}") as storage:
        left = await storage.create_session(
            kind="managed", algorithm="ppo", status="running", resources={"run_dir": run_dir, "server_pid": ended_pid}
        )
        kept = await storage.create_session(
            kind="managed", algorithm="ppo", status="running", resources={"server_pid": os.getpid()}
        )
        external = await storage.create_session(kind="external", algorithm="ppo")
    async with managing(tmp_path) as manager:
        found = await manager.storage.get_session(left.session_id)
        assert found.status == "failed"
        assert found.reason == f"the server that ran it has ended; go on with: gymcast train --resume {run_dir}"
        assert (await manager.storage.get_session(kept.session_id)).status == "running"
        assert (await manager.storage.get_session(external.session_id)).status == "running"
