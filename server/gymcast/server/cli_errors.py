"""Exit codes of the command line and the error that a user can mend."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from typing import Final

EXIT_DONE: Final = 0
EXIT_FAILED: Final = 1
EXIT_BAD_INPUT: Final = 2


class UserError(Exception):
    """Something the user can mend: what was given, what is allowed, what to do. Printed without a traceback."""

    def __init__(self, message: str, exit_code: int = EXIT_BAD_INPUT) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest of ``known``, or an empty string."""
    close = get_close_matches(given, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
