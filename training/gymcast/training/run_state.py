"""All of a run that is neither weights nor optimizer, as plain values and arrays: taken at one moment, put back later.

Counters, schedules' progress, episode statistics, ``VecNormalize``, every random stream, the games and what the learner
saw last; for off-policy algorithms the replay buffer. The moment has to be one between an update and the next rollout
(see :mod:`gymcast.training.boundary`): only there nothing else is under way. See ``docs/exactness.md``.
"""

from __future__ import annotations

import platform
import random
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.vec_env import VecEnv, VecNormalize, VecTransposeImage, unwrap_vec_wrapper

from gymcast.envs import SnapshotError
from gymcast.training.callbacks.progress import RunProgress
from gymcast.training.noise import LaneNoise
from gymcast.training.vec_env import restore_games, snapshot_games

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Counters of Stable-Baselines3's algorithms; which of them there are depends on the algorithm.
COUNTERS = (
    "num_timesteps",
    "_n_updates",
    "_episode_num",
    "_n_calls",
    "exploration_rate",
    "_current_progress_remaining",
)
_OBSERVATIONS = ("_last_obs", "_last_original_obs", "_last_episode_starts")


@dataclass
class RunState:
    """``values`` are JSON, ``arrays`` are copies by name; ``no_games`` says why the games could not be kept."""

    values: dict[str, Any]
    arrays: dict[str, NDArray[Any]] = field(default_factory=dict)
    no_games: str | None = None

    @property
    def timesteps(self) -> int:
        """Decisions taken, all lanes together."""
        return int(self.values["counters"]["num_timesteps"])


def capture(model: BaseAlgorithm, progress: RunProgress) -> RunState:
    """The state of a run now. Weights, optimizer and replay buffer, which are larger, are left out."""
    arrays: dict[str, NDArray[Any]] = {}
    values: dict[str, Any] = {
        "counters": {name: _plain(getattr(model, name)) for name in COUNTERS if hasattr(model, name)},
        "training_seconds": progress.seconds,
        "stats": progress.stats.to_state(),
        "episodes": [_plain(info) for info in model.ep_info_buffer or ()],
        "successes": [_plain(value) for value in model.ep_success_buffer or ()],
        "torch_threads": th.get_num_threads(),
        "machine": machine(),
    }
    _capture_streams(model, values, arrays)
    for name in _OBSERVATIONS:
        _put(arrays, name, getattr(model, name, None))
    for number, tensor in enumerate(_lstm_tensors(model)):
        arrays[f"lstm/{number}"] = tensor.detach().cpu().numpy().copy()
    noise = getattr(model, "action_noise", None)
    for lane, one in enumerate(noise.remembering() if isinstance(noise, LaneNoise) else ()):
        _put(arrays, f"noise/{lane}", one.noise_prev)
    for name, value in progress.stats.running().items():
        _put(arrays, f"stats/{name}", value)
    normalise = model.get_vec_normalize_env()
    if normalise is not None:
        for name, value in _normalisation(normalise).items():
            _put(arrays, f"normalize/{name}", value)
    no_games = None
    env = model.get_env()
    assert env is not None, "a run has an environment"
    try:
        for lane, data in enumerate(snapshot_games(env)):
            arrays[f"game/{lane}"] = np.frombuffer(data, dtype=np.uint8)
    except SnapshotError as error:
        no_games = str(error)
    values["no_games"] = no_games
    return RunState(values, arrays, no_games)


def restore(
    model: BaseAlgorithm, progress: RunProgress, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]
) -> str | None:
    """Put what :func:`capture` took into a model and a progress of the same configuration.

    Returns ``None``, or why the games could not be put back; then the caller has to start new episodes.
    """
    for name, value in values["counters"].items():
        setattr(model, name, value)
    progress.seconds_before = values["training_seconds"]
    progress.timesteps = model.num_timesteps
    progress.stats.load_state(values["stats"])
    model.ep_info_buffer = deque(values["episodes"], maxlen=model._stats_window_size)
    model.ep_success_buffer = deque(values["successes"], maxlen=model._stats_window_size)
    normalise = model.get_vec_normalize_env()
    if normalise is not None:
        _restore_normalisation(normalise, _group(arrays, "normalize"))
    no_games = values["no_games"] or _restore_games(model, progress, arrays)
    th.set_num_threads(values["torch_threads"])
    # Last: making models and environments draws numbers.
    _restore_streams(model, values, arrays)
    return no_games


