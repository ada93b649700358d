"""From what a caller asks for to a ``Setup`` that workers understand, with every check that needs no worker."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cloudpickle

from gymcast.envs import GAMES, EnvMakeError, OptionValueError, resolve_env_id
from gymcast.envs.foreign_ids import import_packages
from gymcast.envs.foreign_make import NO_EXTRAS, EnvExtras
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.env_settings import problems_of_environment
from gymcast.training.sessions.batch.find import Setup, find_policy, settings_of
from gymcast.training.sessions.batch.types import MAX_LANES, BatchInputError, whole


def make_setup(
    key: int,
    env: str | Callable[[], Any],
    env_kwargs: Mapping[str, Any] | None,
    policy: Any,
    *,
    deterministic: bool,
    seed: int,
    lanes: int,
    replays: str | Path | None,
    gym_packages: Sequence[str],
    wrappers: Sequence[str | Mapping[str, Any]],
    frame_stack: int | None,
) -> Setup:
    """A checked setup.

    Raises ``BatchInputError``, ``UnknownEnvError``, ``UnknownOptionError``, ``OptionValueError``.
    """
    whole("seed", seed, 0, 2**62)
    whole("lanes", lanes, 1, MAX_LANES)
    options = _options(env_kwargs)
    name, factory = _environment(env)
    settings = settings_of(policy)
    extras = NO_EXTRAS if settings is None or factory else settings.extras
    if gym_packages or wrappers or frame_stack is not None or ":" in name:
        name, extras = _extras(name, extras, gym_packages, wrappers, frame_stack)
    if factory and (options or extras):
        raise BatchInputError("options and wrappers are not for an environment that a function makes: it has its own.")
    env_id = name if factory else _resolve(name, extras)
    source = find_policy(policy, env_id, settings)
    options = {**source.options, **options}
    if env_id in GAMES and not factory:
        _check_game(env_id, options)
    elif lanes > 1:
        raise BatchInputError(f"lanes={lanes} is for built-in games; {env_id} is played one episode after the other.")
    folder = None if replays is None else str(Path(replays).absolute())
    if folder is not None and Path(folder).exists() and not Path(folder).is_dir():
        raise BatchInputError(f"replays={str(replays)!r} is a file: give a folder.")
    try:
        cloudpickle.dumps(options)
    except Exception as error:  # noqa: BLE001 - whatever options hold says why it cannot be copied
        raise BatchInputError(f"env_kwargs cannot be sent to a worker: {type(error).__name__}: {error}") from None
    return Setup(key, env_id, options, factory, extras, source, bool(deterministic), seed, lanes, folder)


def _options(env_kwargs: Any) -> dict[str, Any]:
    if env_kwargs is None:
        return {}
    if not isinstance(env_kwargs, Mapping) or not all(isinstance(name, str) for name in env_kwargs):
        raise BatchInputError(f"env_kwargs={env_kwargs!r} is not allowed: give a mapping from option to value.")
    return dict(env_kwargs)


def _environment(env: Any) -> tuple[str, bytes]:
    """Name and pickled factory of an environment."""
    if callable(env):
        return getattr(env, "__qualname__", type(env).__name__), cloudpickle.dumps(env)
    if not isinstance(env, str) or not env:
        raise BatchInputError(f"env={env!r} is not allowed: give a name, a Gymnasium id or a function that makes one.")
    return env, b""


def _extras(
    name: str,
    of_run: EnvExtras,
    gym_packages: Sequence[str],
    wrappers: Sequence[str | Mapping[str, Any]],
    frame_stack: int | None,
) -> tuple[str, EnvExtras]:
    """The id without its module, and what goes with it: what is given, and what the policy's run had beside that."""
    given = {"env_id": name, "gym_packages": gym_packages, "wrappers": wrappers, "frame_stack": frame_stack}
    try:
        config = TrainingConfig.parse(given)
    except ConfigError as error:
        raise BatchInputError("; ".join(f"{field}: {text}" for field, text in error.problems)) from None
    found = config.extras
    packages = tuple(dict.fromkeys([*of_run.packages, *found.packages]))
    extras = EnvExtras(packages, found.wrappers or of_run.wrappers, found.frame_stack or of_run.frame_stack)
    return config.env_id, extras


def _resolve(name: str, extras: EnvExtras) -> str:
    if extras and "" not in sys.path:
        sys.path.insert(0, "")  # as with python -m: modules of the current folder count
    try:
        import_packages(extras.modules())
    except EnvMakeError as error:
        raise BatchInputError(f"{error.field}: {error}") from None
    env_id = resolve_env_id(name, extras.packages)
    settings = {"gym_packages": extras.packages, "wrappers": extras.wrappers, "frame_stack": extras.frame_stack}
    if problems := problems_of_environment(env_id, settings):
        raise BatchInputError("; ".join(f"{field}: {text}" for field, text in problems))
    return env_id


def _check_game(env_id: str, options: Mapping[str, Any]) -> None:
    game = GAMES[env_id]
    opponent = options.get("opponent")
    if opponent == "self":
        raise OptionValueError("option opponent='self' has nobody to play the other seats: choose another opponent.")
    named = isinstance(opponent, str) and not opponent.endswith(".npz")
    checked = {name: value for name, value in options.items() if name != "opponent" or named or opponent is None}
    game.complete_options(checked)
    if inspect.isroutine(opponent) or callable(opponent):
        raise OptionValueError(
            "an opponent that is a function cannot be sent to workers: give a level or a policy.npz."
        )
