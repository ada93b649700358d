"""Runs managed sessions under limits: a queue, one worker process per running session, and their ends."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from gymcast.training.config import ResourceLimits, TrainingConfig
from gymcast.training.storage import ACTIVE, TERMINAL, NotFoundError, SessionRecord, Storage, new_id
from gymcast.training.storage.errors import StateError, StorageError

from .leftovers import deliver_leftovers
from .process import WorkerExit, WorkerProcess, creation_time, outcome, someone_watches

log = logging.getLogger(__name__)

CONFIG_NAME: Final = "config.yaml"
SESSION_NAME: Final = "session.json"
_STARTING_GRACE_SECONDS: Final = 3.0


class SessionLimitError(ValueError):
    """A session asks for more than :class:`ResourceLimits` ever grants one session."""


@dataclass
class _Managed:
    """A session of this manager that has not ended."""

    session_id: str
    config: TrainingConfig
    run_dir: Path
    resume: bool
    priority: int
    worker: WorkerProcess | None = None
    retries: int = 0
    stop_reason: str | None = None
    """Why it is to end; ``None`` while nobody has asked for it."""
    watcher: asyncio.Task[None] | None = None
    escalation: asyncio.Task[None] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)


class SessionManager:
    """Starts, watches and stops the managed sessions of one server.

    Use it as ``async with SessionManager(storage, runs_dir=..., server_url=...)``. Sessions wait in order of priority
    (higher first), then of creation; one that does not fit does not hold back a smaller one behind it. Leaving the
    context stops every session with a checkpoint.

    Stopping goes in steps: the wish is told to the worker through the answers to its events; after ``polite_seconds``
    it gets SIGTERM, after ``grace_seconds`` more it is killed.
    """

    def __init__(
        self,
        storage: Storage,
        *,
        runs_dir: str | Path,
        server_url: str,
        limits: ResourceLimits | None = None,
        polite_seconds: float = 10.0,
        grace_seconds: float = 30.0,
        ends_with_parent: bool = True,
    ) -> None:
        self.storage = storage
        self.runs_dir = Path(runs_dir)
        self.server_url = server_url
        self.limits = limits if limits is not None else ResourceLimits()
        self._polite_seconds = polite_seconds
        self._grace_seconds = grace_seconds
        self._ends_with_parent = ends_with_parent
        self._sessions: dict[str, _Managed] = {}
        self._closing = False

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def start(self) -> None:
        """Settle what a server that was killed left behind: its sessions have nobody to watch them any more."""
        cursor = None
        while True:
            records, cursor = await self.storage.list_sessions(
                cursor=cursor, limit=1000, statuses=[*ACTIVE, "queued", "retrying"]
            )
            for record in records:
                if record.kind == "managed" and not someone_watches(record.resources or {}):
                    await self._abandon(record)
            if cursor is None:
                return

    async def _abandon(self, record: SessionRecord) -> None:
        run_dir = (record.resources or {}).get("run_dir")
        if run_dir:
            # The worker outlived its server: how it ended waits in its folder.
            await deliver_leftovers(self.storage, record.session_id, Path(run_dir), with_status=True)
            if (await self.storage.get_session(record.session_id)).status in TERMINAL:
                return
        hint = f"; go on with: gymcast train --resume {run_dir}" if run_dir else ""
        with contextlib.suppress(StateError, NotFoundError):  # another process has settled it meanwhile
            await self.storage.update_session(
                record.session_id, status="failed", reason=f"the server that ran it has ended{hint}"
            )

    async def close(self) -> None:
        """Stop every session, queued ones included, and wait until their processes are gone."""
        self._closing = True
        for managed in list(self._sessions.values()):
            await self._stop(managed, "the server is shutting down", urgent=True)
        await asyncio.gather(*(managed.ended.wait() for managed in list(self._sessions.values())))

    # What callers ask for

    async def create_session(
        self,
        config: TrainingConfig,
        *,
        priority: int = 0,
        run_dir: str | Path | None = None,
        resume: bool = False,
        enable_spectators: bool | None = None,
    ) -> SessionRecord:
        """Queue a training and start it as soon as the limits allow.

        ``run_dir`` is by default ``runs_dir/<session id>``. With ``resume`` the worker goes on from the newest good
        checkpoint in ``run_dir``, and the session this database knows for the folder is taken up again instead of
        making another one. Raises :class:`SessionLimitError`, ``StorageError``, ``OSError``.
        """
        if config.parallel_episodes > self.limits.max_parallel_episodes_per_session:
            raise SessionLimitError(
                f"parallel_episodes is {config.parallel_episodes}; one session may have at most "
                f"{self.limits.max_parallel_episodes_per_session} (max_parallel_episodes_per_session)"
            )
        if config.parallel_episodes > self.limits.max_total_parallel_episodes:
            raise SessionLimitError(
                f"parallel_episodes is {config.parallel_episodes}; all sessions together may have at most "
                f"{self.limits.max_total_parallel_episodes} (max_total_parallel_episodes)"
            )
        session_id = new_id()
        folder = Path(run_dir) if run_dir is not None else self.runs_dir / session_id
        known = await self._session_of(folder) if resume else None
        session_id = known.session_id if known is not None else session_id
        await asyncio.to_thread(_write_run, folder, config, session_id)
        resources = {
            "run_dir": str(folder.resolve()),
            "server_pid": os.getpid(),
            "server_created": creation_time(os.getpid()),
        }
        if known is not None:
            await deliver_leftovers(self.storage, session_id, folder, with_status=False)
            record = await self.storage.update_session(
                session_id, reopen=True, status="queued", config=_public(config), resources=resources, priority=priority
            )
        else:
            record = await self.storage.create_session(
                kind="managed",
                session_id=session_id,
                algorithm=config.algorithm,
                env_id=config.env_id,
                total_episodes=config.max_episodes,
                total_timesteps=config.total_timesteps,
                enable_spectators=config.spectator_enabled if enable_spectators is None else enable_spectators,
                priority=priority,
                config=_public(config),
                resources=resources,
            )
        self._sessions[session_id] = _Managed(session_id, config, folder, resume, priority)
        await self._start_what_fits()
        return await self.storage.get_session(record.session_id)

    async def stop_session(self, session_id: str, *, urgent: bool = False, reason: str | None = None) -> SessionRecord:
        """Stop with a checkpoint; returns at once, :meth:`wait` tells when it is done.

        ``urgent`` sends SIGTERM now instead of waiting for the worker's next report. A session that has ended stays as
        it is. Raises :class:`~gymcast.training.storage.NotFoundError`.
        """
        managed = self._sessions.get(session_id)
        if managed is not None:
            await self._stop(managed, reason or "stopped by request", urgent=urgent)
        return await self.storage.get_session(session_id)

    def kill_session(self, session_id: str) -> None:
        """End a worker and its children at once, without a checkpoint."""
        managed = self._sessions.get(session_id)
        if managed is not None and managed.worker is not None:
            managed.stop_reason = managed.stop_reason or "ended at once by request"
            managed.worker.kill()

    async def pause_session(self, session_id: str) -> SessionRecord:
        """Ask a running session to pause; its process keeps everything in memory."""
        return await self._wish(session_id, "paused")

    async def resume_session(self, session_id: str) -> SessionRecord:
        """Let a paused session go on."""
        return await self._wish(session_id, "running")

    async def _wish(self, session_id: str, desired: str) -> SessionRecord:
        record = await self.storage.get_session(session_id)
        if record.status not in ("starting", "running", "paused"):
            raise StateError(record.status, desired, ())
        return await self.storage.update_session(session_id, desired=desired)

    async def wait(self, session_id: str) -> SessionRecord:
        """Wait until a session has ended and its process is gone."""
        managed = self._sessions.get(session_id)
        if managed is not None:
            await managed.ended.wait()
        return await self.storage.get_session(session_id)

    def manages(self, session_id: str) -> bool:
        """Whether this manager has the session queued or running."""
        return session_id in self._sessions

    @property
    def worker_pids(self) -> dict[str, int]:
        """Process id of each session's worker."""
        return {key: managed.worker.pid for key, managed in self._sessions.items() if managed.worker is not None}

    # The queue

    async def _start_what_fits(self) -> None:
        for managed in sorted(self._sessions.values(), key=lambda one: (-one.priority, one.session_id)):
            if managed.watcher is None and managed.stop_reason is None and not self._closing and self._fits(managed):
                # Set before anything is awaited, so that no second caller starts it too.
                managed.watcher = asyncio.create_task(self._run(managed), name=f"session {managed.session_id}")

    def _fits(self, wanted: _Managed) -> bool:
        running = [managed for managed in self._sessions.values() if managed.watcher is not None]
        lanes = sum(managed.config.parallel_episodes for managed in running)
        return (
            len(running) < self.limits.max_concurrent_sessions
            and lanes + wanted.config.parallel_episodes <= self.limits.max_total_parallel_episodes
        )

    # One session, from its start to its end

    async def _run(self, managed: _Managed) -> None:
        try:
            while await self._run_worker(managed):
                managed.resume = True
        except StorageError as error:
            log.error("session %s: its state could not be stored: %s", managed.session_id, error)
        finally:
            if managed.worker is not None and managed.worker.running:
                managed.worker.kill()
            await self._forget(managed)

    async def _run_worker(self, managed: _Managed) -> bool:
        """One attempt, from its start to its end; true when there is to be another one."""
        session_id = managed.session_id
        record = await self.storage.get_session(session_id)
        await self.storage.update_session(session_id, status="starting", attempts=record.attempts + 1)
        try:
            managed.worker = await WorkerProcess.start(
                run_dir=managed.run_dir,
                server_url=self.server_url,
                session_id=session_id,
                resume=managed.resume,
                ends_with_parent=self._ends_with_parent,
            )
        except OSError as error:
            await self._settle(session_id, "failed", f"the worker could not be started: {error}")
            return False
        worker = managed.worker
        if managed.stop_reason is not None:
            worker.terminate()
        resources = {**(record.resources or {}), "pid": worker.pid, "pid_created": worker.created}
        try:
            await self.storage.update_session(session_id, resources=resources)
        except StorageError as error:
            # A database that cannot be written (disk full) is no reason to end a training that runs.
            log.warning("session %s: its process id could not be stored: %s", session_id, error)
        result = await worker.wait()
        if await self._tries_again(managed, result):
            return True
        status, reason = outcome(result, managed.stop_reason is not None)
        if status == "failed" and (last := worker.log_tail()):
            reason = f"{reason}: {last}"
        await self._settle(session_id, status, reason, managed.stop_reason)
        return False

    async def _tries_again(self, managed: _Managed, result: WorkerExit) -> bool:
        """Whether a worker that was killed (a crash, the system out of memory) is followed by another one.

        An error that a worker has reported itself would only come again.
        """
        if not result.killed or managed.stop_reason is not None or managed.retries >= managed.config.max_retries:
            return False
        managed.retries += 1
        again = f"attempt {managed.retries + 1} of {managed.config.max_retries + 1} goes on from the newest checkpoint"
        await deliver_leftovers(self.storage, managed.session_id, managed.run_dir, with_status=False)
        try:
            reason = f"{result.describe()}; {again}"
            await self.storage.update_session(managed.session_id, status="retrying", reason=reason)
        except StateError:
            return False  # it had reported its end before
        return True

    async def _settle(self, session_id: str, status: str, reason: str | None, stop_reason: str | None = None) -> None:
        """Store the end of a session; the end its worker has reported stands, but for the reason of a stop.

        A worker only knows the signal it was stopped with, ``stop_reason`` says why.
        """
        record = await self.storage.get_session(session_id)
        if record.status in TERMINAL:
            if record.status == "cancelled" and stop_reason is not None:
                await self.storage.update_session(session_id, reason=stop_reason)
            return
        with contextlib.suppress(StateError):  # the worker's own report came between the two statements
            await self.storage.update_session(session_id, status=status, reason=stop_reason or reason)

    async def _forget(self, managed: _Managed) -> None:
        if managed.escalation is not None:
            managed.escalation.cancel()
        self._sessions.pop(managed.session_id, None)
        managed.ended.set()
        await self._start_what_fits()

    async def _stop(self, managed: _Managed, reason: str, *, urgent: bool) -> None:
        managed.stop_reason = managed.stop_reason or reason
        if managed.watcher is None:
            await self._settle(managed.session_id, "cancelled", reason)
            await self._forget(managed)
            return
        # The signal goes first: it must not wait for a database that cannot be written.
        if urgent and managed.worker is not None:
            managed.worker.terminate()
        if managed.escalation is None:
            grace = await self._grace_of(managed)
            managed.escalation = asyncio.create_task(
                self._escalate(managed, 0.0 if urgent else self._polite_seconds, grace)
            )
        try:
            await self.storage.update_session(
                managed.session_id, desired="stopping", status="stopping", reason=reason, allowed_from=list(ACTIVE)
            )
        except (StateError, NotFoundError):
            pass  # it ended, or was deleted, meanwhile
        except StorageError as error:
            log.error("session %s: the stop could not be stored, signals will do: %s", managed.session_id, error)

    async def _grace_of(self, managed: _Managed) -> float:
        """Seconds between SIGTERM and SIGKILL: few for a worker that has trained nothing it could save."""
        try:
            begun = (await self.storage.get_session(managed.session_id)).status != "starting"
        except StorageError as error:
            log.warning("session %s: its status cannot be read: %s", managed.session_id, error)
            begun = True
        return self._grace_seconds if begun else min(_STARTING_GRACE_SECONDS, self._grace_seconds)

    async def _escalate(self, managed: _Managed, polite: float, grace: float) -> None:
        await asyncio.sleep(polite)
        if managed.worker is not None:
            managed.worker.terminate()
        await asyncio.sleep(grace)
        if managed.worker is not None:
            log.warning("session %s did not end within its grace time and is killed", managed.session_id)
            managed.worker.kill()

    async def _session_of(self, run_dir: Path) -> SessionRecord | None:
        """The ended session that made ``run_dir``, if this database has it."""
        try:
            text = await asyncio.to_thread((run_dir / SESSION_NAME).read_text, encoding="utf-8")
            record = await self.storage.get_session(str(json.loads(text)["session_id"]))
        except (OSError, ValueError, KeyError, TypeError, NotFoundError):
            return None
        return record if record.status in TERMINAL else None


def _public(config: TrainingConfig) -> dict[str, Any]:
    return config.model_dump(mode="json")


def _write_run(run_dir: Path, config: TrainingConfig, session_id: str) -> None:
    """Write what the worker reads; each file appears complete or not at all."""
    run_dir.mkdir(parents=True, exist_ok=True)
    for name, text in ((CONFIG_NAME, config.to_yaml()), (SESSION_NAME, json.dumps({"session_id": session_id}) + "\n")):
        part = run_dir / f".{name}.part"
        part.write_text(text, encoding="utf-8")
        part.replace(run_dir / name)
