"""From what was typed to a checked plan of a training run. Nothing is started here; each problem is a ``UserError``."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import yaml

from gymcast.server.cli_environment import environment_settings, import_packages
from gymcast.server.cli_errors import UserError, did_you_mean
from gymcast.server.cli_paths import CONFIG_FILE
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.env_settings import problems_of_environment

DEFAULT_PORT: Final = 8000

log = logging.getLogger(__name__)

# Limits stand for one another: one that is named in a stronger place (an option over a file) replaces all of them.
_LIMITS: Final = ("max_minutes", "total_timesteps", "max_episodes")
_MERGED: Final = ("env_kwargs", "hyperparameters", "network", "normalize")
LIMIT_OPTIONS: Final = {
    "max_minutes": ("--minutes", "3"),
    "total_timesteps": ("--total-timesteps", "1000000"),
    "max_episodes": ("--num-episodes", "10000"),
}
# What a resumed run may change; everything else decides what its checkpoint means.
_RESUMABLE: Final = (
    *_LIMITS,
    "target_reward",
    "evaluation_games",
    "evaluation_opponents",
    "checkpoint_interval_minutes",
    "checkpoint_interval_steps",
    "checkpoint_interval_episodes",
    "checkpoints_kept",
    "checkpoints_max_mb",
    "checkpoint_evaluation_games",
    "footage_seconds",
    "metrics_hz",
    "auto_cleanup",
    "workers",
    "worker_start_method",
    "step_timeout",
    "start_timeout",
    "stall_timeout",
    "max_restarts",
    "max_restarts_per_minute",
)


@dataclass(frozen=True)
class TrainPlan:
    """What ``gymcast train`` was asked to do, checked."""

    config: TrainingConfig
    runs_dir: Path
    run_dir: Path
    resume: bool
    port: int | None
    """Port of the embedded server; ``None`` takes the first free one from 8000 on."""
    stay: bool
    output: str
    """``live``, ``plain``, ``json`` or ``quiet``."""
    checkpoint_dir: Path | None = None
    """Where the checkpoints are to be kept instead of in ``run_dir``."""
    render: bool = False
    """Whether the page is to be opened in a browser."""
    initial: Path | None = None
    """A file of Stable-Baselines3 whose weights the run begins with."""


def make_plan(
    game: str | None,
    values: Mapping[str, Any],
    *,
    config_file: Path | None,
    resume: str | None,
    runs_dir: Path,
    run_dir: Path | None,
    port: int | None,
    stay: bool,
    output: str,
    checkpoint_dir: Path | None = None,
    render: bool = False,
    initial: Path | None = None,
) -> TrainPlan:
    """Check everything that can be checked before a process is started. ``values`` are settings that were typed."""
    if checkpoint_dir is not None:
        _check_checkpoint_dir(checkpoint_dir, resume)
    if resume is not None:
        if initial is not None:
            raise UserError("--resume goes on with a run's own weights and --from begins with others; give one of them")
        folder = find_run(resume, runs_dir)
        config = _config_to_resume(folder, game, values, config_file, run_dir)
    else:
        if initial is not None:
            values = merge({"network": initial_network(initial)}, values)
        config = _new_config(game, values, config_file)
        folder = run_dir if run_dir is not None else _new_run_dir(runs_dir, config.env_id)
        if (folder / CONFIG_FILE).exists():
            raise UserError(
                f"{folder} already holds a run. Take another --run-dir, or go on: gymcast train --resume {folder}"
            )
    return TrainPlan(
        config=config,
        runs_dir=runs_dir,
        run_dir=folder,
        # A run that was stopped before its first checkpoint starts again in its folder.
        resume=resume is not None and bool(checkpoints_of(folder)),
        port=port,
        stay=stay,
        output=output,
        checkpoint_dir=checkpoint_dir,
        render=render,
        initial=initial,
    )


def _check_checkpoint_dir(folder: Path, resume: str | None) -> None:
    if resume is not None:
        raise UserError("a resumed run keeps its checkpoints where they are; leave out --checkpoint-dir")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--checkpoint-dir {folder} is a file; name a folder")
    if any(folder.glob("step-*")):
        raise UserError(
            f"{folder} holds the checkpoints of another run. Take another --checkpoint-dir, or go on with that run: "
            "gymcast train --resume RUN"
        )


def initial_network(path: Path) -> dict[str, Any]:
    """The network settings that fit the weights in a file of Stable-Baselines3.

    Looked at by a process of its own, which keeps torch out of this one.
    """
    command = [sys.executable, "-m", "gymcast.training.sb3_zip", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        raise UserError((result.stderr.strip().splitlines() or [f"{path} cannot be read"])[-1])
    network: dict[str, Any] = json.loads(result.stdout)["network"]
    return network


def _new_config(game: str | None, values: Mapping[str, Any], config_file: Path | None) -> TrainingConfig:
    from_file = read_settings(config_file) if config_file is not None else {}
    in_file = from_file.pop("env_id", from_file.pop("envId", None))
    wanted = game if game is not None else in_file
    if wanted is None:
        raise UserError("which game? For example: gymcast train archers    (gymcast envs list shows all)")
    if not isinstance(wanted, str):
        raise UserError(f"env_id in {config_file} is {wanted!r}; a game's name or a Gymnasium id is needed")
    settings = merge(from_file, values)
    wanted, more = environment_settings(wanted, settings.get("gym_packages"), (), None)
    settings |= more
    import_packages(settings)
    env_id = resolve_game(str(wanted))
    problems = game_problems(env_id, settings)
    try:
        config = TrainingConfig.for_env(env_id, **settings)
    except ConfigError as error:
        problems = [*error.problems, *problems]
    if problems:
        raise _problems("these settings cannot be used", problems)
    return config


def _config_to_resume(
    folder: Path, game: str | None, values: Mapping[str, Any], config_file: Path | None, run_dir: Path | None
) -> TrainingConfig:
    """The settings of a run that goes on. Limits that were typed count from where it stands."""
    if config_file is not None or run_dir is not None:
        raise UserError("a resumed run has its own folder and settings; leave out --config and --run-dir")
    try:
        config = TrainingConfig.from_yaml(folder / CONFIG_FILE)
    except ConfigError as error:
        raise _problems(error.title, error.problems) from None
    import_packages({"gym_packages": config.gym_packages})
    if game is not None and resolve_game(game) != config.env_id:
        raise UserError(f"{folder} trains {config.env_id}, not {game}; leave the game out when resuming")
    fixed = sorted(set(values) - set(_RESUMABLE))
    if fixed:
        raise UserError(f"a resumed run keeps {', '.join(fixed)} as it is. It can change: {', '.join(_RESUMABLE)}")
    done = progress_of(folder)
    more = {
        name: round(value + done[name], 6) if name in done and isinstance(value, int | float) else value
        for name, value in values.items()
    }
    try:
        resumed = TrainingConfig.parse(merge(config.model_dump(mode="json"), more))
    except ConfigError as error:
        raise _problems("these settings cannot be used", error.problems) from None
    reached = [name for name in done if (limit := getattr(resumed, name)) is not None and limit <= done[name]]
    if reached:
        option, amount = LIMIT_OPTIONS[reached[0]]
        raise UserError(
            f"{folder} has reached its goal ({reached[0]} {getattr(resumed, reached[0]):g}). "
            f"Say how much more it is to train: gymcast train --resume {folder} {option} {amount}"
        )
    return resumed


def more_options(plan: TrainPlan) -> str:
    """The option that lets a run which has reached its goal go on for as long again as this time."""
    done = progress_of(plan.run_dir) if plan.resume else {}
    for name, (option, _example) in LIMIT_OPTIONS.items():
        limit = getattr(plan.config, name)
        if limit is not None:
            left = round(limit - done.get(name, 0), 2)
            return f"{option} {left:g}" if isinstance(left, float) else f"{option} {left}"
    return ""


def progress_of(run_dir: Path) -> dict[str, float]:
    """How far the newest checkpoint of a run is, in the units of each limit; empty without a checkpoint."""
    for folder in reversed(checkpoints_of(run_dir)):
        try:
            manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
            state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
            return {
                "max_minutes": float(state["training_seconds"]) / 60,
                "total_timesteps": int(manifest["timesteps"]),
                "max_episodes": int(manifest["episodes"]),
            }
        except (OSError, ValueError, KeyError, TypeError) as error:
            # The worker verifies and skips damaged checkpoints in the same way.
            log.warning("%s cannot be read: %s", folder, error)
    return {}


def checkpoints_of(run_dir: Path) -> list[Path]:
    """The folders of a run's checkpoints, oldest first."""
    found = (run_dir / "checkpoints").glob("step-*")
    # Several of the same step are numbered from the second on: step-5, step-5-2, step-5-10.
    return sorted(found, key=lambda path: [int(number) for number in path.name.split("-")[1:] if number.isdigit()])


