"""A run that is stopped, paused or killed and goes on ends with the weights of one that was left alone."""

from __future__ import annotations

import functools
import hashlib
import json
import random
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th

from gymcast.training import Trainer, TrainingConfig, boundary
from gymcast.training.checkpoints import CheckpointManager, load_arrays, load_state, load_tensors, tensors_sha256
from gymcast.training.events import CheckpointData, ErrorData, TrainingStatusData
from gymcast.training.resume_check import ResumeCheckError, check_config, check_resume

ARCHERS = {
    "env_id": "archers",
    "env_kwargs": {"opponent": "beginner", "max_duration_s": 4.0},
    "parallel_episodes": 16,
}
POLE = {"env_id": "CartPole-v1", "parallel_episodes": 4}
ACROBOT = {"env_id": "Acrobot-v1", "parallel_episodes": 2}
PENDULUM = {"env_id": "Pendulum-v1", "parallel_episodes": 2, "max_episode_steps": 40, "total_timesteps": 500}
ACTOR_Q = {"buffer_size": 300, "learning_starts": 60, "batch_size": 16, "train_freq": 2, "gradient_steps": 2}
PPO = {"n_steps": 16, "batch_size": 32, "n_epochs": 2, "learning_rate": {"schedule": "linear", "start": 0.01, "end": 0}}
DQN = {"buffer_size": 700, "learning_starts": 100, "batch_size": 32, "target_update_interval": 200}
DISCRETE = {"env_kwargs": {**ARCHERS["env_kwargs"], "action": "discrete"}}  # type: ignore[dict-item]
GAUSS = {"env_kwargs": {**ARCHERS["env_kwargs"], "action": "box"}}  # type: ignore[dict-item]
LONGER = {"total_timesteps": 1200}
NORMALISED: dict[str, Any] = {"normalize": {}}

CASES: dict[str, dict[str, Any]] = {
    "ppo archers": {**ARCHERS, "algorithm": "ppo", "hyperparameters": PPO},
    "ppo archers normalised": {**ARCHERS, "algorithm": "ppo", "hyperparameters": PPO, **NORMALISED},
    "ppo with state-dependent noise": {
        **ARCHERS, **GAUSS, "algorithm": "ppo", "hyperparameters": {**PPO, "use_sde": True, "sde_sample_freq": 4},
    },
    "maskable_ppo archers": {**ARCHERS, "algorithm": "maskable_ppo", "hyperparameters": PPO},
    "maskable_recurrent_ppo vault": {
        "env_id": "gymcast/Vault-v0",
        "parallel_episodes": 3,
        "algorithm": "maskable_recurrent_ppo",
        "hyperparameters": PPO,
    },
    "recurrent_ppo archers": {**ARCHERS, "algorithm": "recurrent_ppo", "hyperparameters": PPO},
    "a2c acrobot": {**ACROBOT, "algorithm": "a2c", "hyperparameters": {"n_steps": 8}},
    "dqn archers": {**ARCHERS, **DISCRETE, "algorithm": "dqn", "hyperparameters": DQN},
    "dqn pole normalised": {**POLE, "algorithm": "dqn", "hyperparameters": DQN, **NORMALISED},
    "recurrent_ppo pole normalised": {**POLE, "algorithm": "recurrent_ppo", "hyperparameters": PPO, **NORMALISED},
    "trpo pole": {**POLE, "algorithm": "trpo", "hyperparameters": {"n_steps": 16, "batch_size": 32}},
    "qrdqn pole": {**POLE, "algorithm": "qrdqn", "hyperparameters": DQN},
    "sac pendulum": {**PENDULUM, "algorithm": "sac", "hyperparameters": ACTOR_Q},
    "sac with state-dependent noise": {
        **PENDULUM, "algorithm": "sac", "hyperparameters": {**ACTOR_Q, "use_sde": True, "n_steps": 3}, **NORMALISED,
    },
    "td3 with a noise that remembers": {
        **PENDULUM, "algorithm": "td3", "hyperparameters": {**ACTOR_Q, "noise_type": "ornstein_uhlenbeck"},
    },
    "ars pole normalised": {**POLE, "algorithm": "ars", "hyperparameters": {"n_delta": 3}, **NORMALISED, **LONGER},
    "ars lake": {**POLE, "env_id": "FrozenLake-v1", "algorithm": "ars", "hyperparameters": {"n_delta": 3}, **LONGER},
    "ppo acrobot": {**ACROBOT, "algorithm": "ppo", "hyperparameters": PPO},
    "ppo pole in workers": {**POLE, "algorithm": "ppo", "hyperparameters": PPO, **NORMALISED, "workers": 2},
    "ppo lunar lander": {**POLE, "env_id": "LunarLander-v3", "algorithm": "ppo", "hyperparameters": PPO},
}  # fmt: skip


