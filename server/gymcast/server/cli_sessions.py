"""``gymcast sessions`` and ``gymcast watch``: look after the sessions of a running server."""

from __future__ import annotations

import json
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer

from gymcast.server.cli_browser import open_browser
from gymcast.server.cli_errors import EXIT_FAILED, UserError, did_you_mean
from gymcast.server.cli_http import DEFAULT_SERVER, request

WATCH_EPILOG: Final = """
[bold]Examples[/bold]

gymcast watch

gymcast watch latest --open
"""

ServerOption = Annotated[
    str, typer.Option("--server", envvar="GYMCAST_SERVER", metavar="URL", help="Address of the server.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
SessionArgument = Annotated[str, typer.Argument(help="Session id, the start of one, or latest.", show_default=False)]

app = typer.Typer(no_args_is_help=True, help="List, show and stop the sessions of a running server.")


def _sessions(server: str, limit: int = 1000) -> list[dict[str, Any]]:
    answer = request(server, "GET", f"/api/training/sessions?limit={limit}")
    found = answer.get("sessions") if isinstance(answer, dict) else answer
    if not isinstance(found, list):
        raise UserError(f"{server} does not answer like a gymcast server", EXIT_FAILED)
    return found


def find_session(server: str, wanted: str) -> dict[str, Any]:
    """The session with this id, the only one whose id starts with it, or the newest (``latest``)."""
    known = _sessions(server)
    if wanted == "latest":
        if not known:
            raise UserError(f"{server} has no sessions yet", EXIT_FAILED)
        return max(known, key=lambda session: str(session["session_id"]))
    matches = [session for session in known if str(session["session_id"]).startswith(wanted)]
    exact = [session for session in matches if session["session_id"] == wanted]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    if matches:
        names = ", ".join(str(session["session_id"]) for session in matches[:5])
        raise UserError(f"{wanted!r} is the start of {len(matches)} session ids: {names}; give more of it")
    hint = did_you_mean(wanted, [str(session["session_id"]) for session in known])
    raise UserError(f"{server} has no session {wanted!r}{hint}", EXIT_FAILED)


@app.command("list")
def list_sessions(
    server: ServerOption = DEFAULT_SERVER,
    status: Annotated[
        str | None, typer.Option(help="Only sessions in this status, such as running.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most, newest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List sessions, newest first."""
    known = [session for session in _sessions(server) if status in (None, session["status"])]
    known = sorted(known, key=lambda session: str(session["session_id"]), reverse=True)[:limit]
    if as_json:
        typer.echo(json.dumps(known, indent=2))
        return
    if not known:
        typer.echo(f"{server} has no sessions{f' that are {status}' if status else ' yet'}.")
        return
    from gymcast.server.display import make_table, print_table

    table = make_table("session", "trains", "status", "progress", "episodes", "started")
    for session in known:
        table.add_row(
            str(session["session_id"]),
            str(session.get("env_id") or session.get("training_session_id") or ""),
            str(session["status"]),
            f"{session.get('progress') or 0.0:.0%}",
            f"{session.get('current_episode') or 0:,}",
            str(session.get("start_time") or "-")[5:16].replace("T", " "),
        )
    print_table(table)


@app.command("show")
def show_session(session: SessionArgument, server: ServerOption = DEFAULT_SERVER, as_json: JsonOption = False) -> None:
    """Show one session with its newest metrics, evaluations and checkpoints."""
    known = find_session(server, session)
    base = f"/api/training/sessions/{quote(str(known['session_id']), safe='')}"
    info = request(server, "GET", base)
    for part in ("evaluations", "checkpoints"):
        answer = request(server, "GET", f"{base}/{part}?limit=20")
        info[part] = answer.get(part, answer.get("items", [])) if isinstance(answer, dict) else answer
    if as_json:
        typer.echo(json.dumps(info, indent=2))
        return
    for name in ("session_id", "kind", "env_id", "algorithm", "status", "phase", "reason", "start_time", "end_time"):
        if info.get(name):
            typer.echo(f"{name:<12}{info[name]}")
    typer.echo(f"{'progress':<12}{info.get('progress') or 0.0:.0%}, {info.get('current_episode') or 0:,} episodes")
    for found in info["evaluations"]:
        if found.get("win_rate") is not None:
            typer.echo(f"{'evaluation':<12}{found['win_rate']:.1f} % of {found['games']:,} games {found['opponent']}")
    for found in info["checkpoints"][:1]:
        typer.echo(f"{'checkpoint':<12}{found['path']} ({found['timesteps']:,} decisions)")
    typer.echo(f"{'page':<12}{session_url(server, str(known['session_id']))}")


@app.command("stop")
def stop_session(session: SessionArgument, server: ServerOption = DEFAULT_SERVER) -> None:
    """Stop a session; it saves a checkpoint first."""
    known = find_session(server, session)
    session_id = str(known["session_id"])
    answer = request(server, "POST", f"/api/training/sessions/{quote(session_id, safe='')}/stop", {})
    status = answer.get("status", "stopping") if isinstance(answer, dict) else "stopping"
    typer.echo(f"{session_id} is {status}")


def watch(
    session: Annotated[
        str | None, typer.Argument(help="Session id, the start of one, or latest.", show_default=False)
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    open_: Annotated[bool, typer.Option("--open", help="Open the address in the browser.")] = False,
) -> None:
    """Print the address of a server's page, or of one session on it."""
    if session is None:
        request(server, "GET", "/health")
        url = f"{server.rstrip('/')}/"
    else:
        url = session_url(server, str(find_session(server, session)["session_id"]))
    typer.echo(url)
    if open_ and not open_browser(url):
        raise UserError("no browser could be opened here; open the address above yourself", EXIT_FAILED)


def session_url(server: str, session_id: str) -> str:
    """Address of a session on the server's page."""
    return f"{server.rstrip('/')}/#/session/{quote(session_id, safe='')}"
