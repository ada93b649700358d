"""The command table: every command and group of ``gymcast``, in the order of ``gymcast --help``."""

from __future__ import annotations

from typing import Annotated

import typer

from gymcast.server import (
    cli_envs,
    cli_episodes,
    cli_evaluate,
    cli_export,
    cli_replay,
    cli_rooms,
    cli_serve,
    cli_sessions,
    cli_submit,
    cli_token,
    cli_train,
    cli_verify_resume,
    cli_verify_speed,
)


def _hyphens(name: str) -> str:
    return name.replace("_", "-")


# Options and commands may be written with hyphens or underscores: --total-timesteps, --total_timesteps.
_CONTEXT = {"help_option_names": ["-h", "--help"], "token_normalize_func": _hyphens}

app = typer.Typer(
    name="gymcast",
    no_args_is_help=True,
    add_completion=False,
    context_settings=_CONTEXT,
    rich_markup_mode="rich",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"gymcast {version('gymcast')}")
        raise typer.Exit


@app.callback(epilog="Exit codes: 0 done, 1 failed, 2 bad input, 130 stopped by Ctrl-C, 143 stopped by SIGTERM.")
def _gymcast(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and leave.")
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error. Allowed after the command too.")
    ] = False,
) -> None:
    """Train game bots at thousands of times real time, and watch them live.

    [bold]Start here:[/bold]  gymcast train archers
    """


app.command("train", epilog=cli_train.EPILOG)(cli_train.train)
app.command("serve", epilog=cli_serve.EPILOG)(cli_serve.serve)
app.command("watch", epilog=cli_sessions.WATCH_EPILOG)(cli_sessions.watch)
app.command("evaluate", epilog=cli_evaluate.EPILOG)(cli_evaluate.evaluate)
app.command("episodes", epilog=cli_episodes.EPILOG)(cli_episodes.episodes)
app.command("export", epilog=cli_export.EPILOG)(cli_export.export)
app.command("verify-resume", epilog=cli_verify_resume.EPILOG)(cli_verify_resume.verify_resume)
app.command("verify-speed", epilog=cli_verify_speed.EPILOG)(cli_verify_speed.verify_speed)
app.add_typer(cli_replay.app, name="replay")
cli_sessions.app.command("submit", epilog=cli_submit.EPILOG)(cli_submit.submit)
app.add_typer(cli_sessions.app, name="sessions")
app.add_typer(cli_rooms.app, name="rooms")
app.command("ratings", epilog=cli_rooms.RATINGS_EPILOG)(cli_rooms.ratings)
app.add_typer(cli_token.app, name="token")
app.add_typer(cli_envs.app, name="envs")
