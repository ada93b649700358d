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
from typing import Any, NoReturn

from gymcast.server.cli_errors import EXIT_BAD_INPUT, EXIT_FAILED, UserError


def main() -> NoReturn:
    """Run the command line in ``sys.argv`` and leave with its exit code."""
    _open_missing_streams()
    arguments = sys.argv[1:]
    debug = _take_debug_flag(arguments)
    if not debug:
        sys.excepthook = _short_report
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_at_once)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # with nohup a command is to outlive its terminal
        signal.signal(signal.SIGHUP, _leave_at_once)
    try:
        code = run(arguments)
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


def _open_missing_streams() -> None:
    """Give standard streams that were closed (``gymcast train >&-``) a place that takes everything.

    Otherwise the next file that is opened, such as the database, would become the standard output of every part that
    prints.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free: this one
            setattr(sys, name, os.fdopen(number, "r" if number == 0 else "w", encoding="utf-8"))


def run(arguments: list[str]) -> int:
    """Run one command line and return its exit code. Raises :class:`UserError` for input that cannot be used."""
    import typer

    from gymcast.server.cli_app import app

    # Typer's own name for the base of everything wrong with a command line is not public.
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]
    try:
        # The command object is called, not the Typer application: that one replaces sys.excepthook.
        code = typer.main.get_command(app).main(arguments, prog_name="gymcast", standalone_mode=False)
    except usage_error as error:
        if not str(error):
            return EXIT_BAD_INPUT  # no command was given, and the help has been printed
        raise UserError(_usage_text(error)) from None
    return code if isinstance(code, int) else 0


def _usage_text(error: Any) -> str:
    """What is wrong with a command line, what was probably meant, and where to read more."""
    message = str(error.message).strip()
    meant = " or ".join(repr(name) for name in getattr(error, "possibilities", None) or ())
    hint = f" Did you mean {meant}?" if meant else ""
    text = f"{error.format_message() if not meant else message}".rstrip(".")
    command = error.ctx.command_path if error.ctx is not None else "gymcast"
    return f"{text[:1].lower()}{text[1:]}{'' if text.endswith('?') else '.'}{hint}\n  See: {command} --help"


def _take_debug_flag(arguments: list[str]) -> bool:
    """Remove ``--debug`` wherever it stands, so that it need not come before the command."""
    ours = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "--debug" not in ours:
        return False
    arguments.remove("--debug")
    return True


def _leave_at_once(number: int, _frame: FrameType | None) -> NoReturn:
    """SIGINT, SIGTERM and SIGHUP until a command has something to put in order, and installs handlers of its own.

    Raising KeyboardInterrupt instead would end in a traceback or worse where it meets an extension module's import.
    """
    if number == signal.SIGINT:
        os.write(2, b"\ngymcast: stopped\n")
    os._exit(128 + number)


def _short_report(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What is printed for an error nobody expected: one line and how to see the rest."""
    print(f"gymcast: unexpected {kind.__name__}: {error}", file=sys.stderr)
    print("  This is a fault in gymcast. The same command with --debug shows where it happened.", file=sys.stderr)


if __name__ == "__main__":
    main()
