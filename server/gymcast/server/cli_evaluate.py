"""``gymcast evaluate``: play games with a trained bot and count."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gymcast.server.cli_errors import UserError, did_you_mean

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from gymcast.training.checkpoints import Checkpoint
    from gymcast.training.config import TrainingConfig

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
    from gymcast.server.cli_plan import find_run

    path = Path(run)
    run_dir = path.parent.parent if (path / "manifest.json").is_file() else find_run(run, runs_dir)
    config = _config_of(run_dir)
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

    checkpoint = _checkpoint(path if (path / "manifest.json").is_file() else None, run_dir, best)
    found = []
    with _model(config, checkpoint) as model:
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
                masked=config.algorithm == "maskable_ppo",
                normalize=None if normalise is None else normalise.normalize_obs,
                options=config.env_kwargs,
            ).as_event()
            found.append(result)
            if as_json:
                typer.echo(json.dumps(result.to_json()))
    if not as_json:
        from gymcast.server.display import evaluation_table, print_table

        print_table(evaluation_table(found))


LEVELS: Final = ("beginner", "intermediate", "advanced", "expert")


def _config_of(run_dir: Path) -> TrainingConfig:
    from gymcast.server.cli_paths import CONFIG_FILE
    from gymcast.training.config import ConfigError, TrainingConfig

    try:
        return TrainingConfig.from_yaml(run_dir / CONFIG_FILE)
    except (ConfigError, OSError) as error:
        raise UserError(f"{run_dir / CONFIG_FILE} cannot be used: {error}") from None


def _checkpoint(path: Path | None, run_dir: Path, best: bool) -> Checkpoint:
    from gymcast.training.checkpoints import CheckpointError, CheckpointManager, verify

    try:
        if path is not None:
            return verify(path)
        manager = CheckpointManager(run_dir / "checkpoints", keep=None)
        chosen = manager.best() if best else manager.newest()
        if chosen is None:
            raise UserError(
                f"{run_dir} has no checkpoint that verifies; go on training: gymcast train --resume {run_dir}"
            )
        return verify(chosen.path)
    except CheckpointError as error:
        raise UserError(str(error)) from None


@contextmanager
def _model(config: TrainingConfig, checkpoint: Checkpoint) -> Iterator[BaseAlgorithm]:
    from gymcast.envs import GAMES
    from gymcast.training.checkpoints import CheckpointError
    from gymcast.training.models import build_model, normalized
    from gymcast.training.resume import load_policy_state
    from gymcast.training.vec_env import make_training_vec_env

    kwargs: dict[str, Any] = dict(config.env_kwargs)
    # The model only needs the spaces. A game against itself has a lane per seat: two to four, all of which divide 12.
    env = normalized(make_training_vec_env(config.env_id, 12 if config.env_id in GAMES else 1, 0, **kwargs), config)
    try:
        model = build_model(config, env, seed=0)
        try:
            load_policy_state(model, checkpoint)
        except CheckpointError as error:
            raise UserError(str(error)) from None
        yield model
    finally:
        env.close()
