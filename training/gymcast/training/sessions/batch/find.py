"""What all episodes of a batch have in common, and its policy, found by what a caller names; without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from gymcast.envs import GAMES, NumpyPolicy, OptionValueError, load_policy
from gymcast.envs.errors import did_you_mean
from gymcast.envs.foreign_make import EnvExtras
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.run_folder import CONFIG_NAME
from gymcast.training.sessions.batch.types import BatchInputError


@dataclass(frozen=True)
class PolicySource:
    """Where a policy comes from."""

    kind: Literal["random", "level", "npz", "checkpoint", "zip", "function"]
    name: str
    """What people call it."""
    path: Path | None = None
    run_dir: Path | None = None
    """Of a checkpoint: the folder with the run's settings."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the environment it was trained with."""
    function: bytes = b""
    """cloudpickle of a function from an observation to an action."""


@dataclass(frozen=True)
class Setup:
    """What all episodes of a batch have in common."""

    key: int
    """Names it among the setups of a manager."""
    env_id: str
    options: dict[str, Any]
    factory: bytes
    """cloudpickle of a function that makes the environment, in place of ``env_id``; or empty."""
    extras: EnvExtras
    """Packages and wrappers of an environment that is not gymcast's."""
    policy: PolicySource
    deterministic: bool
    seed: int
    lanes: int
    replays: str | None
    """Folder for replays."""


def find_policy(policy: Any, env_id: str, settings: TrainingConfig | None = None) -> PolicySource:
    """What ``policy`` names: "random", a scripted level of a built-in game, a run's or checkpoint's folder, a
    ``policy.npz``, a ``.zip`` of Stable-Baselines3, or a function. Raises :class:`BatchInputError`.

    ``settings``: what :func:`settings_of` found, where it has been asked already.
    """
    if callable(policy):
        import cloudpickle

        return PolicySource("function", getattr(policy, "__qualname__", "function"), function=cloudpickle.dumps(policy))
    if not isinstance(policy, str | Path):
        raise BatchInputError(f"policy={policy!r} is not allowed: give a name, a path or a function.")
    levels = GAMES[env_id].levels if env_id in GAMES else ()
    if policy == "random":
        return PolicySource("random", "random")
    if policy in levels:
        return PolicySource("level", str(policy))
    path = Path(policy)
    if (settings := settings or settings_of(policy)) is not None:
        return _find_trained(path, settings, env_id)
    if path.is_file() and path.suffix in (".npz", ".zip"):
        return PolicySource("npz" if path.suffix == ".npz" else "zip", path.name, path.absolute())
    known = ["random", *levels]
    if path.is_file():
        raise BatchInputError(f"policy {str(policy)!r} is a file, but no .zip of Stable-Baselines3 and no policy.npz.")
    raise BatchInputError(
        f"there is no policy {str(policy)!r}.{did_you_mean(str(policy), known)} Choose {', '.join(known)}, the folder "
        "of a run or checkpoint, a policy.npz, or a .zip of Stable-Baselines3."
    )


def settings_of(policy: Any) -> TrainingConfig | None:
    """The settings of the run that ``policy`` names, itself or one of its checkpoints; ``None`` for other policies.

    Raises :class:`BatchInputError` for a folder that is neither.
    """
    if not isinstance(policy, str | Path) or not Path(policy).is_dir():
        return None
    path = _run_dir(Path(policy)) / CONFIG_NAME
    try:
        return TrainingConfig.from_yaml(path)
    except (OSError, ConfigError) as error:
        raise BatchInputError(f"{policy} is no run and no checkpoint: {path}: {error}") from None


def _run_dir(folder: Path) -> Path:
    of_checkpoint = (folder / "manifest.json").is_file()
    return folder.absolute().parent.parent if of_checkpoint else folder.absolute()


def _find_trained(folder: Path, settings: TrainingConfig, env_id: str) -> PolicySource:
    one, run_dir = (folder / "manifest.json").is_file(), _run_dir(folder)
    if settings.env_id != env_id:
        raise BatchInputError(f"{folder} was trained on {settings.env_id}, which is not {env_id}.")
    options: dict[str, Any] = dict(settings.env_kwargs)
    if options.get("opponent") == "self":
        del options["opponent"]
    checkpoint = folder.absolute() if one else _newest(run_dir / "checkpoints")
    if checkpoint is None:
        raise BatchInputError(f"{folder} has no checkpoint that verifies: train it first, or name another run.")
    exported = _exported(checkpoint)
    name = f"{run_dir.name}/{checkpoint.name}"
    if exported is not None:
        return PolicySource("npz", name, exported, run_dir, options)
    return PolicySource("checkpoint", name, checkpoint, run_dir, options)


def _newest(folder: Path) -> Path | None:
    found = sorted(path.parent for path in folder.glob("step-*/manifest.json"))
    return next((path for path in reversed(found) if _verifies(path)), None)


def _verifies(checkpoint: Path) -> bool:
    """Whether every file is there with the hash the manifest names. (``checkpoints.verify`` would import torch.)"""
    try:
        files = json.loads((checkpoint / "manifest.json").read_text(encoding="utf-8"))["files"]
        return all(_sha256(checkpoint / name) == _hash_in(entry) for name, entry in files.items())
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return False


def _hash_in(entry: Any) -> Any:
    return entry["sha256"] if isinstance(entry, Mapping) else entry


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _exported(checkpoint: Path) -> Path | None:
    """The checkpoint's ``policy.npz``, when NumPy alone can play it."""
    path = checkpoint / "policy.npz"
    if not path.is_file():
        return None
    try:
        return path if _playable(load_policy(path)) else None
    except OptionValueError:
        return None


def _playable(policy: NumpyPolicy) -> bool:
    return policy.meta.get("action_kind") in ("discrete", "multi_discrete")
