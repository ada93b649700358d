"""From a configuration to a Stable-Baselines3 algorithm."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.maskable.utils import is_masking_supported
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.policies import ActorCriticPolicy, BasePolicy
from stable_baselines3.common.preprocessing import is_image_space
from stable_baselines3.common.vec_env import VecEnv, VecNormalize

from gymcast.training.algorithm_table import ALGORITHMS, AUTO, choose_algorithm, observation_kind, problem_of_actions
from gymcast.training.compute import choose_torch_threads, compute_in_bfloat16, network_work, resolve_precision
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.distributions import compute_groups_together
from gymcast.training.image_networks import image_kwargs
from gymcast.training.lean_optimizers import spare_the_compiler
from gymcast.training.noise import make_noise
from gymcast.training.policies import policy_kwargs
from gymcast.training.replay_memory import buffer_size_that_fits
from gymcast.training.schedules import resolve_schedules

# By which VecNormalize scales rewards for an algorithm that discounts nothing itself; it is VecNormalize's own.
DISCOUNT: Final = 0.99


def resolve_algorithm(config: TrainingConfig, env: VecEnv) -> tuple[TrainingConfig, str | None]:
    """``config`` with all that depends on the environment's spaces and on this machine settled, and why ``auto`` became
    what it did (``None`` when the algorithm was named).

    Raises :class:`~gymcast.training.config.ConfigError` for an algorithm that cannot take the actions, and for a replay
    buffer that does not fit into memory.
    """
    reason = None
    if config.algorithm == AUTO:
        images = observation_kind(env.observation_space) == "image"
        masks = is_masking_supported(env)
        given = [*config.hyperparameters, *config.network.changed]
        try:
            name, reason = choose_algorithm(
                env.action_space, masks=masks, lanes=env.num_envs, images=images, given=given
            )
        except ValueError as error:
            raise ConfigError("invalid TrainingConfig", [("env_id", str(error))]) from None
        config = config.with_algorithm(name)
    precision = resolve_precision(config.precision, config.device)
    if config.precision == "auto" and config.spec.layout != "actor_critic":
        precision = "float32"
    check_spaces(config, env)
    changes: dict[str, Any] = {"precision": precision}
    if config.spec.off_policy:
        size = buffer_size_that_fits(config, env)
        changes["hyperparameters"] = {**config.hyperparameters, "buffer_size": size}
    return config.model_copy(update=changes), reason


def build_model(config: TrainingConfig, env: VecEnv, seed: int, *, plain: bool = False) -> BaseAlgorithm:
    """The algorithm of ``config`` on ``env``, with fresh weights from ``seed``; ``plain``: Stable-Baselines3's class.

    Raises :class:`~gymcast.training.config.ConfigError` for an algorithm or network that does not suit the environment.
    """
    if config.algorithm == AUTO:
        config, _ = resolve_algorithm(config, env)
    check_spaces(config, env)
    spec = config.spec
    arguments = _arguments(config, env, plain)
    home = spec.home
    if not plain and spec.batched and isinstance(env.observation_space, spaces.Box | spaces.Discrete):
        home = spec.batched
        if spec.buffer:
            arguments.setdefault("rollout_buffer_class", load_class(spec.buffer))
    spare_the_compiler()
    with _one_thread():
        model: BaseAlgorithm = load_class(home)(
            _policy_name(config, env.observation_space),
            env,
            seed=seed,
            device=config.device,
            **arguments,
        )
    compute_groups_together(model.policy)
    if resolve_precision(config.precision, config.device) == "bfloat16":
        _use_bfloat16(model.policy, config)
    return model


@contextmanager
def _one_thread() -> Iterator[None]:
    """A seed gives the same weights on any number of cores: orthogonal ones come from a QR decomposition."""
    threads = th.get_num_threads()
    th.set_num_threads(1)
    try:
        yield
    finally:
        th.set_num_threads(threads)


def load_class(home: str) -> Any:
    """The class that the table of algorithms names as ``module:Class``."""
    module, _, name = home.partition(":")
    return getattr(import_module(module), name)


def _policy_name(config: TrainingConfig, observations: spaces.Space[Any]) -> str:
    if isinstance(observations, spaces.Dict):
        kind = "MultiInputPolicy"
    else:
        kind = "CnnPolicy" if is_image_space(observations) else "MlpPolicy"
    if config.spec.layout == "actor" and not config.network.hidden:
        return "LinearPolicy"
    return kind.replace("Policy", "LstmPolicy") if config.spec.recurrent else kind


def _arguments(config: TrainingConfig, env: VecEnv, plain: bool) -> dict[str, Any]:
    """Arguments of the algorithm beside the environment, the seed and the device."""
    arguments = resolve_schedules(config.hyperparameters)
    noise = make_noise(config, env.action_space, env.num_envs, plain=plain)
    if noise is not None:
        arguments["action_noise"] = noise
    for name in ("noise_type", "noise_std"):
        arguments.pop(name, None)
    if _policy_name(config, env.observation_space) != "LinearPolicy":
        kwargs = policy_kwargs(config.network, config.spec)
        arguments["policy_kwargs"] = {**kwargs, **image_kwargs(env.observation_space)}
    return arguments


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
    if wanted.observations and not isinstance(env.observation_space, spaces.Box | spaces.Dict):
        text = f"got true, but there is nothing to scale in {env.observation_space}; set it to false"
        raise ConfigError("invalid TrainingConfig", [("normalize.observations", text)])
    gamma: Any = config.hyperparameters.get("gamma")
    if gamma is None:
        parameters = inspect.signature(load_class(config.spec.home)).parameters
        gamma = parameters["gamma"].default if "gamma" in parameters else DISCOUNT
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


def check_spaces(config: TrainingConfig, env: VecEnv) -> None:
    """Raise ``ConfigError`` unless the algorithm and its network can take the actions and observations of ``env``."""
    problems = []
    masks = config.spec.masked and is_masking_supported(env)
    if text := problem_of_actions(config.algorithm, env.action_space, masks):
        problems.append(("algorithm", text))
    observations, spec, network = env.observation_space, config.spec, config.network
    kind = observation_kind(observations)
    if kind not in spec.observations:
        able = ", ".join(name for name, other in ALGORITHMS.items() if kind in other.observations)
        text = f"{config.algorithm} takes flat observations, got {observations}; these can be trained with: {able}"
        problems.append(("algorithm", text))
    if text := _never_learns(config):
        problems.append(("hyperparameters.learning_starts", text))
    if network.shared and not (isinstance(observations, spaces.Box) and kind == "flat"):
        problems.append(("network.shared", "got true, needs flat observations and an actor-critic; set it to false"))
    if network.shared and not network.hidden:
        problems.append(("network.hidden", "got no layers, shared layers need at least one"))
    if network.shared and network.value_hidden is not None:
        problems.append(("network.value_hidden", "got layers of its own for the critic, which network.shared excludes"))
    if problems:
        raise ConfigError("invalid TrainingConfig", problems)


def _never_learns(config: TrainingConfig) -> str:
    """What is wrong when the limit is reached before the first update; empty when nothing is."""
    starts, total = config.hyperparameters.get("learning_starts"), config.total_timesteps
    if not config.spec.off_policy or total is None or not isinstance(starts, int) or starts < total:
        return ""
    return (
        f"{config.algorithm} begins to learn after {starts:,} decisions, but the training ends after {total:,} "
        f"(total_timesteps), so that nothing would be learned; set it below {total:,}, or train longer"
    )
