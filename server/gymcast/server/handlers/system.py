"""The server about itself: health, status, the games it knows, its problem types."""

from __future__ import annotations

import asyncio
import time
from importlib.metadata import version
from typing import Any, Final

import psutil
from aiohttp import web

from gymcast.server.games import games
from gymcast.server.problems import PROBLEM_TYPES, Problem
from gymcast.server.prometheus import REQUESTS, expose
from gymcast.training.storage import ACTIVE, StorageError

from .common import SERVICES, answer

# Later than this, the writer is called behind; its queue refuses work at two seconds.
_READY_LAG_S: Final = 1.0
# Measures the time since its last call, so there has to be one object for the whole process.
_process: Final = psutil.Process()

_VERSION: Final = version("gymcast")  # looking it up takes longer than everything else of an answer


async def health(request: web.Request) -> web.Response:
    """Tell that the process answers.

    The database is not touched.
    """
    services = request.app[SERVICES]
    return answer({"status": "healthy", "version": _VERSION, "uptime_seconds": time.monotonic() - services.started})


async def ready(request: web.Request) -> web.Response:
    """Tell whether the server can take work.

    The database has to answer, and the writer to keep up. Without Redis it can do its work, so it answers 200 with
    ``degraded`` and stays in a proxy's rotation.
    """
    services = request.app[SERVICES]
    storage, link = services.storage, services.fan_out.link
    lag = storage.lag_seconds
    try:
        await storage.count_sessions(sorted(ACTIVE))
        database = "ok"
    except StorageError:
        database = "unavailable"
    if database != "ok" or lag >= _READY_LAG_S:
        raise Problem(
            "not-ready", f"The database is {database}; the writer is {lag:.1f} s behind.", headers={"Retry-After": "5"}
        )
    redis = "off" if link is None else "ok" if link.is_connected else "unavailable"
    status = "degraded" if redis == "unavailable" else "ready"
    return answer({"status": status, "database": database, "redis": redis, "writer_lag_seconds": lag})


async def prometheus(request: web.Request) -> web.Response:
    """Tell Prometheus what the server counts; docs/deployment.md has the names."""
    body = await expose(request.app[SERVICES], request.app[REQUESTS])
    return web.Response(body=body, headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"})


async def status(request: web.Request) -> web.Response:
    """Get the load of the server."""
    services = request.app[SERVICES]
    return answer(
        {
            "status": "running",
            "version": _VERSION,
            "active_sessions": await services.storage.count_sessions(sorted(ACTIVE)),
            "total_connections": services.hub.connections,
            "uptime_seconds": time.monotonic() - services.started,
            "memory_usage_mb": _process.memory_info().rss / 2**20,
            "cpu_usage_percent": _process.cpu_percent(),
            "runs_trainings": services.api.manager is not None,
        }
    )


async def system_status(request: web.Request) -> web.Response:
    """Get resources, limits and totals."""
    return answer(await request.app[SERVICES].api.get_system_status())


async def envs(_request: web.Request) -> web.Response:
    """List the built-in games."""
    return answer({"envs": await asyncio.to_thread(games)})


async def env(request: web.Request) -> web.Response:
    """Get a built-in game.

    By its id or its short name.
    """
    wanted = request.match_info["env_id"]
    for game in await asyncio.to_thread(games):
        if wanted in (game["id"], game["name"]):
            return answer(game)
    raise Problem("not-found", f"There is no built-in game {wanted!r}; GET /api/envs lists them.")


async def problem(request: web.Request) -> web.Response:
    """Get the meaning of a problem type."""
    slug = request.match_info["slug"]
    if slug not in PROBLEM_TYPES:
        raise Problem("not-found", f"There is no problem type {slug!r}; GET /problems lists them.")
    return answer(_described(slug))


async def problems(_request: web.Request) -> web.Response:
    """List problem types."""
    return answer({"problems": [_described(slug) for slug in PROBLEM_TYPES]})


def _described(slug: str) -> dict[str, Any]:
    code, title, meaning = PROBLEM_TYPES[slug]
    return {"type": f"/problems/{slug}", "status": code, "title": title, "description": meaning}
