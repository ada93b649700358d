"""Each alarm in a real training that goes wrong in its way, and none where nothing is wrong."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.env_util import make_vec_env

from gymcast.training.callbacks import CollapseAlarmCallback, TrainingCollapsed
from gymcast.training.callbacks.collapse import ALARMS
from gymcast.training.events import ErrorData

Rule = Callable[[int, int, int], tuple[float, bool]]


class Small(gym.Env[Any, Any]):
    """Two actions, one observation; ``rule(age, step, action)`` gives the reward and whether the episode ends.

    ``age`` counts all steps ever taken, so that a game can change its ways in the middle of a training.
    """

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.age = self.step_number = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.step_number = 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.age += 1
        self.step_number += 1
        reward, ended = self.rule(self.age, self.step_number, int(action))
        return np.zeros(1, np.float32), reward, ended, False, {}


def alarms(rule: Rule, sink: Any, timesteps: int, limit: int = 10, **arguments: Any) -> list[ErrorData]:
    env = make_vec_env(lambda: gym.wrappers.TimeLimit(Small(rule), limit), n_envs=2, seed=0)
    settings = {"n_steps": 32, "batch_size": 64, "n_epochs": 4, "seed": 0, "device": "cpu", **arguments}
    PPO("MlpPolicy", env, **settings).learn(timesteps, callback=CollapseAlarmCallback(sink))
    return list(sink.of(ErrorData))


@pytest.mark.parametrize("algorithm", [PPO, A2C])
def test_a_network_that_is_lost_ends_the_training_with_an_alarm(algorithm: Any, sink: Any) -> None:
    # A game with a fault: at some time it pays "not a number".
    env = Small(lambda age, step, _action: (1.0 if age < 200 else float("nan"), step == 5))
    settings = {"batch_size": 64, "n_epochs": 1} if algorithm is PPO else {}
    model = algorithm("MlpPolicy", env, n_steps=64, device="cpu", seed=0, **settings)
    with pytest.raises(TrainingCollapsed, match="resume from an earlier checkpoint"):
        model.learn(5000, callback=CollapseAlarmCallback(sink))
    (alarm,) = sink.of(ErrorData)
    assert alarm.code == "training_collapsed" and alarm.detail["timesteps"] == 256


def test_a_lost_network_of_a_value_based_algorithm_too(sink: Any) -> None:
    model = DQN("MlpPolicy", "CartPole-v1", learning_rate=1e30, learning_starts=50, device="cpu", seed=0)
    with pytest.raises(TrainingCollapsed):
        model.learn(5000, callback=CollapseAlarmCallback(sink))
    assert [alarm.code for alarm in sink.of(ErrorData)] == ["training_collapsed"]


def test_a_policy_that_stops_exploring(sink: Any) -> None:
    # The first action pays, the second does not: with far too large a step size the policy is sure of it at once.
    found = alarms(lambda _age, step, action: (1.0 - action, step == 5), sink, 6000, learning_rate=0.05)
    assert [alarm.code for alarm in found] == ["entropy_collapsed"]
    assert 0 <= found[0].detail["entropy"] < 1e-3  # type: ignore[index]


def test_a_critic_whose_error_jumps(sink: Any) -> None:
    # After 1000 steps of each lane the same game pays ten thousand times as much.
    found = alarms(lambda age, step, action: (action * (1.0 if age < 1000 else 1e4), step == 5), sink, 4000)
    (alarm,) = [alarm for alarm in found if alarm.code == "value_loss_exploded"]
    assert alarm.detail is not None
    assert alarm.detail["value_loss"] > 100 * alarm.detail["median"] and 2000 <= alarm.detail["timesteps"] < 2300


def test_episodes_that_only_run_out_of_time(sink: Any) -> None:
    # Episodes end with a prize, until the prize cannot be reached any more.
    found = alarms(lambda age, step, _action: (1.0, True) if step == 3 and age < 1500 else (0.0, False), sink, 8000)
    (alarm,) = [alarm for alarm in found if alarm.code == "episodes_stalled"]
    assert alarm.detail is not None
    assert alarm.detail["truncated_share"] >= 0.9 and alarm.detail["mean_return_before"] > alarm.detail["mean_return"]


def test_a_bot_that_learns_to_survive_is_no_cause_for_alarm(sink: Any) -> None:
    # Episodes grow from three steps to their time limit, and so does what they pay.
    found = alarms(lambda age, step, _action: (1.0, step == 3 and age < 1500), sink, 8000, ent_coef=0.01)
    assert found == []


def test_an_alarm_comes_once_and_again_when_its_cause_is_back(sink: Any) -> None:
    # The reward jumps, stays high until that is usual, falls, and jumps again.
    jumps = itertools.cycle([1.0, 1e4])
    scale = {number: next(jumps) for number in range(4)}
    found = alarms(lambda age, step, action: (action * scale[min(age // 1000, 3)], step == 5), sink, 7000)
    codes = [alarm.code for alarm in found if alarm.code == "value_loss_exploded"]
    assert len(codes) == 2


def test_every_alarm_fits_the_message_that_carries_it() -> None:
    for code, text in ALARMS.items():
        assert ErrorData(code=code, message=text).message == text
