"""``gymcast evaluate``: play games with a trained bot and count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Final

import typer

from gymcast.server.cli_errors import UserError, did_you_mean

EPILOG: Final = """
[bold]Examples[/bold]

gymcast evaluate latest

gymcast evaluate latest --opponent expert --games 5000

gymcast evaluate runs/archers-20260102-030405/checkpoints/step-00000012345678 --json
"""


def evaluate(
    run: Annotated[
        str, typer.Argument(help="A run's folder or name, latest, or the folder of one checkpoint.", show_default=False)
    ],
    opponent: Annotated[
        list[str] | None,
        typer.Option(
            "--opponent", metavar="LEVEL", help="Level to play against; may be repeated. Default: each scripted level."
        ),
    ] = None,
    games: Annotated[int, typer.Option(min=1, max=1_000_000, help="Games against each.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1, help="Seed of the games.")] = 0,
    best: Annotated[bool, typer.Option("--best", help="The best checkpoint of the run instead of the newest.")] = False,
    deterministic: Annotated[
        bool, typer.Option("--deterministic", help="Take the likeliest action instead of drawing one.")
    ] = False,
    runs_dir: Annotated[Path, typer.Option(envvar="GYMCAST_RUNS", help="Folder of all runs.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per line instead of text.")] = False,
) -> None:
    """Measure a trained bot in real games, with 95 % intervals.

    Games start from seeds of their own, so training has not seen them.
    """
    from gymcast.envs import GAMES
    from gymcast.server.cli_checkpoints import choose_run

    chosen = choose_run(run, runs_dir)
    config = chosen.config
    spec = GAMES.get(config.env_id)
    if spec is None and opponent:
        raise UserError(f"{config.env_id} has no opponents to choose; leave out --opponent")
    wanted = opponent or ([name for name in spec.opponents if name in LEVELS] if spec is not None else [""])
    for name in wanted:
        if spec is not None and (name not in spec.opponents or name == "self"):
            allowed = ", ".join(other for other in spec.opponents if other != "self")
            raise UserError(f"unknown opponent {name!r}{did_you_mean(name, spec.opponents)}; allowed: {allowed}")

    # torch and Stable-Baselines3 take seconds to import: every cheap check comes before them.
    from gymcast.training.evaluate import evaluate as play
    from gymcast.training.resume import loaded_model

    checkpoint = chosen.checkpoint(best=best)
    found = []
    with loaded_model(config, checkpoint) as model:
        normalise = model.get_vec_normalize_env()
        if not as_json:
            typer.echo(f"{checkpoint.path} ({checkpoint.timesteps:,} decisions of training), {games:,} games each")
        for name in wanted:
            result = play(
                model,
                config.env_id,
                name,
                games,
                seed=seed,
                deterministic=deterministic,
                masked=config.spec.masked,
                normalize=None if normalise is None else normalise.normalize_obs,
                options=config.env_kwargs,
                extras=config.extras,
            ).as_event()
            found.append(result)
            if as_json:
                typer.echo(json.dumps(result.to_json()))
    if not as_json:
        from gymcast.server.display import evaluation_table, print_table

        print_table(evaluation_table(found))


LEVELS: Final = ("beginner", "intermediate", "advanced", "expert")
