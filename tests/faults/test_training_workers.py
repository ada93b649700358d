"""Trainings in worker processes that lose a worker, are asked to stop, or are killed themselves."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from gymcast.training.config import TrainingConfig

POLE = {
    "env_id": "CartPole-v1",
    "workers": 2,
    "parallel_episodes": 4,
    "hyperparameters": {"n_steps": 128, "batch_size": 64, "n_epochs": 1},
    "evaluation_games": 0,
    "total_timesteps": 10**9,
    "seed": 1,
}


def workers_below(pid: int) -> list[psutil.Process]:
    """The workers under a process: each leads a process group, started by the fork server."""
    found = []
    for child in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, ProcessLookupError):
            if "multiprocessing.forkserver" in " ".join(child.cmdline()) and os.getpgid(child.pid) == child.pid:
                found.append(child)
    return sorted(found, key=lambda child: child.pid)


def wait_for(what: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What ``what`` returns as soon as it is something."""
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)
    return found


def test_a_killed_and_a_stopped_worker_cost_a_training_their_episodes_only(cli: Any, tmp_path: Path) -> None:
    command = cli(
        "train", "CartPole-v1", "--workers", "2", "--step-timeout", "3", "--lanes", "4",
        "--total-timesteps", "1000000000", "--set", "hyperparameters.n_steps=128",
        "--evaluation-games", "0", "--port", "auto", "--run-dir", "run",
    )  # fmt: skip
    command.read_until(r"training 0%")
    killed, stopped = workers_below(command.process.pid)
    killed.kill()
    command.read_until(
        r"warning: worker 0 \(lanes 0 to 1\) failed: (lane \d: )?its process was ended by SIGKILL; started again"
    )
    stopped.suspend()
    command.read_until(r"restarts 2")  # the same warning is printed once a minute; the log has each
    command.process.send_signal(signal.SIGTERM)
    assert command.finish() == 143, command.text
    assert command.orphans() == []
    said = (tmp_path / "run" / "log.txt").read_text()
    assert re.search(
        r"worker 1 \(lanes 2 to 3\) failed: (lane \d: )?its process was stopped \(SIGSTOP\); started again", said
    )
    assert "Restarts   2 of workers; 4 episodes cut short count in no average" in command.text


@pytest.fixture
def trainings(tmp_path: Path) -> Any:
    """Three trainings in processes of their own, each with its workers, all of them under way."""
    processes, workers = [], []
    for number in range(3):
        run = tmp_path / str(number)
        run.mkdir()
        (run / "config.yaml").write_text(TrainingConfig.parse(POLE).to_yaml())
        command = [sys.executable, "-m", "gymcast.training.resume_check", str(run)]
        with open(run / "said", "w") as said:
            processes.append(subprocess.Popen(command, stdout=said, stderr=subprocess.STDOUT, start_new_session=True))
    for number, process in enumerate(processes):
        said_by = tmp_path / str(number) / "said"
        wait_for(lambda said_by=said_by: "timesteps" in said_by.read_text())  # type: ignore[misc]
        workers.append(psutil.Process(process.pid).children(recursive=True))
        assert len(workers_below(process.pid)) == 2
    yield list(zip(processes, workers, strict=True))
    for process in processes:
        process.kill()
        process.wait()


def test_no_worker_outlives_a_training_however_that_ends(trainings: Any, tmp_path: Path) -> None:
    (typed, _), (asked, _), (killed, _) = trainings
    os.killpg(typed.pid, signal.SIGINT)  # as a terminal sends Ctrl-C: to the whole group
    asked.terminate()
    killed.kill()
    assert [process.wait(30) for process, _ in trainings] == [130, 143, -signal.SIGKILL]
    for number, (_, workers) in enumerate(trainings):
        assert psutil.wait_procs(workers, 10)[1] == []
        saved = list((tmp_path / str(number)).glob("checkpoints/step-*/manifest.json"))
        assert len(saved) == (0 if number == 2 else 1), (tmp_path / str(number) / "said").read_text()
