"""``gymcast sessions`` and ``gymcast watch``: look after the sessions of a running server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, get_args
from urllib.parse import quote

import typer

from gymcast.server.cli_browser import open_browser
from gymcast.server.cli_errors import EXIT_FAILED, UserError, did_you_mean
from gymcast.server.cli_http import DEFAULT_SERVER, Server, ServerUnavailable
from gymcast.training.http_client import ServerAway
from gymcast.training.run_folder import RunTakenError
from gymcast.training.script_spool import deliver, leftovers, spool_root

WATCH_EPILOG: Final = """
[bold]Examples[/bold]

gymcast watch

gymcast watch latest --open
"""

ServerOption = Annotated[
    str, typer.Option("--server", envvar="GYMCAST_SERVER", metavar="URL", help="Address of the server.")
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        envvar="GYMCAST_TOKEN",
        metavar="TOKEN",
        help="Where the server asks for one. Better in the environment: others see a command line.",
        show_default=False,
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
SessionArgument = Annotated[str, typer.Argument(help="Session id, the start of one, or latest.", show_default=False)]

_ENDED: Final = ("completed", "failed", "cancelled")
_TAIL_SECONDS: Final = 1.0

app = typer.Typer(no_args_is_help=True, help="Queue, list, follow, pause and stop the sessions of a running server.")


def _sessions(at: Server, limit: int = 1000) -> list[dict[str, Any]]:
    answer = at.request("GET", f"/api/training/sessions?limit={limit}")
    found = answer.get("sessions") if isinstance(answer, dict) else answer
    if not isinstance(found, list):
        raise UserError(f"{at.url} does not answer like a gymcast server", EXIT_FAILED)
    return found


def find_session(at: Server, wanted: str) -> dict[str, Any]:
    """The session with this id, the only one whose id starts with it, or the newest (``latest``)."""
    known = _sessions(at)
    if wanted == "latest":
        if not known:
            raise UserError(f"{at.url} has no sessions yet", EXIT_FAILED)
        return max(known, key=lambda session: str(session["session_id"]))
    matches = [session for session in known if str(session["session_id"]).startswith(wanted)]
    exact = [session for session in matches if session["session_id"] == wanted]
    if len(exact or matches) == 1:
        return (exact or matches)[0]
    if matches:
        names = ", ".join(str(session["session_id"]) for session in matches[:5])
        raise UserError(f"{wanted!r} is the start of {len(matches)} session ids: {names}; give more of it")
    hint = did_you_mean(wanted, [str(session["session_id"]) for session in known])
    raise UserError(f"{at.url} has no session {wanted!r}{hint}", EXIT_FAILED)


@app.command("list", epilog="Example: gymcast sessions list --status queued")
def list_sessions(
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    status: Annotated[
        str | None, typer.Option(help="Only sessions in this status, such as running.", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many at most, newest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List sessions, newest first, with the reason why one waits or how it ended."""
    at = Server(server, token)
    known = [session for session in _sessions(at) if status in (None, session["status"])]
    if status is not None and not known:
        _check_status(status)
    known = sorted(known, key=lambda session: str(session["session_id"]), reverse=True)[:limit]
    if as_json:
        typer.echo(json.dumps(known, indent=2))
        return
    if not known:
        typer.echo(f"{at.url} has no sessions{f' that are {status}' if status else ' yet'}.")
        return
    from gymcast.server.display import make_table, print_table

    table = make_table("session", "trains", "status", "priority", "progress", "episodes", "started", "why")
    for session in known:
        table.add_row(
            str(session["session_id"]),
            str(session.get("env_id") or session.get("training_session_id") or ""),
            str(session["status"]),
            str(session.get("priority", "")),
            f"{session.get('progress') or 0.0:.0%}",
            f"{session.get('current_episode') or 0:,}",
            str(session.get("start_time") or "-")[5:16].replace("T", " "),
            str(session.get("wait_reason") or session.get("reason") or "")[:60],
        )
    print_table(table)


def _check_status(status: str) -> None:
    # Loaded on first use: commands that only ask a server start fast without it.
    from gymcast.training.events import SessionStatus

    statuses = get_args(SessionStatus)
    if status not in statuses:
        raise UserError(
            f"--status {status!r} is no status{did_you_mean(status, statuses)}; there are {', '.join(statuses)}"
        )


