"""The files of the page."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Final

from aiohttp import web

from gymcast.server.problems import Problem

STATIC: Final = Path(__file__).parent.parent / "static"


async def index(_request: web.Request) -> web.FileResponse:
    """The page."""
    return web.FileResponse(STATIC / "index.html")


async def docs(_request: web.Request) -> web.FileResponse:
    """The page that shows the OpenAPI document."""
    return web.FileResponse(STATIC / "docs.html")


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
