"""The worker process: real processes, real signals, a real receiver."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import gymcast.training
from gymcast.training.checkpoints import CheckpointManager
from gymcast.training.config import TrainingConfig
from gymcast.training.hang_watch import MARK_NAME, Place, last_sign
from gymcast.training.run_folder import Orders, Outcome

CONFIG = {
    "env_id": "archers",
    "env_kwargs": {"opponent": "random", "max_duration_s": 1.0},
    "network": {"hidden": [16]},
    "hyperparameters": {"n_steps": 16, "batch_size": 128, "n_epochs": 1},
    "parallel_episodes": 16,
    "evaluation_games": 8,
    "evaluation_opponents": ["beginner"],
    "metrics_hz": 20,
    "seed": 1,
}


def start(run_dir: Path, url: str, *more: str, **changes: Any) -> subprocess.Popen[str]:
    run_dir.mkdir(exist_ok=True)
    if not more:
        (run_dir / "config.yaml").write_text(TrainingConfig.parse({**CONFIG, **changes}).to_yaml())
    Orders("s1", url).write(run_dir)
    command = [sys.executable, "-m", "gymcast.training.worker", "--run-dir", str(run_dir)]
    # What one that hangs is made to say.
    environment = {**os.environ, "PYTHONFAULTHANDLER": "1"}
    return subprocess.Popen([*command, *more], stderr=subprocess.PIPE, text=True, env=environment)


def finish(worker: subprocess.Popen[str], seconds: float = 270.0) -> tuple[int, str]:
    try:
        _, errors = worker.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        worker.send_signal(signal.SIGABRT)
        raise AssertionError(f"the worker did not end: {worker.communicate()[1]}") from None
    return worker.returncode, errors


def wait_until_training(receiver: Any, worker: subprocess.Popen[str], metrics: int = 3) -> None:
    deadline = time.monotonic() + 200  # kernels may have to be compiled first
    while len(receiver.of_type("training_metrics")) < metrics:
        assert worker.poll() is None, worker.communicate()[1]
        assert time.monotonic() < deadline, "no metrics arrived"
        time.sleep(0.02)


def test_a_session_runs_to_its_end_and_everything_arrives(tmp_path: Path, receiver: Any) -> None:
    code, errors = finish(start(tmp_path, receiver.url, total_timesteps=1024))
    assert code == 0, errors
    statuses = [data["status"] for data in receiver.of_type("training_status")]
    assert statuses[0] == "starting" and statuses[-1] == "completed"
    assert receiver.of_type("training_metrics")[-1]["extra"]["timesteps"] == 1024
    assert len(receiver.of_type("evaluation")) == 1 and receiver.of_type("checkpoint")
    assert len({producer for producer, _ in receiver.events}) == 1
    seqs = sorted(seq for _, seq in receiver.events)
    assert seqs == list(range(1, len(seqs) + 1))
    assert Outcome.read(tmp_path, attempt=1) == Outcome(1, "completed", "total_timesteps reached", False, len(seqs))
    assert Outcome.read(tmp_path, attempt=2) is None


def test_a_signal_ends_it_with_a_checkpoint_and_it_can_go_on(tmp_path: Path, receiver: Any) -> None:
    """tests/faults/test_signals.py has the other signals."""
    worker = start(tmp_path, receiver.url)
    wait_until_training(receiver, worker)
    worker.send_signal(signal.SIGTERM)
    assert finish(worker)[0] == 143
    assert receiver.of_type("checkpoint")[-1]["reason"] == "signal"
    assert receiver.of_type("training_status")[-1]["status"] == "cancelled"
    newest = CheckpointManager(tmp_path / "checkpoints").newest()
    assert newest is not None
    worker = start(tmp_path, receiver.url, "--resume")
    wait_until_training(receiver, worker, len(receiver.of_type("training_metrics")) + 3)
    receiver.desired = "stopping"
    assert finish(worker)[0] == 0
    later = CheckpointManager(tmp_path / "checkpoints").newest()
    assert later is not None and later.timesteps > newest.timesteps
    assert f"resumed from {newest.path.name}" in (tmp_path / "log.txt").read_text()


def test_a_second_interrupt_leaves_at_once(tmp_path: Path, receiver: Any) -> None:
    worker = start(tmp_path, receiver.url, hyperparameters={"n_steps": 2048, "batch_size": 8, "n_epochs": 200})
    wait_until_training(receiver, worker, 1)
    deadline = time.monotonic() + 120

    def places() -> set[Place | None]:
        """Where it is found to be within a second."""
        found: set[Place | None] = set()
        for _ in range(100):
            sign = last_sign(tmp_path, worker.pid)
            found.add(sign[0] if sign else None)
            time.sleep(0.01)
        return found

    # In the long update after the rollout nothing looks at signals; only the second one ends it.
    while places() != {Place.TRAINING}:
        assert time.monotonic() < deadline
    # Who looks after it sees that it gets on.
    mark = (tmp_path / MARK_NAME).read_bytes()
    while (tmp_path / MARK_NAME).read_bytes() == mark:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    worker.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert worker.poll() is None
    worker.send_signal(signal.SIGINT)
    assert finish(worker, 60)[0] == 130  # the update takes many minutes


def test_the_server_may_go_away_and_come_back_elsewhere(tmp_path: Path, make_receiver: Any) -> None:
    first = make_receiver()
    worker = start(tmp_path, first.url)
    wait_until_training(first, worker)
    assert finish(start(tmp_path, first.url, "--resume"))[0] == 3  # a run folder has one worker
    first.close()
    time.sleep(0.5)
    second = make_receiver()
    Orders("s1", second.url).write(tmp_path)
    wait_until_training(second, worker)
    second.desired = "cancelled"
    assert finish(worker)[0] == 0
    seqs = sorted({seq for _, seq in (*first.events, *second.events)})
    assert seqs == list(range(1, len(seqs) + 1))


def test_a_bad_configuration_is_one_clear_message(tmp_path: Path, receiver: Any) -> None:
    (tmp_path / "config.yaml").write_text("env_id: archers\nparallel_episodes: 0\n")
    code, errors = finish(start(tmp_path, receiver.url, "--resume"))
    assert code == 2 and "parallel_episodes" in errors and "Traceback" not in errors
    assert receiver.of_type("error")[0]["code"] == "bad_config"
    assert receiver.of_type("training_status")[-1]["status"] == "failed"


def test_an_unknown_game_is_one_clear_message(tmp_path: Path, receiver: Any) -> None:
    code, errors = finish(start(tmp_path, receiver.url, env_id="archer"))
    assert code == 2 and "archers" in errors.splitlines()[-1]
    assert receiver.of_type("training_status")[-1]["status"] == "failed"


def test_settings_that_only_the_algorithm_can_check_end_it_with_code_2(tmp_path: Path, receiver: Any) -> None:
    code, errors = finish(start(tmp_path, receiver.url, algorithm="dqn", hyperparameters={"buffer_size": 10}))
    assert code == 2 and errors.splitlines()[-1].startswith("  algorithm: dqn needs Discrete actions")
    assert "Traceback" not in errors + (tmp_path / "log.txt").read_text()
    assert [data["code"] for data in receiver.of_type("error")] == ["bad_config"]


LAZY = """
import sys
import gymcast.training
from gymcast.training import TrainingConfig, EventSink
import gymcast.training.events, gymcast.training.broadcast, gymcast.training.worker
assert TrainingConfig().env_id and EventSink
print(sorted(name for name in sys.modules if name in ("torch", "stable_baselines3", "tensorboard")))
import os
print(os.environ["OMP_WAIT_POLICY"])
"""


def test_configuration_and_events_do_not_import_torch() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", LAZY]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True, env=environment)
    assert result.stdout.split() == ["[]", "passive"]


def test_everything_public_is_there_once_it_is_wanted() -> None:
    found: dict[str, Any] = {}
    exec("from gymcast.training import *", found)
    assert {"Trainer", "GameVecEnv", "CheckpointManager"} <= found.keys() & set(dir(gymcast.training))
