"""Managers and workers that are killed: a session ends once, with all rows and the weights of an undisturbed run."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from gymcast.training.limits import ResourceLimits
from gymcast.training.run_folder import worker_of
from gymcast.training.sessions import SessionManager, TrainingSession
from gymcast.training.storage import SessionRecord, Storage

from ..managed import (
    PACED,
    Keeper,
    check_rows,
    endless,
    records,
    rows,
    run_dir_of,
    seen,
    settled,
    short,
    statuses,
    until,
    weights,
)


async def test_a_manager_killed_five_times_loses_and_doubles_nothing(
    tmp_path: Path, database_url: str, undisturbed: str
) -> None:
    for _ in range(5):
        keeper = await Keeper.start(tmp_path, database_url, 2, [PACED])
        await asyncio.sleep(0.4)
        await keeper.kill()
    keeper = await Keeper.start(tmp_path, database_url, 2, [PACED])
    await keeper.finish()
    found = await records(database_url)
    assert [(record.status, record.attempts) for record in found] == [("completed", 1)] * 2
    for record in found:
        check_rows(database_url, record)
        assert weights(run_dir_of(record)) == undisturbed


async def test_manager_and_worker_killed_at_once(tmp_path: Path, postgres_url: str, undisturbed: str) -> None:
    keeper = await Keeper.start(tmp_path, postgres_url, 1, [PACED])
    run_dir = tmp_path / "0"
    async with asyncio.timeout(60):
        while not list((run_dir / "checkpoints").glob("step-*/manifest.json")):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    worker = worker_of(run_dir)
    assert worker is not None
    await keeper.kill()
    os.killpg(worker, signal.SIGKILL)
    keeper = await Keeper.start(tmp_path, postgres_url, 1, [PACED])
    await keeper.finish()
    (record,) = await records(postgres_url)
    assert (record.status, record.attempts) == ("completed", 2)
    # Whatever ended both is no fault of the training.
    assert "retries" not in (record.resources or {})
    check_rows(postgres_url, record)
    assert weights(run_dir) == undisturbed


async def test_two_managers_on_one_database_start_each_session_once(tmp_path: Path, database_url: str) -> None:
    async with await Storage.open(database_url) as one, await Storage.open(database_url) as other:
        started: list[str] = []
        managers = [SessionManager(storage=storage, runs_dir=tmp_path, keep_sessions=True) for storage in (one, other)]
        for manager in managers:
            manager.register_session_start_handler(lambda record: started.append(record.session_id))
        async with managers[0] as first, managers[1] as second:
            made = [await manager.create_session(short(512, seed=4)) for manager in (first, second)]
            # Both see all that waits, and both try.
            await asyncio.gather(first.pool.scan(), second.pool.scan())
            for session_id in made:
                async with asyncio.timeout(60):
                    ended = await first.wait(session_id)
                assert (ended.status, ended.attempts) == ("completed", 1)
                assert await statuses(one, session_id) == ["queued", "starting", "running", "completed"]
                check_rows(database_url, ended)
    assert sorted(started) == sorted(made)


@pytest.mark.parametrize(("how", "database"), [("killed", "sqlite"), ("suspended", "postgresql")])
async def test_a_manager_takes_over_when_the_lease_of_another_has_run_out(
    tmp_path: Path, request: pytest.FixtureRequest, how: str, database: str, undisturbed: str
) -> None:
    """As of one on another machine, nothing tells that the first one is gone but its silence."""
    url = f"sqlite:///{tmp_path / 'a.db'}" if database == "sqlite" else request.getfixturevalue("postgres_url")
    pulse = {"heartbeat_seconds": 0.5, "lease_seconds": 2.0}
    longer = {**pulse, "lease_seconds": 60.0}  # what the heir has it keeps, however busy the machine is
    slow = PACED.model_copy(update={"speed_multiplier": 5.0})
    keeper = await Keeper.start(tmp_path, url, 1, [slow], **pulse)
    async with await Storage.open(url) as storage:
        (waiting,), _ = await storage.list_sessions()
        session_id, run_dir = waiting.session_id, run_dir_of(waiting)
        found = await seen(storage, session_id, lambda record: record.timesteps > 256)
        worker = worker_of(run_dir)
        if how == "killed":
            await keeper.kill()
            os.unlink((found.resources or {})["manager_lock"])
        else:
            keeper.process.send_signal(signal.SIGSTOP)
        ((lease_ends,),) = rows(url, "SELECT lease_expires_us FROM sessions")
        async with SessionManager(storage=storage, runs_dir=tmp_path, keep_sessions=True, **longer) as heir:  # type: ignore[arg-type]
            taken = await seen(storage, session_id, lambda record: record.lease_owner != found.lease_owner)
            assert taken.lease_owner == heir.pool.me.owner
            assert rows(url, "SELECT heartbeat_us FROM sessions")[0][0] >= lease_ends
            assert (taken.status, taken.attempts, worker_of(run_dir)) == ("running", 1, worker)
            if how == "suspended":
                # Back again, it sees that the session is another's now, and leaves the worker alone.
                keeper.process.send_signal(signal.SIGCONT)
            async with asyncio.timeout(60):
                ended = await heir.wait(session_id)
        if how == "suspended":
            await keeper.finish()
        assert (ended.status, ended.attempts) == ("completed", 1)
        assert await statuses(storage, session_id) == ["queued", "starting", "running", "completed"]
    check_rows(url, ended)
    assert weights(run_dir) == undisturbed


async def test_a_paused_session_uses_no_processor_and_goes_on_exactly(tmp_path: Path, undisturbed: str) -> None:
    async with SessionManager(runs_dir=tmp_path) as manager:
        session_id = await manager.create_session(PACED)
        await settled(manager, session_id, lambda record: record.timesteps > 256)
        await manager.pause_session(session_id)
        paused = await until(manager, session_id, "paused")
        process = psutil.Process(manager.worker_pids[session_id])
        await asyncio.sleep(0.3)
        before, began = process.cpu_times(), time.monotonic()
        await asyncio.sleep(2.0)
        after, seconds = process.cpu_times(), time.monotonic() - began
        used = (after.user + after.system - before.user - before.system) / seconds
        # A report a second and the clock's resolution of 0.01 s.
        assert used < 0.03
        assert (await manager.storage.get_session(session_id)).timesteps == paused.timesteps
        await manager.resume_session(session_id)
        async with asyncio.timeout(60):
            assert (await manager.wait(session_id)).status == "completed"
        moves = await statuses(manager.storage, session_id)
    assert moves == ["queued", "starting", "running", "paused", "running", "completed"]
    assert weights(run_dir_of(paused)) == undisturbed


async def test_a_preempted_session_goes_on_exactly_when_there_is_room(tmp_path: Path, undisturbed: str) -> None:
    limits = ResourceLimits(max_concurrent_sessions=1)
    async with SessionManager(resource_limits=limits, runs_dir=tmp_path) as manager:
        low = await manager.create_session(PACED)
        await settled(manager, low, lambda record: record.timesteps > 256)
        high = await manager.create_session(short(128), priority=10)
        async with asyncio.timeout(60):
            assert (await manager.wait(high)).status == "completed"
            ended = await manager.wait(low)
        assert (ended.status, ended.attempts) == ("completed", 2)
        moves = await manager.storage.transitions(low)
    assert [move["to_status"] for move in moves] == [
        *("queued", "starting", "running", "stopping"),
        *("queued", "starting", "running", "completed"),
    ]
    assert f"preempted by {high}" in moves[4]["reason"]
    assert weights(run_dir_of(ended)) == undisturbed


async def test_handlers_that_raise_or_block_stop_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gymcast.training.sessions.session._HANDLER_SECONDS", 0.2)
    told: list[int] = []

    def raises(_: object) -> None:
        raise ValueError("not today")

    def blocks(_: object) -> None:
        threading.Event().wait()

    async def never_returns(_: object) -> None:
        await asyncio.Event().wait()

    session = TrainingSession(short(1024), runs_dir=tmp_path / "runs")
    for handler in (raises, blocks, never_returns):
        session.register_episode_handler(handler)
        session.register_metrics_handler(handler)
    session.register_episode_handler(lambda episode: told.append(episode.episode))
    async with session, asyncio.timeout(60):
        info = await session.start_training()
    assert info["status"] == "completed"
    assert told == list(range(1, info["metrics"]["episodes_completed"] + 1))


async def test_cancel_writes_no_checkpoint_and_stop_does(tmp_path: Path) -> None:
    """No signal is needed: the wish comes with the answer to the worker's events."""
    async with SessionManager(runs_dir=tmp_path, polite_seconds=60.0) as manager:
        reasons = {"cancelled by request": manager.cancel_session, "stopped by request": manager.stop_session}

        async def end(reason: str) -> SessionRecord:
            session_id = await manager.create_session(endless(speed_multiplier=10))
            await settled(manager, session_id, lambda record: record.timesteps > 0)
            assert (await reasons[reason](session_id)).status == "stopping"
            async with asyncio.timeout(30):
                ended = await manager.wait(session_id)
            assert (ended.status, ended.reason) == ("cancelled", reason)
            assert await statuses(manager.storage, session_id) == [
                *("queued", "starting", "running"),
                *("stopping", "cancelled"),
            ]
            return ended

        cancelled, stopped = await asyncio.gather(*map(end, reasons))
        assert not (await manager.storage.checkpoints(cancelled.session_id)).items
        assert len((await manager.storage.checkpoints(stopped.session_id)).items) == 1