@app.command("show", epilog="Example: gymcast sessions show latest")
def show_session(
    session: SessionArgument,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one session with its newest metrics, evaluations, checkpoints and alarms."""
    at = Server(server, token)
    known = find_session(at, session)
    base = _address(str(known["session_id"]))
    info = at.request("GET", base)
    info["metrics"] = at.request("GET", f"{base}/metrics")["metrics"]
    for part in ("evaluations", "checkpoints", "errors"):
        answer = at.request("GET", f"{base}/{part}?limit=20")
        info[part] = answer.get(part, answer.get("items", [])) if isinstance(answer, dict) else answer
    if as_json:
        typer.echo(json.dumps(info, indent=2))
        return
    for name in (
        *("session_id", "kind", "env_id", "algorithm", "status", "phase", "wait_reason", "reason"),
        *("priority", "attempts", "start_time", "end_time"),
    ):
        if info.get(name):
            shown = str(info[name])[:19].replace("T", " ") + " UTC" if name.endswith("_time") else info[name]
            typer.echo(f"{name:<21}{shown}")
    typer.echo(f"{'progress':<21}{info.get('progress') or 0.0:.0%}, {info.get('current_episode') or 0:,} episodes")
    for name, value in info["metrics"].items():
        if isinstance(value, float | int) and value:
            typer.echo(f"{name:<21}{value:,.6g}")
    for found in info["evaluations"]:
        if found.get("win_rate") is not None:
            typer.echo(f"{'evaluation':<21}{found['win_rate']:.1f} % of {found['games']:,} games {found['opponent']}")
    for found in info["checkpoints"][:1]:
        typer.echo(f"{'checkpoint':<21}{found['path']} ({found['timesteps']:,} decisions)")
    for found in info["errors"][:3]:
        typer.echo(f"{'alarm':<21}{found['timestamp'][:19].replace('T', ' ')} UTC  {found['message']}")
    typer.echo(f"{'page':<21}{session_url(server, str(known['session_id']))}")


@app.command("pause", epilog="Example: gymcast sessions pause latest")
def pause_session(
    session: SessionArgument,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pause a session; it keeps everything and uses no processor."""
    _ask(Server(server, token), session, as_json, lambda base: ("POST", f"{base}/pause", {}))


@app.command("resume", epilog="Example: gymcast sessions resume latest")
def resume_session(
    session: SessionArgument,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a paused session go on, exactly where it was."""
    _ask(Server(server, token), session, as_json, lambda base: ("POST", f"{base}/resume", {}))


@app.command("stop", epilog="Example: gymcast sessions stop latest")
def stop_session(
    session: SessionArgument,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a session; it saves a checkpoint first."""
    _ask(Server(server, token), session, as_json, lambda base: ("POST", f"{base}/stop", {}))


@app.command("cancel", epilog="Example: gymcast sessions cancel latest")
def cancel_session(
    session: SessionArgument,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    as_json: JsonOption = False,
) -> None:
    """End a session without another checkpoint; those it has written stay."""
    _ask(Server(server, token), session, as_json, lambda base: ("PUT", base, {"status": "cancelled"}))


def _ask(at: Server, session: str, as_json: bool, what: Callable[[str], tuple[str, str, Any]]) -> None:
    session_id = str(find_session(at, session)["session_id"])
    answer = at.request(*what(_address(session_id)))
    if as_json:
        typer.echo(json.dumps(answer, indent=2))
    elif answer["desired"] == "paused" and answer["status"] != "paused":
        typer.echo(f"{session_id} is {answer['status']}, and pauses with its next step")
    elif answer["desired"] == "running" and answer["status"] == "paused":
        typer.echo(f"{session_id} is paused, and goes on within a second")
    else:
        typer.echo(f"{session_id} is {answer['status']}")


def _address(session_id: str) -> str:
    return f"/api/training/sessions/{quote(session_id, safe='')}"


_SourceOption = Annotated[
    bool, typer.Option("--worker", help="What the process printed, such as a crash, instead of the run's log.")
]


@app.command(
    "logs", epilog="Examples: gymcast sessions logs latest --limit 200    gymcast sessions logs latest --worker"
)
def show_logs(
    session: SessionArgument,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="How many lines, the newest ones.")] = 50,
    worker: _SourceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Show the end of a session's log, oldest line first."""
    at = Server(server, token)
    session_id = str(find_session(at, session)["session_id"])
    for line in reversed(_logs(at, session_id, "worker" if worker else "run", limit)):
        typer.echo(json.dumps(line) if as_json else _line(line))


@app.command("tail", epilog="Example: gymcast sessions tail latest")
def tail_session(
    session: SessionArgument,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    worker: _SourceOption = False,
    as_json: JsonOption = False,
) -> None:
    """Follow a session's log and status until it has ended. Ctrl-C ends this command, not the session.

    While the server is away, such as for a restart, it waits.
    """
    at = Server(server, token)
    session_id = str(find_session(at, session)["session_id"])
    seen, said, away = -1, "", False
    while True:
        try:
            info = at.request("GET", _address(session_id))
            lines = _logs(at, session_id, "worker" if worker else "run", 200 if seen >= 0 else 10)
        except ServerUnavailable:
            if not away:
                typer.echo(f"-- {at.url} does not answer now; waiting for it", err=True)
            away = True
            time.sleep(_TAIL_SECONDS)
            continue
        away = False
        for line in reversed(lines):
            if line["offset"] > seen:
                seen = line["offset"]
                typer.echo(json.dumps(line) if as_json else _line(line))
        why = info.get("wait_reason") or info.get("reason")
        text = f"{info['status']}{f': {why}' if why else ''}"
        if text != said:
            said = text
            typer.echo(json.dumps({"status": info["status"], "reason": why}) if as_json else f"-- {text}")
        if info["status"] in _ENDED:
            return
        time.sleep(_TAIL_SECONDS)


@app.command("deliver", epilog="Examples: gymcast sessions deliver    gymcast sessions deliver --list")
def deliver_spools(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A session's spool folder, or one of many. Default: GYMCAST_SPOOL.", show_default=False),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            "--server", metavar="URL", help="Deliver here instead of where the script reported.", show_default=False
        ),
    ] = None,
    token: TokenOption = None,
    list_: Annotated[bool, typer.Option("--list", help="Only show what waits.")] = False,
    timeout: Annotated[float, typer.Option(min=1.0, help="Seconds for each session.")] = 60.0,
) -> None:
    """Deliver what your own training scripts measured and could not report before they ended."""
    root = folder or spool_root()
    try:
        found = list(leftovers(root))
        if not found:
            typer.echo(f"Nothing waits in {root}.")
        for left in found:
            what = f"{left.note.announcement.training_session_id}: {left.events:,} events"
            if list_:
                typer.echo(f"{what} for {left.note.server} in {left.path}")
                continue
            session_id = deliver(left, server=server, token=token, timeout=timeout)
            typer.echo(f"{what} delivered: {session_url(server or left.note.server, session_id)}")
    except (ServerAway, RunTakenError, OSError, ValueError) as error:
        raise UserError(f"{error}; what waits is kept in {root}", EXIT_FAILED) from None


