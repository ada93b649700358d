"""Trainings that are held to a speed: in every environment that says how long its steps are, and said when it fails."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest

from gymcast.training import Trainer, TrainingConfig
from gymcast.training.callbacks import session
from gymcast.training.events import ErrorData, TrainingMetricsData


class Slow(gym.Env[Any, Any]):
    """A game whose steps of 0.02 s of game time take 0.01 s."""

    metadata = {"render_modes": [], "render_fps": 50}  # noqa: RUF012 - as Gymnasium declares it
    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> Any:
        time.sleep(0.01)
        return np.zeros(2, np.float32), 0.0, False, False, {}


class Timeless(Slow):
    """A game that does not say how long its steps are."""

    metadata = {"render_modes": []}  # noqa: RUF012


def train(folder: Path, sink: Any, env_id: str, **changes: Any) -> float:
    config = TrainingConfig.parse(
        {
            "env_id": env_id,
            "hyperparameters": {"n_steps": 32, "batch_size": 32, "n_epochs": 1},
            "parallel_episodes": 1,
            "evaluation_games": 0,
            "metrics_hz": 50,
            **changes,
        }
    )
    started = time.monotonic()
    Trainer(config, run_dir=folder, sink=sink).run_training_loop()
    return time.monotonic() - started


def test_other_environments_are_paced_by_their_frames_per_second(tmp_path: Path, sink: Any) -> None:
    seconds = train(tmp_path, sink, "CartPole-v1", training_mode="realtime", total_timesteps=64)
    assert seconds >= 63 * 0.02
    assert "speed: 1 x real time" in (tmp_path / "log.txt").read_text()


def test_a_machine_that_cannot_keep_up_says_so_once(tmp_path: Path, sink: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "LATE_LOOK_SECONDS", 0.6)
    gym.register("SlowGame-v0", entry_point=Slow)
    try:
        train(tmp_path, sink, "SlowGame-v0", training_mode="headless", speed_multiplier=100, total_timesteps=192)
    finally:
        del gym.registry["SlowGame-v0"]
    (error,) = sink.of(ErrorData)
    assert error.code == "pace_not_held" and "100 x" in error.message and error.detail["rate"] < 3
    extra = sink.of(TrainingMetricsData)[-1].extra
    assert extra["pace"] < 3 and extra["pace_lag"] > 1.0
    assert error.message in (tmp_path / "log.txt").read_text()


def test_an_environment_without_a_clock_is_not_paced_and_that_is_said(tmp_path: Path, sink: Any) -> None:
    gym.register("Timeless-v0", entry_point=Timeless)
    try:
        train(tmp_path, sink, "Timeless-v0", speed_multiplier=10, total_timesteps=32)
    finally:
        del gym.registry["Timeless-v0"]
    log = (tmp_path / "log.txt").read_text()
    assert "no pacing: Timeless-v0 does not say how long a step is" in log and "speed: unlimited" in log


def test_training_comes_to_the_same_weights_at_every_speed_watched_or_not(tmp_path: Path, sink: Any) -> None:
    modes: list[dict[str, Any]] = [
        {"spectator_enabled": False},
        {"speed_multiplier": 100},
        {"training_mode": "realtime", "footage_seconds": 0.001},
    ]
    hashes = set()
    for number, changes in enumerate(modes):
        config = TrainingConfig.parse(
            {
                "env_id": "archers",
                "env_kwargs": {"max_duration_s": 1.0, "opponent": "random"},
                "hyperparameters": {"n_steps": 8, "batch_size": 64, "n_epochs": 1},
                "parallel_episodes": 16,
                "total_timesteps": 384,
                "evaluation_games": 0,
                "seed": 1,
                **changes,
            }
        )
        trainer = Trainer(config, run_dir=tmp_path / str(number), sink=sink)
        trainer.run_training_loop()
        assert trainer.model is not None
        digest = hashlib.sha256()
        for value in trainer.model.policy.state_dict().values():
            digest.update(value.numpy().tobytes())
        hashes.add(digest.hexdigest())
    assert len(hashes) == 1
