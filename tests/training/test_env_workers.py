"""Trainings whose environments are stepped in worker processes."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces

from gymcast.envs.episode_log import EpisodeLog
from gymcast.envs.replay_player import verify_replay
from gymcast.envs.subproc import WorkerError
from gymcast.training import Trainer, TrainingConfig
from gymcast.training.callbacks.progress import RunProgress
from gymcast.training.checkpoints import CheckpointManager, load_tensors
from gymcast.training.config import ConfigError
from gymcast.training.env_workers import resolve_workers, worker_options
from gymcast.training.episode_stats import EpisodeStats
from gymcast.training.events import ErrorData, TrainingMetricsData
from gymcast.training.models import build_model, normalized
from gymcast.training.resume import resume_run, save_run
from gymcast.training.run_state import capture
from gymcast.training.vec_env import make_training_vec_env

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Counting(gym.Env[Any, Any]):
    """Shows how many steps its episode has, pays 1 for each, and never ends; its fourth step takes what ``trigger``
    names away and does ``trouble``."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, trigger: str, trouble: str) -> None:
        self.trigger, self.trouble = Path(trigger), trouble

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 4 and self.trigger.exists():
            self.trigger.unlink()
            if self.trouble == "raise":
                raise ZeroDivisionError("the game fell over")
            os.kill(os.getpid(), signal.SIGKILL)
        return np.full(1, self.steps, np.float32), 1.0, False, False, {}

    def action_masks(self) -> Any:
        return np.ones(2, np.bool_)


gym.register("Counting-v0", Counting)
PPO = {"n_steps": 64, "batch_size": 64, "n_epochs": 1}


def config_of(**changes: Any) -> TrainingConfig:
    settings = {
        "env_id": "CartPole-v1",
        "parallel_episodes": 4,
        "total_timesteps": 1024,
        "hyperparameters": PPO,
        "evaluation_games": 0,
        "seed": 3,
        **changes,
    }
    return TrainingConfig.parse(settings)


def weights(run_dir: Path) -> dict[str, th.Tensor]:
    newest = CheckpointManager(run_dir / "checkpoints").newest()
    assert newest is not None
    found: dict[str, th.Tensor] = load_tensors(newest)["model"]["policy"]
    return found


def test_workers_play_what_one_process_plays_and_log_it(tmp_path: Path, sink: Any) -> None:
    for workers in (0, 2):
        run = tmp_path / str(workers)
        result = Trainer(config_of(workers=workers), run_dir=run, sink=sink).run_training_loop()
        log = EpisodeLog(run / "episodes")
        assert len(log) == result.episodes > 10
        for episode in log.select(limit=5):
            verify_replay(log.replay(episode))
        assert f"workers: {workers}\n" in (run / "config.yaml").read_text()
    one, two = weights(tmp_path / "0"), weights(tmp_path / "2")
    assert all(th.equal(value, two[name]) for name, value in one.items())
    reading = sink.of(TrainingMetricsData)[-1]
    assert (reading.extra["worker_restarts"], reading.extra["episodes_failed"]) == (0, 0)


def test_auto_depends_on_whose_game_it_is() -> None:
    assert resolve_workers(config_of(workers="auto"), auto=True) == 0
    assert resolve_workers(config_of(env_id="archers", workers="auto"), auto=True) == 0
    assert resolve_workers(config_of(workers=9)) == 4  # as many as there are lanes


def test_a_built_in_game_takes_no_workers() -> None:
    with pytest.raises(ConfigError, match="workers: got 2, but gymcast/Archers-v0 runs as one native batch"):
        resolve_workers(config_of(env_id="archers", workers=2))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({}, 60.0), ({"episode_timeout": 5.0}, 10.0), ({"step_timeout": None}, None), ({"step_timeout": 3.0}, 3.0)],
)
def test_no_step_may_last_longer_than_an_episode(changes: dict[str, Any], expected: float | None) -> None:
    options = worker_options(config_of(workers=2, **changes))
    assert options is not None and options["step_timeout"] == expected
    assert options["n_workers"] == 2


def test_an_option_that_no_worker_can_make_is_a_matter_of_settings(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"env_kwargs: .*unexpected keyword argument 'foo'"):
        Trainer(config_of(workers=1, env_kwargs={"foo": 1}), run_dir=tmp_path).run_training_loop()


