"""Runs managed sessions under limits: what callers ask for. The work itself is done in :mod:`.pool`."""

from __future__ import annotations

import asyncio
import platform
from collections.abc import Callable, Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from gymcast.training.config import TrainingConfig
from gymcast.training.limits import ResourceLimits
from gymcast.training.run_folder import FileLock, Orders, write_config
from gymcast.training.storage import LEASE_SECONDS, MOVES, TERMINAL, NotFoundError, SessionRecord, Storage, new_id
from gymcast.training.storage.errors import StateError

from .adoption import Identity, remove_old_locks
from .batch.handlers import Handlers
from .leftovers import deliver_leftovers
from .metrics import SessionMetrics, global_metrics, outcome_counts, session_metrics
from .pool import Pool
from .queue import in_order
from .supervise import Patience, Stop
from .usage import ResourceAlert, Usage

DATABASE_NAME: Final = "gymcast.db"
_MANAGERS: Final = ".managers"
_HANDLER_SECONDS: Final = 5.0
_ELSEWHERE_SECONDS: Final = 0.5


class SessionLimitError(ValueError):
    """A session asks for more than :class:`ResourceLimits` ever grants one session. ``field`` is the setting it is."""

    def __init__(self, field: str, text: str) -> None:
        self.field = field
        super().__init__(f"{field} is {text}")


