"""``gymcast episodes``: play a batch of episodes of any environment, with any policy, in parallel."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gymcast.server.cli_environment import FrameStackOption, PackagesOption, WrappersOption, environment_settings
from gymcast.server.cli_errors import EXIT_FAILED, UserError
from gymcast.server.cli_paths import CONFIG_FILE

if TYPE_CHECKING:
    from gymcast.training import BatchEpisodeManager, BatchStatus, EpisodeResult

EPILOG: Final = """
[bold]Examples[/bold]

gymcast episodes archers --policy expert

gymcast episodes archers --policy intermediate -o opponent=expert --count 10000 --json

gymcast episodes archers --policy latest --replays replays/ --out results.jsonl

gymcast episodes CartPole-v1 --count 1000 --policy cartpole.zip --parallel 4

gymcast episodes MyGame-v0 --gym-packages my_game --wrapper 'TimeLimit:{max_episode_steps: 500}' --timeout 60
"""

_BATCH: Final = "episodes"
_GAME_LANES: Final = 64
_REFRESH_SECONDS: Final = 0.1
_REASONS_SHOWN: Final = 5


def episodes(
    env: Annotated[
        str,
        typer.Argument(
            help="Built-in game or Gymnasium id; MODULE:ID imports the module that registers it.", show_default=False
        ),
    ],
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=10_000_000, help="Episodes to play.")] = 100,
    policy: Annotated[
        str,
        typer.Option(
            metavar="WHO",
            help="random (legal actions), a scripted level of the game, a run's name or folder, latest, the folder of "
            "a checkpoint, a policy.npz, or a .zip of Stable-Baselines3.",
        ),
    ] = "random",
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            "-o",
            "--env-kwargs",
            metavar="NAME=VALUE",
            help="Any option of the game, or argument of the environment. Repeatable.",
            show_default=False,
        ),
    ] = None,
    gym_packages: PackagesOption = None,
    wrapper: WrappersOption = None,
    frame_stack: FrameStackOption = None,
    parallel: Annotated[
        int | None,
        typer.Option(min=1, max=1024, help="Worker processes. Default: one per processor.", show_default=False),
    ] = None,
    lanes: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=256,
            help=f"Episodes of a built-in game that a worker plays side by side. Default: {_GAME_LANES}.",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[float, typer.Option(min=0.01, help="Seconds an episode may take, wall-clock time.")] = 300.0,
    retries: Annotated[int, typer.Option(min=0, max=1000, help="How often an episode that fails is tried again.")] = 3,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the batch.")] = 0,
    deterministic: Annotated[
        bool,
        typer.Option("--deterministic", help="A trained policy takes the likeliest action instead of drawing one."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="File for the results, a line of JSON for each episode; replaced.", show_default=False),
    ] = None,
    replays: Annotated[
        Path | None, typer.Option(help="Folder for a replay of each episode.", show_default=False)
    ] = None,
    runs_dir: Annotated[Path, typer.Option(envvar="GYMCAST_RUNS", help="Folder of all runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="The summary as JSON instead of text.")] = False,
) -> None:
    """Play episodes in parallel: crashes, hangs and errors are tried again, and every episode is counted.

    A run's policy plays with the packages, wrappers and options of its run. The
    same seed gives the same episodes. Exit code 1 when episodes failed for
    good.
    """
    from gymcast.server.cli_plan import parse_options
    from gymcast.training import BatchEpisodeManager
    from gymcast.training.sessions.batch.types import BatchError

    # What workers run into is in the summary.
    logging.getLogger("gymcast.training.sessions").addHandler(logging.NullHandler())

    name, environment = environment_settings(env, gym_packages, wrapper, frame_stack)
    given: dict[str, Any] = {
        **environment,
        "env": name,
        "env_kwargs": parse_options(option or ()),
        "policy": _policy(policy, runs_dir),
        "deterministic": deterministic,
        "seed": seed,
        "lanes": lanes if lanes is not None else _default_lanes(env),
        "replays": replays,
        "results_file": out,
        "keep_results": 0,
    }
    workers = parallel or len(os.sched_getaffinity(0))
    try:
        manager = BatchEpisodeManager(min(workers, count), retries, timeout)
        code = asyncio.run(_run(manager, given, count, as_json))
    except (BatchError, ValueError, TypeError) as error:  # the names of environments and options among them
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"cannot write {error.filename}: {error.strerror}", EXIT_FAILED) from None
    raise typer.Exit(code)


def _policy(policy: str, runs_dir: Path) -> str | Path:
    """A policy, with names of runs as folders."""
    from gymcast.server.cli_plan import find_run

    if policy == "latest" or (runs_dir / policy / CONFIG_FILE).is_file():
        return find_run(policy, runs_dir)
    return policy


def _default_lanes(env: str) -> int:
    from gymcast.envs import GAMES

    return _GAME_LANES if any(env in (game.id, game.name) for game in GAMES.values()) else 1


async def _run(manager: BatchEpisodeManager, given: dict[str, Any], count: int, as_json: bool) -> int:
    from gymcast.server.cli_signals import StopRequests

    reasons: Counter[str] = Counter()

    async def note(result: EpisodeResult) -> None:
        if result.status == "failed" or (result.error is not None and result.status == "completed"):
            reasons[result.error or ""] += 1

    manager.register_episode_handler(note)
    with StopRequests() as signals:
        async with manager:
            width = len(str(count - 1))
            await manager.submit_batch(_BATCH, [f"ep-{number:0{width}}" for number in range(count)], **given)
            stopping = asyncio.create_task(signals.wait_for_more(0))
            ended = asyncio.create_task(manager.wait_batch(_BATCH))
            showing = asyncio.create_task(_show_progress(manager, quiet=as_json))
            await asyncio.wait([ended, stopping], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await manager.cancel_batch(_BATCH)
            status = await ended
            for task in (stopping, showing):
                task.cancel()
            await asyncio.gather(stopping, showing, return_exceptions=True)
        if as_json:
            typer.echo(json.dumps(status.to_json()))
        else:
            _print_summary(status, given, reasons)
        if signals.exit_code:
            return signals.exit_code
    return EXIT_FAILED if status.failed or status.error else 0


async def _show_progress(manager: BatchEpisodeManager, *, quiet: bool) -> None:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    from gymcast.server.cli_view import clock

    console = Console(stderr=True)
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=quiet or not console.is_terminal) as progress:
        task = progress.add_task("starting workers (the first time, a game is compiled)", total=None)
        while True:
            status = await manager.get_batch_status(_BATCH)
            over = status.completed + status.failed + status.cancelled
            facts = [f"{status.running} running"]
            if status.episodes_per_minute is not None and status.eta_seconds is not None:
                facts = [f"{status.episodes_per_minute:,.0f}/min", f"{clock(status.eta_seconds)} left", *facts]
            if status.average_reward is not None:
                facts.append(f"reward {status.average_reward:.3f}")
            if status.retries or status.failed:
                facts.append(f"{status.retries:,} retries, {status.failed:,} failed")
            if status.state != "queued":
                progress.update(task, total=status.total, completed=over, description="  ".join(facts))
            await asyncio.sleep(_REFRESH_SECONDS)


def _print_summary(status: BatchStatus, given: dict[str, Any], reasons: Counter[str]) -> None:
    from rich.table import Table

    from gymcast.server.cli_view import clock
    from gymcast.server.display import print_table

    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    options = ", ".join(f"{name}={value}" for name, value in given["env_kwargs"].items())
    table.add_row(
        "played", f"{status.env_id}{f' ({options})' if options else ''} by {status.policy}, seed {status.seed}"
    )
    counts = f"{status.completed:,} of {status.total:,} completed"
    more = [(status.failed, "failed"), (status.cancelled, "cancelled"), (status.retries, "retries")]
    table.add_row("episodes", ", ".join([counts, *(f"{number:,} {what}" for number, what in more if number)]))
    if status.average_reward is not None:
        error = "" if status.reward_error is None else f" ± {1.96 * status.reward_error:.3f} (95 %)"
        spread = f"{status.worst_reward:.3f} to {status.best_reward:.3f}"
        table.add_row("reward", f"{status.average_reward:.3f}{error}, {spread}")
        table.add_row("length", f"{status.average_length:,.1f} decisions")
    if status.success_rate is not None:
        interval = f"{status.success_low:.1f} - {status.success_high:.1f} %"
        table.add_row("success", f"{status.success_rate:.1f} % ({interval}, 95 %)")
    if status.wins + status.draws + status.losses:
        table.add_row("outcomes", f"{status.wins:,} won, {status.draws:,} drawn, {status.losses:,} lost")
    if status.episodes_per_minute is not None:
        table.add_row("time", f"{clock(status.elapsed_seconds)}, {status.episodes_per_minute:,.0f} episodes/min")
    if given["results_file"] is not None:
        table.add_row("results", str(given["results_file"]))
    if given["replays"] is not None:
        missing = f", {status.replays_failed:,} not written" if status.replays_failed else ""
        table.add_row("replays", f"{given['replays']}: {status.replays:,}{missing}")
    print_table(table)
    if status.error is not None:
        typer.echo(f"gymcast: {status.error}", err=True)
        return
    for reason, number in reasons.most_common(_REASONS_SHOWN):
        typer.echo(f"gymcast: {number:,} x {reason}", err=True)
    if len(reasons) > _REASONS_SHOWN:
        typer.echo(f"gymcast: and {len(reasons) - _REASONS_SHOWN:,} other reasons", err=True)
