"""From a configuration to a Stable-Baselines3 algorithm."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Final

from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from gymcast.training.algorithms import (
    BatchA2C,
    BatchMaskablePPO,
    BatchMaskableRolloutBuffer,
    BatchPPO,
    BatchRolloutBuffer,
)
from gymcast.training.compute import choose_torch_threads, compute_in_bfloat16, network_work, resolve_precision
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.distributions import compute_groups_together
from gymcast.training.policies import policy_kwargs
from gymcast.training.schedules import resolve_schedules

PLAIN: Final[dict[str, type[BaseAlgorithm]]] = {
    "ppo": PPO,
    "maskable_ppo": MaskablePPO,
    "recurrent_ppo": RecurrentPPO,
    "a2c": A2C,
    "dqn": DQN,
}
BATCHED: Final[dict[str, tuple[type[BaseAlgorithm], type[Any]]]] = {
    "ppo": (BatchPPO, BatchRolloutBuffer),
    "maskable_ppo": (BatchMaskablePPO, BatchMaskableRolloutBuffer),
    "a2c": (BatchA2C, BatchRolloutBuffer),
}


def build_model(config: TrainingConfig, env: VecEnv, seed: int, *, plain: bool = False) -> BaseAlgorithm:
    """The algorithm of ``config`` on ``env``, with fresh weights from ``seed``; ``plain``: Stable-Baselines3's class.

    Raises :class:`~gymcast.training.config.ConfigError` for an algorithm or network that does not suit the environment.
    """
    _check_actions(config, env)
    hyperparameters = resolve_schedules(config.hyperparameters)
    flat = isinstance(env.observation_space, spaces.Box) and not is_image_space(env.observation_space)
    _check_network(config, flat)
    algorithm = PLAIN[config.algorithm]
    if not plain and config.algorithm in BATCHED and isinstance(env.observation_space, spaces.Box):
        algorithm, buffer = BATCHED[config.algorithm]
        hyperparameters.setdefault("rollout_buffer_class", buffer)
    if isinstance(env.observation_space, spaces.Dict):
        kind = "MultiInputPolicy"
    else:
        kind = "MlpPolicy" if flat else "CnnPolicy"
    if config.algorithm == "recurrent_ppo":
        kind = kind.replace("Policy", "LstmPolicy")
    model = algorithm(
        kind,
        env,
        seed=seed,
        device=config.device,
        policy_kwargs=policy_kwargs(config.network, config.algorithm),
        **hyperparameters,
    )
    compute_groups_together(model.policy)
    if resolve_precision(config.precision, config.device) == "bfloat16":
        _use_bfloat16(model.policy, config)
    return model


def _use_bfloat16(policy: BasePolicy, config: TrainingConfig) -> None:
    if isinstance(policy, ActorCriticPolicy | MaskableActorCriticPolicy):
        compute_in_bfloat16(policy)
    elif config.precision == "bfloat16":
        text = f"got 'bfloat16', which {config.algorithm} does not have (actor-critic algorithms do); set it to float32"
        raise ConfigError("invalid TrainingConfig", [("precision", text)])


def normalized(env: VecEnv, config: TrainingConfig) -> VecEnv:
    """``env`` with the running normalisation of ``config`` around it, where it asks for one."""
    wanted = config.normalize
    if wanted is None:
        return env
    gamma: Any = config.hyperparameters.get("gamma")
    if gamma is None:
        gamma = inspect.signature(PLAIN[config.algorithm].__init__).parameters["gamma"].default
    return VecNormalize(
        env,
        norm_obs=wanted.observations,
        norm_reward=wanted.rewards,
        clip_obs=wanted.clip_observations,
        clip_reward=wanted.clip_rewards,
        gamma=gamma,
    )


def follow_progress(model: BaseAlgorithm, progress: Callable[[], float]) -> None:
    """Have the schedules of ``model`` follow ``progress`` (0..1) instead of the share of timesteps, for runs that are
    limited by time or episodes."""

    def update(num_timesteps: int, total_timesteps: int) -> None:
        model._current_progress_remaining = 1.0 - progress()

    model._update_current_progress_remaining = update  # type: ignore[method-assign]


def torch_threads(config: TrainingConfig, model: BaseAlgorithm, rows: int | None = None) -> int:
    """The torch threads that suit batches of ``rows`` observations; by default the algorithm's training batches."""
    if rows is None:
        rows = getattr(model, "batch_size", None) or getattr(model, "n_steps", 1) * model.n_envs
    inputs = spaces.flatdim(model.observation_space)
    outputs = spaces.flatdim(model.action_space)
    return choose_torch_threads(rows, network_work(config.network, inputs, outputs))


def _check_network(config: TrainingConfig, flat: bool) -> None:
    network, problems = config.network, []
    if network.shared and (not flat or config.algorithm == "dqn"):
        problems.append(("network.shared", "got true, needs flat observations and an actor-critic; set it to false"))
    if network.shared and not network.hidden:
        problems.append(("network.hidden", "got no layers, shared layers need at least one"))
    if network.shared and network.value_hidden is not None:
        problems.append(("network.value_hidden", "got layers of its own for the critic, which network.shared excludes"))
    if problems:
        raise ConfigError("invalid TrainingConfig", problems)


def _check_actions(config: TrainingConfig, env: VecEnv) -> None:
    if config.algorithm == "dqn" and not isinstance(env.action_space, spaces.Discrete):
        remedy = "set env_kwargs.action to 'discrete' or use ppo"
        raise ConfigError(
            "invalid TrainingConfig", [("algorithm", f"dqn needs Discrete actions, got {env.action_space}; {remedy}")]
        )
    if config.algorithm == "maskable_ppo" and not is_masking_supported(env):
        raise ConfigError(
            "invalid TrainingConfig", [("algorithm", f"{config.env_id} has no action_masks(); use ppo instead")]
        )
