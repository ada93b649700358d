"""A process that does not get on is seen from outside, wherever it is; one that does is left alone."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest

from gymcast.training.config import TrainingConfig
from gymcast.training.hang_watch import Place, last_sign
from gymcast.training.run_folder import LOG_NAME, Orders
from gymcast.training.sessions.process import WorkerProcess, is_alive
from gymcast.training.sessions.supervise import Patience, Supervised, what_hangs
from gymcast.training.storage import Storage

HANGS = """
import faulthandler, os, signal, sys, time
from pathlib import Path
from gymcast.training.hang_watch import WATCH, Place
faulthandler.register(signal.SIGUSR1)
WATCH.open(Path(sys.argv[1]))
if os.fork() == 0:  # what a child of it does is none of its progress
    while os.getppid() > 1:
        WATCH.get_on()
        time.sleep(0.001)
    os._exit(0)
def save_for_ever():
    time.sleep(600)
with WATCH.at(Place.CALLBACKS), WATCH.at(Place.SAVING):
    save_for_ever()
"""


def hanging(run_dir: Path) -> subprocess.Popen[bytes]:
    with open(run_dir / LOG_NAME, "wb") as log:
        command = [sys.executable, "-c", HANGS, str(run_dir)]
        return subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)


async def test_what_hangs_outside_its_game_is_killed_and_leaves_where(tmp_path: Path) -> None:
    process = hanging(tmp_path)
    try:
        async with asyncio.timeout(60):
            while (sign := last_sign(tmp_path, process.pid)) is None or sign[1] < 0.5:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert sign[0] is Place.SAVING
        assert last_sign(tmp_path, os.getpid()) is None
        async with await Storage.open(f"sqlite:///{tmp_path / 'a.db'}") as storage:
            record = await storage.create_session(kind="managed", algorithm="ppo", resources={"run_dir": str(tmp_path)})
            for limit, runs in ((900.0, True), (0.4, False)):
                config = TrainingConfig(env_id="CartPole-v1", stall_timeout=limit)
                session = Supervised(record, config, storage, "me", lambda: Orders("s", "x"), Patience(), keeps=True)
                session.worker = WorkerProcess(process.pid, tmp_path, None)
                await session.look_for_hang()
                async with asyncio.timeout(60):
                    while is_alive(process.pid) != runs:  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
        assert "in save_for_ever" in (tmp_path / LOG_NAME).read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("place", "seconds", "says"),
    [
        (Place.STEPPING, 59, None),
        (Place.STEPPING, 61, "its step() took more than 60 s (step_timeout); with --workers 2"),
        (Place.RESETTING, 61, "its reset() took more than 60 s (step_timeout); with --workers 2"),
        (Place.MAKING, 119, None),
        (Place.MAKING, 121, "to make it took more than 120 s (start_timeout); worker.log says where"),
        # Compiling, long updates, evaluations and big checkpoints.
        (Place.STARTING, 599, None),
        (Place.STARTING, 601, "hangs while it starts or ends: it did not get on for 600 s (stall_timeout)"),
        (Place.TRAINING, 299, None),
        (Place.TRAINING, 301, "hangs between steps: it did not get on for 300 s (stall_timeout); worker.log"),
        (Place.CALLBACKS, 301, "hangs in a callback"),
        (Place.SAVING, 301, "hangs while it saves a checkpoint"),
        (Place.EVALUATING, 301, "hangs while it plays evaluation games"),
        # Paused, or waiting for worker processes, which have limits of their own.
        (Place.WAITING, 10**6, None),
    ],
)
def test_each_place_has_its_limit(place: Place, seconds: float, says: str | None) -> None:
    config = TrainingConfig(env_id="CartPole-v1", stall_timeout=300)
    said = what_hangs(config, place, seconds)
    assert said is None if says is None else said is not None and says in said


def test_an_episode_that_may_last_less_limits_a_step_and_null_nothing() -> None:
    config = TrainingConfig(env_id="CartPole-v1", episode_timeout=5.0)
    assert "(episode_timeout)" in (what_hangs(config, Place.STEPPING, 6.0) or "")
    free = TrainingConfig(env_id="CartPole-v1", step_timeout=None, start_timeout=None, stall_timeout=None)
    assert [what_hangs(free, place, 10**6) for place in Place] == [None] * len(Place)
