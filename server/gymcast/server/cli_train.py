"""``gymcast train``: its options, and how they become settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gymcast.server.cli_environment import FRAME_STACK_HELP, PACKAGES_HELP, WRAPPER_HELP, environment_settings
from gymcast.server.cli_errors import UserError
from gymcast.training.algorithm_table import ALGORITHM_NAMES, algorithm_name

EPILOG: Final = """
[bold]Examples[/bold]

gymcast train archers

gymcast train archers --minutes 1 --opponent expert --map tower

gymcast train archers --set hyperparameters.n_epochs=4 --set network.hidden=[128,128]

gymcast train --resume latest --minutes 5

gymcast train CartPole-v1 --target-reward 400 --learning-rate 0.001 --lr-schedule cosine --lr-warmup 0.05

gymcast train Pendulum-v1 --port auto

gymcast train CartPole-v1 --algorithm dqn --total-timesteps 50000 --port auto

gymcast train CartPole-v1 --workers 2

gymcast train ALE/Pong-v5 -o frameskip=1 --wrapper AtariWrapper --frame-stack 4

gymcast train MyGame-v0 --gym-packages my_game --wrapper 'TimeLimit:{max_episode_steps: 500}'
"""


# With --render a new episode is shown about this often (seconds).
_RENDER_SECONDS: Final = 2.0


def _option(panel: str, text: str, *names: str, **more: Any) -> Any:
    """A Typer option without a default worth showing, in one of the help's panels."""
    return typer.Option(*names, help=text, rich_help_panel=panel, show_default=more.pop("show_default", False), **more)


_WHAT: Final = "What to train"
_LENGTH: Final = "How long (the limit reached first ends the training)"
_LEARNING: Final = "Learning (default: the game's preset)"
_WORKERS: Final = "Worker processes (games that are not gymcast's own)"
_PLACES: Final = "Files and server"
_OUTPUT: Final = "Output"


