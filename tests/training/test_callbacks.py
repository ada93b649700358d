"""The callbacks in somebody's own script, with any environment and algorithm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from gymcast.training import BotDecisionCallback, FootageCallback, MetricsBroadcastCallback, SessionCallback
from gymcast.training.callbacks import EpisodeStats, RunProgress
from gymcast.training.callbacks.decisions import DecisionExplainer
from gymcast.training.config import TrainingConfig
from gymcast.training.events import BotDecisionData, PerformanceGraphData, ReplayData, TrainingMetricsData
from gymcast.training.vec_env import make_training_vec_env


def test_a_script_needs_nothing_but_the_url(receiver: Any) -> None:
    callback = MetricsBroadcastCallback(receiver.url, hz=50, name="my run")
    DQN("MlpPolicy", "CartPole-v1", learning_starts=50, device="cpu").learn(600, callback=callback)
    assert callback.close()
    assert receiver.sessions[0]["training_session_id"] == "my run" and receiver.sessions[0]["algorithm"] == "DQN"
    metrics = receiver.of_type("training_metrics")
    assert metrics[-1]["extra"]["timesteps"] == 600 and metrics[-1]["episode"] > 5
    assert metrics[-1]["algorithm"] == "DQN" and 0 < metrics[-1]["epsilon"] < 1
    assert metrics[-1]["win_rate"] is None and metrics[-1]["average_reward"] > 5
    assert metrics[-1]["loss_value"] is not None
    assert receiver.of_type("graph_update")
    told = [data["status"] for data in receiver.of_type("training_status")]
    assert set(told[:-1]) == {"running"} and told[-1] == "completed"


def test_the_server_can_stop_a_script(receiver: Any) -> None:
    receiver.desired = "stopping"
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=1, device="cpu")
    callback = SessionCallback(receiver.url)
    model.learn(10**9, callback=callback)
    assert callback.close() and callback.stopped
    assert receiver.of_type("training_status")[-1]["status"] == "cancelled"


@pytest.mark.parametrize("env_id", ["CartPole-v1", "Pendulum-v1"])
@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_metrics_and_decisions_of_other_environments(algorithm: Any, env_id: str, sink: Any) -> None:
    callbacks = [MetricsBroadcastCallback(sink, hz=50), BotDecisionCallback(sink)]
    env = VecNormalize(make_vec_env(env_id, 2))
    arguments = {"n_steps": 64, "batch_size": 64} if algorithm is PPO else {}
    algorithm("MlpPolicy", env, device="cpu", **arguments).learn(640, callback=callbacks)
    metrics = sink.of(TrainingMetricsData)
    assert metrics[-1].extra["timesteps"] == 640 and metrics[-1].extra["value_loss"] is not None
    assert sink.of(PerformanceGraphData)
    decision = sink.of(BotDecisionData)[0]
    assert decision.state_values is not None and decision.selected_action
    assert set(decision.action_probabilities) == ({"0", "1"} if env_id == "CartPole-v1" else set())


def test_readings_are_throttled_at_the_source(sink: Any) -> None:
    PPO("MlpPolicy", "CartPole-v1", n_steps=64, batch_size=64, n_epochs=1, device="cpu").learn(
        512, callback=[MetricsBroadcastCallback(sink, hz=0.001), BotDecisionCallback(sink, hz=0.001)]
    )
    # The first step and the end of training.
    assert len(sink.of(TrainingMetricsData)) == 2 and len(sink.of(BotDecisionData)) == 1


def test_footage_of_a_script_on_a_normalised_native_batch(sink: Any) -> None:
    env = VecNormalize(make_training_vec_env("archers", 4, 1, opponent="random", max_duration_s=0.8))
    callback = FootageCallback(sink, RunProgress(TrainingConfig()), seconds=0.001)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=64, n_epochs=1, device="cpu")
    model.learn(4 * 32 * 2, callback=callback)
    replays = sink.of(ReplayData)
    assert replays and all(len(replay.decisions) == 10 for replay in replays)
    assert env.unwrapped.listeners == []


def test_explained_probabilities_are_the_distributions() -> None:
    env = make_training_vec_env("archers", 4, 1, opponent="random")
    model = PPO("MlpPolicy", env, device="cpu")
    obs = env.reset().copy()
    actions, values, log_prob = model.policy(model.policy.obs_to_tensor(obs)[0])
    decisions = DecisionExplainer(model).explain(obs, None, actions.numpy())
    for row, decision in enumerate(decisions):
        assert decision.confidence_score == pytest.approx(float(log_prob.detach()[row].exp()), rel=1e-4)
        assert decision.state_values == pytest.approx(float(values.detach()[row, 0]), rel=1e-4)
        assert len(decision.action_probabilities) == 9
        assert sum(decision.action_probabilities.values()) == pytest.approx(1.0, abs=1e-4)
        shown = list(decision.action_probabilities.values())[:8]
        assert shown == sorted(shown, reverse=True)
        best = dict(
            zip(("move", "vertical", "bow", "aim"), next(iter(decision.action_probabilities)).split(" + "), strict=True)
        )
        assert decision.groups is not None
        for group, label in best.items():
            assert decision.groups[group][label] == max(decision.groups[group].values())
    env.close()


def test_episode_statistics_by_hand() -> None:
    stats = EpisodeStats()
    nothing: dict[str, Any] = {}
    stats.update(np.array([1.0, 2.0]), np.array([False, False]), [nothing, nothing])
    assert (stats.episodes, stats.mean_return, stats.win_rate) == (0, None, None)
    stats.update(np.array([1.0, 3.0]), np.array([True, False]), [nothing, nothing])
    assert (stats.episodes, stats.last_return, stats.last_length, stats.win_rate) == (1, 2.0, 2, None)
    monitored = {"episode": {"r": 10.0, "l": 3}, "outcome": 1}
    stats.update(np.array([7.0, 3.0]), np.array([True, True]), [{"outcome": -1}, monitored])
    assert (stats.episodes, stats.last_return, stats.best_return, stats.mean_length) == (3, 10.0, 10.0, 2.0)
    assert (stats.wins, stats.losses, stats.draws, stats.win_rate) == (1, 1, 0, 50.0)
    stats.update(np.array([0.0, 0.0]), np.array([True, True]), [{"is_success": True}, {"outcome": 0}])
    assert (stats.wins, stats.losses, stats.draws, stats.win_rate) == (2, 1, 1, 50.0)
    copy = EpisodeStats()
    copy.load_state(stats.to_state())
    assert copy.to_state() == stats.to_state() and copy.mean_return == stats.mean_return
    rewards = np.zeros(2)  # the same array at every step, as some environments do it
    for number in range(150):
        rewards[:] = number
        stats.update(rewards, np.array([False, False]), [nothing, nothing])
    copy.load_running(stats.running())
    copy.update(rewards, np.array([False, True]), [nothing, nothing])
    assert (copy.last_return, copy.last_length) == (sum(range(150)) + 149, 151)


def test_win_rate_covers_the_last_thousand_episodes() -> None:
    stats = EpisodeStats()
    for number in range(1500):
        stats.update(np.array([0.0]), np.array([True]), [{"outcome": 1 if number >= 1000 else -1}])
    assert stats.win_rate == 50.0 and stats.episodes == 1500


def test_progress_follows_the_nearest_limit() -> None:
    progress = RunProgress(TrainingConfig(max_episodes=100, total_timesteps=1000, max_minutes=1000))
    progress.timesteps, progress.stats.episodes = 300, 10
    assert progress.progress == 0.3 and progress.reached() is None and progress.eta_seconds is None
    progress.seconds_before = 30.0
    assert progress.eta_seconds == pytest.approx(70.0)
    progress.stats.episodes = 101
    assert progress.progress == 1.0 and progress.reached() == "max_episodes"
    assert RunProgress(TrainingConfig()).progress == 0.0
