"""Sessions: create, list, read, change, delete, pause, resume, stop. What they mean is said by ``TrainingAPI``."""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from aiohttp import hdrs, web
from pydantic import ValidationError
from pydantic.alias_generators import to_camel

from gymcast.server.auth import PRINCIPAL, require
from gymcast.server.problems import Problem, from_validation, invalid
from gymcast.training.config import ConfigError
from gymcast.training.sessions import NotManagedError, SessionLimitError
from gymcast.training.storage import MOVES, TERMINAL, Page

from .common import (
    SERVICES,
    Services,
    answer,
    etag,
    if_match,
    parse_json,
    read_body,
    read_json,
    session_id_of,
    whole,
)
from .queries import LogsQuery, PageQuery, SessionsQuery

_NOT_ENDED: Final = tuple(status for status in MOVES if status not in TERMINAL)


async def create(request: web.Request) -> web.Response:
    """Create a session.

    A managed one waits in the queue until gymcast trains it; an external one takes the reports of someone else's
    trainer. With an `Idempotency-Key` (kept for 24 hours) a request that is sent again answers with the session that
    the first one made.
    """
    services = request.app[SERVICES]
    body = await read_body(request)
    value = parse_json(body)
    if not isinstance(value, dict):
        raise invalid("", "dict_type", "expected an object")
    value = {name: whole(item) for name, item in value.items()}
    if "config" in value:
        require(request[PRINCIPAL], "control")
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return _created(services, await _create(services, value))
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise invalid("Idempotency-Key", "header", "expected 1 to 255 printable ASCII characters")
    # Of one caller: nobody is to get at a session of somebody else by the same key.
    key = hashlib.sha256(f"{request[PRINCIPAL].subject}\n{key}".encode()).hexdigest()
    known = await services.storage.claim_key(key, hashlib.sha256(body).hexdigest())
    if known is not None:
        return _created(services, await services.api.get_training_session(known))
    made: str | None = None
    try:
        session = await _create(services, value, key)
        made = session["session_id"]
    finally:
        await services.storage.settle_key(key, made)
    return _created(services, session)


def _created(services: Services, session: dict[str, Any]) -> web.Response:
    location = f"/api/training/sessions/{session['session_id']}"
    return answer(services.info(session), status=201, headers={hdrs.LOCATION: location, hdrs.ETAG: etag(session)})