async def test_memory_over_its_limit_stops_a_session_which_says_so(tmp_path: Path) -> None:
    alerts: list[Any] = []
    limits = ResourceLimits(memory_limit_mb=100)  # a worker with torch has more than that
    async with SessionManager(resource_limits=limits, runs_dir=tmp_path / "runs", polite_seconds=1.0) as manager:
        manager.register_resource_alert_handler(alerts.append)
        session_id = await manager.create_session(endless())
        async with asyncio.timeout(60):
            ended = await manager.wait(session_id)
    assert ended.status == "failed"
    assert ended.reason is not None and ended.reason.startswith("stopped over a limit: memory_limit_mb: ")
    assert [(alert.level, alert.session_id) for alert in alerts if alert.session_id] == [("exceeded", session_id)]


async def test_what_a_dead_manager_did_not_keep_is_settled(tmp_path: Path) -> None:
    async with await Storage.open(f"sqlite:///{tmp_path / 'runs' / 'gymcast.db'}") as storage:
        gone = {"manager_lock": str(tmp_path / "nobody"), "run_dir": str(tmp_path / "runs" / "left")}
        left = await storage.create_session(kind="managed", algorithm="ppo", status="running", resources=gone)
        external = await storage.create_session(kind="external", algorithm="ppo")
        async with SessionManager(storage=storage, runs_dir=tmp_path / "runs") as living:
            kept = await storage.create_session(
                kind="managed", algorithm="ppo", status="running", resources=living.pool.me.mark()
            )
            async with SessionManager(storage=storage, runs_dir=tmp_path / "runs"):
                found = await storage.get_session(left.session_id)
                assert found.status == "failed"
                run_dir = gone["run_dir"]
                assert (
                    found.reason == f"the process that ran it has ended; go on with: gymcast train --resume {run_dir}"
                )
                assert (await storage.get_session(kept.session_id)).status == "running"
                assert (await storage.get_session(external.session_id)).status == "running"