def machine() -> dict[str, str]:
    """What the last bit of a floating-point result depends on beside the code."""
    return {
        "torch": th.__version__,
        "numpy": np.__version__,
        "cpu": f"{platform.machine()} {th.backends.cpu.get_cpu_capability()}",
    }


# ------------------------------------------------------------------------------------------------------- random streams


def _capture_streams(model: BaseAlgorithm, values: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    version, internal, gauss = random.getstate()
    kind, keys, *position = np.random.get_state(legacy=True)
    values["python_random"] = [version, gauss]
    values["numpy_random"] = [kind, *position]
    # Sampling from a space draws from the space's own generator, as epsilon-greedy exploration does.
    values["spaces"] = {
        name: [_stream_state(space) for space in _spaces_of(getattr(model, name))]
        for name in ("action_space", "observation_space")
    }
    arrays["random/python"] = np.array(internal, dtype=np.uint32)
    arrays["random/numpy"] = np.array(keys)
    arrays["random/torch"] = th.get_rng_state().numpy().copy()
    if th.cuda.is_available() and model.device.type == "cuda":
        for number, state in enumerate(th.cuda.get_rng_state_all()):
            arrays[f"random/cuda/{number}"] = state.numpy().copy()


def _restore_streams(model: BaseAlgorithm, values: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> None:
    version, gauss = values["python_random"]
    random.setstate((version, tuple(arrays["random/python"].tolist()), gauss))
    kind, *position = values["numpy_random"]
    np.random.set_state((kind, arrays["random/numpy"], *position))
    for name, states in values["spaces"].items():
        for space, state in zip(_spaces_of(getattr(model, name)), states, strict=True):
            if state is not None:
                space.np_random.bit_generator.state = state
    th.set_rng_state(th.from_numpy(np.array(arrays["random/torch"])))
    cuda = _group(arrays, "random/cuda")
    if cuda and th.cuda.is_available() and len(cuda) == th.cuda.device_count():
        th.cuda.set_rng_state_all([th.from_numpy(np.array(cuda[str(number)])) for number in range(len(cuda))])


def _spaces_of(space: spaces.Space[Any]) -> Iterator[spaces.Space[Any]]:
    yield space
    if isinstance(space, spaces.Dict):
        parts = tuple(space.spaces.values())
    else:
        parts = tuple(space.spaces) if isinstance(space, spaces.Tuple) else ()
    for part in parts:
        yield from _spaces_of(part)


def _stream_state(space: spaces.Space[Any]) -> Any:
    """The state of a space's generator; ``None`` before its first use, which would draw one from the system."""
    return None if space._np_random is None else space.np_random.bit_generator.state


@contextmanager
def streams_untouched(model: BaseAlgorithm) -> Iterator[None]:
    """Leave the random streams as they were found, for games that are no part of the training."""
    values: dict[str, Any] = {}
    arrays: dict[str, NDArray[Any]] = {}
    _capture_streams(model, values, arrays)
    try:
        yield
    finally:
        _restore_streams(model, values, arrays)


# ----------------------------------------------------------------------------------------------- games and observations


def _restore_games(model: BaseAlgorithm, progress: RunProgress, arrays: Mapping[str, NDArray[Any]]) -> str | None:
    env = model.get_env()
    assert env is not None, "a run has an environment"
    games = _group(arrays, "game")
    try:
        restore_games(env, [games[str(lane)].tobytes() for lane in range(len(games))])
    except SnapshotError as error:
        return str(error)
    for name in _OBSERVATIONS:
        if (value := _take(arrays, name)) is not None:
            setattr(model, name, _laid_out_as_stepped(env, value))
    lstm = _group(arrays, "lstm")
    for number, tensor in enumerate(_lstm_tensors(model)):
        tensor.copy_(th.from_numpy(np.array(lstm[str(number)])))
    noise, last = getattr(model, "action_noise", None), _group(arrays, "noise")
    if isinstance(noise, LaneNoise):
        noise.resume(last[str(lane)] for lane in range(len(last)))
    progress.stats.load_running(_group(arrays, "stats"))
    return None


def _laid_out_as_stepped(env: VecEnv, observations: Any) -> Any:
    """``observations`` in memory as a step returns them: images with their channels next to each other, turned around
    for the network. The last bit of a convolution depends on that."""
    turned = unwrap_vec_wrapper(env, VecTransposeImage)
    if turned is None or turned.skip:
        return observations
    if isinstance(observations, Mapping):
        keys = turned.image_space_keys or ()
        return {key: _channels_together(part) if key in keys else part for key, part in observations.items()}
    return _channels_together(observations) if observations.ndim == 4 else observations


def _channels_together(images: NDArray[Any]) -> NDArray[Any]:
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(images, 1, -1)), -1, 1)