def failing(tmp_path: Path, trouble: str = "die", **changes: Any) -> tuple[TrainingConfig, Any]:
    """A configuration of one lane whose fourth step fails, and its environment."""
    (tmp_path / "trigger").touch()
    kwargs = {"trigger": str(tmp_path / "trigger"), "trouble": trouble}
    config = config_of(
        **{"env_id": "Counting-v0", "env_kwargs": kwargs, "parallel_episodes": 1, "workers": 1, **changes}
    )
    options = worker_options(config)
    env = make_training_vec_env(config.env_id, config.parallel_episodes, 3, workers=options, options=config.env_kwargs)
    return config, normalized(env, config)


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "maskable_ppo", "recurrent_ppo"])
@pytest.mark.parametrize("plain", [False, True], ids=["ours", "as Stable-Baselines3 has it"])
def test_an_episode_that_is_cut_short_goes_on_in_the_value_of_its_last_observation(
    algorithm: str, plain: bool, tmp_path: Path
) -> None:
    """With a critic that says 10 everywhere and a discount of 1/2, returns (GAE's lambda is 1) are, from the end:

    1 + 10/2 = 6 and 1 + 6/2 = 4 in the new episode, 0 + 10/2 = 5 in the failed step (0 had the game ended there),
    and before it 1 + 5/2 = 3.5, 1 + 3.5/2 = 2.75, 1 + 2.75/2 = 2.375.
    """
    more = {} if algorithm == "a2c" else {"batch_size": 6, "n_epochs": 1}
    rates = {"n_steps": 6, "gamma": 0.5, "gae_lambda": 1.0, **more}
    config, env = failing(tmp_path, algorithm=algorithm, hyperparameters=rates)
    model: Any = build_model(config, env, 3, plain=plain)
    with th.no_grad():
        model.policy.value_net.weight.zero_()
        model.policy.value_net.bias.fill_(10.0)
    model.learn(6)
    env.close()
    assert np.allclose(model.rollout_buffer.returns.reshape(-1), [2.375, 2.75, 3.5, 5.0, 4.0, 6.0])
    assert len(model.ep_info_buffer) == 0 and env.unwrapped.n_restarts == 1


@pytest.mark.parametrize("normalise", [None, {"rewards": False}], ids=["as it is", "normalised"])
@pytest.mark.parametrize("steps", [1, 3])
def test_a_replay_buffer_keeps_the_failed_step_as_a_timeout(normalise: Any, steps: int, tmp_path: Path) -> None:
    rates = {"buffer_size": 20, "learning_starts": 100, "gamma": 0.5, "n_steps": steps}
    config, env = failing(tmp_path, algorithm="dqn", hyperparameters=rates, normalize=normalise)
    model: Any = build_model(config, env, 3)
    model.learn(7)
    env.close()
    buffer = model.replay_buffer
    assert buffer.observations[:7].reshape(-1).tolist() == [0, 1, 2, 3, 0, 1, 2]
    assert np.allclose(buffer.next_observations[:7].reshape(-1), [1, 2, 3, 3, 1, 2, 3], atol=1e-5)
    assert buffer.rewards[:7].reshape(-1).tolist() == [1, 1, 1, 0, 1, 1, 1]
    assert buffer.dones[:7].reshape(-1).tolist() == buffer.timeouts[:7].reshape(-1).tolist() == [0, 0, 0, 1, 0, 0, 0]
    # What it learns from: step 2 is worth 1 and the value of observation 3, also where three steps are summed.
    samples = buffer._get_samples(np.array([2, 3]))
    assert samples.dones.reshape(-1).tolist() == [0, 0]
    assert np.allclose(samples.next_observations.reshape(-1), [3, 3], atol=1e-5)
    assert samples.rewards.reshape(-1).tolist() == [1, 0]


def test_a_buffer_that_takes_timeouts_for_ends_is_refused() -> None:
    rates = {"optimize_memory_usage": True, "replay_buffer_kwargs": {"handle_timeout_termination": False}}
    config = config_of(algorithm="dqn", hyperparameters=rates)
    assert resolve_workers(config) == 0
    with pytest.raises(ConfigError, match="as if the game had ended"):
        resolve_workers(config.model_copy(update={"workers": 2}))