def config_of(case: dict[str, Any], **changes: Any) -> TrainingConfig:
    network = {"hidden": [16], **({"lstm_hidden": 8} if "recurrent" in case["algorithm"] else {})}
    settings = {"network": network, "evaluation_games": 0, "seed": 3, **case, **changes}
    if "total_timesteps" not in settings and "max_episodes" not in settings:
        rollout = 16 * settings["parallel_episodes"]
        settings["total_timesteps"] = 8 * rollout
    return TrainingConfig.parse(settings)


def newest(run_dir: Path) -> Any:
    found = CheckpointManager(run_dir / "checkpoints", keep=None).newest()
    assert found is not None
    return found


def weights(run_dir: Path) -> str:
    """Policy and optimizer of the newest checkpoint."""
    return tensors_sha256(load_tensors(newest(run_dir)))


class StopAfter:
    """A sink that wishes for ``wish`` once the trainer has taken ``decisions``."""

    def __init__(self, decisions: float, wish: Any = "stopping") -> None:
        self.decisions = decisions
        self.wish = wish
        self.trainer: Trainer | None = None
        self.events: list[Any] = []

    @property
    def desired(self) -> Any:
        done = self.trainer is not None and self.trainer.progress.timesteps >= self.decisions
        return self.wish if done else "running"

    def emit(self, data: Any) -> None:
        self.events.append(data)


def train(config: TrainingConfig, run_dir: Path, sink: Any = None, *, resume: bool = False) -> Any:
    trainer = Trainer(config, run_dir=run_dir, sink=sink, resume=resume)
    if isinstance(sink, StopAfter):
        sink.trainer = trainer
    return trainer.run_training_loop()


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a case's uninterrupted run, trained once."""

    @functools.cache
    def run(name: str) -> Path:
        folder = tmp_path_factory.mktemp("whole")
        train(config_of(CASES[name]), folder)
        return folder

    return run


