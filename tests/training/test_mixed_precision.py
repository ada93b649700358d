"""Layers in bfloat16: what is rounded and what is not. On the CPU here, which computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch as th

from gymcast.training import Trainer
from gymcast.training.compute import resolve_precision
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.models import build_model, resolve_algorithm
from gymcast.training.vec_env import make_training_vec_env


def build(**changes: Any) -> Any:
    config = TrainingConfig.parse(
        {
            "env_id": "archers",
            "hyperparameters": {"n_steps": 8, "batch_size": 32, "n_epochs": 2},
            "parallel_episodes": 8,
            "precision": "bfloat16",
            **changes,
        }
    )
    env = make_training_vec_env(config.env_id, config.parallel_episodes, 0, options=config.env_kwargs)
    return build_model(config, env, 0)


@pytest.mark.parametrize("algorithm", ["ppo", "maskable_ppo", "a2c"])
@pytest.mark.parametrize("shared", [False, True])
def test_layers_are_bfloat16_and_everything_else_is_float32(algorithm: str, shared: bool) -> None:
    hyperparameters = {"n_steps": 8} if algorithm == "a2c" else {"n_steps": 8, "batch_size": 32, "n_epochs": 2}
    network = {"hidden": [32, 32], "shared": shared}
    model = build(algorithm=algorithm, hyperparameters=hyperparameters, network=network)
    exact = build(algorithm=algorithm, hyperparameters=hyperparameters, network=network, precision="float32")
    policy = model.policy
    hidden: set[th.dtype] = set()
    for layer in policy.modules():
        if isinstance(layer, th.nn.Linear) and layer not in (policy.action_net, policy.value_net):
            layer.register_forward_hook(lambda _layer, _inputs, output: hidden.add(output.dtype))
    obs = th.as_tensor(model.env.reset())
    actions, values, log_prob = policy(obs)
    evaluated, log_again, entropy = policy.evaluate_actions(obs, actions)
    assert hidden == {th.bfloat16}
    results = (values, log_prob, evaluated, log_again, entropy, policy.predict_values(obs))
    assert all(result.dtype == th.float32 for result in results)
    assert all(weight.dtype == th.float32 for weight in policy.parameters())
    # The same weights in float32 come close, as near as eight bits of mantissa allow.
    wanted, log_wanted, _ = exact.policy.evaluate_actions(obs, actions)
    th.testing.assert_close(evaluated, wanted, atol=0.05, rtol=0.05)
    th.testing.assert_close(log_again, log_wanted, atol=0.05, rtol=0.05)
    before = [weight.clone() for weight in policy.parameters()]
    model.learn(64)
    assert any(not th.equal(old, new) for old, new in zip(before, policy.parameters(), strict=True))
    assert all(th.isfinite(weight).all() for weight in policy.parameters())


def test_a_run_in_bfloat16_is_exact_like_any_other(tmp_path: Path) -> None:
    hashes = set()
    for name in ("first", "second"):
        config = TrainingConfig(
            env_id="CartPole-v1", precision="bfloat16", total_timesteps=256, parallel_episodes=2, evaluation_games=2,
            hyperparameters={"n_steps": 64, "batch_size": 32, "n_epochs": 1}, seed=3,
        )  # fmt: skip
        trainer = Trainer(config, run_dir=tmp_path / name)
        assert trainer.run_training_loop().status == "completed"
        assert trainer.model is not None
        hashes.add(tuple(float(weight.detach().sum()) for weight in trainer.model.policy.parameters()))
    assert len(hashes) == 1


def test_where_it_is_not_to_be_had() -> None:
    changes = {"algorithm": "dqn", "env_kwargs": {"action": "discrete"}, "hyperparameters": {"buffer_size": 100}}
    with pytest.raises(ConfigError, match="which dqn does not have"):
        build(**changes)
    build(**changes, precision="auto")


def test_the_precision_that_was_chosen_is_written_down() -> None:
    config, _ = resolve_algorithm(TrainingConfig(precision="auto"), make_training_vec_env("archers", 2, 0))
    assert config.precision == resolve_precision("auto", "auto") != "auto"
    assert resolve_precision("bfloat16", "cpu") == "bfloat16" and resolve_precision("float32", "cuda") == "float32"