def test_episodes_cut_short_count_for_themselves_only() -> None:
    stats = EpisodeStats()
    ended = np.array([True, False])
    stats.update(np.array([3.0, 1.0]), ended, [{"is_success": True, "episode": {"r": 3.0, "l": 1}}, {}])
    stats.update(np.array([0.0, 1.0]), ended, [{"worker_restarted": True, "TimeLimit.truncated": True}, {}])
    stats.update(np.array([4.0, 1.0]), ended, [{}, {}])  # summed from the restart on
    assert (stats.episodes, stats.failed, stats.wins, stats.win_rate, stats.mean_return) == (2, 1, 1, 100.0, 3.5)
    again = EpisodeStats()
    again.load_state(stats.to_state())
    assert (again.episodes, again.failed, again.mean_length) == (2, 1, 1.0)


def test_a_worker_that_fails_at_once_after_a_resume_fails_where_the_run_stood(tmp_path: Path) -> None:
    """The last observation is the checkpoint's, though the new worker has not shown any yet."""
    config, env = failing(tmp_path, hyperparameters={"n_steps": 3, "batch_size": 3})
    manager = CheckpointManager(tmp_path / "checkpoints")
    progress = RunProgress(config)
    model: Any = build_model(config, env, 3)
    model.learn(3)
    checkpoint = save_run(manager, model, capture(model, progress), config, reason="test", score=None)
    env.close()
    config, env = failing(tmp_path, hyperparameters={"n_steps": 3, "batch_size": 3})
    model = build_model(config, env, 3)
    assert resume_run(model, progress, checkpoint) == (None, None)
    _, rewards, dones, infos = env.step(np.zeros(1, np.int64))
    env.close()
    assert dones[0] and rewards[0] == 0.0 and infos[0]["worker_restarted"]
    assert infos[0]["terminal_observation"].tolist() == [3.0] == model._last_obs[0].tolist()


def test_over_its_budget_a_run_fails_with_the_workers_traceback_and_goes_on_later(tmp_path: Path, sink: Any) -> None:
    config, env = failing(tmp_path, "raise", hyperparameters={"n_steps": 2, "batch_size": 2}, total_timesteps=20)
    env.close()
    strict = config.model_copy(update={"max_restarts": 0, "checkpoint_interval_steps": 2})
    run = tmp_path / "run"
    with pytest.raises(WorkerError, match="max_restarts"):
        Trainer(strict, run_dir=run, sink=sink).run_training_loop()
    (event,) = sink.of(ErrorData)
    assert event.code == "training_failed" and "ZeroDivisionError: the game fell over" in event.message
    raised = 'in step\n    raise ZeroDivisionError("the game fell over")'
    assert raised in event.message and raised in event.detail["traceback"] and raised in (run / "log.txt").read_text()
    (tmp_path / "trigger").touch()
    sink.events.clear()
    result = Trainer(config, run_dir=run, sink=sink, resume=True).run_training_loop()
    assert (result.status, result.timesteps, result.exit_code) == ("completed", 20, 0)
    (event,) = sink.of(ErrorData)
    assert event.code == "worker_restarted" and event.detail["lanes"] == [0] and event.detail["restarts"] == 1
    assert "lane 0: ZeroDivisionError: the game fell over; started again after" in event.message
    assert raised in event.detail["traceback"]
    reading = sink.of(TrainingMetricsData)[-1]
    assert (reading.extra["worker_restarts"], reading.extra["episodes_failed"], reading.episode) == (1, 1, 0)
    assert EpisodeLog(run / "episodes").decisions == 20  # what was played is there; the episode without an end is none


def test_without_workers_the_failure_names_the_remedy(tmp_path: Path, sink: Any) -> None:
    config, env = failing(tmp_path, "raise", hyperparameters={"n_steps": 2, "batch_size": 2}, workers=0)
    env.close()
    with pytest.raises(ZeroDivisionError):
        Trainer(config, run_dir=tmp_path / "run", sink=sink).run_training_loop()
    assert "step(): with --workers 2" in sink.of(ErrorData)[0].message