def _logs(at: Server, session_id: str, source: Literal["run", "worker"], limit: int) -> list[dict[str, Any]]:
    answer = at.request("GET", f"{_address(session_id)}/logs?source={source}&limit={limit}")
    found: list[dict[str, Any]] = answer["logs"]
    return found


def _line(line: dict[str, Any]) -> str:
    if "timestamp" not in line:
        return str(line["message"])
    text = f"{str(line['timestamp'])[:19].replace('T', ' ')} {line['level']:<7} {line['message']}"
    return f"{text}\n{line['traceback']}" if line.get("traceback") else text


def watch(
    session: Annotated[
        str | None, typer.Argument(help="Session id, the start of one, or latest.", show_default=False)
    ] = None,
    server: ServerOption = DEFAULT_SERVER,
    token: TokenOption = None,
    open_: Annotated[bool, typer.Option("--open", help="Open the address in the browser.")] = False,
) -> None:
    """Print the address of a server's page, or of one session on it."""
    at = Server(server, token)
    if session is None:
        at.request("GET", "/health")
        url = f"{server.rstrip('/')}/"
    else:
        url = session_url(server, str(find_session(at, session)["session_id"]))
    typer.echo(url)
    if open_ and not open_browser(url):
        raise UserError("no browser could be opened here; open the address above yourself", EXIT_FAILED)


def session_url(server: str, session_id: str) -> str:
    """Address of a session on the server's page."""
    return f"{server.rstrip('/')}/#/session/{quote(session_id, safe='')}"
