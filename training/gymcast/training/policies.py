"""Networks for Stable-Baselines3, and their export for use without torch."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import nn

from gymcast.training.algorithm_table import AlgorithmSpec
from gymcast.training.config import NetworkConfig

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from stable_baselines3.common.base_class import BaseAlgorithm

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU, "elu": nn.ELU}
POLICY_FORMAT = 1


class SharedLayers(BaseFeaturesExtractor):
    """Hidden layers that actor and critic have in common, on flat observations (N, D)."""

    def __init__(self, observation_space: spaces.Box, hidden: tuple[int, ...], activation: type[nn.Module]) -> None:
        super().__init__(observation_space, hidden[-1])
        sizes = (int(np.prod(observation_space.shape)), *hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in itertools.pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), activation()]
        self.layers = nn.Sequential(*layers)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        """Features (N, hidden[-1]) of observations (N, D)."""
        features: th.Tensor = self.layers(observations)
        return features


def policy_kwargs(network: NetworkConfig, spec: AlgorithmSpec) -> dict[str, Any]:
    """``policy_kwargs`` that build ``network`` in the policy of an algorithm of Stable-Baselines3."""
    activation = ACTIVATIONS[network.activation]
    kwargs: dict[str, Any] = {"activation_fn": activation, "net_arch": _layers_of(network, spec)}
    if network.shared:
        kwargs["features_extractor_class"] = SharedLayers
        kwargs["features_extractor_kwargs"] = {"hidden": network.hidden, "activation": activation}
    if spec.layout == "actor_critic":
        kwargs["ortho_init"] = network.ortho_init
    if spec.fused_adam:  # one kernel for all weights (eps of the actor-critics is Stable-Baselines3's)
        kwargs["optimizer_kwargs"] = {"fused": True, **({"eps": 1e-5} if spec.layout == "actor_critic" else {})}
    if spec.recurrent:
        kwargs["lstm_hidden_size"] = network.lstm_hidden
        if spec.masked:  # ours, which need not take sequences step by step
            kwargs["whole_sequences"] = True
    if "quantiles" in spec.network_fields:
        kwargs["n_quantiles"] = network.quantiles
    if network.log_std_init is not None:
        kwargs["log_std_init"] = network.log_std_init
    return kwargs


def _layers_of(network: NetworkConfig, spec: AlgorithmSpec) -> Any:
    if network.shared:
        return []
    hidden = list(network.hidden)
    if spec.layout in ("q_network", "actor"):
        return hidden
    critic = hidden if network.value_hidden is None else list(network.value_hidden)
    return {"pi": hidden, "vf" if spec.layout == "actor_critic" else "qf": critic}


def _describe_actions(space: spaces.Space[Any]) -> dict[str, Any]:
    if isinstance(space, spaces.MultiDiscrete):
        return {"action_kind": "multi_discrete", "nvec": [int(n) for n in space.nvec]}
    if isinstance(space, spaces.Discrete):
        return {"action_kind": "discrete", "nvec": [int(space.n)]}
    if isinstance(space, spaces.MultiBinary):
        return {"action_kind": "multi_binary", "nvec": [2] * int(np.prod(space.shape))}
    if isinstance(space, spaces.Box):
        return {
            "action_kind": "box",
            "nvec": [],
            "low": space.low.ravel().tolist(),
            "high": space.high.ravel().tolist(),
        }
    raise TypeError(f"no export for action space {space}")


def _layers(prefix: str, module: nn.Module) -> dict[str, NDArray[np.float32]]:
    linears = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    arrays = {}
    for index, layer in enumerate(linears):
        arrays[f"{prefix}.{index}.weight"] = layer.weight.detach().cpu().numpy()
        arrays[f"{prefix}.{index}.bias"] = layer.bias.detach().cpu().numpy()
    return arrays


def can_export(model: BaseAlgorithm) -> bool:
    """Whether :func:`policy_arrays` can express the policy: an MLP actor-critic on a flat ``Box`` observation."""
    policy, space = model.policy, model.observation_space
    actor_critic = isinstance(policy, ActorCriticPolicy | MaskableActorCriticPolicy)
    actor_critic = actor_critic and not isinstance(policy, RecurrentActorCriticPolicy)
    return actor_critic and isinstance(space, spaces.Box) and len(space.shape) == 1


def policy_arrays(
    model: BaseAlgorithm, *, env_id: str, version: int | str, options: dict[str, Any]
) -> dict[str, NDArray[Any]]:
    """The MLP actor-critic of ``model`` as arrays for inference with numpy alone.

    ``pi.<i>.weight`` (out, in) and ``pi.<i>.bias`` (out,) are the actor's hidden layers, ``vf.<i>.*`` the critic's;
    ``action.*`` and ``value.*`` are the output layers; all float32. ``y = activation(x @ weight.T + bias)`` for hidden
    layers, no activation on the outputs. Box actions add ``log_std`` (actions,). ``meta`` is a JSON string with
    ``format, env_id, version, options, activation, observation_size, action_kind, nvec, masked``.
    Raises ``TypeError`` for any other kind of policy.
    """
    policy: Any = model.policy
    if not can_export(model):
        raise TypeError(
            f"{type(policy).__name__} on {model.observation_space} is not an MLP actor-critic on a flat Box"
        )
    extractor: Any = policy.mlp_extractor
    action_net: Any = policy.action_net
    value_net: Any = policy.value_net
    activation = next(name for name, module in ACTIVATIONS.items() if module is policy.activation_fn)
    meta = {
        "format": POLICY_FORMAT,
        "env_id": env_id,
        "version": version,
        "options": options,
        "activation": activation,
        "observation_size": int(np.prod(model.observation_space.shape or ())),
        **_describe_actions(model.action_space),
        "masked": type(model).__name__.endswith("MaskablePPO"),
    }
    arrays: dict[str, NDArray[Any]] = {
        **_layers("pi", nn.ModuleList([policy.pi_features_extractor, extractor.policy_net])),
        **_layers("vf", nn.ModuleList([policy.vf_features_extractor, extractor.value_net])),
        "action.weight": action_net.weight.detach().cpu().numpy(),
        "action.bias": action_net.bias.detach().cpu().numpy(),
        "value.weight": value_net.weight.detach().cpu().numpy(),
        "value.bias": value_net.bias.detach().cpu().numpy(),
        "meta": np.array(json.dumps(meta)),
    }
    log_std = getattr(policy, "log_std", None)
    if isinstance(log_std, th.Tensor):
        arrays["log_std"] = log_std.detach().cpu().numpy()
    return arrays


def export_policy(
    model: BaseAlgorithm, path: str | Path, *, env_id: str, version: int | str, options: dict[str, Any]
) -> None:
    """Write :func:`policy_arrays` to ``path`` as an ``.npz`` file. Raises ``TypeError``, ``OSError``."""
    arrays = policy_arrays(model, env_id=env_id, version=version, options=options)
    with open(path, "wb") as file:
        np.savez(file, allow_pickle=False, **arrays)
