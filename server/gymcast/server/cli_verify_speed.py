"""``gymcast verify-speed``: the same episodes at several speeds, watched and not, compared by hash."""

from __future__ import annotations

import importlib
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gymcast.server.cli_errors import EXIT_FAILED, UserError

if TYPE_CHECKING:
    from gymcast.envs import SpeedRun

EPILOG: Final = """
[bold]Examples[/bold]

gymcast verify-speed archers

gymcast verify-speed archers --option opponent=self --option players=4 --episodes 200

gymcast verify-speed my_module:MyGame-v0 --json
"""


def verify_speed(
    env: Annotated[
        str,
        typer.Argument(
            help="Built-in game or Gymnasium id; MODULE:ID imports the module that registers it.", show_default=False
        ),
    ],
    episodes: Annotated[int, typer.Option(min=1, max=1_000_000, help="Episodes to play in each mode.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the games and of the actions.")] = 0,
    paced_seconds: Annotated[
        float, typer.Option(min=0.1, max=3600, help="Seconds of the play that run at real time.")
    ] = 3.0,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            metavar="NAME=VALUE",
            help="Option of the environment; may be repeated.",
            show_default=False,
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON instead of text.")] = False,
) -> None:
    """Show that speed changes nothing: exit code 1 when one way of playing differs.

    The same episodes with the same actions: as fast as possible (twice), at
    100 times real time, partly at real time, drawn, and recorded and shown as
    for spectators.
    """
    from gymcast.server.cli_plan import parse_assignments

    _import_module_of(env)
    from gymcast.envs import OptionValueError, UnknownEnvError, UnknownOptionError

    try:
        runs = _play(env.rpartition(":")[2], episodes, seed, paced_seconds, parse_assignments("--option", option or []))
    except (UnknownEnvError, UnknownOptionError, OptionValueError) as error:
        raise UserError(str(error)) from None
    differing = [run.mode for run in runs if not run.equal]
    if as_json:
        facts = [asdict(run) | {"equal": run.equal} for run in runs]
        typer.echo(json.dumps({"env_id": env, "seed": seed, "equal": not differing, "runs": facts}, indent=2))
    else:
        _print(env, runs)
    if differing:
        raise typer.Exit(EXIT_FAILED)


def _import_module_of(env: str) -> None:
    module = env.rpartition(":")[0]
    if module:
        sys.path.insert(0, "")  # as with python -m: modules of the current folder count
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise UserError(f"cannot import {module!r} of {env!r}: {error}") from None


def _play(env_id: str, episodes: int, seed: int, paced_seconds: float, options: dict[str, Any]) -> list[SpeedRun]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from gymcast.envs import verify_speed as compare

    columns = (TextColumn("{task.description:<10}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        tasks: dict[str, Any] = {}

        def note(mode: str, over: int) -> None:
            if mode not in tasks:
                tasks[mode] = progress.add_task(mode, total=episodes)
            progress.update(tasks[mode], completed=over)

        return compare(
            env_id, episodes=episodes, seed=seed, paced_seconds=paced_seconds, options=options, on_progress=note
        )


def _print(env: str, runs: list[SpeedRun]) -> None:
    from gymcast.server.display import make_table, print_table

    columns = ("mode", "how", "episodes", "decisions", "paced", "shown", "game s/s per lane", "lag", "hash", "equal")
    table = make_table(*columns)
    for run in runs:
        if run.skipped:
            table.add_row(run.mode, run.skipped, *[""] * 7, "-")
            continue
        table.add_row(
            run.mode,
            run.what,
            f"{run.episodes:,}",
            f"{run.decisions:,}",
            f"{run.paced:,}" if run.paced else "-",
            f"{run.shown:,}" if run.shown else "-",
            "-" if run.rate is None else f"{run.rate:,.2f}",
            f"{run.lag:.2f} s" if run.paced else "-",
            run.sha256[:12],
            "yes" if run.equal else "NO",
        )
    print_table(table)
    typer.echo(_verdict(env, runs))


def _verdict(env: str, runs: list[SpeedRun]) -> str:
    lines = []
    for run in runs:
        if run.differs_at is not None:
            lines.append(f"{run.mode}: goes another way from decision {run.differs_at + 1} of its lanes on")
        if run.wrong_replays:
            lines.append(f"{run.mode}: {run.wrong_replays} of the shown episodes led to another result")
    played = sum(not run.skipped for run in runs)
    if not lines:
        what = f"the same {runs[0].episodes:,} episodes on {runs[0].lanes} lanes"
        return f"\n{env}: {what} in all {played} modes, bit for bit"
    if any(run.mode == "repeated" and not run.equal for run in runs):
        lines.append(
            "Two plays at the same speed differ already: it depends on wall-clock time, or is not deterministic under "
            "its seed."
        )
    return "\n" + "\n".join(lines)
