"""``TrainingAPI``: what a server's REST paths do, as methods that take and return JSON values."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Annotated, Any, Literal, Self

import psutil
from pydantic import BaseModel, ConfigDict, Field

from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.env_settings import refused_code
from gymcast.training.events import SessionStatus, Timestamp
from gymcast.training.limits import ResourceLimits
from gymcast.training.storage import (
    ACTIVE,
    TERMINAL,
    HistoryRange,
    Page,
    SessionChanges,
    SessionRecord,
    StateError,
    Storage,
    TransitionItem,
    VersionConflictError,
)

from .logs import read_log
from .manager import SessionManager
from .metrics import session_metrics
from .session import known_game
from .usage import ALERT_SHARE

_Id = Annotated[str, Field(min_length=1, max_length=128)]
_Count = Annotated[int, Field(ge=0, le=2**53)]
_Priority = Annotated[int, Field(ge=-1000, le=1000)]


class NotManagedError(RuntimeError):
    """This API takes reports of trainings but runs none."""


class _Body(BaseModel):
    # Strict: a number is not taken out of a text, nor true out of 1.
    model_config = ConfigDict(extra="forbid", strict=True, protected_namespaces=())


class ExternalSession(_Body):
    """A training that someone else runs and reports on."""

    training_session_id: _Id
    model_generation: _Count
    algorithm: _Id
    total_episodes: _Count | None
    env_id: _Id | None = None
    room_code: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    enable_spectators: bool = True


class ManagedSession(_Body):
    """A training that is run here. ``config`` are fields of ``TrainingConfig`` in either spelling."""

    config: dict[str, Any]
    priority: _Priority = 0
    enable_spectators: bool | None = None


class SessionUpdate(_Body):
    """What may be changed; fields that are left out stay."""

    status: SessionStatus | None = None
    current_episode: _Count | None = None
    end_time: Annotated[Timestamp, Field(strict=False)] | None = None
    priority: _Priority | None = None


class TrainingAPI:
    """Sessions by JSON, as the REST paths of a server answer. ``await start()`` it, or use ``async with``.

    Without arguments it brings a :class:`SessionManager` of its own, whose runs are kept in ``runs_dir``; a server
    gives its ``storage``, the ``gym_packages`` that requests may name (``None``: any), and a ``manager`` when it runs
    trainings. Methods raise pydantic's ``ValidationError`` and
    :class:`~gymcast.training.ConfigError` for values that cannot be used, ``SessionLimitError``,
    :class:`NotManagedError` and the errors of :mod:`gymcast.training.storage`.
    """

    def __init__(
        self,
        *,
        manager: SessionManager | None = None,
        storage: Storage | None = None,
        resource_limits: ResourceLimits | None = None,
        runs_dir: str | Path = "runs",
        gym_packages: Sequence[str] | None = None,
    ) -> None:
        self.manager = manager
        self._packages = gym_packages
        self._storage = storage
        self._own: SessionManager | None = None
        if manager is None and storage is None:
            self._own = self.manager = SessionManager(resource_limits=resource_limits, runs_dir=runs_dir)
        self._begun = time.monotonic()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start the manager it has brought. Raises ``StorageError``, ``OSError``."""
        if self._own is not None:
            await self._own.start()

    async def stop(self) -> None:
        """Stop the manager it has brought, and with it every session, with a checkpoint each."""
        if self._own is not None:
            await self._own.stop()

    @property
    def storage(self) -> Storage:
        """Where sessions are kept."""
        if self._storage is not None:
            return self._storage
        assert self.manager is not None
        return self.manager.storage

    def _runs(self) -> SessionManager:
        if self.manager is None:
            raise NotManagedError(
                "This server takes reports of trainings but runs none. Start it with 'gymcast serve', or run the"
                " training yourself and create the session with training_session_id, model_generation, algorithm,"
                " total_episodes."
            )
        return self.manager

    # Sessions

    async def create_training_session(
        self, body: Mapping[str, Any], *, repeat_key: str | None = None
    ) -> dict[str, Any]:
        """Queue ``{config, priority?, enable_spectators?}``, or announce an external training; returns its info.

        ``repeat_key`` is a key that ``Storage.claim_key`` has begun.
        """
        if "config" not in body:
            external = ExternalSession.model_validate(body)
            made = await self.storage.create_session(kind="external", repeat_key=repeat_key, **external.model_dump())
            return made.to_json()
        managed = ManagedSession.model_validate(body)
        config = TrainingConfig.from_request(managed.config)
        if self._packages is not None:
            refused = refused_code(config.gym_packages, config.wrappers, self._packages)
            if refused:
                raise ConfigError("code is not taken from requests", refused)
        config = await asyncio.to_thread(known_game, config)
        session_id = await self._runs().create_session(
            config, priority=managed.priority, enable_spectators=managed.enable_spectators, repeat_key=repeat_key
        )
        return await self.get_training_session(session_id)

    async def get_training_session(self, session_id: str) -> dict[str, Any]:
        """The session's info."""
        return (await self.storage.get_session(session_id)).to_json()

    async def list_training_sessions(
        self, *, statuses: Sequence[str] | None = None, cursor: str | None = None, limit: int = 100
    ) -> Page[Any]:
        """Sessions, newest first."""
        records, following = await self.storage.list_sessions(cursor=cursor, limit=limit, statuses=statuses)
        return Page([record.to_json() for record in records], following)

    async def update_training_session(
        self, session_id: str, body: Mapping[str, Any], *, expected_version: int | None = None
    ) -> dict[str, Any]:
        """Change ``{status?, current_episode?, end_time?, priority?}``; returns the info.

        Of a managed session the status is a wish: paused, running, stopping (or completed) and cancelled.
        """
        given = SessionUpdate.model_validate(body)
        record = await self.storage.get_session(session_id)
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
            record = await self.storage.update_session(session_id, expected_version=expected_version, **changes)
        elif expected_version is not None and record.version != expected_version:
            raise VersionConflictError(expected_version, record.version)
        if given.status is not None and record.kind == "managed":
            record = await self._steer(record, given.status)
        return record.to_json()

    async def pause_training_session(self, session_id: str) -> dict[str, Any]:
        """Pause; the producer is told with its next report."""
        return await self._ask(session_id, "paused")

    async def resume_training_session(self, session_id: str) -> dict[str, Any]:
        """Let a paused session go on."""
        return await self._ask(session_id, "running")

    async def stop_training_session(self, session_id: str) -> dict[str, Any]:
        """Stop with a checkpoint."""
        return await self._ask(session_id, "stopping")

    async def cancel_training_session(self, session_id: str) -> dict[str, Any]:
        """End without another checkpoint."""
        return await self._ask(session_id, "cancelled")

    async def delete_training_session(self, session_id: str, *, expected_version: int | None = None) -> None:
        """Delete a session with everything stored for it; a managed one has to have ended."""
        record = await self.storage.get_session(session_id)
        if record.kind == "managed" and record.status not in TERMINAL and self.manager is not None:
            raise StateError(record.status, "deleted (stop it first)", ("stopping",))
        await self.storage.delete_session(session_id, expected_version=expected_version)

    async def _ask(self, session_id: str, status: str) -> dict[str, Any]:
        return (await self._steer(await self.storage.get_session(session_id), status)).to_json()

    async def _steer(self, record: SessionRecord, status: str) -> SessionRecord:
        """Ask for a status; what the session has become already is fine."""
        if status == record.status and record.desired in (status, "running"):
            return record
        if record.status in TERMINAL:
            raise StateError(record.status, status, ())
        if record.kind == "external" or self.manager is None:
            return await self._tell_producer(record, status)
        match status:
            case "paused":
                return await self.manager.pause_session(record.session_id)
            case "running":
                return await self.manager.resume_session(record.session_id)
            case "stopping" | "completed":
                return await self.manager.stop_session(record.session_id)
            case "cancelled":
                return await self.manager.cancel_session(record.session_id)
        raise StateError(record.status, status, ("paused", "running", "stopping", "cancelled"))

    async def _tell_producer(self, record: SessionRecord, status: str) -> SessionRecord:
        """An external training hears the wish with the answer to its next report."""
        if status in ("paused", "running") and (record.status not in ACTIVE or record.status == "stopping"):
            raise StateError(record.status, status, ())
        desired = "stopping" if status == "completed" else status
        if desired not in ("paused", "running", "stopping", "cancelled"):
            raise StateError(record.status, status, ("paused", "running", "stopping", "cancelled"))
        return await self.storage.update_session(record.session_id, desired=desired)

    # What is known of them

    async def get_session_metrics(self, session_id: str) -> dict[str, Any]:
        """How it does, see docs/metrics.md."""
        record = await self.storage.get_session(session_id)
        usage = None if self.manager is None else self.manager.usage(session_id)
        return session_metrics(record, await self.storage.last_metrics(session_id), usage).to_json()

    async def get_transitions(self, session_id: str) -> list[TransitionItem]:
        """Every change of status, oldest first."""
        await self.storage.get_session(session_id)
        return await self.storage.transitions(session_id)

    async def get_checkpoints(self, session_id: str, *, cursor: str | None = None, limit: int = 100) -> Page[Any]:
        """Checkpoints, newest first."""
        await self.storage.get_session(session_id)
        return await self.storage.checkpoints(session_id, cursor=cursor, limit=limit)

    async def get_evaluations(self, session_id: str, *, cursor: str | None = None, limit: int = 100) -> Page[Any]:
        """Evaluations, newest first."""
        await self.storage.get_session(session_id)
        return await self.storage.evaluations(session_id, cursor=cursor, limit=limit)

    async def get_errors(self, session_id: str, *, cursor: str | None = None, limit: int = 100) -> Page[Any]:
        """What the training reported to have gone wrong, newest first."""
        await self.storage.get_session(session_id)
        return await self.storage.errors(session_id, cursor=cursor, limit=limit)

    async def get_history(
        self,
        session_id: str,
        wanted: HistoryRange | None = None,
        *,
        points: int | None = None,
        kinds: Collection[str] = ("training_metrics", "graph_update"),
        metrics: Sequence[str] | None = None,
        cursor: str | None = None,
        limit: int = 100,
        max_raw_rows: int = 10_000,
    ) -> dict[str, Any]:
        """What was reported in a range: readings, graphs, and decisions (``bot_decision``) when ``kinds`` names them.

        Readings come as at most ``points`` buckets of ``metrics`` (all without it), or without ``points`` as they were
        sent, in pages. ``max_raw_rows`` are as many readings as a short history may scan instead of the sums.
        """
        wanted = wanted or HistoryRange()
        storage = self.storage
        await storage.get_session(session_id)
        page: Page[dict[str, Any]] = Page([], None)
        total = 0
        if "training_metrics" in kinds and points is None:
            total = await storage.count_readings(session_id, wanted)
            page = await storage.history_raw(session_id, wanted, limit=limit, cursor=cursor)
        elif "training_metrics" in kinds and points is not None:
            buckets = await storage.history(
                session_id, wanted, points=points, metrics=metrics, max_raw_rows=max_raw_rows
            )
            total, page = sum(bucket["count"] for bucket in buckets), Page(buckets, None)
        found = {
            "session_id": session_id,
            "resolution": "raw" if points is None else "buckets",
            "metrics_data": page.items,
            "graph_data": await storage.graphs(session_id, wanted) if "graph_update" in kinds else [],
            "total_points": total,
            "next_cursor": page.next_cursor,
        }
        if "bot_decision" in kinds:
            found["decision_data"] = await storage.decisions(session_id, wanted, limit=limit)
        return found

    async def get_replays(
        self, session_id: str | None = None, *, cursor: str | None = None, limit: int = 100
    ) -> Page[Any]:
        """Footage of a session, or of all of them, newest first."""
        if session_id is not None:
            await self.storage.get_session(session_id)
        return await self.storage.replays(session_id, cursor=cursor, limit=limit)

    async def get_logs(
        self, session_id: str, *, source: Literal["run", "worker"] = "run", cursor: str | None = None, limit: int = 100
    ) -> Page[Any]:
        """Lines of the run's log, or of what its worker printed, newest first; none of a training elsewhere."""
        record = await self.storage.get_session(session_id)
        run_dir = (record.resources or {}).get("run_dir")
        if run_dir is None:
            return Page([], None)
        return await asyncio.to_thread(read_log, Path(run_dir), source, cursor, limit)

    def get_queue(self) -> list[dict[str, Any]]:
        """What waits, whoever is next first, with the reason."""
        return [] if self.manager is None else self.manager.get_queue()

    async def get_system_status(self) -> dict[str, Any]:
        """Resources, limits and totals; see docs/sessions.md."""
        memory = psutil.virtual_memory()
        status: dict[str, Any] = {
            "status": "running",
            "runs_trainings": self.manager is not None,
            "uptime_seconds": time.monotonic() - self._begun,
            "machine": {
                "cpus": os.cpu_count(),
                "cpu_percent": psutil.cpu_percent(),
                "memory_total_mb": memory.total / 2**20,
                "memory_available_mb": memory.available / 2**20,
            },
            "active_sessions": await self.storage.count_sessions(sorted(ACTIVE)),
            "limits": None,
            "metrics": None,
            "queue_length": 0,
        }
        if self.manager is not None:
            status["limits"] = {**self.manager.limits.model_dump(mode="json"), "alert_share": ALERT_SHARE}
            status["metrics"] = await self.manager.get_global_metrics()
            status["queue_length"] = len(self.manager.get_queue())
        return status


def _desired_by(status: str) -> str:
    """What a producer should do once its session was put into ``status``."""
    if status in ("paused", "cancelled"):
        return status
    return "stopping" if status in TERMINAL or status == "stopping" else "running"
