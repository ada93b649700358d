"""``gymcast replay``: the recorded episodes of the runs folder, or of a replay file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from gymcast.server.cli_errors import EXIT_FAILED, UserError, did_you_mean
from gymcast.server.cli_paths import database_path, database_url

if TYPE_CHECKING:
    from gymcast.envs import Replay
    from gymcast.training.storage import ReplayRecord, Storage

T = TypeVar("T")

_HOW_MANY_LISTED: Final = 1000

app = typer.Typer(no_args_is_help=True, help="List, show, check and export recorded episodes.")

RunsOption = Annotated[Path, typer.Option("--runs-dir", envvar="GYMCAST_RUNS", help="Folder of all runs.")]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
ReplayArgument = Annotated[
    str, typer.Argument(help="Replay id, the start of one, latest, or a replay file.", show_default=False)
]


@app.command("list")
def list_replays(
    runs_dir: RunsOption = Path("runs"),
    session: Annotated[
        str | None, typer.Option(help="Only replays of this session (the start of its id).", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=_HOW_MANY_LISTED, help="How many at most, newest first.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List recorded episodes, newest first."""
    found = _with_storage(runs_dir, lambda storage: _all_replays(storage, session))[:limit]
    if as_json:
        typer.echo(json.dumps(found, indent=2))
        return
    if not found:
        typer.echo(f"no replays in {runs_dir}/ yet")
        return
    from gymcast.server.display import make_table, print_table

    table = make_table("replay", "game", "episode", "return", "decisions", "recorded")
    for row in found:
        summary = row["summary"]
        table.add_row(
            row["replay_id"],
            row["env_id"],
            f"{row['episode']:,}",
            f"{summary['return']:.3f}" if isinstance(summary.get("return"), int | float) else "-",
            str(summary.get("length", "-")),
            str(row["timestamp"])[:19].replace("T", " "),
        )
    print_table(table)


@app.command("show")
def show_replay(replay: ReplayArgument, runs_dir: RunsOption = Path("runs"), as_json: JsonOption = False) -> None:
    """Show what is known about one episode."""
    record, content = _load(replay, runs_dir)
    facts: dict[str, Any] = {} if record is None else {"replay_id": record.replay_id, "session_id": record.session_id}
    facts |= {
        "env_id": content.env_id,
        "version": content.version,
        "seed": content.seed,
        "episode": content.episode,
        "decisions": len(content.actions),
        "options": content.options,
        "summary": content.summary,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        typer.echo(f"{name:<12}{json.dumps(value) if isinstance(value, dict) else value}")


@app.command("verify")
def verify(replay: ReplayArgument, runs_dir: RunsOption = Path("runs")) -> None:
    """Play an episode again and compare it with its record; exit code 1 when they differ."""
    from gymcast.envs import ReplayError, verify_replay

    _, content = _load(replay, runs_dir)
    try:
        verify_replay(content)
    except ReplayError as error:
        raise UserError(f"{replay} does not verify: {error}", EXIT_FAILED) from None
    typer.echo(f"{replay} verifies: {len(content.actions)} decisions of {content.env_id} lead to the recorded result")


@app.command("export")
def export(
    replay: ReplayArgument,
    out: Annotated[
        Path | None, typer.Option("--out", "-O", help="File to write; by default standard output.", show_default=False)
    ] = None,
    runs_dir: RunsOption = Path("runs"),
) -> None:
    """Write an episode as JSON: the scene and its frames, as the page draws them."""
    from gymcast.envs import replay_frames

    _, content = _load(replay, runs_dir)
    text = json.dumps(replay_frames(content), separators=(",", ":"))
    if out is None:
        typer.echo(text)
        return
    try:
        out.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror}", EXIT_FAILED) from None
    typer.echo(f"{out}: {len(text) + 1:,} bytes")


def _load(wanted: str, runs_dir: Path) -> tuple[ReplayRecord | None, Replay]:
    from gymcast.envs import Replay, ReplayError

    path = Path(wanted)
    record = None
    try:
        if path.is_file():
            content = path.read_bytes()
        else:
            record = _with_storage(runs_dir, lambda storage: _find(storage, wanted))
            content = record.content
        return record, Replay.from_bytes(content)
    except ReplayError as error:
        raise UserError(f"{wanted} is not a replay: {error}") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None


async def _all_replays(storage: Storage, session: str | None) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    cursor = None
    while True:
        records, cursor = await storage.list_sessions(cursor=cursor, limit=1000)
        for record in records:
            if session is None or record.session_id.startswith(session):
                page = await storage.replays(record.session_id, limit=_HOW_MANY_LISTED)
                found += page.items
        if cursor is None:
            return sorted(found, key=lambda row: str(row["timestamp"]), reverse=True)


async def _find(storage: Storage, wanted: str) -> ReplayRecord:
    known = await _all_replays(storage, None)
    if wanted == "latest":
        if not known:
            raise UserError("there are no replays yet", EXIT_FAILED)
        return await storage.replay(known[0]["replay_id"])
    names = [row["replay_id"] for row in known]
    matches = [wanted] if wanted in names else [name for name in names if name.startswith(wanted)]
    if len(matches) > 1:
        raise UserError(
            f"{wanted!r} is the start of {len(matches)} replay ids: {', '.join(matches[:5])}; give more of it"
        )
    if not matches:
        raise UserError(f"no replay and no file {wanted!r}{did_you_mean(wanted, names)}; see gymcast replay list")
    return await storage.replay(matches[0])


def _with_storage(runs_dir: Path, job: Callable[[Storage], Awaitable[T]]) -> T:
    """Run ``job`` with the database of a runs folder."""
    from gymcast.training.storage import Storage, StorageError

    path = database_path(runs_dir)
    if not path.is_file():
        raise UserError(f"there is no {path}: nothing was trained here, or --runs-dir names another folder")

    async def work() -> T:
        async with await Storage.open(database_url(runs_dir)) as storage:
            return await job(storage)

    try:
        return asyncio.run(work())
    except StorageError as error:
        raise UserError(f"{path}: {error}", EXIT_FAILED) from None
