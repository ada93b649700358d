"""Networks, threads and the export that needs no torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from gymcast.envs import load_policy
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.models import build_model
from gymcast.training.policies import can_export, export_policy, policy_arrays
from gymcast.training.vec_env import make_training_vec_env

OPTIONS = {"opponent": "random"}


def archers_model(**changes: Any) -> Any:
    env = make_training_vec_env("archers", 4, 1, options={**OPTIONS, **changes.pop("env_kwargs", {})})
    return build_model(TrainingConfig.parse({"env_id": "archers", **changes}), env, seed=3)


@pytest.mark.parametrize("algorithm", ["ppo", "maskable_ppo"])
@pytest.mark.parametrize(
    "network",
    [
        {"hidden": [16, 8], "value_hidden": [32], "activation": "relu"},
        {"activation": "tanh"},
        {"hidden": []},
        {"hidden": [16, 8], "shared": True, "activation": "relu"},
    ],
)
def test_the_export_gives_the_same_probabilities_and_values_without_torch(
    algorithm: str, network: dict[str, Any], tmp_path: Path
) -> None:
    model = archers_model(algorithm=algorithm, network=network)
    env = model.get_env()
    obs, mask = env.reset(), env.unwrapped.action_mask
    path = tmp_path / "policy.npz"
    export_policy(model, path, env_id="gymcast/Archers-v0", version=0, options=OPTIONS)
    policy = load_policy(path)
    with th.no_grad():
        tensor = th.as_tensor(obs)
        values = model.policy.predict_values(tensor).numpy()[:, 0]
        extra = {"action_masks": mask} if algorithm == "maskable_ppo" else {}
        distribution = model.policy.get_distribution(tensor, **extra)
    ours = policy.probabilities(obs, mask if algorithm == "maskable_ppo" else None)
    assert len(ours) == 4
    for expected, probabilities in zip(distribution.group_probabilities(), ours, strict=True):
        assert np.allclose(expected, probabilities, atol=1e-6)
    assert np.allclose(policy.values(obs), values, atol=1e-5)


def test_the_export_describes_itself() -> None:
    model = archers_model(network={"hidden": [16, 8]}, algorithm="ppo")
    arrays = policy_arrays(model, env_id="gymcast/Archers-v0", version=0, options=OPTIONS)
    meta = json.loads(str(arrays["meta"]))
    assert meta["nvec"] == [3, 3, 2, 16] and meta["action_kind"] == "multi_discrete" and not meta["masked"]
    assert meta["activation"] == "tanh" and meta["options"] == OPTIONS and meta["version"] == 0
    size = meta["observation_size"]
    shapes = {name: array.shape for name, array in arrays.items() if name != "meta"}
    assert shapes["pi.0.weight"] == (16, size) and shapes["pi.1.bias"] == (8,)
    assert shapes["action.weight"] == (24, 8) and shapes["value.weight"] == (1, 8)
    assert all(array.dtype == np.float32 for name, array in arrays.items() if name != "meta")


def test_policies_that_cannot_be_exported_say_so() -> None:
    model = archers_model(algorithm="dqn", env_kwargs={"action": "discrete"}, hyperparameters={"buffer_size": 100})
    assert not can_export(model)
    with pytest.raises(TypeError, match="DQNPolicy"):
        policy_arrays(model, env_id="x", version=0, options={})


@pytest.mark.parametrize(
    "network", [{"shared": True, "hidden": []}, {"shared": True, "value_hidden": [8]}], ids=["no layers", "two critics"]
)
def test_shared_layers_that_make_no_sense_are_refused(network: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="network"):
        archers_model(network=network)


def test_the_network_is_the_configured_one() -> None:
    model = archers_model(network={"hidden": [16, 8], "value_hidden": [32], "activation": "elu"})
    actor, critic = model.policy.mlp_extractor.policy_net, model.policy.mlp_extractor.value_net
    assert [layer.out_features for layer in actor if isinstance(layer, th.nn.Linear)] == [16, 8]
    assert [layer.out_features for layer in critic if isinstance(layer, th.nn.Linear)] == [32]
    assert isinstance(actor[1], th.nn.ELU)


def test_the_seed_alone_decides_the_weights() -> None:
    def weights(seed: int, threads: int = 1) -> th.Tensor:
        env = make_training_vec_env("CartPole-v1", 1, 0)
        before = th.get_num_threads()
        th.set_num_threads(threads)
        try:
            model = build_model(TrainingConfig(env_id="CartPole-v1"), env, seed)
            assert th.get_num_threads() == threads
        finally:
            th.set_num_threads(before)
        return th.nn.utils.parameters_to_vector(model.policy.parameters())

    assert th.equal(weights(1), weights(1)) and not th.equal(weights(1), weights(2))
    assert th.equal(weights(1), weights(1, threads=2))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"algorithm": "dqn"}, "needs Discrete actions"),
    ],
)
def test_what_cannot_work_is_said_before_training(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        archers_model(**changes)


def test_masks_are_needed_for_maskable_ppo() -> None:
    env = make_training_vec_env("CartPole-v1", 1, 0)
    with pytest.raises(ConfigError, match="needs action_masks"):
        build_model(TrainingConfig(env_id="CartPole-v1", algorithm="maskable_ppo"), env, 0)