def _problems(title: str, problems: Iterable[tuple[str, str]]) -> UserError:
    return UserError("\n".join([f"{title}:", *(f"  {field}: {text}" for field, text in problems)]))


def resolve_game(name: str) -> str:
    """The Gymnasium id of a built-in game's name or of any registered id."""
    from gymcast.envs import UnknownEnvError, resolve_env_id

    try:
        return resolve_env_id(name)
    except UnknownEnvError as error:
        raise UserError(str(error)) from None


def game_problems(env_id: str, settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What a built-in game does not allow in ``settings``; other environments check theirs when they are made."""
    from gymcast.envs import GAMES, OptionValueError, UnknownOptionError

    spec = GAMES.get(env_id)
    options, opponents = settings.get("env_kwargs", {}), settings.get("evaluation_opponents")
    if spec is None or not isinstance(options, Mapping):
        return []
    problems = problems_of_environment(env_id, settings)
    if settings.get("workers") not in (None, 0, "auto"):
        text = f"{env_id} runs as one native batch in the training process; leave it out"
        problems.append(("workers", f"got {settings['workers']!r}, but {text}"))
    for name, value in options.items():
        if name == "opponent" and isinstance(value, str) and Path(value).suffix == ".npz" and Path(value).is_file():
            continue  # a trained policy as the opponent
        try:
            spec.complete_options({str(name): value})
        except (UnknownOptionError, OptionValueError) as error:
            problems.append((f"env_kwargs.{name}", str(error)))
    for opponent in opponents if isinstance(opponents, list | tuple) else ():
        if opponent not in spec.opponents:
            allowed = ", ".join(spec.opponents)
            hint = did_you_mean(str(opponent), spec.opponents)
            problems.append(("evaluation_opponents", f"unknown opponent {opponent!r}{hint}; allowed: {allowed}"))
    return problems


def find_run(wanted: str, runs_dir: Path) -> Path:
    """The folder of a run given by its path, its name in the runs folder, or ``latest``."""
    runs = sorted(runs_dir.glob(f"*/{CONFIG_FILE}"), key=lambda path: path.stat().st_mtime) if runs_dir.is_dir() else []
    if wanted == "latest":
        if not runs:
            raise UserError(f"there is no run in {runs_dir}/ yet. Start one: gymcast train archers")
        return runs[-1].parent
    for folder in (Path(wanted), runs_dir / wanted):
        if (folder / CONFIG_FILE).is_file():
            return folder
    names = [path.parent.name for path in runs]
    newest = f"; the newest is {names[-1]}" if names else ""
    raise UserError(f"no run {wanted!r} (a folder with {CONFIG_FILE}){did_you_mean(wanted, names)}{newest}")


def _new_run_dir(runs_dir: Path, env_id: str) -> Path:
    name = env_id.rsplit("/", 1)[-1].rsplit(":", 1)[-1].split("-v")[0].lower()
    stem = f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    folder, count = runs_dir / stem, 1
    while folder.exists():
        count += 1
        folder = runs_dir / f"{stem}-{count}"
    return folder


def read_settings(path: Path) -> dict[str, Any]:
    """Settings of a YAML or JSON file (JSON is YAML)."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} holds no settings; lines of the form 'name: value' are needed")
    return {str(name): value for name, value in values.items()}


