"""A machine's wall clock that is set while sessions run: an hour back, an hour forward, and back again."""

from __future__ import annotations

import asyncio
import os
import signal
import struct
import subprocess
import sys
from pathlib import Path

from gymcast.training.limits import ResourceLimits
from gymcast.training.run_folder import worker_of
from gymcast.training.sessions import SessionManager, TrainingAPI
from gymcast.training.storage import Storage

from ..managed import PACED, Keeper, check_rows, rows, run_dir_of, seen, statuses, weights
from ..programs import missing, need_program

HOUR = 3600


class WallClock:
    """The clock of processes started with ``environ``."""

    def __init__(self, folder: Path) -> None:
        if sys.platform != "linux":
            missing("setting the clock of single processes takes Linux")
        compiler = need_program("cc", "gcc", package="gcc")
        self._file = folder / "ahead"
        library = folder / "wall_clock.so"
        source = Path(__file__).with_name("wall_clock.c")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source], check=True)
        self.environ = {**os.environ, "LD_PRELOAD": str(library), "GYMCAST_TEST_CLOCK": str(self._file)}
        self._file.write_bytes(bytes(8))

    def set(self, seconds: int) -> None:
        """Put the clock ``seconds`` ahead of this process's."""
        with open(self._file, "r+b") as file:
            file.write(struct.pack("=q", seconds))


async def test_a_clock_that_is_set_moves_no_lease_no_retry_and_no_place_in_the_queue(
    tmp_path: Path, undisturbed: str
) -> None:
    clock = WallClock(tmp_path)
    clock.set(-HOUR)
    url = f"sqlite:///{tmp_path / 'a.db'}"
    pulse = {"heartbeat_seconds": 0.5, "lease_seconds": 30.0}  # of an hour that the clock jumps it is nothing
    slow = PACED.model_copy(update={"speed_multiplier": 5.0})
    configs = [slow, PACED]
    keeper = await Keeper.start(tmp_path, url, 2, configs, environ=clock.environ, max_concurrent_sessions=1, **pulse)
    # Another manager, whose clock is right, has no room for anything; it may only take over what nobody has.
    no_room = ResourceLimits(max_total_parallel_episodes=1)
    async with (
        await Storage.open(url) as storage,
        SessionManager(
            storage=storage,
            runs_dir=tmp_path,
            keep_sessions=True,
            resource_limits=no_room,
            **pulse,  # type: ignore[arg-type]
        ) as other,
    ):
        by_folder = {run_dir_of(record).name: record for record in (await storage.list_sessions())[0]}
        running, waiting = by_folder["0"].session_id, by_folder["1"].session_id
        found = await seen(storage, running, lambda record: record.timesteps > 256)
        (queued,) = other.get_queue()
        assert queued["session_id"] == waiting
        assert queued["waited_seconds"] < HOUR / 2, "it was created an hour ago only by the clock that was wrong"
        clock.set(HOUR)
        await asyncio.sleep(1.0)
        worker = worker_of(tmp_path / "0")
        assert worker is not None
        os.killpg(worker, signal.SIGKILL)
        clock.set(-HOUR)
        again = await seen(storage, running, lambda record: record.attempts == 2 and record.status == "running")
        assert again.lease_owner == found.lease_owner
        clock.set(HOUR)
        async with asyncio.timeout(60):
            ended = [await other.wait(session_id) for session_id in (running, waiting)]
        await keeper.finish()
        assert await statuses(storage, running) == [
            *("queued", "starting", "running"),
            *("retrying", "starting", "running", "completed"),
        ]
        assert await statuses(storage, waiting) == ["queued", "starting", "running", "completed"]
        for record in ended:
            check_rows(url, record)
            assert weights(run_dir_of(record)) == undisturbed
            info = await other.get_session_info(record.session_id)
            assert 0.0 <= info["metrics"]["training_seconds"] < HOUR / 2
        await _check_history(storage, url, running)


async def _check_history(storage: Storage, url: str, session_id: str) -> None:
    """Every reading is in the history, and retention keeps the newest ones whatever their time says."""
    numbers = f"SELECT id FROM metrics WHERE session_id = '{session_id}' ORDER BY id"
    before = rows(url, numbers)
    history = await TrainingAPI(storage=storage).get_history(session_id, points=1000)
    assert history["total_points"] == len(before) > 3
    await storage.clean_up(3)
    kept = rows(url, numbers)
    assert kept == before[-len(kept) :]
