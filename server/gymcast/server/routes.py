"""The URL table."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from aiohttp import web

from .handlers import history, live, reports, sessions, system
from .problems import Problem

STATIC: Final = Path(__file__).parent / "static"
_SESSIONS: Final = "/api/training/sessions"
_ONE: Final = _SESSIONS + "/{session_id:[A-Za-z0-9_-]{1,64}}"
_REPLAY: Final = "/api/replays/{replay_id:[A-Za-z0-9_-]{1,64}}"


def add_routes(app: web.Application) -> None:
    """Every address of the server."""
    app.router.add_routes(
        [
            web.get("/", index),
            web.get("/static/vendor/plotly.min.js", plotly),
            web.get("/favicon.ico", favicon),
            web.get("/health", system.health),
            web.get("/health/live", system.health),
            web.get("/health/ready", system.ready),
            web.get("/status", system.status),
            web.get("/problems", system.problems),
            web.get("/problems/{slug}", system.problem),
            web.get("/api/training/queue", sessions.queue),
            web.get("/api/system/status", system.system_status),
            web.get("/api/envs", system.envs),
            web.get("/api/envs/{env_id:.+}", system.env),
            web.post(_SESSIONS, sessions.create),
            web.get(_SESSIONS, sessions.listing),
            web.get(_ONE, sessions.read),
            web.put(_ONE, sessions.update),
            web.delete(_ONE, sessions.delete),
            web.post(_ONE + "/pause", sessions.pause),
            web.post(_ONE + "/resume", sessions.resume),
            web.post(_ONE + "/stop", sessions.stop),
            web.get(_ONE + "/transitions", sessions.transitions),
            web.get(_ONE + "/metrics", sessions.metrics),
            web.post(_ONE + "/metrics", reports.metrics),
            web.post(_ONE + "/bot_decision", reports.bot_decision),
            web.post(_ONE + "/graph_update", reports.graph_update),
            web.post(_ONE + "/events", reports.events),
            web.get(_ONE + "/history", history.history),
            web.get(_ONE + "/checkpoints", sessions.checkpoints),
            web.get(_ONE + "/evaluations", sessions.evaluations),
            web.get(_ONE + "/logs", sessions.logs),
            web.get(_ONE + "/replays", history.replays),
            web.get("/api/replays", history.all_replays),
            web.get(_REPLAY, history.replay),
            web.get(_REPLAY + "/frames", history.frames),
            web.get("/ws/{session_id:[A-Za-z0-9_-]{1,64}}", live.live),
        ]
    )
    app.router.add_get("/static/{path:.+}", static)


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
