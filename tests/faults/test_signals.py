"""Signals to a training process: a checkpoint, the right exit code, and nothing left behind."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

PROGRAM = """
import sys, threading, time
import gymnasium as gym
import numpy as np
from gymcast.training import Trainer, TrainingConfig
from gymcast.training.signals import StopSignals

class Slow(gym.Env):
    observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}
    def step(self, action):
        print("step", flush=True)
        time.sleep(SECONDS)
        return np.zeros(2, np.float32), 0.0, False, False, {}

mode, run_dir = sys.argv[1:]
SECONDS = 300.0 if mode == "stuck" else 0.01
gym.register("Slow-v0", Slow)
config = TrainingConfig.parse(dict(
    env_id="Slow-v0", parallel_episodes=1, evaluation_games=0, seed=1, total_timesteps=10**9,
    hyperparameters={"n_steps": 100000 if mode != "short" else 16, "batch_size": 16, "n_epochs": 1}))

def train(signals=None):
    result = Trainer(config, run_dir=run_dir, signals=signals).run_training_loop()
    print("ended", result.reason, flush=True)
    codes.append(result.exit_code)

codes = []
if mode in ("thread", "thread with signals"):
    signals = StopSignals()
    if mode == "thread with signals":
        signals.__enter__()
    thread = threading.Thread(target=train, args=(signals if mode == "thread with signals" else None,))
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
else:
    train()
sys.exit(codes[0])
"""


def shared_memory() -> set[str]:
    """Segments of shared memory, but for those that a PostgreSQL takes and gives back as it pleases."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("PostgreSQL.")}


def check_that_it_is_given_back(before: set[str]) -> None:
    """What the processes of other tests have for a moment goes again, and what is left behind stays."""
    deadline = time.monotonic() + 30
    while left := shared_memory() - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


class Training:
    """A process that trains a slow game until it is told to stop."""

    def __init__(self, mode: str, folder: Path, **more: Any) -> None:
        self.run_dir = folder / "run"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self.shared = shared_memory()
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, mode, str(self.run_dir)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "TMPDIR": str(self.temporary)},
            **more,
        )

    def wait_for_steps(self, count: int = 3) -> None:
        """Wait until the game is being played."""
        assert self.process.stdout is not None
        for _ in range(count):
            ready, _, _ = select.select([self.process.stdout], [], [], 60)
            assert ready and self.process.stdout.readline() == "step\n"

    def send(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self, seconds: float = 60) -> int:
        """Wait for the end, and check that nothing is left: processes, shared memory, temporary or unfinished files."""
        children = psutil.Process(self.process.pid).children(recursive=True) if self.process.poll() is None else []
        self.process.communicate(timeout=seconds)
        assert not [child for child in children if child.is_running()]
        check_that_it_is_given_back(self.shared)
        # torch makes a folder for its compiler's cache once per user, and keeps it.
        assert [path for path in self.temporary.iterdir() if not path.name.startswith("torchinductor_")] == []
        return self.process.returncode

    def checkpoints(self) -> list[dict[str, Any]]:
        """The manifests there are."""
        return [json.loads(path.read_text()) for path in sorted(self.run_dir.glob("checkpoints/step-*/manifest.json"))]

    def unfinished(self) -> list[Path]:
        return [path for path in self.run_dir.rglob("*") if "unfinished" in path.name or path.name.endswith(".part")]


@pytest.fixture
def training(tmp_path: Path) -> Iterator[Callable[..., Training]]:
    started: list[Training] = []

    def start(mode: str, **more: Any) -> Training:
        started.append(Training(mode, tmp_path, **more))
        return started[-1]

    yield start
    for one in started:
        one.process.kill()
        one.process.communicate()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_long_rollout_with_a_checkpoint(training: Any, number: signal.Signals) -> None:
    process = training("long")
    process.wait_for_steps()
    process.send(number)
    assert process.end() == 128 + number
    (checkpoint,) = process.checkpoints()
    # The rollout of 100,000 steps is not waited for: the state it began with is saved.
    assert checkpoint["reason"] == "signal" and checkpoint["timesteps"] == 0
    assert process.unfinished() == []
    assert json.loads((process.run_dir / "summary.json").read_text())["reason"] == f"received {number.name}"


def test_a_second_ctrl_c_leaves_at_once(training: Any) -> None:
    process = training("stuck")
    process.wait_for_steps(1)
    process.send(signal.SIGINT)
    time.sleep(0.2)
    assert process.process.poll() is None  # the first waits for the step, which takes five minutes
    process.send(signal.SIGTERM)
    time.sleep(0.2)
    assert process.process.poll() is None  # a supervisor's SIGTERM is patient, too
    process.send(signal.SIGINT)
    assert process.end(30) == 130
    assert process.checkpoints() == []


def test_a_training_in_another_thread_leaves_signals_to_the_main_thread(training: Any) -> None:
    process = training("thread")
    process.wait_for_steps()
    process.send(signal.SIGTERM)
    assert process.end() == -signal.SIGTERM
    assert "signals are left to the main thread" in (process.run_dir / "log.txt").read_text()


def test_signals_of_the_main_thread_can_be_handed_to_a_training_in_another(training: Any) -> None:
    process = training("thread with signals")
    process.wait_for_steps()
    process.send(signal.SIGHUP)
    assert process.end() == 128 + signal.SIGHUP
    assert [checkpoint["reason"] for checkpoint in process.checkpoints()] == ["signal"]


def test_nohup_is_respected(training: Any) -> None:
    process = training("short", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    process.wait_for_steps()
    process.send(signal.SIGHUP)
    process.wait_for_steps(40)  # it trains on
    process.send(signal.SIGTERM)
    assert process.end() == 128 + signal.SIGTERM


def test_a_terminal_that_goes_away_ends_the_command_with_a_checkpoint(cli: Any, free_port: int, tmp_path: Path) -> None:
    command = cli(
        "train", "CartPole-v1", "--total-timesteps", "1000000000", "--lanes", "2", "--evaluation-games", "0",
        "--port", str(free_port), terminal=True,
    )  # fmt: skip
    command.read_until(r"episodes/min")
    command.remember_children()
    command.hang_up()
    assert command.process.wait(60) == 128 + signal.SIGHUP
    assert command.orphans() == []
    assert list(tmp_path.glob("runs/*/checkpoints/step-*/manifest.json"))
    assert not [path for path in tmp_path.rglob("*") if "unfinished" in path.name]
