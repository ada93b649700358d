"""Errors a user of the environments can cause, each with what was given, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnknownEnvError(ValueError):
    """No game has this name or id."""


class UnknownOptionError(TypeError):
    """A game has no option of this name."""


class OptionValueError(ValueError):
    """The value of an option is not allowed."""


class EnvMakeError(ValueError):
    """An environment that is not gymcast's cannot be made as asked for; ``field`` is the setting to change."""

    def __init__(self, field: str, text: str) -> None:
        self.field = field
        super().__init__(text)


class EnvFaultError(RuntimeError):
    """An environment returned what its own spaces, or Gymnasium's rules, do not allow."""


class ActionError(ValueError):
    """Actions of the wrong shape, type or range."""


class SnapshotError(ValueError):
    """A snapshot that is damaged or does not fit, or an environment that none can be taken of."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """' Did you mean "x"?' when something allowed looks like what was given, else an empty string."""
    close = difflib.get_close_matches(given.lower(), list(allowed), n=1, cutoff=0.5)
    return f' Did you mean "{close[0]}"?' if close else ""
