"""Our bookkeeping changes nothing about what Stable-Baselines3 learns."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecNormalize

from gymcast.training.algorithms import (
    BatchA2C,
    BatchMaskablePPO,
    BatchMaskableRolloutBuffer,
    BatchPPO,
    BatchRolloutBuffer,
)
from gymcast.training.models import follow_progress
from gymcast.training.vec_env import make_training_vec_env


def weights_after(algorithm: Any, env: Any, steps: int, **arguments: Any) -> th.Tensor:
    model = algorithm("MlpPolicy", env, seed=7, device="cpu", **arguments)
    model.learn(steps)
    env.close()
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


PPO_ARGUMENTS = {"n_steps": 16, "batch_size": 32, "n_epochs": 2}
# Matches that end within the time are won or lost, so that no bootstrapped value is involved.
DECIDED = {"opponent": "expert", "kills_to_win": 1, "max_duration_s": 3600.0}


@pytest.mark.parametrize(
    ("plain", "batched", "buffer", "arguments"),
    [
        (PPO, BatchPPO, BatchRolloutBuffer, PPO_ARGUMENTS),
        (A2C, BatchA2C, BatchRolloutBuffer, {}),
        (MaskablePPO, BatchMaskablePPO, BatchMaskableRolloutBuffer, PPO_ARGUMENTS),
    ],
)
def test_archers_gives_the_same_weights_bit_for_bit(plain: Any, batched: Any, buffer: Any, arguments: Any) -> None:
    def make() -> Any:
        return make_training_vec_env("archers", 8, 1, options=DECIDED)

    expected = weights_after(plain, make(), 8 * 16 * 3, **arguments)
    assert th.equal(weights_after(batched, make(), 8 * 16 * 3, rollout_buffer_class=buffer, **arguments), expected)


def test_cartpole_gives_the_same_weights_bit_for_bit() -> None:
    expected = weights_after(PPO, make_training_vec_env("CartPole-v1", 4, 1), 512, **PPO_ARGUMENTS)
    env = make_training_vec_env("CartPole-v1", 4, 1)
    ours = weights_after(BatchPPO, env, 512, rollout_buffer_class=BatchRolloutBuffer, **PPO_ARGUMENTS)
    assert th.equal(ours, expected)


def test_continuous_actions_and_normalisation_give_the_same_weights() -> None:
    def make() -> Any:
        return VecNormalize(make_training_vec_env("MountainCarContinuous-v0", 4, 1))

    expected = weights_after(PPO, make(), 256, **PPO_ARGUMENTS)
    ours = weights_after(BatchPPO, make(), 256, rollout_buffer_class=BatchRolloutBuffer, **PPO_ARGUMENTS)
    assert th.equal(ours, expected)


def test_truncated_episodes_are_bootstrapped_the_same_way() -> None:
    options = {"opponent": "random", "max_duration_s": 0.5}
    expected = weights_after(PPO, make_training_vec_env("archers", 8, 1, options=options), 8 * 16 * 3, **PPO_ARGUMENTS)
    env = make_training_vec_env("archers", 8, 1, options=options)
    ours = weights_after(BatchPPO, env, 8 * 16 * 3, rollout_buffer_class=BatchRolloutBuffer, **PPO_ARGUMENTS)
    assert th.allclose(ours, expected, rtol=1e-4, atol=1e-6)


class Countdown(gym.Env[Any, Any]):
    """Reward 1 per step, truncated after three steps: every state is worth 1 / (1 - gamma)."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._left = 3
        return np.ones(1, dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        self._left -= 1
        return np.ones(1, dtype=np.float32), 1.0, False, self._left == 0, {}


def test_truncation_does_not_make_the_future_worthless() -> None:
    env = DummyVecEnv([Countdown] * 4)
    model = BatchPPO(
        "MlpPolicy", env, n_steps=24, batch_size=96, n_epochs=4, gamma=0.5, learning_rate=0.02, seed=0, device="cpu",
        rollout_buffer_class=BatchRolloutBuffer,
    )  # fmt: skip
    model.learn(96 * 40)
    value = model.policy.predict_values(th.ones(1, 1)).item()
    assert value == pytest.approx(2.0, abs=0.1)


def test_the_buffer_hands_out_every_row_once_and_keeps_rows_together() -> None:
    steps, lanes = 5, 3
    buffer = BatchRolloutBuffer(steps, spaces.Box(-1, 1, (2,)), spaces.Discrete(9), device="cpu", n_envs=lanes)
    for _ in range(2):
        buffer.reset()
        for step in range(steps):
            number = step * lanes + np.arange(lanes, dtype=np.float32)
            tensor = th.from_numpy(number)
            obs, actions = np.stack([number, -number], axis=1), number.astype(np.int64)[:, None]
            buffer.add(obs, actions, number, number * 0, tensor, tensor)
        buffer.compute_returns_and_advantage(th.zeros(lanes), np.zeros(lanes))
        batches = list(buffer.get(4))
        assert [len(batch.actions) for batch in batches] == [4, 4, 4, 3]
        seen = th.cat([batch.old_values for batch in batches])
        assert sorted(seen.tolist()) == list(range(steps * lanes))
        for batch in batches:
            assert th.equal(batch.observations[:, 0], batch.old_values)
            assert th.equal(batch.observations[:, 1], -batch.old_values)
            assert th.equal(batch.actions[:, 0], batch.old_log_prob)
            assert th.allclose(batch.advantages + batch.old_values, batch.returns)


@pytest.mark.parametrize("algorithm", [BatchPPO, A2C])
def test_progress_of_schedules_can_follow_the_clock(algorithm: Any) -> None:
    env = make_training_vec_env("CartPole-v1", 4, 1)
    arguments = PPO_ARGUMENTS if algorithm is BatchPPO else {}
    model = algorithm("MlpPolicy", env, learning_rate=lambda left: 1e-3 * left, device="cpu", **arguments)
    follow_progress(model, lambda: 0.75)
    model.learn(64)
    assert model.policy.optimizer.param_groups[0]["lr"] == pytest.approx(0.25e-3)
    env.close()


def test_dqn_learns_from_the_native_batch() -> None:
    env = make_training_vec_env("archers", 4, 1, opponent="random", action="discrete", max_duration_s=1.0)
    model = DQN("MlpPolicy", env, learning_starts=64, batch_size=32, buffer_size=4000, seed=0, device="cpu")
    before = th.nn.utils.parameters_to_vector(model.q_net.parameters()).detach().clone()
    model.learn(400)
    assert not th.equal(before, th.nn.utils.parameters_to_vector(model.q_net.parameters()).detach())
    buffer = model.replay_buffer
    assert buffer is not None
    ended = buffer.dones[: buffer.pos].astype(bool)
    assert ended.any()
    # Between episode ends the next observation of one row is the observation of the row after it; at an end it is the
    # terminal observation instead, which shows that no buffer was overwritten before it was stored.
    same = (buffer.next_observations[: buffer.pos - 1] == buffer.observations[1 : buffer.pos]).all(axis=2)
    assert same[~ended[:-1]].all() and not same[ended[:-1]].any()
    env.close()
