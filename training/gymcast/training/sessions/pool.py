"""The sessions of one manager at work: who starts, who makes room, what they use, whose lease is renewed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.limits import ResourceLimits
from gymcast.training.run_folder import LOG_NAME, Orders
from gymcast.training.storage import TERMINAL, WAITING, Committed, NotFoundError, SessionRecord, Storage, StorageError

from .adoption import Identity, find_sessions
from .output import bound_output
from .queue import Running, Waiting, plan
from .receiver import EventReceiver
from .supervise import Patience, Stop, Supervised
from .usage import SAMPLE_SECONDS, ResourceAlert, Sampler, Usage, Watch, pick_victim

log = logging.getLogger(__name__)

TICK_SECONDS: Final = 1.0
SCAN_SECONDS: Final = 5.0
# For the state of a session whose worker has been killed to be stored.
SETTLE_SECONDS: Final = 2.0
_HELD: Final = "start_training() has not been called"
_PAUSED: Final = "paused on request; it starts when it is resumed"


class Pool:
    """Sessions that wait or run here, by id. ``started``, ``ended`` and ``alerted`` are told what happens to them."""

    def __init__(
        self,
        storage: Storage,
        limits: ResourceLimits,
        patience: Patience,
        me: Identity,
        *,
        started: Callable[[SessionRecord], None],
        ended: Callable[[SessionRecord], None],
        alerted: Callable[[ResourceAlert], None],
    ) -> None:
        self.storage = storage
        self.limits = limits
        self.patience = patience
        self.me = me
        self.sessions: dict[str, Supervised] = {}
        self.usage: dict[str, Usage] = {}
        self._started, self._ended, self._alerted = started, ended, alerted
        self._receiver = EventReceiver(storage)
        self._sampler = Sampler()
        self._watch = Watch(limits)
        self._wake = asyncio.Event()
        self._closing = False
        self._unlisten = storage.listen(self._note_change)
        self._tasks: list[asyncio.Task[None]] = []

    async def open(self) -> None:
        """Look for sessions without a manager, then begin to work. Raises ``StorageError``."""
        await self.scan()
        for work, seconds in (
            (self._dispatch, TICK_SECONDS),
            (self._renew, self.me.heartbeat_seconds),
            (self._measure, SAMPLE_SECONDS),
            (self.scan, min(SCAN_SECONDS, self.me.heartbeat_seconds)),
        ):
            self._tasks.append(asyncio.create_task(self._every(seconds, work), name=f"sessions {work.__name__}"))

    async def close(self, reason: str, within: float | None = None) -> None:
        """End every session, with a checkpoint; those that are to be kept go back to the queue for the next manager.

        Workers that have not ended ``within`` seconds are killed. What cannot be stored then is left to the next
        manager, as of one that was killed.
        """
        self._closing = True
        stop = Stop(reason, "queued" if self.me.keeps else "cancelled")
        sessions = list(self.sessions.values())
        try:
            async with asyncio.timeout(None if within is None else within + SETTLE_SECONDS):
                await asyncio.gather(*(self._end(session, stop, within) for session in sessions))
        except TimeoutError:
            for session in [one for one in sessions if not one.ended.is_set()]:
                log.warning("session %s: its end is not stored; the next manager takes it over", session.session_id)
                if session.worker is not None:
                    session.worker.kill()
                await session.let_go()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._unlisten()
        await self._receiver.close()

    async def _end(self, session: Supervised, stop: Stop, within: float | None) -> None:
        if session.watcher is not None:
            await session.end(stop, urgent=True, within=within)
        elif self.me.keeps:
            session.ended.set()
        else:
            await self.cancel_waiting(session, stop.reason)
        await session.ended.wait()

    async def _every(self, seconds: float, work: Callable[[], Awaitable[None]]) -> None:
        while True:
            try:
                await work()
            except StorageError as error:
                log.error("sessions: %s: %s", work.__name__, error)
            except Exception:
                # One fault must not end the care for all sessions.
                log.exception("sessions: a fault in %s", work.__name__)
            if work == self._dispatch:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(seconds):
                        await self._wake.wait()
                self._wake.clear()
            else:
                await asyncio.sleep(seconds)

    def _note_change(self, committed: Committed) -> None:
        session = self.sessions.get(committed.session_id)
        if session is not None and committed.session is not None:
            session.record = committed.session
            if committed.session_changed:
                self._wake.set()

    # Coming and going

    def add(
        self, record: SessionRecord, config: TrainingConfig, *, held: bool = False, waited: float = 0.0
    ) -> Supervised:
        """Look after a session that has waited for so many seconds."""
        resources = record.resources or {}

        def orders() -> Orders:
            episodes = bool(resources.get("report_episodes"))
            return Orders(record.session_id, self._receiver.url, self._receiver.token_of(record.session_id), episodes)

        session = Supervised(
            record, config, self.storage, self.me.owner, orders, self.patience, self.me.keeps, held=held
        )
        session.since = time.monotonic() - waited
        self.sessions[record.session_id] = session
        self._wake.set()
        return session

    def release(self, session_id: str) -> None:
        """Let a session that was held start."""
        self.sessions[session_id].held = False
        self._wake.set()

    async def cancel_waiting(self, session: Supervised, reason: str) -> None:
        """End a session for which nothing runs."""
        session.record = await self.storage.update_session(
            session.session_id, status="cancelled", reason=reason, allowed_from=list(WAITING)
        )
        self._forget(session)

    def _forget(self, session: Supervised) -> None:
        self.sessions.pop(session.session_id, None)
        session.ended.set()
        self._wake.set()
        if session.record.status in TERMINAL:
            self._ended(session.record)

    async def scan(self) -> None:
        found = await find_sessions(self.storage, self.me, self.sessions.keys())
        now = await self.storage.leases.now_us() if found.waiting or found.adopted else 0
        for record in (*found.waiting, *found.adopted):
            waited = max(0.0, (now - (record.resources or {}).get("waits_since_us", now)) / 1e6)
            try:
                session = self.add(record, TrainingConfig.parse(record.config or {}), waited=waited)
            except ConfigError as error:
                await self.storage.update_session(record.session_id, status="failed", reason=str(error)[:2000])
                continue
            if record in found.adopted:
                self._watch_over(session, adopted=True)
        # What another manager has started meanwhile is not ours to start.
        for session in [one for one in self.sessions.values() if one.watcher is None]:
            if (await self._fresh(session)).status not in WAITING:
                self._forget(session)

    async def _fresh(self, session: Supervised) -> SessionRecord:
        try:
            session.record = await self.storage.get_session(session.session_id)
        except NotFoundError:
            self._forget(session)
        return session.record

    # The queue

    def waiting(self) -> list[Waiting]:
        """Sessions that wait here."""
        now = time.monotonic()
        return [
            Waiting(
                one.session_id,
                one.record.priority,
                one.config.parallel_episodes,
                now - one.since,
                max(0.0, one.due - now),
                _HELD if one.held else _PAUSED if one.record.desired == "paused" else None,
            )
            for one in self.sessions.values()
            if one.watcher is None
        ]

    def running(self) -> list[Running]:
        """Sessions that have a worker here."""
        now = time.monotonic()
        return [
            Running(
                one.session_id,
                one.record.priority,
                one.config.parallel_episodes,
                now - one.since,
                leaving=one.stop is not None,
                fixed=one.record.status == "paused" or one.record.desired == "paused",
            )
            for one in self.sessions.values()
            if one.watcher is not None
        ]

    async def _dispatch(self) -> None:
        if self._closing:
            return
        made = plan(self.waiting(), self.running(), self.limits, self._watch.pressure)
        for session_id in made.start:
            self._watch_over(self.sessions[session_id])
        for victim, winner in made.preempt.items():
            log.info("session %s makes room for %s", victim, winner)
            await self.sessions[victim].end(Stop(f"preempted by {winner}, which has a much higher priority", "queued"))
        for session_id, reason in made.reasons.items():
            session = self.sessions.get(session_id)
            if session is not None and session.watcher is None and session.record.wait_reason != reason:
                await self.storage.update_session(session_id, wait_reason=reason, allowed_from=list(WAITING))

    def _watch_over(self, session: Supervised, *, adopted: bool = False) -> None:
        session.watcher = asyncio.create_task(self._run(session, adopted), name=f"session {session.session_id}")

    async def _run(self, session: Supervised, adopted: bool) -> None:
        session.resources |= self.me.mark()
        try:
            if adopted or await self._claimed(session):
                session.since = time.monotonic()
                self._started(session.record)
                following = await session.attempt(adopted=adopted)
                log.info("session %s is %s: %s", session.session_id, following.status, following.reason)
        except StorageError as error:
            log.error("session %s: %s", session.session_id, error)
            session.due = time.monotonic() + TICK_SECONDS
        except asyncio.CancelledError:
            if session.worker is not None and not self.me.keeps:
                session.worker.terminate()  # the event loop ends; the worker saves its checkpoint
            raise
        finally:
            session.watcher = None
            self.usage.pop(session.session_id, None)
        if session.record.status in TERMINAL and session.session_id in self.sessions:
            self._forget(session)
        elif self._closing:
            session.ended.set()
        self._wake.set()

    async def _claimed(self, session: Supervised) -> bool:
        """Take the lease; false when the session is another manager's now, or is not to be started yet."""
        record = await self.storage.leases.claim(
            self.me.owner, session_id=session.session_id, seconds=self.me.lease_seconds
        )
        if record is None:
            found = await self._fresh(session)
            if found.status in WAITING and session.session_id in self.sessions:
                session.due = time.monotonic() + TICK_SECONDS
            else:
                self._forget(session)
            return False
        session.record = record
        return True

    # Care

    async def _renew(self) -> None:
        mine = [one.session_id for one in self.sessions.values() if one.watcher is not None]
        if not mine:
            return
        held = await self.storage.leases.renew(self.me.owner, mine, seconds=self.me.lease_seconds)
        for session_id in set(mine) - held:
            session = self.sessions.get(session_id)
            if session is None or (await self._fresh(session)).lease_owner in (self.me.owner, None):
                continue
            log.warning("session %s has been taken over by another manager", session_id)
            await session.let_go()
            self._forget(session)

    async def _measure(self) -> None:
        roots = {one.session_id: one.worker.pid for one in self.sessions.values() if one.worker is not None}
        if not roots:
            self.usage = {}
            return
        for session in list(self.sessions.values()):
            await session.look_for_hang()
        self.usage = await asyncio.to_thread(self._sampler.sample, roots)
        for session in [one for one in self.sessions.values() if one.worker is not None]:
            await asyncio.to_thread(bound_output, Path(session.run_dir) / LOG_NAME)
        starting = {name for name, one in self.sessions.items() if one.record.status == "starting"}
        for alert in self._watch.look(self.usage, starting):
            await self._enforce(alert, starting if alert.resource == "cpu" else set())

    async def _enforce(self, alert: ResourceAlert, spared: set[str]) -> None:
        if alert.level == "exceeded":
            stopping = [one for one in self.sessions.values() if one.stop is not None and one.worker is not None]
            if stopping:
                return  # what it gives back is waited for
            here = {key: used for key, used in self.usage.items() if key in self.sessions and key not in spared}
            priorities = {key: self.sessions[key].record.priority for key in here}
            victim = pick_victim(alert.resource, here, priorities)
            alert = ResourceAlert(alert.resource, alert.level, alert.used, alert.limit, victim)
            if victim is not None:
                self._watch.forget_cpu()
                await self.sessions[victim].end(Stop(f"stopped over a limit: {alert.message}", "failed"))
        log.warning("%s", alert.message)
        self._alerted(alert)
