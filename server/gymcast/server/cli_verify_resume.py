"""``gymcast verify-resume``: prove that a training which is killed and resumed ends with the same weights."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gymcast.server.cli_environment import (
    FrameStackOption,
    PackagesOption,
    WrappersOption,
    environment_settings,
    import_packages,
)
from gymcast.server.cli_errors import EXIT_FAILED, UserError
from gymcast.training.algorithm_table import ALGORITHM_NAMES, algorithm_name

if TYPE_CHECKING:
    from rich.progress import Progress

    from gymcast.training.config import TrainingConfig
    from gymcast.training.resume_check import Kill, ResumeReport

EPILOG: Final = """
[bold]Examples[/bold]

gymcast verify-resume archers --kills 5

gymcast verify-resume CartPole-v1 --algorithm recurrent_ppo --normalize

gymcast verify-resume CartPole-v1 --set workers=2 --kills 2

gymcast verify-resume Pendulum-v1 --algorithm sac --kills 2

gymcast verify-resume archers --algorithm dqn --option action=discrete --json
"""


def verify_resume(
    game: Annotated[str, typer.Argument(help="A built-in game such as archers, or any Gymnasium id.")],
    kills: Annotated[int, typer.Option(min=1, max=1000, help="How often the training is killed.")] = 5,
    algorithm: Annotated[
        str | None,
        typer.Option(help=f"{ALGORITHM_NAMES}; by default the preset's.", show_default=False),
    ] = None,
    normalize: Annotated[
        bool, typer.Option("--normalize", help="With running normalisation of observations and rewards.")
    ] = False,
    total_timesteps: Annotated[
        int | None,
        typer.Option(min=1, help="Decisions of each of the two runs; by default 20 rollouts.", show_default=False),
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", "--env-kwargs", metavar="NAME=VALUE", help="Any option of the game."),
    ] = None,
    gym_packages: PackagesOption = None,
    wrapper: WrappersOption = None,
    frame_stack: FrameStackOption = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any setting, such as parallel_episodes=64."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the training and of the moments.")] = 1,
    keep: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Keep both runs in this folder.", show_default=False)
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of text.")] = False,
) -> None:
    """Kill a training at random moments, resume it, and compare its end.

    The preset of the game is trained twice with the same seed and a budget in
    decisions: once undisturbed, once killed with SIGKILL and resumed again and
    again. Exit code 0 when the weights are the same to the last bit, 1 when not.
    """
    from gymcast.server import cli_plan

    name, environment = environment_settings(game, gym_packages, wrapper, frame_stack)
    import_packages(environment)
    values: dict[str, Any] = {"seed": seed, **environment}
    if algorithm is not None:
        values["algorithm"] = algorithm_name(algorithm)
    if normalize:
        values["normalize"] = {}
    if total_timesteps is not None:
        values["total_timesteps"] = total_timesteps
    if option:
        values["env_kwargs"] = cli_plan.parse_options(option)
    values = cli_plan.merge(values, cli_plan.nest(cli_plan.parse_assignments("--set", set_ or ())))
    config = _config(cli_plan.resolve_game(str(name)), values)
    with _folder(keep) as folder:
        report = _check(config, kills, folder, seed, quiet=as_json)
    if as_json:
        typer.echo(json.dumps({**asdict(report), "equal": report.equal}))
    else:
        _print_result(report)
    raise typer.Exit(0 if report.equal else EXIT_FAILED)


def _config(env_id: str, values: dict[str, Any]) -> TrainingConfig:
    from gymcast.server.cli_plan import game_problems
    from gymcast.training.config import ConfigError
    from gymcast.training.resume_check import check_config

    problems = game_problems(env_id, values)
    try:
        if not problems:
            return check_config(env_id, **values)
    except ConfigError as error:
        problems = error.problems
    raise UserError("\n".join(["these settings cannot be used:", *(f"  {name}: {text}" for name, text in problems)]))


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="gymcast-verify-resume-") as folder:
            yield Path(folder)
        return
    if keep.exists() and (not keep.is_dir() or any(keep.iterdir())):
        raise UserError(f"{keep} is not an empty folder; name another one with --keep")
    yield keep


def _check(config: TrainingConfig, kills: int, folder: Path, seed: int, *, quiet: bool) -> ResumeReport:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    from gymcast.training.resume_check import ResumeCheckError, check_resume

    console = Console(highlight=False, quiet=quiet, soft_wrap=True)
    console.print(
        f"{config.env_id} with {config.algorithm}, {config.parallel_episodes:,} lanes, {config.total_timesteps:,}"
        f" decisions, seed {config.seed}{', normalised' if config.normalize else ''}: once undisturbed, once killed"
        f" {kills} times"
    )
    columns = (TextColumn("{task.description:<12}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        tasks = {name: progress.add_task(name, total=1.0) for name in ("undisturbed", "killed")}
        try:
            return check_resume(
                config,
                kills,
                folder,
                tell=lambda what, share: progress.update(tasks[what], completed=share),
                on_kill=lambda kill: _print_kill(progress, kill),
                seed=seed,
            )
        except ResumeCheckError as error:
            raise UserError(str(error), EXIT_FAILED) from None


def _print_kill(progress: Progress, kill: Kill) -> None:
    progress.console.print(
        f"  kill {kill.number:>2}  SIGKILL at {kill.timesteps:,} decisions, {kill.seconds:.1f} s after the start;"
        f" resumed from {kill.resumed_from}"
    )


def _print_result(report: ResumeReport) -> None:
    for name, shas in (("weights", report.weights), ("all the rest", report.states)):
        for run, sha in zip(("undisturbed", "killed"), shas, strict=True):
            typer.echo(f"  {name:<12}  {run:<11}  {sha}")
    for note in report.notes:
        typer.echo(f"  note: {note}")
    decisions = f"{report.timesteps[0]:,} and {report.timesteps[1]:,} decisions, {report.seconds:.0f} s"
    if report.equal:
        kills = f"{len(report.kills)} kill{'' if len(report.kills) == 1 else 's'}"
        typer.echo(f"Equal: {kills} changed nothing ({decisions}).")
    else:
        typer.echo(f"NOT equal: the resumed run went another way ({decisions}).")