async def _create(services: Services, value: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    try:
        return await services.api.create_training_session(value, repeat_key=key)
    except ValidationError as error:
        raise from_validation(error) from None
    except ConfigError as error:
        raise config_problem(error, value.get("config")) from None
    except SessionLimitError as error:
        raise invalid(_pointer(error.field, value.get("config")), "limit", str(error)) from None
    except NotManagedError as error:
        raise Problem("not-managed", str(error)) from None


def config_problem(error: ConfigError, config: Any) -> Problem:
    """A 422 with every problem of the training configuration ``config``."""
    errors = [{"pointer": _pointer(field, config), "code": "config", "message": text} for field, text in error.problems]
    return Problem("invalid-values", "; ".join(f"{field}: {text}" for field, text in error.problems), errors=errors)


def _pointer(field: str, config: Any) -> str:
    """Where ``field``, in snake_case, is in a body: in the spelling that it has there."""
    pointer = "/config"
    for part in field.split("."):
        given = config if isinstance(config, dict) else {}
        name = to_camel(part) if part not in given and to_camel(part) in given else part
        pointer, config = f"{pointer}/{name}", given.get(name)
    return pointer


async def listing(request: web.Request, query: SessionsQuery) -> web.Response:
    """List sessions.

    Newest first.
    """
    services = request.app[SERVICES]
    statuses: Sequence[str] | None = query.status
    if query.active:
        statuses = tuple(name for name in _NOT_ENDED if statuses is None or name in statuses)
    page = await services.api.list_training_sessions(statuses=statuses, cursor=query.cursor, limit=query.limit)
    return answer({"sessions": [services.info(item) for item in page.items], "next_cursor": page.next_cursor})


async def read(request: web.Request) -> web.Response:
    """Get a session.

    304 when `If-None-Match` has its ETag.
    """
    services = request.app[SERVICES]
    session = await services.api.get_training_session(session_id_of(request))
    tag = etag(session)
    given = [part.strip().removeprefix("W/") for part in request.headers.get(hdrs.IF_NONE_MATCH, "").split(",")]
    if tag in given or "*" in given:
        return web.Response(status=304, headers={hdrs.ETAG: tag})
    return _changed(services, session)


def _changed(services: Services, session: dict[str, Any]) -> web.Response:
    return answer(services.info(session), headers={hdrs.ETAG: etag(session)})


async def update(request: web.Request) -> web.Response:
    """Change a session.

    Of an external session the status is set, of a managed one it is a wish: paused, running, stopping (or completed),
    cancelled. With `If-Match` nothing is changed unless the session is as it was when it was read.
    """
    services = request.app[SERVICES]
    value = await read_json(request)
    if isinstance(value, dict):
        value = {name: whole(item) for name, item in value.items()}
    try:
        session = await services.api.update_training_session(
            session_id_of(request), value, expected_version=await _expected(request)
        )
    except ValidationError as error:
        raise from_validation(error) from None
    return _changed(services, session)


async def pause(request: web.Request) -> web.Response:
    """Pause a session.

    A producer is told with its next report.
    """
    services = request.app[SERVICES]
    return _changed(services, await services.api.pause_training_session(session_id_of(request)))


async def resume(request: web.Request) -> web.Response:
    """Let a paused session go on.

    A producer is told with its next report.
    """
    services = request.app[SERVICES]
    return _changed(services, await services.api.resume_training_session(session_id_of(request)))


async def stop(request: web.Request) -> web.Response:
    """Stop a session with a checkpoint.

    A producer is told with its next report.
    """
    services = request.app[SERVICES]
    return _changed(services, await services.api.stop_training_session(session_id_of(request)))


async def delete(request: web.Request) -> web.Response:
    """Delete a session.

    Everything stored for it goes with it. A managed session has to have ended.
    """
    services = request.app[SERVICES]
    await services.api.delete_training_session(session_id_of(request), expected_version=await _expected(request))
    return web.Response(status=204)


async def _expected(request: web.Request) -> int | None:
    """The version that ``If-Match`` asks for; ``None`` without one. Raises :class:`Problem` when it has another."""
    versions = if_match(request)
    if versions is None or len(versions) == 1:
        return None if versions is None else versions[0]
    version: int = (await request.app[SERVICES].api.get_training_session(session_id_of(request)))["version"]
    if version not in versions:
        raise Problem("version-mismatch", f"The session is at version {version}, which If-Match does not name.")
    return version


async def queue(request: web.Request) -> web.Response:
    """Get the queue.

    What waits to be trained, whoever is next first, each with the reason why it waits.
    """
    return answer({"queue": request.app[SERVICES].api.get_queue()})


async def metrics(request: web.Request) -> web.Response:
    """Get the metrics of a session.

    The table of them is docs/metrics.md.
    """
    session_id = session_id_of(request)
    return answer(
        {"session_id": session_id, "metrics": await request.app[SERVICES].api.get_session_metrics(session_id)}
    )


async def transitions(request: web.Request) -> web.Response:
    """List changes of status.

    Oldest first.
    """
    return answer({"transitions": await request.app[SERVICES].api.get_transitions(session_id_of(request))})


async def checkpoints(request: web.Request, query: PageQuery) -> web.Response:
    """List checkpoints.

    Newest first.
    """
    return await _list(request, query, "checkpoints", request.app[SERVICES].api.get_checkpoints)


async def evaluations(request: web.Request, query: PageQuery) -> web.Response:
    """List evaluations.

    Newest first.
    """
    return await _list(request, query, "evaluations", request.app[SERVICES].api.get_evaluations)


async def errors(request: web.Request, query: PageQuery) -> web.Response:
    """List errors and alarms.

    What the training reported to have gone wrong, newest first: the newest `metrics_history_size` reports are kept.
    """
    return await _list(request, query, "errors", request.app[SERVICES].api.get_errors)


async def logs(request: web.Request, query: LogsQuery) -> web.Response:
    """List lines of the log.

    Newest first, of a session that was trained on this machine; none of a training elsewhere.
    """
    return await _list(request, query, "logs", request.app[SERVICES].api.get_logs, source=query.source)


async def _list(
    request: web.Request, query: PageQuery, name: str, read: Callable[..., Awaitable[Page[Any]]], **more: Any
) -> web.Response:
    page = await read(session_id_of(request), cursor=query.cursor, limit=query.limit, **more)
    return answer({name: page.items, "next_cursor": page.next_cursor})
