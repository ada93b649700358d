"""Presets: settings that come with the package, and values on top of them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from typing import Any, Final

import yaml

from gymcast.training.algorithm_table import ALGORITHMS, AUTO
from gymcast.training.config_model import ConfigError, ConfigModel
from gymcast.training.network_config import NetworkConfig, NormalizeConfig

_FOLDER: Final = resources.files("gymcast.training") / "presets"
_LIMIT_FIELDS: Final = ("max_episodes", "total_timesteps", "max_minutes")
# Fields that are mappings: a preset and its overrides are merged key by key instead of replaced as a whole.
_MERGED_FIELDS: Final[dict[str, type[ConfigModel] | None]] = {
    "env_kwargs": None,
    "hyperparameters": None,
    "network": NetworkConfig,
    "normalize": NormalizeConfig,
}


def names() -> tuple[str, ...]:
    """Names of all presets."""
    return tuple(sorted(entry.name[:-5] for entry in _FOLDER.iterdir() if entry.name.endswith(".yaml")))


def read(name: str) -> dict[str, Any]:
    """The values of the preset ``name``. Raises :class:`ConfigError` when there is none."""
    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise ConfigError("unknown preset", [(name, f"{hint}presets are: {', '.join(known)}")])
    values: dict[str, Any] = yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return values


def name_for(env_id: str) -> str:
    """The name of the preset made for ``env_id``, its family (``ALE/...``, ``MiniGrid-...``), or ``default``."""
    known = names()
    *namespace, name = env_id.rpartition(":")[2].removeprefix("gymcast/").split("/")
    name = name.rpartition("-v")[0] or name
    family = namespace[0] if namespace else name.partition("-")[0]
    wanted = [] if namespace else [name]
    return next((one for one in map(str.lower, [*wanted, family]) if one in known), "default")


def merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """``overrides`` (snake_case) on top of the values of a preset, as ``TrainingConfig.preset`` describes it."""
    merged = dict(base)
    if any(name in overrides for name in _LIMIT_FIELDS):
        for name in (*_LIMIT_FIELDS, "target_reward"):
            merged.pop(name, None)
    algorithm = overrides.get("algorithm", merged.get("algorithm", AUTO))
    if _family(algorithm) != _family(merged.get("algorithm", AUTO)):
        merged.pop("hyperparameters", None)
        if isinstance(algorithm, str) and algorithm in ALGORITHMS:
            spec = ALGORITHMS[algorithm]
            merged["hyperparameters"] = dict(spec.defaults)
            network = merged.get("network", {})
            merged["network"] = {name: value for name, value in network.items() if name in spec.network_fields}
    for name, value in overrides.items():
        if name in _MERGED_FIELDS and isinstance(value, Mapping):
            model = _MERGED_FIELDS[name]
            value = {**(merged.get(name) or {}), **(value if model is None else model.in_snake_case(value))}
        merged[name] = value
    return merged


def _family(algorithm: Any) -> str:
    """Algorithms of a family take the same hyperparameters."""
    return str(algorithm).removeprefix("maskable_").removeprefix("recurrent_")
