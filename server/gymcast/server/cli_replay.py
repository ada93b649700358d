"""``gymcast replay``: the recorded episodes of the runs folder, of a run's log, or of a replay file."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer

from gymcast.server.cli_environment import PackagesOption, import_packages
from gymcast.server.cli_errors import EXIT_FAILED, UserError, did_you_mean
from gymcast.server.cli_paths import database_path, database_url
from gymcast.server.cli_replay_log import (
    describe_verification,
    is_logged,
    list_logged,
    load_logged,
    text_sheet,
    verify_run,
)

if TYPE_CHECKING:
    from gymcast.envs import Replay
    from gymcast.training.storage import ReplayRecord, Storage

T = TypeVar("T")

_HOW_MANY_LISTED: Final = 1000

app = typer.Typer(
    no_args_is_help=True,
    help="""List, show, check and export episodes.

    A few episodes of every training are kept with the bot's decisions (footage); the log of a run has all of them.
    An episode is named by the id that list shows, such as RUN:LANE:START, or as RUN:best (newest, oldest, worst,
    longest, shortest); RUN may be latest.""",
)

RunsOption = Annotated[Path, typer.Option("--runs-dir", envvar="GYMCAST_RUNS", help="Folder of all runs.")]
RunOption = Annotated[
    str | None,
    typer.Option("--run", help="The log of this run: its folder, its name, or latest.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="JSON instead of text.")]
_REPLAY_HELP: Final = "Id of an episode, the start of one, latest (footage), or a replay file."
ReplayArgument = Annotated[str, typer.Argument(help=_REPLAY_HELP, show_default=False)]
_ORDERS: Final = ("newest", "oldest", "best", "worst", "longest", "shortest")
_OUTCOMES: Final = ("win", "draw", "loss")
_FORMATS: Final = ("json", "png", "gif", "mp4", "replay")


@app.command("list")
def list_replays(
    runs_dir: RunsOption = Path("runs"),
    run: RunOption = None,
    lane: Annotated[int | None, typer.Option(min=0, help="With --run: of this lane.", show_default=False)] = None,
    outcome: Annotated[
        str | None, typer.Option(help="With --run: win, draw or loss of that lane.", show_default=False)
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(help=f"With --run: {', '.join(_ORDERS)}; by default newest first.", show_default=False),
    ] = None,
    session: Annotated[
        str | None, typer.Option(help="Footage of this session only (the start of its id).", show_default=False)
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=_HOW_MANY_LISTED, help="How many at most.")] = 20,
    as_json: JsonOption = False,
) -> None:
    """List recorded episodes: footage of all runs, or with --run every episode of one."""
    if run is None:
        if lane is not None or outcome is not None or order is not None:
            raise UserError("--lane, --outcome and --order select from the log of a run; name it: --run latest")
        _list_footage(runs_dir, session, limit, as_json)
        return
    if session is not None:
        raise UserError("--run and --session exclude each other; give one of them")
    _check_choice("--outcome", outcome, _OUTCOMES)
    _check_choice("--order", order, _ORDERS)
    found, rows = list_logged(run, runs_dir, lane=lane, outcome=outcome, order=order or "newest", limit=limit)
    if as_json:
        typer.echo(json.dumps(rows, indent=2))
        return
    from gymcast.server.display import make_table, print_table

    table = make_table("episode", "return", "outcome", "decisions", "kills", "deaths", "after decisions")
    for row in rows:
        table.add_row(
            row["replay_id"],
            f"{row['return']:.3f}",
            *(str(row[name]) if row[name] is not None else "-" for name in ("outcome", "length", "kills", "deaths")),
            f"{row['end']:,}",
        )
    print_table(table)
    size = found.log.bytes / max(1, found.log.decisions)
    typer.echo(f"{len(rows):,} of {len(found.log):,} episodes, {found.log.bytes:,} bytes, {size:.2f} per decision")
    for problem in found.log.problems:
        typer.echo(f"warning: {problem}", err=True)


def _list_footage(runs_dir: Path, session: str | None, limit: int, as_json: bool) -> None:
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
    typer.echo("This is footage; every episode of a run: gymcast replay list --run latest")


def _check_choice(option: str, given: str | None, choices: tuple[str, ...]) -> None:
    if given is not None and given not in choices:
        raise UserError(f"{option} {given!r} is not one of {', '.join(choices)}{did_you_mean(given, choices)}")


@app.command("show")
def show_replay(
    replay: ReplayArgument,
    runs_dir: RunsOption = Path("runs"),
    moments: Annotated[int, typer.Option(min=0, max=100, help="Moments shown as text, of built-in games.")] = 3,
    gym_packages: PackagesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show what is known about one episode, and a few moments of it."""
    import_packages({"gym_packages": gym_packages or []})
    known, content = _load(replay, runs_dir)
    facts: dict[str, Any] = {
        **{name: known[name] for name in ("replay_id", "session_id", "lane", "start") if name in known},
        "env_id": content.env_id,
        "version": content.version,
        "seed": content.seed,
        "episode": content.episode,
        "decisions": len(content.actions),
        "bytes": len(content.to_bytes()),
        "options": content.options,
        "summary": content.summary,
    }
    if as_json:
        typer.echo(json.dumps(facts, indent=2))
        return
    for name, value in facts.items():
        typer.echo(f"{name:<12}{json.dumps(value) if isinstance(value, dict) else value}")
    if sheet := _playable(replay, lambda: text_sheet(content, moments)):
        typer.echo(f"\n{sheet}")


