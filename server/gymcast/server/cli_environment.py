"""Options of the command line for environments that are not gymcast's: packages, wrappers, arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gymcast.server.cli_errors import UserError
from gymcast.server.cli_paths import CONFIG_FILE

PACKAGES_HELP: Final = "A package that registers environments when it is imported. Repeatable."
WRAPPER_HELP: Final = (
    "A wrapper of gymnasium.wrappers or Stable-Baselines3's Atari wrappers, or module:Class, such as "
    "'ResizeObservation:{shape: [84, 84]}'. Repeatable, the innermost first."
)
FRAME_STACK_HELP: Final = "Newest observations seen side by side."

PackagesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--gym-packages",
        metavar="MODULE",
        help=PACKAGES_HELP,
        show_default=False,
    ),
]
WrappersOption = Annotated[
    list[str] | None,
    typer.Option("--wrapper", metavar="NAME[:ARGS]", help=WRAPPER_HELP, show_default=False),
]
FrameStackOption = Annotated[int | None, typer.Option("--frame-stack", help=FRAME_STACK_HELP, show_default=False)]


def environment_settings(
    game: str | None, packages: Iterable[str] | None, wrappers: Iterable[str] | None, frame_stack: int | None
) -> tuple[str | None, dict[str, Any]]:
    """The id without its module, and the settings that the options mean. Raises :class:`UserError`."""
    from gymcast.training.env_settings import parse_wrapper

    values: dict[str, Any] = {}
    modules = list(packages or ())
    if game is not None and ":" in game:  # Gymnasium's own way: module:EnvId
        module, _, game = game.rpartition(":")
        modules.append(module)
    if modules:
        values["gym_packages"] = list(dict.fromkeys(modules))
    if frame_stack is not None:
        values["frame_stack"] = frame_stack
    for text in wrappers or ():
        try:
            values.setdefault("wrappers", []).append(parse_wrapper(text))
        except ValueError as error:
            raise UserError(f"--wrapper {text!r}: {error}") from None
    return game, values


def import_packages(settings: Mapping[str, Any]) -> None:
    """Import what ``gym_packages`` in ``settings`` names, so that its ids are known. Raises :class:`UserError`."""
    names = settings.get("gym_packages", settings.get("gymPackages"))
    if not isinstance(names, list | tuple) or not names:
        return
    from gymcast.envs import EnvMakeError
    from gymcast.envs.foreign_ids import import_packages as do_import

    try:
        do_import(str(name) for name in names)
    except EnvMakeError as error:
        raise UserError(f"--gym-packages: {error}") from None


def import_packages_of(run: Path) -> None:
    """Import the packages and the modules of wrappers that a run on this machine was trained with.

    Raises :class:`UserError`.
    """
    from gymcast.training.config import ConfigError, TrainingConfig

    try:
        config = TrainingConfig.from_yaml(run / CONFIG_FILE)
    except (ConfigError, OSError):
        return  # the run is looked at without its settings
    import_packages({"gym_packages": config.extras.modules()})
