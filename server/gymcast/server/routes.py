"""The URL table."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Final, Literal

from aiohttp import web

from .auth import ROUTE_SCOPES, Scope
from .handlers import history, live, reports, sessions, system
from .problems import Problem

STATIC: Final = Path(__file__).parent / "static"
_SESSIONS: Final = "/api/training/sessions"
_ONE: Final = _SESSIONS + "/{session_id:[A-Za-z0-9_-]{1,64}}"
_REPLAY: Final = "/api/replays/{replay_id:[A-Za-z0-9_-]{1,64}}"


@dataclass(frozen=True, slots=True)
class Route:
    """One address. ``scope`` is what a caller has to be allowed: ``None`` is open to everyone."""

    method: Literal["GET", "POST", "PUT", "DELETE"]
    path: str
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    scope: Scope | None


def routes() -> tuple[Route, ...]:
    """Every address of the server."""
    return (
        Route("GET", "/", index, None),
        Route("GET", "/static/vendor/plotly.min.js", plotly, None),
        Route("GET", "/favicon.ico", favicon, None),
        Route("GET", "/health", system.health, None),
        Route("GET", "/health/live", system.health, None),
        Route("GET", "/health/ready", system.ready, None),
        Route("GET", "/status", system.status, "read"),
        Route("GET", "/problems", system.problems, None),
        Route("GET", "/problems/{slug}", system.problem, None),
        Route("GET", "/api/training/queue", sessions.queue, "read"),
        Route("GET", "/api/system/status", system.system_status, "read"),
        Route("GET", "/api/envs", system.envs, "read"),
        Route("GET", "/api/envs/{env_id:.+}", system.env, "read"),
        # ingest is enough for a session that somebody else trains; one that is trained here takes control (auth.py).
        Route("POST", _SESSIONS, sessions.create, "ingest"),
        Route("GET", _SESSIONS, sessions.listing, "read"),
        Route("GET", _ONE, sessions.read, "read"),
        Route("PUT", _ONE, sessions.update, "ingest"),
        Route("DELETE", _ONE, sessions.delete, "control"),
        Route("POST", _ONE + "/pause", sessions.pause, "control"),
        Route("POST", _ONE + "/resume", sessions.resume, "control"),
        Route("POST", _ONE + "/stop", sessions.stop, "control"),
        Route("GET", _ONE + "/transitions", sessions.transitions, "read"),
        Route("GET", _ONE + "/metrics", sessions.metrics, "read"),
        Route("POST", _ONE + "/metrics", reports.metrics, "ingest"),
        Route("POST", _ONE + "/bot_decision", reports.bot_decision, "ingest"),
        Route("POST", _ONE + "/graph_update", reports.graph_update, "ingest"),
        Route("POST", _ONE + "/events", reports.events, "ingest"),
        Route("GET", _ONE + "/history", history.history, "read"),
        Route("GET", _ONE + "/checkpoints", sessions.checkpoints, "read"),
        Route("GET", _ONE + "/evaluations", sessions.evaluations, "read"),
        Route("GET", _ONE + "/logs", sessions.logs, "read"),
        Route("GET", _ONE + "/replays", history.replays, "read"),
        Route("GET", "/api/replays", history.all_replays, "read"),
        Route("GET", _REPLAY, history.replay, "read"),
        Route("GET", _REPLAY + "/frames", history.frames, "read"),
        Route("GET", "/ws/{session_id:[A-Za-z0-9_-]{1,64}}", live.live, "read"),
        Route("GET", "/static/{path:.+}", static, None),
    )


def add_routes(app: web.Application) -> None:
    """Let ``app`` answer at every address."""
    scopes = app[ROUTE_SCOPES] = {}
    for route in routes():
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            scopes[app.router.add_route(method, route.path, route.handler)] = route.scope


async def index(_request: web.Request) -> web.FileResponse:
    """The page."""
    return web.FileResponse(STATIC / "index.html")


async def static(request: web.Request) -> web.FileResponse:
    """A file of the page, with an ETag."""
    return web.FileResponse(_static_file(request.match_info["path"]))


def _static_file(name: str) -> Path:
    try:
        path = (STATIC / name).resolve()
        found = path.is_relative_to(STATIC.resolve()) and path.is_file()
    except (OSError, ValueError):  # a name that is too long, or with a NUL in it
        found = False
    if not found:
        raise Problem("not-found", f"There is no file {name[:200]!r}.")
    return path


async def favicon(_request: web.Request) -> web.FileResponse:
    """The icon, for browsers that ask without being told where it is."""
    return web.FileResponse(STATIC / "favicon.svg")


async def plotly(_request: web.Request) -> web.FileResponse:
    """plotly.js as it comes in the ``plotly`` package, so that the page works offline."""
    return web.FileResponse(_PLOTLY)


def _find_plotly() -> Path:
    # The package itself is not imported: that takes a while, and only its file is wanted.
    spec = find_spec("plotly")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("the package plotly is missing; pip install plotly")
    return Path(spec.origin).parent / "package_data" / "plotly.min.js"


_PLOTLY: Final = _find_plotly()