@app.command("verify")
def verify(
    replay: Annotated[str | None, typer.Argument(help=_REPLAY_HELP, show_default=False)] = None,
    runs_dir: RunsOption = Path("runs"),
    run: RunOption = None,
    count: Annotated[int, typer.Option(min=1, max=1_000_000, help="With --run: how many random episodes.")] = 100,
    seed: Annotated[
        int | None, typer.Option(min=0, help="With --run: chooses them; drawn when not given.", show_default=False)
    ] = None,
    gym_packages: PackagesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Play an episode (with --run many random ones) again and compare with its record; exit code 1 if any differs."""
    from gymcast.envs import verify_replay

    import_packages({"gym_packages": gym_packages or []})
    if (replay is None) == (run is None):
        raise UserError("say what to verify: an episode, or --run and a run (such as --run latest)")
    if run is not None:
        found = verify_run(run, runs_dir, count=count, seed=seed)
        typer.echo(json.dumps(found, indent=2) if as_json else describe_verification(found))
        raise typer.Exit(EXIT_FAILED if found["failures"] else 0)
    assert replay is not None, "one of the two is given"
    _, content = _load(replay, runs_dir)
    result = _playable(f"{replay} does not verify", lambda: verify_replay(content))
    if as_json:
        typer.echo(json.dumps({"replay": replay, **result}, indent=2))
        return
    typer.echo(f"{replay} verifies: {len(content.actions)} decisions of {content.env_id} lead to the recorded result")


@app.command("export")
def export(
    replay: ReplayArgument,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-O", help="File to write; by default JSON to standard output.", show_default=False),
    ] = None,
    format_: Annotated[
        str | None,
        typer.Option("--format", help=f"{', '.join(_FORMATS)}; by default as the file is named.", show_default=False),
    ] = None,
    width: Annotated[
        int | None, typer.Option(min=16, max=3840, help="Width of each image, px.", show_default=False)
    ] = None,
    speed: Annotated[float, typer.Option(min=0.1, max=100, help="Of gif and mp4, times the game's own.")] = 1.0,
    moments: Annotated[int, typer.Option(min=1, max=400, help="Images on a png sheet.")] = 12,
    runs_dir: RunsOption = Path("runs"),
    gym_packages: PackagesOption = None,
) -> None:
    """Write an episode as JSON (the scene and its frames, as the page draws them), a PNG sheet, a GIF, an MP4 film
    (needs the extra video), or a replay file."""
    import_packages({"gym_packages": gym_packages or []})
    chosen = format_ or ("json" if out is None else out.suffix.removeprefix(".").lower())
    _check_choice("--format" if format_ else "--out: the file's ending", chosen, _FORMATS)
    if out is None and chosen != "json":
        raise UserError(f"{chosen} goes to a file; name one: --out episode.{chosen}")
    _, content = _load(replay, runs_dir)
    from gymcast.envs import replay_frames
    from gymcast.server.replay_export import MissingFilmError, write_film, write_gif, write_sheet

    if out is None:
        typer.echo(_playable(replay, lambda: json.dumps(replay_frames(content), separators=(",", ":"))))
        return
    sized: dict[str, int] = {} if width is None else {"width": width}
    writers: dict[str, Callable[[], Any]] = {
        "json": lambda: out.write_text(json.dumps(replay_frames(content), separators=(",", ":")) + "\n", "utf-8"),
        "replay": lambda: out.write_bytes(content.to_bytes()),
        "png": lambda: write_sheet(content, out, count=moments, **sized),
        "gif": lambda: write_gif(content, out, speed=speed, **sized),
        "mp4": lambda: write_film(content, out, speed=speed, **sized),
    }
    try:
        _playable(replay, writers[chosen])
    except MissingFilmError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"cannot write {out}: {error.strerror or error}", EXIT_FAILED) from None
    typer.echo(f"{out}: {out.stat().st_size:,} bytes")


def _playable(what: str, play: Callable[[], T]) -> T:
    """The result of ``play``; the reason why a replay cannot be played as a :class:`UserError`."""
    from gymcast.envs import ReplayError

    try:
        return play()
    except ReplayError as error:
        raise UserError(f"{what}: {error}", EXIT_FAILED) from None


def _load(wanted: str, runs_dir: Path) -> tuple[dict[str, Any], Replay]:
    """What is known of an episode beside its replay, and the replay."""
    from gymcast.envs import Replay, ReplayError

    path = Path(wanted)
    try:
        if path.is_file():
            return {}, Replay.from_bytes(path.read_bytes())
        if is_logged(wanted):
            return load_logged(wanted, runs_dir)
        record = _with_storage(runs_dir, lambda storage: _find(storage, wanted))
        return {"replay_id": record.replay_id, "session_id": record.session_id}, Replay.from_bytes(record.content)
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
                found += map(dict, page.items)
        if cursor is None:
            return sorted(found, key=lambda row: str(row["timestamp"]), reverse=True)


async def _find(storage: Storage, wanted: str) -> ReplayRecord:
    if wanted.startswith("ep_"):  # the id the page and the REST interface use for logged episodes
        from gymcast.server.episodes import EpisodeShelf

        return await EpisodeShelf(storage).find(wanted)
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
