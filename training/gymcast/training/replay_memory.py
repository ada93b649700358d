"""How large a replay buffer may be: known before it is allocated, when there is still something to be said."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import psutil
from gymnasium import spaces
from stable_baselines3.common.preprocessing import get_obs_shape
from stable_baselines3.common.vec_env import VecEnv

from gymcast.training.config import ConfigError, TrainingConfig

# What Stable-Baselines3 holds by default, where it fits.
USUAL_SIZE: Final = 1_000_000
# Without a wish the buffer takes at most this share of the machine's memory.
_SHARE: Final = 1 / 8


def decision_bytes(env: VecEnv, config: TrainingConfig) -> int:
    """Bytes of the replay buffer for each decision: what was seen before and after, action, reward, ends."""
    observations = env.observation_space
    parts = observations.spaces.values() if isinstance(observations, spaces.Dict) else [observations]
    seen = sum(_numbers(get_obs_shape(part)) * _itemsize(part) for part in parts)
    once = bool(config.hyperparameters.get("optimize_memory_usage", False))
    action = env.action_space
    acted = _numbers(action.shape) * _itemsize(action)
    return seen * (1 if once else 2) + acted + 3 * np.dtype(np.float32).itemsize


def buffer_size_that_fits(config: TrainingConfig, env: VecEnv) -> int:
    """The decisions the replay buffer of ``config`` holds: as many as were asked for, else as are usual and fit well.

    Raises :class:`~gymcast.training.config.ConfigError` when what was asked for is more than the memory that is free.
    """
    each = decision_bytes(env, config)
    memory = psutil.virtual_memory()
    asked: Any = config.hyperparameters.get("buffer_size")
    if asked is None:
        return max(1, min(USUAL_SIZE, int(memory.total * _SHARE) // each))
    if asked * each > memory.available:
        text = (
            f"got {asked:,}: so many decisions of {each:,} bytes take {_gib(asked * each)},"
            f" and {_gib(memory.available)} of memory are free; at most {memory.available // each:,} fit"
        )
        raise ConfigError("invalid TrainingConfig", [("hyperparameters.buffer_size", text)])
    return int(asked)


def _numbers(shape: Any) -> int:
    return int(np.prod(shape or (1,), dtype=np.int64))


def _itemsize(space: spaces.Space[Any]) -> int:
    return 8 if space.dtype is None else space.dtype.itemsize


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
