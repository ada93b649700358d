"""``gymcast rooms``: let others watch one session; and ``gymcast ratings``: who plays how well."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final, Literal

import typer

from gymcast.server.cli_errors import UserError
from gymcast.server.cli_http import DEFAULT_SERVER, Server
from gymcast.server.cli_sessions import JsonOption, ServerOption, SessionArgument, TokenOption, find_session

RATINGS_EPILOG: Final = "Example: gymcast ratings --env gymcast/Archers-v0"
_HOUR: Final = 3600.0

app = typer.Typer(no_args_is_help=True, help="Make, list, show and close rooms in which others watch one session.")

_CodeArgument = Annotated[str, typer.Argument(help="Code of the room.", show_default=False)]


@app.command("create", epilog="Example: gymcast rooms create latest --viewers 20 --hours 2")
def create_room(
    session: SessionArgument,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    password: Annotated[
        Literal["random", "ask", "none"],
        typer.Option(help="A random one, one that is asked for here, or none: the code is enough."),
    ] = "random",
    viewers: Annotated[
        int | None, typer.Option(min=1, max=100_000, help="Guests at a time.", show_default="the server's limits")
    ] = None,
    hours: Annotated[float, typer.Option(min=0, max=2160, help="When it ends; 0: when it is closed.")] = 24.0,
    as_json: JsonOption = False,
) -> None:
    """Make a room for a session and show its code, link and password. The password is shown this once."""
    at = Server(server, token)
    wanted: dict[str, Any] = {
        "session_id": str(find_session(at, session)["session_id"]),
        "max_spectators": viewers,
        "expires_in": max(1.0, hours * _HOUR) if hours else None,
        "password_protected": password != "none",
    }
    if password == "ask":
        wanted["password"] = typer.prompt("Password", hide_input=True, confirmation_prompt=True, err=True)
    made = at.request("POST", "/api/rooms", wanted)
    if as_json:
        typer.echo(json.dumps(made, indent=2))
        return
    _describe(at, made)
    if made["password"] is not None:
        typer.echo(f"{'password':<12}{made['password']}")


@app.command("list", epilog="Example: gymcast rooms list")
def list_rooms(
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most, newest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List open rooms, newest first."""
    at = Server(server, token)
    known: list[dict[str, Any]] = at.request("GET", f"/api/rooms?limit={limit}")["rooms"]
    if as_json:
        typer.echo(json.dumps(known, indent=2))
        return
    if not known:
        typer.echo(f"{at.url} has no open rooms. Make one with: gymcast rooms create latest")
        return
    from gymcast.server.display import make_table, print_table

    table = make_table("code", "session", "password", "watching", "ends")
    for room in known:
        most = room["max_spectators"]
        table.add_row(
            room["code"],
            room["session_id"],
            "yes" if room["password_protected"] else "no",
            f"{room['spectator_count']}{'' if most is None else f' of {most}'}",
            _ends(room),
        )
    print_table(table)


@app.command("show", epilog="Example: gymcast rooms show K7WXR3")
def show_room(
    code: _CodeArgument, server: ServerOption = DEFAULT_SERVER, token: TokenOption = None, as_json: JsonOption = False
) -> None:
    """Show one room. Its password is not kept in a form that can be shown."""
    at = Server(server, token)
    room = at.request("GET", _address(code))
    if as_json:
        typer.echo(json.dumps(room, indent=2))
        return
    _describe(at, room)
    typer.echo(f"{'password':<12}{'yes' if room['password_protected'] else 'no'}")
    typer.echo(f"{'watching':<12}{room['spectator_count']}")


@app.command("close", epilog="Example: gymcast rooms close K7WXR3")
def close_room(code: _CodeArgument, server: ServerOption = DEFAULT_SERVER, token: TokenOption = None) -> None:
    """Close a room; its guests are sent away."""
    Server(server, token).request("DELETE", _address(code))
    typer.echo(f"room {code.upper()} is closed")


def _address(code: str) -> str:
    if not (code.isascii() and code.isalnum() and len(code) <= 16):
        raise UserError(f"{code!r} is not the code of a room; it looks like K7WXR3")
    return f"/api/rooms/{code.upper()}"


def _describe(at: Server, room: dict[str, Any]) -> None:
    link = f"{at.url.rstrip('/')}/#/room/{room['code']}{'' if room['password_protected'] else '?open'}"
    facts = {"code": room["code"], "link": link, "session": room["session_id"], "ends": _ends(room)}
    for name, value in facts.items():
        typer.echo(f"{name:<12}{value}")
    if room["max_spectators"] is not None:
        typer.echo(f"{'viewers':<12}{room['max_spectators']} at a time")


def _ends(room: dict[str, Any]) -> str:
    ends = room["expires_at"]
    return "when it is closed" if ends is None else f"{ends[:16].replace('T', ' ')} UTC"


def ratings(
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    env: Annotated[str | None, typer.Option(help="Only this environment.", show_default=False)] = None,
    as_json: JsonOption = False,
) -> None:
    """Rank bots and scripted opponents by their games, with 95 % intervals (docs/ratings.md)."""
    from urllib.parse import urlencode

    at = Server(server, token)
    query = "" if env is None else f"?{urlencode({'env_id': env})}"
    found: list[dict[str, Any]] = at.request("GET", f"/api/ratings{query}")["ladders"]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if not found:
        typer.echo(f"{at.url} has no evaluations against opponents{f' in {env}' if env else ''} yet.")
        return
    from gymcast.server.display import make_table, print_table

    for ladder in found:
        typer.echo(f"{ladder['env_id']}, {ladder['anchor']} fixed at {ladder['anchor_rating']:.0f}")
        table = make_table("rating", "95 % interval", "player", "games", "won", "drawn", "lost", "session")
        for player in ladder["players"]:
            rated = player["rating"] is not None
            table.add_row(
                f"{player['rating']:.0f}" if rated else "-",
                f"{player['ci_low']:.0f} to {player['ci_high']:.0f}" if rated else "-",
                player["name"],
                *(f"{player[name]:,}" for name in ("games", "wins", "draws", "losses")),
                player["session_id"] or "",
            )
        print_table(table)