def train(
    game: Annotated[
        str | None, typer.Argument(help="A built-in game such as archers, or any Gymnasium id.", show_default=False)
    ] = None,
    opponent: Annotated[str | None, _option(_WHAT, "Scripted level to train against, or self.")] = None,
    map_: Annotated[str | None, _option(_WHAT, "Map of the game.", "--map")] = None,
    option: Annotated[
        list[str] | None,
        _option(
            _WHAT,
            "Any option of the game, or argument of the environment; see gymcast envs show. Repeatable.",
            "--option",
            "-o",
            "--env-kwargs",
            metavar="NAME=VALUE",
        ),
    ] = None,
    gym_packages: Annotated[
        list[str] | None,
        _option(_WHAT, PACKAGES_HELP, "--gym-packages", metavar="MODULE"),
    ] = None,
    wrapper: Annotated[
        list[str] | None,
        _option(_WHAT, WRAPPER_HELP, "--wrapper", metavar="NAME[:ARGS]"),
    ] = None,
    frame_stack: Annotated[int | None, _option(_WHAT, FRAME_STACK_HELP, "--frame-stack")] = None,
    minutes: Annotated[float | None, _option(_LENGTH, "Minutes of training.")] = None,
    total_timesteps: Annotated[int | None, _option(_LENGTH, "Decisions to take, all lanes together.")] = None,
    num_episodes: Annotated[int | None, _option(_LENGTH, "Episodes to play.")] = None,
    target_reward: Annotated[
        float | None,
        _option(_LENGTH, "Mean return of the last 100 episodes (or of as many as there are lanes) that is enough."),
    ] = None,
    max_steps: Annotated[int | None, _option(_LENGTH, "Decisions after which an episode is cut off.")] = None,
    evaluation_games: Annotated[
        int | None, _option(_LENGTH, "Games against each scripted level at the end; 0 for none.")
    ] = None,
    algorithm: Annotated[str | None, _option(_LEARNING, f"{ALGORITHM_NAMES}; by default the preset's.")] = None,
    lanes: Annotated[
        int | None, _option(_LEARNING, "Episodes played at once.", "--lanes", "--parallel-episodes")
    ] = None,
    seed: Annotated[int | None, _option(_LEARNING, "Seed of everything random; drawn when not given.")] = None,
    learning_rate: Annotated[float | None, _option(_LEARNING, "Step size of the optimizer.")] = None,
    lr_schedule: Annotated[
        str | None,
        _option(
            _LEARNING,
            "Course of the step size from --learning-rate on: constant, linear, cosine, or step (a tenth from half of "
            "the training on, a hundredth from three quarters on).",
        ),
    ] = None,
    lr_end: Annotated[float | None, _option(_LEARNING, "Where a linear or cosine schedule ends; by default 0.")] = None,
    lr_warmup: Annotated[
        float | None, _option(_LEARNING, "Share of the training, 0 to 1, in which the step size first rises from 0.")
    ] = None,
    gamma: Annotated[float | None, _option(_LEARNING, "Discount factor per decision.")] = None,
    batch_size: Annotated[int | None, _option(_LEARNING, "Samples per gradient step.")] = None,
    device: Annotated[str | None, _option(_LEARNING, "cpu, cuda, cuda:N, mps or auto.")] = None,
    force_cpu: Annotated[bool, _option(_LEARNING, "The same as --device cpu.", "--force-cpu")] = False,
    mixed_precision: Annotated[
        bool, _option(_LEARNING, "Layers in bfloat16: the same as --set precision=bfloat16.", "--mixed-precision")
    ] = False,
    config: Annotated[
        Path | None, _option(_LEARNING, "YAML or JSON file of settings; options win over it.", metavar="FILE")
    ] = None,
    set_: Annotated[
        list[str] | None,
        _option(
            _LEARNING, "Any setting, such as hyperparameters.n_steps=64. Repeatable.", "--set", metavar="KEY=VALUE"
        ),
    ] = None,
    from_: Annotated[
        Path | None,
        _option(
            _LEARNING,
            "Begin with the weights of a Stable-Baselines3 .zip; no pickle in it is loaded.",
            "--from",
            metavar="FILE",
        ),
    ] = None,
    workers: Annotated[
        str | None,
        _option(
            _WORKERS,
            "Processes that step the game and are started again when it crashes, raises or hangs; 0: none; auto, the "
            "default: none for Gymnasium's own games, else one for each core.",
            metavar="N|auto",
        ),
    ] = None,
    start_method: Annotated[
        str | None, _option(_WORKERS, "How they are started: forkserver (the default), spawn or fork.")
    ] = None,
    step_timeout: Annotated[
        float | None, _option(_WORKERS, "Seconds of one step after which a worker hangs; by default 60.")
    ] = None,
    max_restarts: Annotated[
        int | None, _option(_WORKERS, "Restarts before the training fails; by default 100.")
    ] = None,
    restarts_per_minute: Annotated[
        int | None, _option(_WORKERS, "Restarts within a minute before the training fails; by default 20.")
    ] = None,
    resume: Annotated[
        str | None,
        _option(
            _PLACES, "Go on from the newest good checkpoint of a run: its folder, its name, or latest.", metavar="RUN"
        ),
    ] = None,
    runs_dir: Annotated[
        Path, _option(_PLACES, "Folder of all runs and their database.", envvar="GYMCAST_RUNS", show_default=True)
    ] = Path("runs"),
    run_dir: Annotated[
        Path | None, _option(_PLACES, "Folder of this run; by default a new one in the runs folder.")
    ] = None,
    checkpoint_dir: Annotated[
        Path | None, _option(_PLACES, "Folder for this run's checkpoints; by default checkpoints/ in the run's folder.")
    ] = None,
    checkpoint_freq: Annotated[
        int | None, _option(_PLACES, "Episodes between checkpoints; by default none by episodes.")
    ] = None,
    autosave_interval: Annotated[
        float | None, _option(_PLACES, "Minutes between checkpoints; by default the preset's, mostly 1.")
    ] = None,
    port: Annotated[
        str, _option(_PLACES, "Port of the page on 127.0.0.1; auto takes the first free one.", show_default=True)
    ] = "8000",
    render: Annotated[
        bool, _option(_OUTPUT, "Open the page in your browser: it plays episodes as they are trained.", "--render")
    ] = False,
    use_wandb: Annotated[
        bool,
        _option(_OUTPUT, "Log to Weights & Biases too; WANDB_MODE=offline keeps it on this machine.", "--use-wandb"),
    ] = False,
    wandb_project: Annotated[str | None, _option(_OUTPUT, "W&B project; by default gymcast.")] = None,
    wandb_name: Annotated[
        str | None, _option(_OUTPUT, "Name of the W&B run; by default that of the run folder.")
    ] = None,
    wandb_tag: Annotated[list[str] | None, _option(_OUTPUT, "Tag of the W&B run. Repeatable.")] = None,
    stay: Annotated[
        bool | None,
        _option(
            _OUTPUT,
            "Keep the page up after training until Ctrl-C; by default only with a terminal.",
            "--stay/--no-stay",
        ),
    ] = None,
    quiet: Annotated[bool, _option(_OUTPUT, "Only the page's address and the summary.", "--quiet", "-q")] = False,
    json_: Annotated[bool, _option(_OUTPUT, "One JSON object per line instead of text.", "--json")] = False,
) -> None:
    """Train a bot and watch it live in the browser.

    Starts a server on 127.0.0.1 with its database in the runs folder, prints
    the page's address, and trains in a process of its own. Ctrl-C saves a
    checkpoint and prints the command to go on.

    With --resume, limits such as --minutes count from where the run stands.
    """
    if quiet and json_:
        raise UserError("--quiet and --json exclude each other; give one of them")
    if force_cpu and device not in (None, "cpu"):
        raise UserError(f"--force-cpu and --device {device} contradict each other; give one of them")
    from gymcast.server import cli_plan, cli_run

    game, environment = environment_settings(game, gym_packages, wrapper, frame_stack)
    given = {
        "max_minutes": minutes,
        "total_timesteps": total_timesteps,
        "max_episodes": num_episodes,
        "target_reward": target_reward,
        "max_episode_steps": max_steps,
        "evaluation_games": evaluation_games,
        "algorithm": algorithm_name(algorithm),
        "parallel_episodes": lanes,
        "seed": seed,
        "workers": _workers(workers),
        "worker_start_method": start_method,
        "step_timeout": step_timeout,
        "max_restarts": max_restarts,
        "max_restarts_per_minute": restarts_per_minute,
        "device": "cpu" if force_cpu else device,
        "precision": "bfloat16" if mixed_precision else None,
        "checkpoint_interval_episodes": checkpoint_freq,
        "checkpoint_interval_minutes": autosave_interval,
        "use_wandb": use_wandb or None,
        "wandb_project": wandb_project,
        "wandb_name": wandb_name,
        "wandb_tags": wandb_tag or None,
        "footage_seconds": _RENDER_SECONDS if render else None,
        "spectator_enabled": render or None,
    }
    values: dict[str, Any] = {**environment, **{name: value for name, value in given.items() if value is not None}}
    nested = {
        "env_kwargs": {"opponent": opponent, "map": map_, **cli_plan.parse_options(option or ())},
        "hyperparameters": {
            "learning_rate": _learning_rate(learning_rate, lr_schedule, lr_end, lr_warmup),
            "gamma": gamma,
            "batch_size": batch_size,
        },
    }
    for name, part in nested.items():
        if kept := {key: value for key, value in part.items() if value is not None}:
            values[name] = kept
    values = cli_plan.merge(values, cli_plan.nest(cli_plan.parse_assignments("--set", set_ or ())))

    terminal = sys.stdout.isatty()
    plan = cli_plan.make_plan(
        game,
        values,
        config_file=config,
        resume=resume,
        initial=from_,
        runs_dir=runs_dir,
        run_dir=run_dir,
        checkpoint_dir=checkpoint_dir,
        render=render,
        port=cli_plan.parse_port(port),
        stay=terminal if stay is None else stay,
        output="json" if json_ else "quiet" if quiet else "live" if terminal else "plain",
    )
    raise typer.Exit(cli_run.run(plan))


def _workers(text: str | None) -> int | str | None:
    """A number of workers or ``auto`` as a setting."""
    if text is None or text == "auto":
        return text
    if not text.isascii() or not text.isdigit():
        raise UserError(f"--workers {text!r} is no number of processes; 0 to 1024 or auto is allowed")
    return int(text)


def _learning_rate(rate: float | None, kind: str | None, end: float | None, warmup: float | None) -> Any:
    """The learning rate as a setting: nothing, a number or a schedule."""
    if kind is None and end is None and warmup is None:
        return rate
    if rate is None:
        raise UserError("--lr-schedule, --lr-end and --lr-warmup need --learning-rate, the step size they start from")
    kind = kind.lower() if kind is not None else "constant" if end is None else "linear"
    keys: dict[str, Any] = {"linear": {"end": 0.0}, "cosine": {"end": 0.0}, "step": {"factor": 0.1, "at": [0.5, 0.75]}}
    schedule = {"schedule": kind, "start": rate, **keys.get(kind, {})}
    given = {"end": end, "warmup": warmup}
    return {**schedule, **{name: value for name, value in given.items() if value is not None}}
