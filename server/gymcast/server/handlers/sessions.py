"""Sessions: create, list, read, change, delete, pause, resume, stop."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from aiohttp import hdrs, web
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from gymcast.server.problems import Problem, invalid
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.events import SessionStatus
from gymcast.training.storage import ACTIVE, MOVES, TERMINAL, SessionChanges, SessionRecord

from .common import (
    SERVICES,
    Manager,
    Services,
    answer,
    etag,
    if_match,
    page_query,
    parse_json,
    query_names,
    read_body,
    read_json,
    session_id_of,
    validate,
)

_Id = Annotated[str, Field(min_length=1, max_length=128)]
_Count = Annotated[int, Field(ge=0, le=2**53)]
_Priority = Annotated[int, Field(ge=-1000, le=1000)]


class _Body(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ExternalSession(_Body):
    """A training that someone else runs and reports on."""

    training_session_id: _Id
    model_generation: _Count
    algorithm: _Id
    total_episodes: _Count | None
    room_code: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    enable_spectators: bool = True


class ManagedSession(_Body):
    """A training that this server runs. ``config`` are fields of ``TrainingConfig`` in either spelling."""

    config: dict[str, Any]
    priority: _Priority = 0
    enable_spectators: bool | None = None


class SessionUpdate(_Body):
    """What PUT may change; fields that are left out stay."""

    status: SessionStatus | None = None
    current_episode: _Count | None = None
    end_time: AwareDatetime | None = None
    priority: _Priority | None = None


async def create(request: web.Request) -> web.Response:
    """``POST /api/training/sessions``: 201 with the session and its Location."""
    services = request.app[SERVICES]
    body = await read_body(request)
    value = parse_json(body)
    if not isinstance(value, dict):
        raise invalid("", "dict_type", "expected an object")
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return _created(services, await _create(services, value))
    if not 1 <= len(key) <= 255 or not key.isascii() or not key.isprintable():
        raise invalid("Idempotency-Key", "header", "expected 1 to 255 printable ASCII characters")
    known = await services.storage.claim_key(key, hashlib.sha256(body).hexdigest())
    if known is not None:
        return _created(services, await services.storage.get_session(known))
    made: str | None = None
    try:
        record = await _create(services, value)
        made = record.session_id
    finally:
        await services.storage.settle_key(key, made)
    return _created(services, record)


def _created(services: Services, record: SessionRecord) -> web.Response:
    location = f"/api/training/sessions/{record.session_id}"
    return answer(services.info(record), status=201, headers={hdrs.LOCATION: location, hdrs.ETAG: etag(record)})


async def _create(services: Services, value: Mapping[str, Any]) -> SessionRecord:
    if "config" not in value:
        external = validate(ExternalSession, value)
        return await services.storage.create_session(kind="external", **external.model_dump())
    managed = validate(ManagedSession, value)
    try:
        config = TrainingConfig.from_request(managed.config)
        config = await asyncio.to_thread(_known_game, config)
    except ConfigError as error:
        raise config_problem(error) from None
    manager = services.manager
    if manager is None:
        raise Problem(
            "not-managed",
            "This server takes reports of trainings but runs none. Start it with 'gymcast serve', or run the training"
            " yourself and create the session with training_session_id, model_generation, algorithm, total_episodes.",
        )
    try:
        return await manager.create_session(
            config, priority=managed.priority, enable_spectators=managed.enable_spectators
        )
    except ValueError as error:
        # A manager refuses what its limits can never grant with a ValueError that names the limit.
        raise invalid("/config", "limit", str(error)) from None


def _known_game(config: TrainingConfig) -> TrainingConfig:
    """``config`` with the full id of its environment. Raises :class:`ConfigError` for an unknown one or bad options."""
    # Loaded on first use: the games bring their compiled kernels along.
    from gymcast.envs import GAMES, OptionValueError, UnknownEnvError, UnknownOptionError, resolve_env_id

    try:
        env_id = resolve_env_id(config.env_id)
    except UnknownEnvError as error:
        raise ConfigError("unknown environment", [("env_id", str(error))]) from None
    problems = []
    if env_id in GAMES:
        for name, value in config.env_kwargs.items():
            try:
                GAMES[env_id].complete_options({name: value})
            except (UnknownOptionError, OptionValueError) as error:
                problems.append((f"env_kwargs.{name}", str(error)))
    if problems:
        raise ConfigError("bad options of the environment", problems)
    return config.model_copy(update={"env_id": env_id})


def config_problem(error: ConfigError) -> Problem:
    """A 422 with every problem of a training configuration."""
    errors = [
        {"pointer": "/config/" + field.replace(".", "/"), "code": "config", "message": text}
        for field, text in error.problems
    ]
    return Problem("invalid-values", "; ".join(f"{field}: {text}" for field, text in error.problems), errors=errors)


async def listing(request: web.Request) -> web.Response:
    """``GET /api/training/sessions?status=a,b|active=true&limit=&cursor=``: newest first."""
    services = request.app[SERVICES]
    cursor, limit = page_query(request)
    statuses = query_names(request, "status")
    if statuses is not None and (unknown := [status for status in statuses if status not in MOVES]):
        raise invalid("status", "query_parameter", f"unknown: {', '.join(unknown)}; known: {', '.join(MOVES)}")
    if request.query.get("active") in ("1", "true"):
        statuses = [status for status in MOVES if status not in TERMINAL and (statuses is None or status in statuses)]
    records, following = await services.storage.list_sessions(cursor=cursor, limit=limit, statuses=statuses)
    return answer({"sessions": [services.info(record) for record in records], "next_cursor": following})


async def read(request: web.Request) -> web.Response:
    """``GET /api/training/sessions/{id}``: with ETag; 304 when ``If-None-Match`` has it."""
    services = request.app[SERVICES]
    record = await services.storage.get_session(session_id_of(request))
    tag = etag(record)
    given = [part.strip().removeprefix("W/") for part in request.headers.get(hdrs.IF_NONE_MATCH, "").split(",")]
    if tag in given or "*" in given:
        return web.Response(status=304, headers={hdrs.ETAG: tag})
    return answer(services.info(record), headers={hdrs.ETAG: tag})


async def update(request: web.Request) -> web.Response:
    """``PUT /api/training/sessions/{id}``: the changed session."""
    services = request.app[SERVICES]
    session_id = session_id_of(request)
    given = validate(SessionUpdate, await read_json(request))
    expected = if_match(request)
    record = await services.storage.get_session(session_id)
    changes: SessionChanges = {}
    if given.current_episode is not None:
        changes["current_episode"] = given.current_episode
        if record.kind == "external" and record.total_episodes:
            changes["progress"] = min(1.0, given.current_episode / record.total_episodes)
    if given.end_time is not None:
        changes["end_time"] = given.end_time
    if given.priority is not None:
        changes["priority"] = given.priority
    if given.status is not None and record.kind == "external":
        changes["status"] = given.status
        changes["desired"] = _desired_by(given.status)
    if changes or given.status is None:
        record = await services.storage.update_session(session_id, expected_version=expected, **changes)
        expected = None
    if given.status is not None and record.kind == "managed":
        if expected is not None and record.version != expected:
            raise Problem("version-mismatch", f"The session is at version {record.version}, not at {expected}.")
        record = await _steer(services, record, given.status)
    return answer(services.info(record), headers={hdrs.ETAG: etag(record)})


def _desired_by(status: str) -> str:
    """What a producer should do once its session was put into ``status``."""
    if status in ("paused", "cancelled"):
        return status
    return "stopping" if status in TERMINAL or status == "stopping" else "running"


async def _steer(services: Services, record: SessionRecord, status: str) -> SessionRecord:
    """Ask the manager of a session for a status; what it has become already is fine."""
    if status == record.status:
        return record
    if record.status in TERMINAL:
        raise Problem("conflict", f"The session is {record.status}; it has ended.")
    manager = services.manager
    managed = manager if manager is not None and manager.manages(record.session_id) else None
    if status == "paused":
        return await _wish(services, managed, record, "paused")
    if status == "running":
        return await _wish(services, managed, record, "running")
    if status in ("stopping", "completed", "cancelled"):
        if managed is not None:
            return await managed.stop_session(record.session_id)
        return await services.storage.update_session(record.session_id, desired="stopping")
    raise Problem("conflict", f"{status} is set by the server itself; ask for paused, running, stopping or cancelled.")


async def _wish(
    services: Services, manager: Manager | None, record: SessionRecord, desired: Literal["paused", "running"]
) -> SessionRecord:
    if record.status not in ACTIVE or record.status == "stopping":
        raise Problem("conflict", f"The session is {record.status}, so it cannot be told to become {desired}.")
    if manager is None:
        return await services.storage.update_session(record.session_id, desired=desired)
    return await (manager.pause_session if desired == "paused" else manager.resume_session)(record.session_id)


async def pause(request: web.Request) -> web.Response:
    """``POST .../pause``: the producer is told with its next report."""
    return await _ask(request, "paused")


async def resume(request: web.Request) -> web.Response:
    """``POST .../resume``."""
    return await _ask(request, "running")


async def stop(request: web.Request) -> web.Response:
    """``POST .../stop``: graceful, with a checkpoint."""
    return await _ask(request, "stopping")


async def _ask(request: web.Request, status: str) -> web.Response:
    services = request.app[SERVICES]
    record = await services.storage.get_session(session_id_of(request))
    record = await _steer(services, record, status)
    return answer(services.info(record), headers={hdrs.ETAG: etag(record)})


async def delete(request: web.Request) -> web.Response:
    """``DELETE /api/training/sessions/{id}``: 204; a managed session has to have ended."""
    services = request.app[SERVICES]
    session_id = session_id_of(request)
    manager = services.manager
    if manager is not None and manager.manages(session_id):
        raise Problem("conflict", "The session is running; stop it first (POST .../stop), then delete it.")
    await services.storage.delete_session(session_id, expected_version=if_match(request))
    return web.Response(status=204)


async def transitions(request: web.Request) -> web.Response:
    """``GET .../transitions``: every change of status, oldest first."""
    services = request.app[SERVICES]
    record = await services.storage.get_session(session_id_of(request))
    return answer({"transitions": await services.storage.transitions(record.session_id)})