@pytest.mark.parametrize("go_back", [False, True], ids=["waits for the update", "goes back to the rollout's start"])
@pytest.mark.parametrize("name", CASES)
def test_stopped_and_resumed_equals_uninterrupted(
    name: str, go_back: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole_run: Callable[[str], Path]
) -> None:
    if "lunar" in name:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Box2D's import warns, and crashes when that is an error
            pytest.importorskip("Box2D", reason="LunarLander needs gymcast[box2d]")
    if go_back and any(short in name for short in ("dqn", "a2c", "sac", "td3")):
        pytest.skip("its rollouts are short")
    whole = whole_run(name)
    monkeypatch.setattr(boundary, "LONG_ROLLOUT_SECONDS", 0.0 if go_back else 1e9)
    config = config_of(CASES[name])
    total = config.total_timesteps
    assert total is not None
    chooser = random.Random(name)
    stops = sorted(chooser.randrange(1, total * 7 // 8) for _ in range(2))
    for number, stop in enumerate(stops):
        result = train(config, tmp_path / "parts", StopAfter(stop), resume=number > 0)
        assert result.status == "cancelled"
        # What other code draws between two processes' lives must not matter.
        random.random()
        np.random.rand()
        th.rand(1)
    assert train(config, tmp_path / "parts", resume=True).status == "completed"
    assert weights(tmp_path / "parts") == weights(whole)
    alone, parts = (load_state(newest(run)) for run in (whole, tmp_path / "parts"))
    for same in ("counters", "stats"):
        assert alone[same] == parts[same]


def test_the_weights_do_depend_on_what_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The comparison above can fail: with another stream of random numbers after the resume the weights differ."""
    config = config_of(CASES["ppo archers"])
    train(config, tmp_path / "whole")
    train(config, tmp_path / "parts", StopAfter(700))
    monkeypatch.setattr(th, "set_rng_state", lambda state: None)
    train(config, tmp_path / "parts", resume=True)
    assert weights(tmp_path / "parts") != weights(tmp_path / "whole")


def test_a_pause_in_the_middle_of_a_rollout_changes_nothing(tmp_path: Path) -> None:
    config = config_of(CASES["ppo archers"])
    train(config, tmp_path / "whole")
    sink = StopAfter(100, "paused")
    thread = threading.Thread(target=lambda: train(config, tmp_path / "paused", sink))
    thread.start()
    deadline = time.monotonic() + 30
    while not any(isinstance(event, TrainingStatusData) and event.status == "paused" for event in sink.events):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    (pause,) = (event for event in sink.events if isinstance(event, CheckpointData))
    # The first rollout's start is kept, as nobody knows yet how long one takes.
    assert (pause.reason, pause.timesteps) == ("pause", 0)
    sink.wish = "running"
    thread.join(30)
    assert weights(tmp_path / "paused") == weights(tmp_path / "whole")


@pytest.mark.parametrize("name", ["ppo archers", "dqn archers"])
def test_measuring_checkpoints_does_not_change_the_training(name: str, tmp_path: Path, sink: Any) -> None:
    plain = config_of(CASES[name])
    measured = config_of(CASES[name], checkpoint_evaluation_games=4, checkpoint_interval_steps=300)
    train(plain, tmp_path / "plain")
    train(measured, tmp_path / "measured", sink)
    assert weights(tmp_path / "plain") == weights(tmp_path / "measured")
    manager = CheckpointManager(tmp_path / "measured" / "checkpoints")
    assert all(checkpoint.score is not None for checkpoint in manager.list())
    best = manager.best()
    assert best is not None and best.score in [0.0, 25.0, 50.0, 75.0, 100.0]


def test_it_says_which_checkpoint_it_takes_and_which_it_skips(tmp_path: Path, sink: Any) -> None:
    config = config_of(CASES["ppo archers"], checkpoint_interval_steps=500)
    train(config, tmp_path / "run", StopAfter(1500))
    *_, older, damaged = CheckpointManager(tmp_path / "run" / "checkpoints").list()
    content = bytearray((damaged.path / "model.pt").read_bytes())
    content[100] ^= 1
    (damaged.path / "model.pt").write_bytes(content)
    train(config, tmp_path / "run", sink, resume=True)
    (skipped,) = (event.message for event in sink.of(ErrorData))
    assert damaged.path.name in skipped and "SHA-256" in skipped and "model.pt" in skipped
    (told,) = (event.reason for event in sink.of(TrainingStatusData) if "resumed" in (event.reason or ""))
    assert told.startswith(f"resumed from {older.path.name}; {damaged.path.name} skipped: SHA-256 of ")
    assert told in (tmp_path / "run" / "log.txt").read_text()


class Uncopyable(gym.Env[Any, Any]):
    """A game that can neither be copied nor played again: it holds a lock, and no seed determines it."""

    observation_space = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self.observe(), {}

    def observe(self) -> Any:
        return np.random.default_rng().uniform(-1, 1, 2).astype(np.float32)

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self.observe(), float(action), self.steps >= 20, False, {}


gym.register("Uncopyable-v0", Uncopyable)


def test_games_that_cannot_be_kept_begin_anew_and_that_is_said_once(tmp_path: Path, sink: Any) -> None:
    case = {"env_id": "Uncopyable-v0", "parallel_episodes": 2, "algorithm": "ppo", "hyperparameters": PPO}
    config = config_of(case)
    train(config, tmp_path / "run", StopAfter(100))
    result = train(config, tmp_path / "run", sink, resume=True)
    assert result.status == "completed" and result.timesteps == config.total_timesteps
    (note,) = sink.of(ErrorData)
    assert note.code == "resume_not_exact" and "begin anew" in note.message


def test_a_run_that_reached_its_episodes_can_be_given_more(tmp_path: Path) -> None:
    case = CASES["ppo archers"]
    first = train(config_of(case, max_episodes=10), tmp_path / "run")
    saved = newest(tmp_path / "run")
    assert (saved.episodes, saved.timesteps) == (first.episodes, first.timesteps) and first.episodes >= 10
    further = train(config_of(case, max_episodes=30), tmp_path / "run", resume=True)
    assert further.episodes >= 30 and further.timesteps > first.timesteps


def test_what_the_learner_saw_last_belongs_to_the_games(tmp_path: Path) -> None:
    """A limit that ends a rollout in the middle leaves observation and games at the same step."""
    train(config_of(CASES["ppo archers"], max_episodes=10), tmp_path / "run")
    arrays = load_arrays(newest(tmp_path / "run"))
    trainer = Trainer(config_of(CASES["ppo archers"]))
    env: Any = trainer._make_env()
    env.restore(arrays["game/0"].tobytes())
    assert np.array_equal(env.env.batch.observation, arrays["_last_obs"])
    env.close()


def test_the_number_of_torch_threads_is_the_checkpoints(tmp_path: Path) -> None:
    config = config_of(CASES["ppo archers"])
    train(config, tmp_path / "run", StopAfter(700))
    path = newest(tmp_path / "run").path
    assert load_state(newest(tmp_path / "run"))["torch_threads"] == th.get_num_threads() == 1
    state = (path / "state.json").read_text().replace('"torch_threads": 1', '"torch_threads": 2')
    (path / "state.json").write_text(state)
    manifest = (path / "manifest.json").read_text()
    content = json.loads(manifest)
    content["files"]["state.json"]["sha256"] = hashlib.sha256(state.encode()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(content))
    try:
        train(config, tmp_path / "run", resume=True)
        assert th.get_num_threads() == 2
    finally:
        th.set_num_threads(1)


def test_a_training_that_cannot_begin_ends_the_check(tmp_path: Path) -> None:
    config = check_config("CartPole-v1", algorithm="maskable_ppo", hyperparameters={})
    with pytest.raises(ResumeCheckError, match="needs action_masks"):
        check_resume(config, 1, tmp_path, tell=lambda *_: None, on_kill=lambda _: None)
