"""Whole runs: what they leave behind, how they end, how they go on."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3.common.callbacks import BaseCallback

from gymcast.envs import Replay, load_policy, verify_replay
from gymcast.training import Trainer, TrainingConfig
from gymcast.training.callbacks import TrainingCollapsed
from gymcast.training.checkpoints import CheckpointManager, load_arrays, load_state, load_tensors
from gymcast.training.config import ConfigError
from gymcast.training.events import (
    BotDecisionData,
    CheckpointData,
    ErrorData,
    EvaluationData,
    ReplayData,
    TrainingMetricsData,
    TrainingStatusData,
)

SMALL = {
    "env_id": "archers",
    "env_kwargs": {"opponent": "random", "max_duration_s": 1.0, "kills_to_win": 1},
    "network": {"hidden": [16]},
    "hyperparameters": {"n_steps": 16, "batch_size": 128, "n_epochs": 1},
    "parallel_episodes": 16,
    "evaluation_games": 8,
    "seed": 1,
}


def small(**changes: Any) -> TrainingConfig:
    return TrainingConfig.parse({**SMALL, **changes})


def run(tmp_path: Path, sink: Any = None, resume: bool = False, **changes: Any) -> Any:
    return Trainer(small(**changes), run_dir=tmp_path / "run", sink=sink, resume=resume).run_training_loop()


def test_a_run_leaves_its_folder_and_tells_its_story(tmp_path: Path, sink: Any) -> None:
    given = {"algorithm": "maskable_ppo", "total_timesteps": 16 * 16 * 4, "footage_seconds": 0.01, "metrics_hz": 50}
    result = run(tmp_path, sink, **given)
    folder = tmp_path / "run"
    assert result.status == "completed" and result.exit_code == 0 and result.timesteps == 1024
    assert TrainingConfig.from_yaml(folder / "config.yaml") == small(**given, env_id="gymcast/Archers-v0", workers=0)
    assert "completed" in (folder / "log.txt").read_text() and any((folder / "tb").iterdir())
    assert json.loads((folder / "summary.json").read_text())["timesteps"] == 1024

    statuses = [(event.status, event.phase) for event in sink.of(TrainingStatusData)]
    assert statuses[0] == ("starting", "compiling") and statuses[-1] == ("completed", "")
    assert ("running", "training") in statuses and ("running", "evaluating") in statuses
    assert sink.of(ErrorData) == []

    metrics = sink.of(TrainingMetricsData)
    assert metrics[-1].extra["timesteps"] == 1024 and metrics[-1].episode == result.episodes > 16
    assert {"policy_loss", "value_loss", "entropy", "explained_variance", "approx_kl", "clip_fraction"} <= set(
        metrics[-1].extra
    )
    assert metrics[-1].extra["samples_per_second"] > 0 and metrics[-1].win_rate is not None
    extra = metrics[-1].extra
    # The first reading comes with the first step, before there is any time to divide by.
    assert metrics[0].extra["samples_per_second"] is None
    assert extra["game_seconds_per_second"] == pytest.approx(extra["samples_per_second"] * 0.08)
    assert extra["wins"] + extra["losses"] + extra["draws"] == result.episodes

    checkpoint = sink.of(CheckpointData)[-1]
    assert checkpoint.reason == "final" and (folder / checkpoint.path / "manifest.json").exists()
    evaluations = sink.of(EvaluationData)
    assert [e.opponent for e in evaluations] == ["beginner", "intermediate", "advanced", "expert"]
    assert all(e.games == 8 and e.wins + e.losses + e.draws == 8 for e in evaluations)
    assert load_policy(result.checkpoint / "policy.npz").meta["env_id"] == "gymcast/Archers-v0"


def test_footage_is_real_and_its_decisions_are_the_policys(tmp_path: Path, sink: Any) -> None:
    run(tmp_path, sink, total_timesteps=16 * 16 * 4, footage_seconds=0.01, evaluation_games=0)
    import base64

    replays = sink.of(ReplayData)
    assert len(replays) >= 2 and len({replay.replay_id for replay in replays}) == len(replays)
    for data in replays[:3]:
        replay = Replay.from_bytes(base64.b64decode(data.bytes_base64))
        verify_replay(replay)
        assert replay.summary == data.summary and data.summary["length"] == len(data.decisions)
        for decision in data.decisions:
            assert sum(decision.action_probabilities.values()) == pytest.approx(1.0, abs=1e-3)
            assert set(decision.groups) == {"move", "vertical", "bow", "aim"}
            for group in decision.groups.values():
                assert sum(group.values()) == pytest.approx(1.0, abs=1e-3)
            assert decision.state_values is not None
    decisions = sink.of(BotDecisionData)
    assert decisions and 0.0 < decisions[0].confidence_score <= 1.0
    assert decisions[0].selected_action.count(" + ") == 3


@pytest.mark.parametrize("algorithm", ["maskable_ppo", "a2c", "dqn"])
def test_the_other_algorithms_run_too(algorithm: str, tmp_path: Path, sink: Any) -> None:
    env_kwargs = {**SMALL["env_kwargs"], **({"action": "discrete"} if algorithm == "dqn" else {})}  # type: ignore[dict-item]
    hyperparameters = {
        "maskable_ppo": SMALL["hyperparameters"],
        "a2c": {"n_steps": 8},
        "dqn": {"buffer_size": 2000, "learning_starts": 100},
    }[algorithm]
    result = run(
        tmp_path, sink, algorithm=algorithm, env_kwargs=env_kwargs, hyperparameters=hyperparameters,
        total_timesteps=512, evaluation_games=2, evaluation_opponents=["beginner"], footage_seconds=0.01,
    )  # fmt: skip
    assert result.status == "completed" and len(result.evaluations) == 1
    assert sink.of(BotDecisionData) and sink.of(ErrorData) == []


@pytest.mark.parametrize(("limit", "value"), [("max_episodes", 20), ("max_minutes", 0.01)])
def test_a_limit_that_is_passed_ends_the_run(limit: str, value: float, tmp_path: Path, sink: Any) -> None:
    result = run(tmp_path, sink, evaluation_games=0, **{limit: value})
    assert result.status == "completed" and result.reason == f"{limit} reached"
    assert result.checkpoint is not None
    if limit == "max_episodes":
        assert 20 <= result.episodes < 20 + 16
    else:
        assert result.training_seconds >= 0.6


def test_checkpoints_come_at_intervals_that_no_step_hits_exactly(tmp_path: Path, sink: Any) -> None:
    run(tmp_path, sink, total_timesteps=16 * 16 * 6, evaluation_games=0, checkpoint_interval_steps=300)
    saved = [(event.timesteps, event.reason) for event in sink.of(CheckpointData)]
    assert saved == [(512, "interval"), (1024, "interval"), (1536, "final")]


def flatten(value: Any, path: str = "") -> dict[str, Any]:
    if isinstance(value, dict):
        return {key: leaf for name, item in value.items() for key, leaf in flatten(item, f"{path}/{name}").items()}
    if isinstance(value, list | tuple):
        return flatten(dict(enumerate(value)), path)
    return {path: value}


def test_a_resumed_run_continues_where_it_was(tmp_path: Path) -> None:
    first = run(tmp_path, total_timesteps=512, evaluation_games=0)
    # With nothing left to do, what was restored is saved again as it is.
    again = run(tmp_path, total_timesteps=512, evaluation_games=0, resume=True)
    saved, restored = CheckpointManager(tmp_path / "run" / "checkpoints").list()
    assert (saved.path, restored.path) == (first.checkpoint, again.checkpoint)
    before, after = flatten(load_tensors(saved)), flatten(load_tensors(restored))
    assert len(before) > 20 and set(before) == set(after)
    for name, value in before.items():
        assert th.equal(value, after[name]) if isinstance(value, th.Tensor) else value == after[name], name
    state = load_state(restored)
    assert state == load_state(saved) and state["counters"]["num_timesteps"] == 512
    assert state["stats"]["episodes"] == first.episodes
    arrays, again_arrays = load_arrays(saved), load_arrays(restored)
    assert {"random/torch", "random/numpy", "random/python", "game/0", "_last_obs"} <= set(arrays) == set(again_arrays)
    assert all(np.array_equal(arrays[name], again_arrays[name]) for name in arrays)
    further = run(tmp_path, total_timesteps=1024, evaluation_games=0, resume=True)
    assert further.timesteps == 1024 and further.episodes > first.episodes
    assert further.training_seconds > first.training_seconds


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path, sink: Any) -> None:
    run(tmp_path, total_timesteps=256, evaluation_games=0)
    with pytest.raises(Exception, match="does not fit"):
        run(tmp_path, sink, resume=True, total_timesteps=512, network={"hidden": [8]})
    assert sink.of(ErrorData)[-1].code == "training_failed"
    assert sink.of(TrainingStatusData)[-1].status == "failed"


def test_the_same_seed_gives_the_same_weights(tmp_path: Path) -> None:
    weights = []
    for name in ("a", "b"):
        result = run(tmp_path / name, total_timesteps=512, evaluation_games=0)
        newest = CheckpointManager(result.checkpoint.parent).newest()
        assert newest is not None
        weights.append(load_tensors(newest)["model"]["policy"])
    assert all(th.equal(weights[0][name], weights[1][name]) for name in weights[0])


def wait_for_status(sink: Any, status: str) -> None:
    deadline = time.monotonic() + 30
    while not any(event.status == status for event in sink.of(TrainingStatusData)):
        assert time.monotonic() < deadline, f"no status {status}"
        time.sleep(0.01)


@pytest.mark.parametrize("wish", ["stopping", "cancelled"])
def test_it_pauses_goes_on_and_stops_on_request(wish: Any, tmp_path: Path, sink: Any) -> None:
    results: list[Any] = []
    trainer = Trainer(small(), run_dir=tmp_path / "run", sink=sink)
    thread = threading.Thread(target=lambda: results.append(trainer.run_training_loop()))
    thread.start()
    wait_for_status(sink, "running")
    sink.desired = "paused"
    wait_for_status(sink, "paused")
    steps, clock = trainer.progress.timesteps, trainer.progress.seconds
    time.sleep(0.3)
    assert (trainer.progress.timesteps, trainer.progress.seconds) == (steps, clock)
    sink.desired = "running"
    deadline = time.monotonic() + 30
    while trainer.progress.timesteps == steps:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    sink.desired = wish
    thread.join(30)
    assert results[0].status == "cancelled" and "request" in results[0].reason and results[0].exit_code == 0
    # Who cancels wants the end, not what was reached.
    saved = ["pause"] if wish == "cancelled" else ["pause", "final"]
    assert [event.reason for event in sink.of(CheckpointData)] == saved
    assert sink.of(EvaluationData) == []


def test_pacing_holds_the_game_to_its_speed(tmp_path: Path) -> None:
    started = time.monotonic()
    result = run(tmp_path, total_timesteps=256, evaluation_games=0, speed_multiplier=4.0)
    # 16 steps of 0.08 s at four times real time.
    assert time.monotonic() - started >= 15 * 0.08 / 4 and result.timesteps == 256


def test_values_that_cannot_work_end_the_run_with_an_event(tmp_path: Path, sink: Any) -> None:
    with pytest.raises(ConfigError, match="dqn needs Discrete actions"):
        run(tmp_path, sink, algorithm="dqn", hyperparameters={"buffer_size": 10})
    assert sink.of(TrainingStatusData)[-1].status == "failed"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert "dqn needs Discrete actions" in log and "Traceback" not in log


def test_a_lost_network_is_noticed(tmp_path: Path, sink: Any) -> None:
    with pytest.raises(TrainingCollapsed):
        run(tmp_path, sink, hyperparameters={**SMALL["hyperparameters"], "learning_rate": 1e30}, total_timesteps=5000)  # type: ignore[dict-item]
    assert sink.of(TrainingStatusData)[-1].status == "failed"
    assert "Traceback" in (tmp_path / "run" / "log.txt").read_text()


FULL_DISK = """
import resource, signal, sys
from gymcast.training import Trainer, TrainingConfig
from gymcast.training.events import CheckpointData, ErrorData
class Sink:
    desired = "running"
    events = []
    def emit(self, data):
        self.events.append(data)
        if isinstance(data, CheckpointData) and len([e for e in self.events if isinstance(e, CheckpointData)]) == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
