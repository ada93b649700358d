"""Entry point of the ``gymcast`` command.

Everything the commands need is imported when they need it: ``gymcast --help`` loads neither torch nor numba nor
aiohttp, and an interrupt during start-up ends the command without a traceback.

Exit codes: 0 done, 1 failed, 2 bad input, 130 stopped by Ctrl-C (SIGINT), 143 stopped by SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType, TracebackType
from typing import NoReturn

from gymcast.server.cli_errors import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_TERMINATED, UserError


def main() -> NoReturn:
    """Run the command line in ``sys.argv`` and leave with its exit code."""
    arguments = sys.argv[1:]
    debug = _take_debug_flag(arguments)
    if not debug:
        sys.excepthook = _short_report
    signal.signal(signal.SIGTERM, _leave_on_sigterm)
    try:
        code = run(arguments)
    except KeyboardInterrupt:
        if debug:
            raise
        print("\ngymcast: stopped", file=sys.stderr)
        code = EXIT_INTERRUPTED
    except UserError as error:
        if debug:
            raise
        print(f"gymcast: {error}", file=sys.stderr)
        code = error.exit_code
    except BrokenPipeError:
        # The reader (such as `head`) has gone; the interpreter must not try to flush to it again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILED
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Raises :class:`UserError` for input that cannot be used."""
    from typer.main import get_command

    from gymcast.server.cli_app import app

    try:
        # The command object is called, not the Typer application: that one replaces sys.excepthook.
        get_command(app)(arguments, prog_name="gymcast")
    except SystemExit as done:
        return done.code if isinstance(done.code, int) else int(bool(done.code))
    return 0


def _take_debug_flag(arguments: list[str]) -> bool:
    """Remove ``--debug`` wherever it stands, so that it need not come before the command."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--debug" not in ours:
        return False
    arguments.remove("--debug")
    return True


def _leave_on_sigterm(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(EXIT_TERMINATED)


def _short_report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What is printed for an error nobody expected: one line and how to see the rest."""
    if issubclass(kind, KeyboardInterrupt):
        print("\ngymcast: stopped", file=sys.stderr)
        return
    print(f"gymcast: unexpected {kind.__name__}: {error}", file=sys.stderr)
    print("  This is a fault in gymcast. The same command with --debug shows where it happened.", file=sys.stderr)


if __name__ == "__main__":
    main()