def merge(weaker: Mapping[str, Any], stronger: Mapping[str, Any]) -> dict[str, Any]:
    """``stronger`` over ``weaker``: mappings key by key, and any limit in ``stronger`` replaces all of ``weaker``'s."""
    merged = dict(weaker)
    if any(name in stronger for name in _LIMITS):
        for name in _LIMITS:
            merged.pop(name, None)
    for name, value in stronger.items():
        base = merged.get(name)
        if name in _MERGED and isinstance(value, Mapping) and isinstance(base, Mapping):
            value = {**base, **value}
        merged[name] = value
    return merged


def parse_assignments(option: str, pairs: Iterable[str]) -> dict[str, Any]:
    """``["a=1", "b=x"]`` as ``{"a": 1, "b": "x"}``; values are JSON where they can be, text otherwise."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise UserError(f"{option} {pair!r} is not of the form name=value")
        values[name.strip().replace("-", "_")] = _parse_value(text.strip())
    return values


def parse_options(pairs: Iterable[str]) -> dict[str, Any]:
    """Options of a game: ``name=value``, ``name:value``, or a mapping such as ``{"name": value}``."""
    values: dict[str, Any] = {}
    for pair in pairs:
        if pair.lstrip().startswith("{"):
            try:
                mapping = yaml.safe_load(pair)
            except yaml.YAMLError:
                mapping = None
            if not isinstance(mapping, dict):
                raise UserError(f"--option {pair!r} is no mapping in JSON or YAML")
            values |= {str(name).replace("-", "_"): value for name, value in mapping.items()}
        else:
            name, colon, value = pair.partition(":")
            values |= parse_assignments("--option", [f"{name}={value}" if colon and "=" not in name else pair])
    return values


def _parse_value(text: str) -> Any:
    special = {"none": None, "true": True, "false": False}
    if text.lower() in special:
        return special[text.lower()]
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """``{"network.hidden": [64]}`` as ``{"network": {"hidden": [64]}}``."""
    nested: dict[str, Any] = {}
    for dotted, value in flat.items():
        *parents, last = dotted.split(".")
        place = nested
        for parent in parents:
            place = place.setdefault(parent, {})
            if not isinstance(place, dict):
                raise UserError(f"--set {dotted}: {parent} is already set to a single value")
        place[last] = value
    return nested


def parse_port(text: str) -> int | None:
    """A port number, or ``None`` for ``auto``."""
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 65535:
        raise UserError(f"--port {text!r} is not a port; 1 to 65535 or auto is allowed")
    return int(text)
