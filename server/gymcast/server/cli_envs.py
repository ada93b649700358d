"""``gymcast envs``: the built-in games and their options."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gymcast.server.cli_errors import UserError

if TYPE_CHECKING:
    from gymcast.envs import GameSpec

app = typer.Typer(no_args_is_help=True, help="List the built-in games and their options.")

JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]


def _facts(spec: GameSpec) -> dict[str, Any]:
    return {
        "id": spec.id,
        "name": spec.name,
        "version": spec.version,
        "title": spec.title,
        "tick_rate": spec.tick_rate,
        "frame_skip": spec.frame_skip_default,
        "max_seats": spec.max_seats,
        "opponents": list(spec.opponents),
        "options": {
            name: {
                "default": option.default,
                "choices": None if option.choices is None else list(option.choices),
                "help": option.help,
            }
            for name, option in spec.options.items()
        },
    }


@app.command("list")
def list_envs(as_json: JsonOption = False) -> None:
    """List the built-in games."""
    from gymcast.envs import GAMES

    if as_json:
        typer.echo(json.dumps([_facts(spec) for spec in GAMES.values()], indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("name", "id", "what it is", "opponents"):
        table.add_column(heading)
    for spec in GAMES.values():
        table.add_row(spec.name, spec.id, spec.title, ", ".join(spec.opponents))
    Console(highlight=False).print(table)
    typer.echo(
        "\nOptions: gymcast envs show NAME. Any other Gymnasium id can be trained too: gymcast train CartPole-v1"
    )


@app.command("show")
def show_env(
    game: Annotated[str, typer.Argument(help="Name or id of a built-in game.", show_default=False)],
    as_json: JsonOption = False,
) -> None:
    """Show one game and its options."""
    from gymcast.envs import GAMES, UnknownEnvError, resolve_env_id

    try:
        spec = GAMES[resolve_env_id(game)]
    except UnknownEnvError as error:
        raise UserError(str(error)) from None
    facts = _facts(spec)
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    from rich.console import Console
    from rich.table import Table

    for name in ("id", "name", "title", "tick_rate", "max_seats"):
        typer.echo(f"{name:<12}{facts[name]}")
    typer.echo(f"{'opponents':<12}{', '.join(spec.opponents)}\n")
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for heading in ("option", "default", "allowed", "meaning"):
        table.add_column(heading, no_wrap=heading == "option")
    for name, option in facts["options"].items():
        allowed = ", ".join(map(str, option["choices"])) if option["choices"] else ""
        table.add_row(name, json.dumps(option["default"]), allowed, option["help"])
    Console(highlight=False).print(table)
    choices = {name: option.choices for name, option in spec.options.items() if option.choices}
    example = "".join(f" --option {name}={values[-1]}" for name, values in list(choices.items())[1:3])
    typer.echo(f"\nFor example: gymcast train {spec.name}{example}")