config = TrainingConfig.parse(dict(
    env_id="CartPole-v1", total_timesteps=1500, evaluation_games=0, parallel_episodes=2, seed=0,
    hyperparameters={"n_steps": 128, "batch_size": 64, "n_epochs": 1}, checkpoint_interval_steps=256))
sink = Sink()
result = Trainer(config, run_dir=sys.argv[1], sink=sink).run_training_loop()
print(result.status, [e.timesteps for e in sink.events if isinstance(e, CheckpointData)],
      {e.code for e in sink.events if isinstance(e, ErrorData)})
"""


def test_a_full_disk_does_not_end_the_run_and_the_last_checkpoint_stays(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert result.stdout.split("\n")[0] == "completed [256] {'checkpoint_failed'}", result.stdout + result.stderr
    newest = CheckpointManager(tmp_path / "checkpoints").newest()
    assert newest is not None and newest.timesteps == 256


def test_it_learns_to_balance_a_pole(tmp_path: Path) -> None:
    config = TrainingConfig.for_env(
        "CartPole-v1",
        total_timesteps=14_336,
        seed=0,
        evaluation_games=20,
        hyperparameters={"n_steps": 128, "n_epochs": 10, "learning_rate": 0.003, "clip_range": 0.2, "gae_lambda": 0.95},
    )
    result = Trainer(config, run_dir=tmp_path / "run").run_training_loop()
    untrained = 22.0  # mean return of random actions
    assert result.evaluations[0].mean_return > 10 * untrained
    assert np.isfinite(result.evaluations[0].mean_length)


class Watching(BaseCallback):
    """Somebody's own callback: counts what it is told, and breaks at a step if it is to."""

    def __init__(self, breaks_at: int | None = None, stops_at: int | None = None) -> None:
        super().__init__()
        self.breaks_at, self.stops_at = breaks_at, stops_at
        self.told: list[str] = []

    def _on_training_start(self) -> None:
        self.told.append("training")

    def _on_rollout_start(self) -> None:
        self.told.append("rollout")

    def _on_step(self) -> bool:
        assert self.locals["dones"].shape == (16,)
        self.told.append("step")
        if self.breaks_at is not None and self.n_calls >= self.breaks_at:
            raise ZeroDivisionError("a fault of mine")
        return self.n_calls != self.stops_at

    def _on_training_end(self) -> None:
        self.told.append("end")


def test_callbacks_of_ones_own_are_called_and_cannot_end_the_training_by_a_fault(tmp_path: Path, sink: Any) -> None:
    good, bad = Watching(), Watching(breaks_at=3)
    trainer = Trainer(
        small(total_timesteps=16 * 16 * 2, evaluation_games=0),
        run_dir=tmp_path / "run",
        sink=sink,
        callbacks=[bad, good],
    )
    assert trainer.run_training_loop().status == "completed"
    assert good.told == ["training", *(["rollout", *["step"] * 16] * 2), "end"]
    assert bad.told == ["training", "rollout", *["step"] * 3]
    (error,) = sink.of(ErrorData)
    assert error.code == "callback_failed" and "Watching is given up: ZeroDivisionError" in error.message
    assert "a fault of mine" in (tmp_path / "run" / "log.txt").read_text()


def test_a_callback_of_ones_own_can_end_the_training(tmp_path: Path) -> None:
    trainer = Trainer(small(evaluation_games=0), run_dir=tmp_path / "run", callbacks=[Watching(stops_at=5)])
    assert trainer.run_training_loop().timesteps == 5 * 16
