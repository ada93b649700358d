"""``gymcast serve``: the server with its queue of managed trainings, until it is told to end."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from gymcast.server.cli_errors import UserError

if TYPE_CHECKING:
    from gymcast.server.config import ServerConfig
    from gymcast.training.limits import ResourceLimits

EPILOG: Final = """
[bold]Examples[/bold]

gymcast serve

gymcast serve --port 9000 --max-concurrent-sessions 2

export JWT_SECRET_KEY="$(gymcast token secret)" GYMCAST_ENABLE_AUTH=true CORS_ORIGINS=https://gymcast.example.org

gymcast serve --host 0.0.0.0

curl http://127.0.0.1:8000/api/training/sessions --json '{"config": {"envId": "archers", "maxMinutes": 1}}'
"""


def serve(
    host: Annotated[
        str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.", show_default=False)
    ] = None,
    port: Annotated[
        str | None, typer.Option(help="Port; auto takes the first free one. Default: 8000.", show_default=False)
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="JSON file of settings; environment and options win.", show_default=False),
    ] = None,
    database: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME. Default: gymcast.db in the runs folder.",
            show_default=False,
        ),
    ] = None,
    runs_dir: Annotated[
        Path, typer.Option(envvar="GYMCAST_RUNS", help="Folder of the trainings this server runs.")
    ] = Path("runs"),
    max_concurrent_sessions: Annotated[
        int | None, typer.Option(min=1, max=1000, help="Trainings that may run at once.", show_default=False)
    ] = None,
    debug_log: Annotated[bool, typer.Option("--debug-log", help="Log at level DEBUG.")] = False,
    log_format: Annotated[
        str | None, typer.Option(help="text, or json: one object a line. Default: text.", show_default=False)
    ] = None,
    access_log: Annotated[bool, typer.Option("--access-log", help="Log each request.")] = False,
) -> None:
    """Serve the page, the API and the queue of trainings until Ctrl-C.

    Trainings are started with `gymcast sessions submit` or through the API. Ctrl-C or SIGTERM stops them with a
    checkpoint each, and the next `gymcast serve` goes on with them. When the server is killed they train on, and the
    next one takes them over.

    On this machine alone (127.0.0.1) no setup is needed. With --host for other machines the server asks for tokens: it
    needs a secret (JWT_SECRET_KEY), GYMCAST_ENABLE_AUTH=true, and the exact address of its page (CORS_ORIGINS), and
    says what is missing. See docs/security.md.
    """
    from gymcast.server.cli_embed import describe_settings
    from gymcast.server.cli_plan import parse_port
    from gymcast.server.config import ServerConfig, ServerConfigError
    from gymcast.training.config import ConfigError
    from gymcast.training.limits import ResourceLimits

    overrides: dict[str, Any] = {}
    wanted_port = parse_port(port) if port is not None else 0
    if host is not None:
        overrides["host"] = host
    if wanted_port:
        overrides["port"] = wanted_port
    if database is not None:
        overrides["database"] = {"url": database}
    if debug_log:
        overrides["debug"] = True
    if log_format is not None:
        overrides["log_format"] = log_format
    if access_log:
        overrides["access_log"] = True
    limits = {} if max_concurrent_sessions is None else {"max_concurrent_sessions": max_concurrent_sessions}
    try:
        settings = ServerConfig.load(config, **overrides)
        settings.check_startable()
        resources = ResourceLimits.parse(limits)
    except ServerConfigError as error:
        raise UserError(describe_settings(error)) from None
    except ConfigError as error:
        raise UserError(str(error)) from None
    except OSError as error:
        raise UserError(f"cannot read {config}: {error.strerror}") from None
    raise typer.Exit(_serve(settings, runs_dir, resources, any_port=wanted_port is None))


def _serve(settings: ServerConfig, runs_dir: Path, limits: ResourceLimits, *, any_port: bool) -> int:
    from gymcast.server.cli_embed import failures_explained, serving
    from gymcast.server.cli_paths import database_url
    from gymcast.server.cli_signals import HANDLED, StopRequests
    from gymcast.server.logs import configure

    configure("DEBUG" if settings.debug else settings.log_level, settings.log_format)
    if settings.database.url is None and settings.data_storage_path is None:
        values = {**settings.database.model_dump(), "url": database_url(runs_dir)}
        settings = settings.model_copy(update={"database": type(settings.database)(**values)})

    async def work() -> int:
        with StopRequests(in_time=HANDLED) as stops:
            async with serving(settings, runs_dir=runs_dir, limits=limits, any_port=any_port, keep_sessions=True) as (
                server,
                _manager,
            ):
                # Where others can reach it, its page is known by the addresses that are listed.
                pages = [server.url] if settings.is_loopback else settings.security.cors_origins
                for page in pages:
                    typer.echo(f"Watch  {page}/")
                sys.stdout.flush()
                await stops.wait_for_more(0)
                typer.echo("Stopping: running trainings save a checkpoint; the next gymcast serve goes on.", err=True)
            return stops.exit_code

    with failures_explained():
        return asyncio.run(work())