def _lstm_tensors(model: BaseAlgorithm) -> tuple[th.Tensor, ...]:
    states = getattr(model, "_last_lstm_states", None)
    return () if states is None else (*states.pi, *states.vf)


def _normalisation(env: VecNormalize) -> dict[str, Any]:
    found: dict[str, Any] = {"returns": env.returns, "old_reward": env.old_reward}
    found["old_obs"] = getattr(env, "old_obs", None)  # there from the first reset on
    for name, statistics in _running_statistics(env):
        found |= {f"{name}/mean": statistics.mean, f"{name}/var": statistics.var, f"{name}/count": statistics.count}
    return found


def _restore_normalisation(env: VecNormalize, arrays: Mapping[str, NDArray[Any]]) -> None:
    env.returns, env.old_reward = arrays["returns"], arrays["old_reward"]
    if (old := _take(arrays, "old_obs")) is not None:
        env.old_obs = old
    _restore_statistics(env, arrays)


def _running_statistics(env: VecNormalize) -> Iterator[tuple[str, Any]]:
    yield "rewards", env.ret_rms
    if env.norm_obs and isinstance(env.obs_rms, dict):
        for key, statistics in env.obs_rms.items():
            yield f"observations/{key}", statistics
    elif env.norm_obs:
        yield "observations", env.obs_rms


def restore_statistics(env: VecNormalize, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Give ``env`` the means and variances that the arrays of a checkpoint hold, whatever its number of lanes."""
    _restore_statistics(env, _group(arrays, "normalize"))


def _restore_statistics(env: VecNormalize, arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, statistics in _running_statistics(env):
        statistics.mean, statistics.var = arrays[f"{name}/mean"], arrays[f"{name}/var"]
        statistics.count = float(arrays[f"{name}/count"])


# -------------------------------------------------------------------------------------------------------------- helpers


def _put(arrays: dict[str, NDArray[Any]], name: str, value: Any) -> None:
    if isinstance(value, Mapping):
        for key, part in value.items():
            _put(arrays, f"{name}/{key}", part)
    elif value is not None:
        arrays[name] = np.array(value)


def _take(arrays: Mapping[str, NDArray[Any]], name: str) -> Any:
    if name in arrays:
        return arrays[name]
    return _group(arrays, name) or None


def _group(arrays: Mapping[str, NDArray[Any]], name: str) -> dict[str, NDArray[Any]]:
    return {key[len(name) + 1 :]: value for key, value in arrays.items() if key.startswith(f"{name}/")}


def _plain(value: Any) -> Any:
    """``value`` with NumPy's scalars as Python's, for JSON."""
    if isinstance(value, Mapping):
        return {key: _plain(part) for key, part in value.items()}
    return value.item() if isinstance(value, np.generic) else value
