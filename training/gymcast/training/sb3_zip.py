"""Stable-Baselines3's own ``.zip``: written so that plain Stable-Baselines3 loads it, and read without its pickles.

Such a file holds the weights (tensors) and, in its entry ``data``, everything else: plain values as JSON, the rest as
pickles, which run code when they are loaded. Reading takes the tensors with ``weights_only`` and plain values alone.

``python -m gymcast.training.sb3_zip FILE`` prints what the network in a file looks like, as JSON.
"""

from __future__ import annotations

import io
import json
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import cloudpickle
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm

from gymcast.training import policies
from gymcast.training.algorithm_table import ALGORITHMS
from gymcast.training.checkpoints import Checkpoint, load_state
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.resume import loaded_model
from gymcast.training.schedules import Schedule, resolve_schedules

WEIGHTS: Final = "policy.pth"
DATA: Final = "data"
# Networks that end in the values or the action itself.
_WHOLE_NETWORKS: Final = ("q_net.q_net", "quantile_net.quantile_net", "action_net")
# A zip can unpack to far more than it takes on disk.
_LARGEST: Final = {WEIGHTS: 4 << 30, DATA: 64 << 20}


class Sb3ZipError(ValueError):
    """A file that is no model of Stable-Baselines3, or one of a network that gymcast does not build."""


@dataclass(frozen=True)
class Sb3Weights:
    """The policy's state in a file, the ``network`` settings that build it, and the decisions it was trained for.

    ``algorithm`` has policies like this one; several may, such as ppo and a2c.
    """

    algorithm: str
    policy: dict[str, th.Tensor]
    network: dict[str, Any]
    timesteps: int


def export_sb3(config: TrainingConfig, checkpoint: Checkpoint, path: Path) -> list[Path]:
    """Write a checkpoint as a file for ``load`` of Stable-Baselines3's class of that name; returns what was written.

    Rates that follow a schedule are written as what they are at the checkpoint. Statistics of normalisation go into a
    second file, ``<name>.vecnormalize.pkl``, for ``VecNormalize.load``. Raises ``CheckpointError``, ``OSError``.
    """
    counters = load_state(checkpoint)["counters"]
    left = counters["_current_progress_remaining"]
    fixed = resolve_schedules(config.hyperparameters)
    for name, value in fixed.items():
        if isinstance(value, Schedule):
            fixed[name] = value(left) or value.start
    settings = config.model_copy(update={"hyperparameters": fixed})
    with loaded_model(settings, checkpoint, plain=True) as model:
        for name, value in counters.items():
            setattr(model, name, value)
        files: dict[Path, Callable[[str], None]] = {path: model.save}
        normalise = model.get_vec_normalize_env()
        if normalise is not None:
            files[path.with_suffix(".vecnormalize.pkl")] = normalise.save
        # Our own layers travel inside the file: whoever loads it need not have gymcast.
        cloudpickle.register_pickle_by_value(policies)
        try:
            for target, save in files.items():
                unfinished = target.with_name(f".unfinished-{target.name}")
                save(str(unfinished))
                unfinished.replace(target)
        finally:
            cloudpickle.unregister_pickle_by_value(policies)
    return list(files)


