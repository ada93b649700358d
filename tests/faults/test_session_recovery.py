"""Managers and workers that are killed: a session ends once, with all rows and the weights of an undisturbed run."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from gymcast.training.checkpoints import CheckpointManager, load_tensors, tensors_sha256
from gymcast.training.config import ResourceLimits, TrainingConfig
from gymcast.training.run_folder import Outcome, worker_of
from gymcast.training.sessions import SessionManager, TrainingSession
from gymcast.training.storage import SessionRecord, Storage

from ..managed import endless, settled, short, until

Undisturbed = Callable[..., Awaitable[list[str]]]
KEEPER = Path(__file__).with_name("keeper.py")


class Keeper:
    """A manager's process."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    @classmethod
    async def start(cls, folder: Path, sessions: int, configs: list[TrainingConfig]) -> Keeper:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, str(KEEPER), str(folder), str(sessions)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(json.dumps([config.model_dump(mode="json") for config in configs]).encode())
        process.stdin.close()
        async with asyncio.timeout(60):
            assert await process.stdout.readline() == b"ready\n"
        return cls(process)

    async def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):  # everything has been trained, and it has left
            self.process.send_signal(signal.SIGKILL)
        await self.process.wait()

    async def finish(self, seconds: float = 120.0) -> None:
        async with asyncio.timeout(seconds):
            assert await self.process.wait() == 0


def weights(run_dir: Path) -> str:
    """Hash of everything learnt in the newest checkpoint of a run."""
    checkpoint = CheckpointManager(run_dir / "checkpoints").newest()
    assert checkpoint is not None
    return tensors_sha256(load_tensors(checkpoint)["model"]["policy"])


@pytest.fixture
def undisturbed(tmp_path: Path) -> Undisturbed:
    """The weights that configurations come to when nobody disturbs them."""

    async def run(*configs: TrainingConfig) -> list[str]:
        async with SessionManager(runs_dir=tmp_path / "undisturbed") as manager:
            made = [await manager.create_session(config) for config in configs]
            async with asyncio.timeout(120):
                assert {(await manager.wait(session_id)).status for session_id in made} == {"completed"}
        return [weights(tmp_path / "undisturbed" / session_id) for session_id in made]

    return run


async def records(folder: Path) -> list[SessionRecord]:
    async with await Storage.open(f"sqlite:///{folder / 'gymcast.db'}") as storage:
        return (await storage.list_sessions(limit=1000))[0]


def check_rows(folder: Path, record: SessionRecord) -> None:
    """Every event that the session's last worker emitted is stored, none of them twice."""
    outcome = Outcome.read(Path((record.resources or {})["run_dir"]), record.attempts)
    assert outcome is not None
    engine = sa.create_engine(f"sqlite:///{folder / 'gymcast.db'}")
    with engine.connect() as connection:
        heads = connection.execute(
            sa.text("SELECT head FROM producers WHERE session_id = :id"), {"id": record.session_id}
        ).scalars()
        assert outcome.events in list(heads)
        twice = "SELECT count(*) - count(DISTINCT data || ts_us) FROM metrics WHERE session_id = :id"
        assert connection.execute(sa.text(twice), {"id": record.session_id}).scalar_one() == 0
        ends = connection.execute(
            sa.text("SELECT count(*) FROM transitions WHERE session_id = :id AND to_status = 'completed'"),
            {"id": record.session_id},
        )
        assert ends.scalar_one() == 1
    engine.dispose()


async def test_a_manager_killed_five_times_loses_and_doubles_nothing(tmp_path: Path, undisturbed: Undisturbed) -> None:
    folder = tmp_path / "runs"
    configs = [short(steps, seed=seed) for steps, seed in ((10_000, 1), (7_000, 2))]
    for _ in range(5):
        keeper = await Keeper.start(folder, 2, configs)
        await asyncio.sleep(0.4)
        await keeper.kill()
    keeper = await Keeper.start(folder, 2, configs)
    await keeper.finish()
    found = await records(folder)
    assert [(record.status, record.attempts) for record in found] == [("completed", 1)] * 2
    for record in found:
        check_rows(folder, record)
    assert [weights(folder / str(number)) for number in range(2)] == await undisturbed(*configs)


async def test_manager_and_worker_killed_at_once(tmp_path: Path, undisturbed: Undisturbed) -> None:
    folder = tmp_path / "runs"
    config = short(6_000, seed=3)
    keeper = await Keeper.start(folder, 1, [config])
    run_dir = folder / "0"
    async with asyncio.timeout(60):
        while not list((run_dir / "checkpoints").glob("step-*/manifest.json")):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    worker = worker_of(run_dir)
    assert worker is not None
    await keeper.kill()
    os.killpg(worker, signal.SIGKILL)
    keeper = await Keeper.start(folder, 1, [config])
    await keeper.finish()
    (record,) = await records(folder)
    assert (record.status, record.attempts) == ("completed", 2)
    check_rows(folder, record)
    assert [weights(run_dir)] == await undisturbed(config)


async def test_two_managers_on_one_database_start_each_session_once(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    async with (
        SessionManager(runs_dir=folder, keep_sessions=True) as first,
        SessionManager(runs_dir=folder, keep_sessions=True) as second,
    ):
        made = [await manager.create_session(short(1024, seed=4)) for manager in (first, second)]
        # Both see all that waits, and both try.
        for manager in (first, second):
            await manager.pool.scan()
            assert set(manager.pool.sessions) >= set() and manager.pool.sessions.keys() <= set(made)
        for session_id in made:
            async with asyncio.timeout(60):
                ended = await first.wait(session_id)
            assert (ended.status, ended.attempts) == ("completed", 1)
            moves = [move["to_status"] for move in await first.storage.transitions(session_id)]
            assert moves == ["queued", "starting", "running", "completed"]


async def test_a_paused_session_uses_no_processor_and_goes_on_exactly(tmp_path: Path, undisturbed: Undisturbed) -> None:
    config = short(4_000, seed=5)
    async with SessionManager(runs_dir=tmp_path / "runs") as manager:
        session_id = await manager.create_session(config)
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
        run_dir = Path((paused.resources or {})["run_dir"])
        moves = [move["to_status"] for move in await manager.storage.transitions(session_id)]
    assert moves == ["queued", "starting", "running", "paused", "running", "completed"]
    assert [weights(run_dir)] == await undisturbed(config)


async def test_a_preempted_session_goes_on_exactly_when_there_is_room(tmp_path: Path, undisturbed: Undisturbed) -> None:
    config = short(6_000, seed=6)
    limits = ResourceLimits(max_concurrent_sessions=1)
    async with SessionManager(resource_limits=limits, runs_dir=tmp_path / "runs") as manager:
        low = await manager.create_session(config)
        await settled(manager, low, lambda record: record.timesteps > 256)
        high = await manager.create_session(short(512), priority=10)
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
    assert [weights(Path((ended.resources or {})["run_dir"]))] == await undisturbed(config)


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
    async with SessionManager(runs_dir=tmp_path / "runs") as manager:
        for end, reason in (
            (manager.cancel_session, "cancelled by request"),
            (manager.stop_session, "stopped by request"),
        ):
            session_id = await manager.create_session(endless())
            await settled(manager, session_id, lambda record: record.timesteps > 0)
            assert (await end(session_id)).status == "stopping"
            async with asyncio.timeout(30):
                ended = await manager.wait(session_id)
            assert (ended.status, ended.reason) == ("cancelled", reason)
            saved = (await manager.storage.checkpoints(session_id)).items
            assert len(saved) == (1 if end == manager.stop_session else 0)


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
