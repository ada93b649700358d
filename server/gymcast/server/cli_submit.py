"""``gymcast sessions submit``: queue a training on a running server."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from gymcast.server.cli_errors import UserError
from gymcast.server.cli_http import DEFAULT_SERVER, Server
from gymcast.server.cli_sessions import JsonOption, ServerOption, TokenOption, session_url

EPILOG: Final = """
[bold]Examples[/bold]

gymcast sessions submit archers --minutes 3

gymcast sessions submit archers --option opponent=expert --priority 10

gymcast sessions submit CartPole-v1 --total-timesteps 50000 --lanes 4 --set hyperparameters.n_steps=64

gymcast sessions submit --config training.yaml --server http://trainer:8000
"""


def submit(
    game: Annotated[
        str | None, typer.Argument(help="A built-in game such as archers, or any Gymnasium id.", show_default=False)
    ] = None,
    minutes: Annotated[float | None, typer.Option(help="Train so many minutes.", show_default=False)] = None,
    total_timesteps: Annotated[int | None, typer.Option(help="Train so many decisions.", show_default=False)] = None,
    num_episodes: Annotated[int | None, typer.Option(help="Train so many episodes.", show_default=False)] = None,
    lanes: Annotated[int | None, typer.Option(help="Episodes played at once.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.", show_default=False)] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option", "-o", metavar="NAME=VALUE", help="Option of the game. Repeatable.", show_default=False
        ),
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="NAME=VALUE", help="Any setting; dots reach inside. Repeatable."),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="YAML file of settings; options win.", show_default=False)
    ] = None,
    priority: Annotated[
        int, typer.Option(min=-1000, max=1000, help="Higher ones first; ten more than a running one make it leave.")
    ] = 0,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Queue a training on a running server, which starts it as soon as its limits allow."""
    from gymcast.server import cli_plan

    given = {
        "env_id": game,
        "max_minutes": minutes,
        "total_timesteps": total_timesteps,
        "max_episodes": num_episodes,
        "parallel_episodes": lanes,
        "seed": seed,
        "env_kwargs": cli_plan.parse_assignments("--option", option or ()) or None,
    }
    values: dict[str, Any] = cli_plan.read_settings(config) if config is not None else {}
    values = cli_plan.merge(values, {name: value for name, value in given.items() if value is not None})
    values = cli_plan.merge(values, cli_plan.nest(cli_plan.parse_assignments("--set", set_ or ())))
    if "env_id" not in values and "envId" not in values:
        raise UserError("which game? For example: gymcast sessions submit archers")
    made = Server(server, token).request("POST", "/api/training/sessions", {"config": values, "priority": priority})
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    typer.echo(f"{made['session_id']} is {made['status']}: {made['env_id']} with {made['algorithm']}")
    typer.echo(f"Watch   {session_url(server, str(made['session_id']))}")
    typer.echo(f"Follow  gymcast sessions tail {made['session_id']}{_elsewhere(server)}")


def _elsewhere(server: str) -> str:
    return "" if server == DEFAULT_SERVER else f" --server {server}"