def read_sb3_zip(path: Path) -> Sb3Weights:
    """The weights in a file of Stable-Baselines3, and what its tensors say about the network; no pickle is loaded.

    Raises :class:`Sb3ZipError`, ``OSError``.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            weights, text = (_entry(archive, name, path) for name in (WEIGHTS, DATA))
        policy = th.load(io.BytesIO(weights), map_location="cpu", weights_only=True)
        data = json.loads(text)
    except (zipfile.BadZipFile, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, RecursionError) as error:
        raise Sb3ZipError(f"{path} is no model of Stable-Baselines3: {' '.join(str(error).split())[:300]}") from error
    if not isinstance(policy, Mapping) or not all(isinstance(value, th.Tensor) for value in policy.values()):
        raise Sb3ZipError(f"{path} is no model of Stable-Baselines3: {WEIGHTS} does not hold named tensors")
    timesteps = data.get("num_timesteps") if isinstance(data, dict) else None
    return Sb3Weights(
        _algorithm(policy, data), dict(policy), _network(policy, data), timesteps if isinstance(timesteps, int) else 0
    )


def load_weights(model: BaseAlgorithm, weights: Sb3Weights) -> None:
    """Begin with the weights of a file. Raises ``ConfigError`` naming what does not fit."""
    try:
        model.policy.load_state_dict(weights.policy)
    except RuntimeError as error:
        reasons = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        raise ConfigError("the weights do not fit this game and algorithm", [("--from", reasons)]) from None


def _entry(archive: zipfile.ZipFile, name: str, path: Path) -> bytes:
    try:
        size = archive.getinfo(name).file_size
    except KeyError:
        raise Sb3ZipError(f"{path} is no model of Stable-Baselines3: it has no entry {name!r}") from None
    if size > _LARGEST[name]:
        raise Sb3ZipError(f"{path}: {name} would unpack to {size:,} bytes, at most {_LARGEST[name]:,} are read")
    return archive.read(name)


def _algorithm(policy: Mapping[str, th.Tensor], data: Any) -> str:
    """The first algorithm in the table that has policies of this kind."""
    names = " ".join(policy)
    quantiles, two_critics = "quantile_net." in names, "critic.qf0." in names
    layout = "q_network" if quantiles or "q_net." in names else "actor_and_q" if two_critics else "actor"
    if "value_net." in names:
        layout = "actor_critic"
    # Beside the pickle of the policy's class Stable-Baselines3 writes the module it is from.
    described = data.get("policy_class") if isinstance(data, dict) else None
    module = described.get("__module__") if isinstance(described, dict) else None
    masked = layout == "actor_critic" and "maskable" in str(module)
    # Only an actor that explores by itself has a spread of its actions.
    noiseless = two_critics and "actor.log_std" not in names
    for name, spec in ALGORITHMS.items():
        if (
            spec.layout == layout
            and (spec.masked, spec.recurrent) == (masked, "lstm_actor." in names)
            and ("quantiles" in spec.network, spec.deterministic) == (quantiles, noiseless)
        ):
            return name
    raise Sb3ZipError(f"its network is one that gymcast does not build: {', '.join(policy)[:200]}")


def _network(policy: Mapping[str, th.Tensor], data: Any) -> dict[str, Any]:
    """``network`` settings for these tensors. What is drawn on images is left to the defaults."""
    network: dict[str, Any] = {}
    actor, critic = (_widths(policy, f"mlp_extractor.{name}_net") for name in ("policy", "value"))
    shared = _widths(policy, "features_extractor.layers")
    activation = "relu"  # of all but the actor-critics
    if layers := next((found for net in _WHOLE_NETWORKS if (found := _widths(policy, net))), None):
        network["hidden"] = layers[:-1]
    elif critics := _widths(policy, "critic.qf0"):
        # The output layer of one actor is in its list of layers, of the other beside it.
        network |= {"hidden": _widths(policy, "actor.latent_pi") or _widths(policy, "actor.mu")[:-1]}
        network["value_hidden"] = critics[:-1]
    else:
        activation = "tanh"
        network |= {"hidden": shared, "shared": True} if shared and not actor and not critic else {}
        network = network or {"hidden": actor, "value_hidden": critic}
    if "lstm_actor.weight_hh_l0" in policy:
        network["lstm_hidden"] = int(policy["lstm_actor.weight_hh_l0"].shape[1])
    if "quantile_net.quantile_net.0.weight" in policy:
        network["quantiles"] = _quantiles(data)
    network["activation"] = _activation(data, activation)
    return network


def _quantiles(data: Any) -> int:
    kwargs = data.get("policy_kwargs") if isinstance(data, dict) else None
    found = kwargs.get("n_quantiles") if isinstance(kwargs, dict) else None
    return found if isinstance(found, int) else 200


def _widths(policy: Mapping[str, th.Tensor], prefix: str) -> list[int]:
    pattern = re.compile(re.escape(prefix) + r"\.(\d+)\.weight")
    found = {int(match[1]): tensor for name, tensor in policy.items() if (match := pattern.fullmatch(name))}
    return [int(found[index].shape[0]) for index in sorted(found)]


def _activation(data: Any, default: str) -> str:
    """The name of the activation: beside each pickle Stable-Baselines3 writes how the object prints."""
    kwargs = data.get("policy_kwargs") if isinstance(data, dict) else None
    printed = kwargs.get("activation_fn") if isinstance(kwargs, dict) else None
    if printed is None:
        return default
    for name, module in policies.ACTIVATIONS.items():
        if str(printed) == str(module):
            return name
    allowed = ", ".join(module.__name__ for module in policies.ACTIVATIONS.values())
    raise Sb3ZipError(f"the network's activation is {str(printed)[:80]}; gymcast builds networks with {allowed}")


def main(path: Path) -> int:
    """Print ``{"network", "timesteps"}`` of a file, or why it cannot be used; returns the exit code."""
    try:
        weights = read_sb3_zip(path)
    except (Sb3ZipError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(json.dumps({"network": weights.network, "timesteps": weights.timesteps}))
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
