"""Writes docs/cli.md from the commands themselves: ``python tests/house/cli_docs.py --write``."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from gymcast.server.cli_app import app

PAGE = Path(__file__).parents[2] / "docs" / "cli.md"

HEAD = """\
# The command line

This page is written by `make docs` from the commands themselves. Options may be spelled with hyphens or underscores
(`--total-timesteps`, `--total_timesteps`). Every command has `--help`, and `--debug` shows the traceback of an error.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | failed: the training, an evaluation, a server that does not answer |
| 2 | bad input: unknown game, option or value, a port that is taken |
| 130 | stopped by Ctrl-C (SIGINT); a training has saved a checkpoint |
| 143 | stopped by SIGTERM; a training has saved a checkpoint |
"""


def commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """``(full name, command)`` of every command below ``command``, groups left out."""
    below = getattr(command, "commands", None)
    if below is None:
        yield name, command
        return
    for part, child in below.items():
        yield from commands(child, f"{name} {part}")


def plain(text: str) -> str:
    """Help text without Rich's markup."""
    return re.sub(r"\[/?\w+\]", "", text)


def cell(text: str) -> str:
    """Text for one cell of a table."""
    return " ".join(text.split()).replace("|", "\\|")


def shown_default(parameter: Any) -> str:
    """The default as it is typed; empty when nothing is set by default."""
    default = parameter.default
    if default is None or default is False or default == [] or callable(default):
        return ""
    return f"`{default}`"


def option_row(parameter: Any) -> str:
    """One row of an option table."""
    names = ", ".join(f"`{name}`" for name in [*parameter.opts, *parameter.secondary_opts])
    annotation = parameter.type_descriptor.annotation
    kind = "" if annotation is bool else f" {parameter.metavar or annotation.__name__.upper()}"
    variable = f" (`${parameter.envvar}`)" if parameter.envvar else ""
    return f"| {names}{kind} | {shown_default(parameter)} | {cell(plain(parameter.help or ''))}{variable} |"


def section(name: str, command: Any) -> str:
    """The part of the page about one command."""
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    usage = " ".join(part.name.upper() if part.required else f"[{part.name.upper()}]" for part in arguments)
    lines = [f"## {name}", "", f"`{' '.join([name, *([usage] if usage else []), '[OPTIONS]'])}`", ""]
    lines += [plain(inspect.cleandoc(command.help or "")), ""]
    if arguments:
        lines += ["| argument | meaning |", "|---|---|"]
        lines += [f"| `{part.name.upper()}` | {cell(plain(part.help or ''))} |" for part in arguments]
        lines.append("")
    if options:
        lines += ["| option | default | meaning |", "|---|---|---|", *map(option_row, options), ""]
    if command.epilog:
        examples = [
            line.strip() for line in plain(command.epilog).splitlines() if line.strip().startswith(("gymcast", "curl"))
        ]
        lines += ["```sh", *examples, "```", ""]
    return "\n".join(lines)


def page() -> str:
    """The whole page."""
    root = typer.main.get_command(app)
    return "\n".join([HEAD, *(section(name, command) for name, command in commands(root, "gymcast"))]).rstrip() + "\n"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        sys.stdout.write(page())