class SessionManager:
    """Queues, starts, watches and stops managed sessions, each of them a process of its own.

    ``await start()`` it, or use it as ``async with SessionManager(...)``; ``await stop()`` ends every session with a
    checkpoint. ``storage`` is where sessions and what they report are kept; without one it opens the SQLite file
    ``gymcast.db`` in ``runs_dir``, the one that ``gymcast serve`` shows.

    With ``keep_sessions`` sessions outlive their manager: workers go on when it dies and are taken over by the next
    one, and :meth:`stop` puts what runs back into the queue. Without it they end with this process.
    ``polite_seconds`` and ``grace_seconds`` are the steps of a stop; leases are renewed every ``heartbeat_seconds`` and
    valid for ``lease_seconds`` (docs/sessions.md).

    Handlers may be plain or ``async`` functions. One that raises, blocks or is slow is counted and logged
    (:meth:`get_global_metrics`), and disturbs neither a session nor another handler. Methods raise the errors of
    :mod:`gymcast.training.storage`.
    """

    def __init__(
        self,
        *,
        resource_limits: ResourceLimits | None = None,
        storage: Storage | None = None,
        runs_dir: str | Path = "runs",
        keep_sessions: bool = False,
        polite_seconds: float = 10.0,
        grace_seconds: float = 30.0,
        heartbeat_seconds: float = 10.0,
        lease_seconds: float = LEASE_SECONDS,
    ) -> None:
        if not 0.0 < 2.0 * heartbeat_seconds <= lease_seconds:
            raise ValueError(
                f"heartbeat_seconds {heartbeat_seconds:g} and lease_seconds {lease_seconds:g}: a lease has to last two"
                " heartbeats or more, or one that comes late would give sessions away"
            )
        self.limits = resource_limits if resource_limits is not None else ResourceLimits()
        self.runs_dir = Path(runs_dir)
        self._given_storage = storage
        self._keeps = keep_sessions
        self._patience = Patience(polite_seconds, grace_seconds)
        self._pulse = (heartbeat_seconds, lease_seconds)
        self._handlers = Handlers("start", "complete", "alert")
        self._storage = storage
        self._pool: Pool | None = None
        self._lock: FileLock | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Begin to work: take over what an earlier manager left behind, then start what fits.

        Raises ``StorageError``, ``OSError``.
        """
        if self._pool is not None:
            raise RuntimeError("this manager has been started already")
        folder = self.runs_dir.resolve() / _MANAGERS
        folder.mkdir(parents=True, exist_ok=True)
        if self._storage is None:
            self._storage = await Storage.open(f"sqlite:///{self.runs_dir.resolve() / DATABASE_NAME}")
        name = new_id()
        self._lock = FileLock(folder / name)
        self._lock.take()
        node = platform.node()
        me = Identity(f"{node[:64]}:{name}", node, self._lock.path, self._keeps, *self._pulse)
        pool = Pool(
            self._storage,
            self.limits,
            self._patience,
            me,
            started=lambda record: self._handlers.emit("start", record),
            ended=lambda record: self._handlers.emit("complete", record),
            alerted=lambda alert: self._handlers.emit("alert", alert),
        )
        await pool.open()
        await asyncio.to_thread(remove_old_locks, folder)
        self._pool = pool

    async def stop(
        self,
        reason: str = "its manager is shutting down",
        *,
        within: float | None = None,
        beside: Coroutine[Any, Any, None] | None = None,
    ) -> None:
        """End every session with a checkpoint, and wait until their processes are gone.

        With ``within`` this takes about as many seconds at most: whoever has not ended by then is killed, and goes on
        from its newest checkpoint. ``beside`` is done at the same time; until it has ended as well, sessions can be
        created, for the next manager.
        """
        if self._pool is None:
            return
        await asyncio.gather(self._pool.close(reason, within), *(() if beside is None else (beside,)))
        self._pool = None
        await self._handlers.close(_HANDLER_SECONDS)
        if self._lock is not None:
            self._lock.give_back()
        if self._given_storage is None and self._storage is not None:
            await self._storage.close()
            self._storage = None

    @property
    def storage(self) -> Storage:
        """Where sessions are kept. ``RuntimeError`` before :meth:`start` when none was given."""
        if self._storage is None:
            raise RuntimeError("await start() first")
        return self._storage

    @property
    def pool(self) -> Pool:
        """The sessions at work. ``RuntimeError`` unless started."""
        if self._pool is None:
            raise RuntimeError("the manager does not run; await start() first")
        return self._pool

    # Sessions

    async def create_session(
        self,
        config: TrainingConfig,
        *,
        priority: int = 0,
        run_dir: str | Path | None = None,
        resume: bool = False,
        enable_spectators: bool | None = None,
        report_episodes: bool = False,
        hold: bool = False,
        repeat_key: str | None = None,
    ) -> str:
        """Queue a training; it starts as soon as the limits allow. Returns the session's id.

        ``run_dir`` is by default ``runs_dir/<session id>``. With ``resume`` the worker goes on from the newest good
        checkpoint in ``run_dir``, and the session this database knows for the folder is taken up again instead of
        making another one. ``report_episodes`` has every finished episode reported; ``hold`` waits for
        :meth:`release_session`, ``repeat_key`` is one that ``Storage.claim_key`` has begun.

        Raises :class:`SessionLimitError`, ``StorageError``, ``OSError``.
        """
        self._check_limits(config)
        pool, storage = self.pool, self.storage
        session_id = new_id()
        folder = (Path(run_dir) if run_dir is not None else self.runs_dir / session_id).resolve()
        known = await self._session_of(folder) if resume else None
        await asyncio.to_thread(write_config, folder, config)
        since = await storage.leases.now_us()
        resources: dict[str, Any] = {"run_dir": str(folder), "waits_since_us": since, **pool.me.mark()}
        resources |= {name: True for name, on in (("resume", resume), ("report_episodes", report_episodes)) if on}
        config_json = config.model_dump(mode="json")
        if known is not None:
            await deliver_leftovers(storage, known.session_id, folder)
            record = await storage.update_session(
                known.session_id,
                reopen=True,
                status="queued",
                config=config_json,
                resources=resources,
                priority=priority,
            )
        else:
            record = await storage.create_session(
                kind="managed",
                repeat_key=repeat_key,
                session_id=session_id,
                algorithm=config.algorithm,
                env_id=config.env_id,
                total_episodes=config.max_episodes,
                total_timesteps=config.total_timesteps,
                enable_spectators=config.spectator_enabled if enable_spectators is None else enable_spectators,
                priority=priority,
                config=config_json,
                resources=resources,
            )
        pool.add(record, config, held=hold)
        return record.session_id

    def _check_limits(self, config: TrainingConfig) -> None:
        for name, whose in (
            ("max_parallel_episodes_per_session", "one session may"),
            ("max_total_parallel_episodes", "all sessions together may"),
        ):
            allowed = getattr(self.limits, name)
            if config.parallel_episodes > allowed:
                raise SessionLimitError(
                    "parallel_episodes", f"{config.parallel_episodes}; {whose} have at most {allowed} ({name})"
                )
        workers = 0 if config.workers == "auto" else min(config.workers, config.parallel_episodes)
        if workers > (most := self.limits.allowed_workers):
            raise SessionLimitError(
                "workers",
                f"{config.workers}; one session may have at most {most} processes that step its environments"
                " (max_workers_per_session); give fewer, or leave it out for one for each processor",
            )

    async def _session_of(self, run_dir: Path) -> SessionRecord | None:
        """The ended session that made ``run_dir``, if this database has it."""
        try:
            orders = await asyncio.to_thread(Orders.read, run_dir)
            record = await self.storage.get_session(orders.session_id)
        except (OSError, ValueError, TypeError, NotFoundError):
            return None
        return record if record.status in TERMINAL else None

    def release_session(self, session_id: str) -> None:
        """Let a session that was created with ``hold`` start."""
        self.pool.release(session_id)

    async def stop_session(
        self, session_id: str, *, urgent: bool = False, within: float | None = None, reason: str | None = None
    ) -> SessionRecord:
        """Stop with a checkpoint; returns at once, :meth:`wait` tells when it is done.

        ``urgent`` sends SIGTERM now instead of waiting for the worker's next report; ``within`` seconds later at most
        comes SIGKILL. Raises :class:`~gymcast.training.storage.StateError` for a session that has ended.
        """
        return await self._end(session_id, Stop(reason or "stopped by request"), urgent, within)

    async def cancel_session(self, session_id: str, *, reason: str | None = None) -> SessionRecord:
        """End a session without another checkpoint; those it has written stay."""
        return await self._end(session_id, Stop(reason or "cancelled by request", save=False))

    async def _end(
        self, session_id: str, stop: Stop, urgent: bool = False, within: float | None = None
    ) -> SessionRecord:
        record = await self.storage.get_session(session_id)
        if record.status in TERMINAL:
            raise StateError(record.status, "stopping", ())
        session = self.pool.sessions.get(session_id)
        if session is not None and session.watcher is None:
            await self.pool.cancel_waiting(session, stop.reason)
        elif session is not None:
            await session.end(stop, urgent=urgent, within=within)
        else:  # another manager's: its worker hears of the wish through the database
            waits = record.status in ("queued", "retrying")
            status = "cancelled" if waits else "stopping"
            desired = "stopping" if stop.save else "cancelled"
            await self.storage.update_session(session_id, status=status, desired=desired, reason=stop.reason)
        return await self.storage.get_session(session_id)

    def kill_session(self, session_id: str) -> None:
        """End a worker and its children at once, without a checkpoint."""
        session = self.pool.sessions.get(session_id)
        if session is not None and session.worker is not None:
            session.stop = session.stop or Stop("ended at once by request")
            session.worker.kill()

    async def pause_session(self, session_id: str) -> SessionRecord:
        """Ask a running session to pause; its process keeps everything in memory, and a checkpoint is written.

        Raises :class:`~gymcast.training.storage.StateError` for a session that does not run.
        """
        return await self._wish(session_id, "paused")

    async def resume_session(self, session_id: str) -> SessionRecord:
        """Let a paused session go on. Raises :class:`~gymcast.training.storage.StateError` for one that is not."""
        return await self._wish(session_id, "running")

    async def _wish(self, session_id: str, desired: str) -> SessionRecord:
        record = await self.storage.get_session(session_id)
        runs = record.status in ("starting", "running", "paused") and record.desired in ("running", "paused")
        # A paused session whose manager was shut down waits in the queue until it is resumed.
        waits = record.status == "queued" and record.desired == "paused" and desired == "running"
        if not runs and not waits:
            raise StateError(record.status, desired, MOVES[record.status])
        return await self.storage.update_session(session_id, desired=desired, allowed_from=(record.status,))

    async def wait(self, session_id: str) -> SessionRecord:
        """Wait until a session has ended and its process is gone, or until this manager has stopped."""
        session = self._pool.sessions.get(session_id) if self._pool is not None else None
        if session is not None:
            await session.ended.wait()
        while self._pool is not None:
            record = await self.storage.get_session(session_id)
            if record.status in TERMINAL:
                return record
            await asyncio.sleep(_ELSEWHERE_SECONDS)  # another manager has it
        return await self.storage.get_session(session_id)

    def manages(self, session_id: str) -> bool:
        """Whether this manager has the session queued or running."""
        return session_id in self.pool.sessions

    @property
    def worker_pids(self) -> dict[str, int]:
        """Process id of each session's worker."""
        return {key: one.worker.pid for key, one in self.pool.sessions.items() if one.worker is not None}

    # What is known of them

    async def get_session_info(self, session_id: str) -> dict[str, Any]:
        """The session's record with its ``metrics`` (:data:`.metrics.SESSION_METRICS`), as JSON values."""
        record = await self.storage.get_session(session_id)
        reading = await self.storage.last_metrics(session_id)
        return {**record.to_json(), "metrics": session_metrics(record, reading, self.usage(session_id)).to_json()}

    def usage(self, session_id: str) -> Usage | None:
        """What the processes of a session used when last measured; ``None`` unless it runs here."""
        return self._pool.usage.get(session_id) if self._pool is not None else None

    async def get_global_metrics(self) -> dict[str, Any]:
        """All managed sessions of the database together; see docs/metrics.md."""
        found: list[tuple[SessionRecord, SessionMetrics, list[float]]] = []
        cursor = None
        while True:
            records, cursor = await self.storage.list_sessions(cursor=cursor, limit=1000)
            records = [record for record in records if record.kind == "managed"]
            readings = await self.storage.newest_readings([record.session_id for record in records])
            for record in records:
                reading = readings.get(record.session_id)
                metrics = session_metrics(record, reading, self.usage(record.session_id))
                found.append((record, metrics, outcome_counts(reading)))
            if cursor is None:
                break
        running = self.pool.running()
        handlers = self._handlers.counts()
        return {
            **global_metrics(found, [one.session_id for one in running]),
            "parallel_episodes": sum(one.lanes for one in running),
            "handler_failures": sum(one.failed for one in handlers),
            "handler_drops": sum(one.dropped for one in handlers),
        }

    def get_queue(self) -> list[dict[str, Any]]:
        """What waits here, whoever is next first, each with the reason why it waits."""
        return [
            {
                "position": position,
                "session_id": one.session_id,
                "priority": one.priority,
                "rank": one.rank,
                "waited_seconds": round(one.waited, 1),
                "parallel_episodes": one.lanes,
                "status": self.pool.sessions[one.session_id].record.status,
                "reason": self.pool.sessions[one.session_id].record.wait_reason,
            }
            for position, one in enumerate(in_order(self.pool.waiting()), 1)
        ]

    # Handlers

    def register_session_start_handler(self, handler: Callable[[SessionRecord], Any]) -> None:
        """Call ``handler(record)`` whenever a session's worker is started or taken over."""
        self._handlers.register("start", handler)

    def register_session_complete_handler(self, handler: Callable[[SessionRecord], Any]) -> None:
        """Call ``handler(record)`` when a session has ended; ``record.status`` says how."""
        self._handlers.register("complete", handler)

    def register_resource_alert_handler(self, handler: Callable[[ResourceAlert], Any]) -> None:
        """Call ``handler(alert)`` when 80 % of a limit are used, and when it is exceeded."""
        self._handlers.register("alert", handler)
