"""Middlewares: who may talk to the server, errors as problem+json, headers that keep the page safe."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Final

from aiohttp import hdrs, web
from yarl import URL

from gymcast.training.storage import StorageBusyError, StorageError, StorageUnavailableError

from .auth import PRINCIPAL
from .config import ServerConfig
from .handlers.common import CONFIG
from .logs import REQUEST_ID, Seldom, log_access, request_id
from .problems import Problem, from_http, from_storage
from .prometheus import REQUESTS

log = logging.getLogger(__name__)
# Requests that the database cannot serve.
_refused = Seldom(log)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
_CORS_METHODS: Final = "GET, POST, PUT, DELETE"
_CORS_HEADERS: Final = "Authorization, Content-Type, If-Match, If-None-Match, Idempotency-Key"
_EXPOSED: Final = "ETag, Location, RateLimit, RateLimit-Policy, Retry-After, WWW-Authenticate, X-Request-Id"
# Scripts and styles come from files of this server only; the page brings plotly's style rules in a file of its own.
CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data: blob:",
        "font-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def _path(request: web.Request) -> str:
    """The path for the log: without the query, where somebody may have put a secret, and without new lines."""
    return request.rel_url.raw_path


@web.middleware
async def errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer every error as problem+json; what nobody expected becomes a 500 that tells nothing but its id.

    The outermost middleware, so it knows every answer: here it gets its id, is counted and, if wished, logged.
    """
    requests = request.app[REQUESTS]
    requests.begin()
    try:
        begun = time.perf_counter()
        instance = request_id(request.headers.get("X-Request-Id"))
        REQUEST_ID.set(instance)
        response = await _answer(request, handler, instance)
        if not response.prepared:
            response.headers["X-Request-Id"] = instance
        seconds = time.perf_counter() - begun
        requests.note(request, response.status, seconds)
        if request.app[CONFIG].access_log:
            principal = request.get(PRINCIPAL)
            who = principal.subject if principal is not None else "-"
            log_access(request.method, _path(request), response.status, 1000 * seconds, who)
        return response
    finally:
        requests.end()


async def _answer(request: web.Request, handler: Handler, instance: str) -> web.StreamResponse:
    try:
        return await handler(request)
    except Problem as problem:
        return problem.response(instance)
    except StorageError as error:
        if isinstance(error, StorageUnavailableError | StorageBusyError):
            _refused.warning("%s %s (%s): %s", request.method, _path(request), instance, error)
        return from_storage(error).response(instance)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return from_http(error, request.path, request.method).response(instance)
    except Exception:
        log.exception("%s %s (%s) failed", request.method, _path(request), instance)
        return Problem("internal-error", "The server failed to answer; its log tells why.").response(instance)


@web.middleware
async def origins(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Keep pages of other origins out, so that a web page cannot drive a server that trusts its own machine.

    The Host header has to name this server (a page of another name that resolves to this address is refused: DNS
    rebinding). When other machines may reach the server, any IP address is fine too: no page has one for a name that
    resolves to something else. A request that can change something, and every WebSocket, must come from this origin
    (which has to be listed too where other machines may reach the server) or a listed one, or from no page at all.
    """
    config = request.app[CONFIG]
    host = _host(request.headers.get(hdrs.HOST, ""))
    if host not in config.host_names and (config.is_loopback or not _is_address(host)):
        raise Problem(
            "foreign-host", f"The Host header names {request.headers.get(hdrs.HOST, '')[:100]!r}; see allowed_hosts."
        )
    origin = request.headers.get(hdrs.ORIGIN)
    allowed = _allows(config, request, origin)
    upgrade = hdrs.UPGRADE in request.headers
    if not allowed and (upgrade or request.method not in _SAFE_METHODS):
        raise Problem("foreign-origin", f"{(origin or 'the page')[:100]} is not allowed here; see cors_origins.")
    if request.method == "OPTIONS" and origin is not None and "Access-Control-Request-Method" in request.headers:
        if not allowed:
            raise Problem("foreign-origin", f"{origin[:100]} is not allowed here; see cors_origins.")
        return web.Response(
            status=204,
            headers={
                hdrs.ACCESS_CONTROL_ALLOW_METHODS: _CORS_METHODS,
                hdrs.ACCESS_CONTROL_ALLOW_HEADERS: _CORS_HEADERS,
                hdrs.ACCESS_CONTROL_MAX_AGE: "600",
            },
        )
    return await handler(request)


@lru_cache(maxsize=256)
def _host(given: str) -> str:
    """The host name in a Host header, without its port; empty when it cannot be read."""
    try:
        return (URL(f"http://{given}").host or "").lower()
    except ValueError:
        return ""


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _allows(config: ServerConfig, request: web.Request, origin: str | None) -> bool:
    if origin is None:
        # Not from a page, or from a browser that tells the same in this header.
        return request.headers.get("Sec-Fetch-Site", "none") in ("none", "same-origin")
    if origin.lower() in config.security.cors_origins:
        return True
    # The Host header says who this server is only where nobody but this machine can send one.
    return config.is_loopback and origin.lower() == f"{request.scheme}://{request.headers.get(hdrs.HOST, '')}".lower()


async def add_headers(request: web.Request, response: web.StreamResponse) -> None:
    """Signal handler: headers of every answer, errors included."""
    headers = response.headers
    headers[hdrs.SERVER] = "gymcast"  # and not which versions of what
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None:
        headers.add(hdrs.VARY, "Origin")
        if origin.lower() in request.app[CONFIG].security.cors_origins:
            headers[hdrs.ACCESS_CONTROL_ALLOW_ORIGIN] = origin
            headers[hdrs.ACCESS_CONTROL_EXPOSE_HEADERS] = _EXPOSED
    headers.setdefault("X-Content-Type-Options", "nosniff")
    headers.setdefault("Referrer-Policy", "no-referrer")
    if hdrs.ACCESS_CONTROL_ALLOW_ORIGIN not in headers:
        headers.setdefault("Cross-Origin-Resource-Policy", "same-origin")
    headers.setdefault("Content-Security-Policy", CONTENT_SECURITY_POLICY)
    # Files are checked by their ETag each time, answers of the API are never kept.
    is_file = request.path in ("/", "/docs", "/favicon.ico") or request.path.startswith("/static/")
    headers.setdefault(hdrs.CACHE_CONTROL, "no-cache" if is_file else "no-store")
