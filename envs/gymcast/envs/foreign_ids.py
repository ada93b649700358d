"""Gymnasium ids that packages register when they are imported: which package to import, and what to install."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from gymcast.envs.errors import EnvMakeError

MODULE_NAME: Final = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
"""A regular expression for the dotted name of a module."""


class Family(NamedTuple):
    """Ids that begin with ``prefix`` are registered by importing ``module``, which ``install`` brings."""

    prefix: str
    module: str
    install: str


FAMILIES: Final = (
    Family("ALE/", "ale_py", "ale-py"),
    Family("MiniGrid-", "minigrid", "minigrid"),
    Family("BabyAI-", "minigrid", "minigrid"),
    Family("MiniWorld-", "miniworld", "miniworld"),
    Family("Fetch", "gymnasium_robotics", "gymnasium-robotics"),
    Family("Adroit", "gymnasium_robotics", "gymnasium-robotics"),
    Family("Panda", "panda_gym", "panda-gym"),
    Family("highway-", "highway_env", "highway-env"),
    Family("Vizdoom", "vizdoom.gymnasium_wrapper", "vizdoom"),
    Family("dm_control/", "shimmy", "shimmy[dm-control]"),
)
"""Well-known packages. Those that are installed are imported when one of their ids is asked for."""


def split_module(env_id: str) -> tuple[str | None, str]:
    """``("module", "Id")`` of Gymnasium's ``"module:Id"``, and ``(None, "Id")`` of an id alone."""
    module, colon, name = env_id.rpartition(":")
    return (module if colon else None), name


def import_packages(names: Iterable[str]) -> None:
    """Import packages, which register their environments. What they print is left out.

    Raises:
        EnvMakeError: one of them does not import; the text has its own error.
    """
    for name in names:
        if not re.fullmatch(MODULE_NAME, name):
            raise EnvMakeError("gym_packages", f"{name!r} is no name of a module, such as minigrid or my_game.envs")
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not (name == error.name or name.startswith(f"{error.name}.")):
                raise EnvMakeError("gym_packages", _failed(name, error)) from error
            text = f"there is no module {name!r} here: install it, or run gymcast where Python finds it (PYTHONPATH)"
            raise EnvMakeError("gym_packages", text) from None
        except Exception as error:
            raise EnvMakeError("gym_packages", _failed(name, error)) from error


def _failed(name: str, error: Exception) -> str:
    return f"{name} does not import: {type(error).__name__}: {error}"


def family_of(env_id: str) -> Family | None:
    """The well-known package that an id looks like."""
    return next((family for family in FAMILIES if env_id.startswith(family.prefix)), None)


def import_family(env_id: str) -> None:
    """Import the well-known package of an id, where it is installed. Raises :class:`EnvMakeError`."""
    family = family_of(env_id)
    if family is not None and importlib.util.find_spec(family.module.partition(".")[0]) is not None:
        import_packages([family.module])


def missing_hint(env_id: str) -> str:
    """What to do about an id that nothing registered, as the end of a message."""
    family = family_of(env_id)
    if family is not None:
        if importlib.util.find_spec(family.module.partition(".")[0]) is None:
            return f" {family.prefix}... comes with a package that is not installed: pip install {family.install!r}."
        return f" The package {family.module} is installed, but registers no such id."
    return " A package of your own that registers it: --gym-packages NAME (the setting gym_packages)."
