"""``gymcast`` command lines that run in the test's own process, where a process of their own is not the point."""

from __future__ import annotations

import contextlib
import io
import subprocess
import warnings
from pathlib import Path

from gymcast.server import cli
from gymcast.server.cli_errors import UserError


def gymcast_here(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What a process of ``gymcast`` in ``folder`` would end with and print."""
    out, errors = io.StringIO(), io.StringIO()
    with (
        contextlib.chdir(folder),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # those of others end no command
        try:
            code = cli.run(list(arguments))
        except UserError as error:
            code = error.exit_code
            errors.write(f"gymcast: {error}\n")
    return subprocess.CompletedProcess(["gymcast", *arguments], code, out.getvalue(), errors.getvalue())
