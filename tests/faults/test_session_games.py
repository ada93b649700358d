"""Games that crash, hang, flood their output or take the processor, stepped inside a managed session's own process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from gymcast.training.config import TrainingConfig
from gymcast.training.limits import ResourceLimits
from gymcast.training.run_folder import LOG_NAME
from gymcast.training.sessions import ResourceAlert, SessionManager
from gymcast.training.sessions.output import MAX_BYTES
from gymcast.training.storage import SessionRecord

from ..managed import run_dir_of, settled, short

REMEDY = "with --workers 2 (the setting workers) a game that raises, crashes or hangs is started again"


@pytest.fixture(autouse=True)
def package(monkeypatch: pytest.MonkeyPatch) -> None:
    """``bad_games`` can be imported by the processes of sessions."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "games"))


def bad(fault: str, steps: int = 2000, after: int = 400, burn: str = "", **more: Any) -> TrainingConfig:
    """A short training of the game, stepped in the training process."""
    game = {"env_id": "Bad-v0", "gym_packages": ["bad_games"], "workers": 0}
    options = {"fault": fault, "after": after, "burn": burn}
    return TrainingConfig.parse({**short(steps).model_dump(mode="json"), **game, "env_kwargs": options, **more})


@asynccontextmanager
async def managing(folder: Path, **more: Any) -> AsyncIterator[SessionManager]:
    """A manager whose sessions are to go on."""
    async with SessionManager(runs_dir=folder, keep_sessions=True, **more) as manager, asyncio.timeout(250):
        yield manager


async def ended(manager: SessionManager, config: TrainingConfig) -> SessionRecord:
    return await manager.wait(await manager.create_session(config))


async def test_a_game_that_hangs_wherever_it_can_fails_its_session_which_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a step, then when it is made, then in a reset: each time the session is tried again."""
    monkeypatch.setattr("gymcast.training.sessions.pool.SAMPLE_SECONDS", 0.3)
    seen = tmp_path / "attempts"
    seen.mkdir()
    async with managing(tmp_path) as manager:
        config = bad("in turn", burn=str(seen), step_timeout=2, start_timeout=3, max_retries=2)
        record = await ended(manager, config)
        moves = await manager.storage.transitions(record.session_id)
    assert (record.status, record.attempts) == ("failed", 3)
    assert [move["reason"] for move in moves if move["to_status"] == "retrying"] == [
        f"Bad-v0 hangs: its step() took more than 2 s (step_timeout); {REMEDY}; retry 1 of 2 goes on from the newest"
        " checkpoint",
        "Bad-v0 hangs: to make it took more than 3 s (start_timeout); worker.log says where; retry 2 of 2 goes on from"
        " the newest checkpoint",
    ]
    assert record.reason == (
        f"Bad-v0 hangs: its first reset() and steps took more than 2 s (step_timeout); {REMEDY} (after 2 of 2 retries)"
    )
    # Where it hung is in its log, although the game has let no thread of the process go on.
    log = (run_dir_of(record) / LOG_NAME).read_text()
    assert all(f"in {name}" in log for name in ("step", "__init__", "reset"))


async def test_a_game_that_crashes_is_named(tmp_path: Path) -> None:
    async with managing(tmp_path) as manager:
        record = await ended(manager, bad("crash", max_retries=0))
    assert (record.status, record.reason) == ("failed", f"killed by SIGSEGV inside Bad-v0; {REMEDY}")
    assert "Segmentation fault" in (run_dir_of(record) / LOG_NAME).read_text()


async def test_a_game_that_floods_its_output_is_trained_to_the_end(tmp_path: Path) -> None:
    async with managing(tmp_path) as manager:
        record = await ended(manager, bad("flood", after=0))  # 20 MB
    assert (record.status, record.reason) == ("completed", "total_timesteps reached")
    log = run_dir_of(record) / LOG_NAME
    assert log.stat().st_size <= MAX_BYTES
    assert "of output were dropped" in log.read_text()[:10_000]


async def test_a_long_compilation_is_no_game_that_hangs(tmp_path: Path) -> None:
    """Only what happens inside a step or reset counts: starting takes longer than the time that a step has."""
    async with managing(tmp_path) as manager:
        record = await ended(manager, bad("", steps=256, step_timeout=1.0))
    assert (record.status, record.attempts) == ("completed", 1)


async def test_processor_use_over_its_limit_stops_a_session_with_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The game's own eight processes use more and more until there is an alert, and then too much."""
    monkeypatch.setattr("gymcast.training.sessions.pool.SAMPLE_SECONDS", 0.4)
    alerts: list[ResourceAlert] = []
    share = tmp_path / "share"
    share.write_text("0.035")
    limits = ResourceLimits(cpu_limit_percent=100 * 0.6 / (os.cpu_count() or 1))
    async with managing(tmp_path, resource_limits=limits, polite_seconds=60.0) as manager:
        manager.register_resource_alert_handler(alerts.append)
        config = bad("burn", steps=10**9, after=0, burn=str(share), speed_multiplier=1, checkpoint_interval_steps=None)
        session_id = await manager.create_session(config)
        await settled(manager, session_id, lambda record: record.status == "running")
        for step in count():
            if alerts:
                break
            await asyncio.sleep(0.5)
            share.write_text(str(0.035 + 0.003 * step))
        assert (alerts[0].resource, alerts[0].level, alerts[0].session_id) == ("cpu", "alert", None)
        share.write_text("0.25")
        record = await manager.wait(session_id)
        moves = [move["to_status"] for move in await manager.storage.transitions(session_id)]
        assert len((await manager.storage.checkpoints(session_id)).items) == 1
    assert (record.status, moves) == ("failed", ["queued", "starting", "running", "stopping", "failed"])
    assert record.reason is not None and record.reason.startswith("stopped over a limit: cpu_limit_percent: ")
    assert ("exceeded", session_id) in [(alert.level, alert.session_id) for alert in alerts]


async def test_what_uses_too_much_and_does_not_stop_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its steps take no time to speak of, and then one does not come back."""
    monkeypatch.setattr("gymcast.training.sessions.pool.SAMPLE_SECONDS", 0.2)
    limits = ResourceLimits(cpu_limit_percent=100 * 0.3 / (os.cpu_count() or 1))
    busy = tmp_path / "busy"
    async with managing(tmp_path, resource_limits=limits, polite_seconds=0.5, grace_seconds=0.5) as manager:
        config = bad("busy", steps=10**9, after=0, burn=str(busy), speed_multiplier=1, step_timeout=None)
        session_id = await manager.create_session(config)
        await settled(manager, session_id, lambda record: record.timesteps > 0)
        busy.touch()
        record = await manager.wait(session_id)
    assert record.status == "failed" and record.reason is not None
    assert record.reason.startswith("stopped over a limit: cpu_limit_percent: ")
    assert record.reason.endswith("; it did not end in time and was killed")
