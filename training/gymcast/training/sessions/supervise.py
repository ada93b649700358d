"""One managed session in the process of its manager: its worker's start, end and everything in between."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from gymcast.training.config import TrainingConfig
from gymcast.training.hang_watch import GAME, REMEDY, Place, last_sign
from gymcast.training.run_folder import LOG_NAME, Orders, Outcome
from gymcast.training.storage import (
    ACTIVE,
    TERMINAL,
    LeaseLostError,
    NotFoundError,
    SessionRecord,
    StateError,
    Storage,
    StorageError,
)

from .leftovers import deliver_leftovers
from .output import bound_output
from .process import WorkerExit, WorkerProcess, last_lines

log = logging.getLogger(__name__)

BACKOFF_CAP_SECONDS: Final = 100.0
_STARTING_GRACE_SECONDS: Final = 3.0
_LOOK_UP_SECONDS: Final = 1.0
_STORE_AGAIN_SECONDS: Final = 1.0
_STORE_TRIES: Final = 60
_EXIT_TAKEN: Final = 3
# Importing and compiling on a busy machine.
_STARTING_LIMIT_SECONDS: Final = 600.0
_CALLS: Final = {Place.TRYING: "first reset() and steps", Place.RESETTING: "reset()", Place.STEPPING: "step()"}
_DOING: Final = {
    Place.STARTING: "while it starts or ends",
    Place.TRAINING: "between steps",
    Place.CALLBACKS: "in a callback",
    Place.SAVING: "while it saves a checkpoint",
    Place.EVALUATING: "while it plays evaluation games",
}
# What a status after SIGINT and SIGTERM looks like, with and without a handler.
_BY_SIGNAL: Final = (-2, -15, 130, 143)
_JITTER: Final = random.Random()

T = TypeVar("T")


@dataclass(frozen=True)
class Patience:
    """Seconds for the steps of a stop: the wish in the answers to the worker's events, then SIGTERM, then SIGKILL."""

    polite: float = 10.0
    grace: float = 30.0


@dataclass(frozen=True)
class Stop:
    """Why a worker is to end, and what becomes of its session then."""

    reason: str
    status: Literal["cancelled", "failed", "queued"] = "cancelled"
    save: bool = True
    """Whether it writes a checkpoint first."""


@dataclass(frozen=True)
class Next:
    """What becomes of a session after an attempt. ``delay`` is seconds before it may start again."""

    status: Literal["completed", "failed", "cancelled", "queued", "retrying"]
    reason: str | None
    delay: float | None = None
    counts: bool = True
    """Whether a retry is one of the ``max_retries`` the session has."""


def retry_delay(retries: int) -> float:
    """Seconds before the attempt after ``retries`` others: 0 to 2^retries, at most 100 (full jitter).

    See Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """
    return _JITTER.uniform(0.0, min(BACKOFF_CAP_SECONDS, 2.0**retries))


def what_follows(
    exit_: WorkerExit, outcome: Outcome | None, stop: Stop | None, retries: int, max_retries: int, *, keeps: bool
) -> Next:
    """What becomes of a session whose worker has ended.

    ``keeps``: its manager's sessions are to go on whatever happens, so that only a wish ends them.
    """
    said = outcome.status if outcome is not None else None
    if said == "completed" or (outcome is None and exit_.code == 0 and stop is None):
        return Next("completed", outcome.reason if outcome is not None else None)
    if stop is not None:
        return Next(stop.status, stop.reason)
    if outcome is not None:
        why, again = outcome.reason or said or "", outcome.retry
    else:
        why, again = exit_.describe(), True
    if said == "cancelled" or (outcome is None and exit_.code in _BY_SIGNAL):
        if not keeps:
            return Next("cancelled", f"stopped by a signal: {why}")
        if outcome is not None:  # it has saved a checkpoint: no fault of the training, so no retry is used up
            text = f"stopped by a signal: {why}; it goes on from its checkpoint, to end it use stop or cancel"
            return Next("retrying", text, retry_delay(0), counts=False)
        again = True
    if not again:
        return Next("failed", why)
    if retries >= max_retries:
        return Next("failed", f"{why} (after {retries} of {max_retries} retries)" if max_retries else why)
    text = f"{why}; retry {retries + 1} of {max_retries} goes on from the newest checkpoint"
    return Next("retrying", text, retry_delay(retries))


def what_hangs(config: TrainingConfig, place: Place, seconds: float) -> str | None:
    """What to say of a worker that has not got on for so many seconds; ``None`` when they are within its limit."""
    name, limit = "stall_timeout", config.stall_timeout
    if place in _CALLS:
        limit = config.longest_step(1)
        name = "step_timeout" if limit == config.step_timeout else "episode_timeout"
    elif place is Place.MAKING:
        name, limit = "start_timeout", config.start_timeout
    elif place is Place.STARTING and limit is not None:
        limit = max(limit, _STARTING_LIMIT_SECONDS)
    if place is Place.WAITING or limit is None or seconds <= limit:
        return None
    if place is Place.MAKING:
        return f"{config.env_id} hangs: to make it took more than {limit:g} s ({name}); {LOG_NAME} says where"
    if place in _CALLS:
        return f"{config.env_id} hangs: its {_CALLS[place]} took more than {limit:g} s ({name}); {REMEDY}"
    doing = _DOING[place]
    return f"the training hangs {doing}: it did not get on for {limit:g} s ({name}); {LOG_NAME} says where"


@dataclass(eq=False)
class Supervised:
    """A session that waits or runs here.

    ``owner`` is the name its manager holds leases under, ``orders`` makes what the worker is told. :meth:`attempt`
    carries out one attempt from its start to what follows.
    """

    record: SessionRecord
    config: TrainingConfig
    storage: Storage
    owner: str
    orders: Callable[[], Orders]
    patience: Patience
    keeps: bool
    held: bool = False
    """Waits for :meth:`SessionManager.release_session`."""
    since: float = field(default_factory=time.monotonic)
    """When it began to wait, or to run."""
    due: float = 0.0
    """When it may be tried again, on the monotonic clock."""
    resources: dict[str, Any] = field(default_factory=dict)
    stop: Stop | None = None
    worker: WorkerProcess | None = None
    watcher: asyncio.Task[None] | None = None
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    _escalation: asyncio.Task[None] | None = None
    _fault: str | None = None
    """What its worker is killed for."""

    def __post_init__(self) -> None:
        self.resources = dict(self.record.resources or {})

    @property
    def session_id(self) -> str:
        """Its id."""
        return self.record.session_id

    @property
    def run_dir(self) -> Path:
        """Where its worker works."""
        return Path(self.resources["run_dir"])

    @property
    def retries(self) -> int:
        """Attempts that failed and were followed by another one."""
        return int(self.resources.get("retries", 0))

    async def attempt(self, *, adopted: bool = False) -> Next:
        """Carry out one attempt, and store what follows. An ``adopted`` one has begun under another manager."""
        self.worker = await asyncio.to_thread(WorkerProcess.find, self.run_dir)
        try:
            await asyncio.to_thread(self.orders().write, self.run_dir)
            if self.worker is None and adopted:
                following = await self._after(WorkerExit(None))
                if following.status == "retrying":
                    # Whatever ended manager and worker together (a power cut, say), it is no fault of the training.
                    following = Next("retrying", "its manager has ended, and its worker too", 0.0, counts=False)
            else:
                self.worker = self.worker or await self._start()
                await self._note(pid=self.worker.pid)
                following = await self._watch(self.worker)
        except OSError as error:
            following = Next("failed", f"the worker could not be started: {error}")
        finally:
            if self._escalation is not None:
                self._escalation.cancel()
                self._escalation = None
        await self._settle(following)
        self.worker = self.stop = self._fault = None
        return following

    async def _start(self) -> WorkerProcess:
        attempt = self.record.attempts
        worker = await WorkerProcess.start(
            self.run_dir,
            attempt=attempt,
            resume=attempt > 1 or bool(self.resources.get("resume")),
            ends_with_parent=not self.keeps,
        )
        if self.stop is not None:
            worker.terminate()
        return worker

    async def _note(self, **facts: Any) -> None:
        self.resources |= facts
        try:
            self.record = await self.storage.update_session(self.session_id, resources=dict(self.resources))
        except StorageError as error:
            # A database that cannot be written (disk full) is no reason to end a training that runs.
            log.warning("session %s: %s could not be stored: %s", self.session_id, ", ".join(facts), error)

    async def _watch(self, worker: WorkerProcess) -> Next:
        exit_ = await worker.wait()
        while exit_.code == _EXIT_TAKEN:
            # Another manager's worker was faster; it is this session's worker.
            found = await asyncio.to_thread(WorkerProcess.find, self.run_dir)
            if found is None:
                break
            worker = self.worker = found
            exit_ = await worker.wait()
        return await self._after(exit_)

    async def _after(self, exit_: WorkerExit) -> Next:
        outcome = await asyncio.to_thread(Outcome.read, self.run_dir, self.record.attempts)
        await asyncio.to_thread(bound_output, self.run_dir / LOG_NAME)
        if outcome is None and self.worker is not None:
            sign = await asyncio.to_thread(last_sign, self.run_dir, self.worker.pid)
            inside = sign is not None and sign[0] in GAME
            exit_ = replace(exit_, why=self._fault, in_game=self.config.env_id if inside else None)
        stop = self.stop or await self._wish_of_others()
        following = what_follows(exit_, outcome, stop, self.retries, self.config.max_retries, keeps=self.keeps)
        # Of what was killed from outside the log says nothing, but for one that another manager had started.
        silent = outcome is None and stop is None and self.worker is not None and (exit_.code is None or exit_.code > 0)
        if following.status == "failed" and silent and (last := last_lines(self.run_dir / LOG_NAME, 1)):
            following = Next("failed", f"{following.reason}: {last}")
        return following

    async def _wish_of_others(self) -> Stop | None:
        """A stop that was asked for through the database, by another process."""
        record = await self._stored(lambda: self.storage.get_session(self.session_id))
        if record is None or record.desired not in ("stopping", "cancelled"):
            return None
        reason = record.reason if record.status == "stopping" and record.reason else "stopped by request"
        return Stop(reason, (record.resources or {}).get("after_stop", "cancelled"))

    async def _settle(self, following: Next) -> None:
        """Store what follows. What the worker could not send goes first: nothing of an attempt comes after its end."""
        if following.status == "retrying" and following.counts:
            await self._note(retries=self.retries + 1)
        self.resources.pop("after_stop", None)
        # A paused session that had to make room stays paused: it starts again when it is resumed.
        desired = "paused" if self.resources.pop("was_paused", False) else "running"
        self.since = time.monotonic()
        self.due = self.since + (following.delay or 0.0)

        async def store() -> SessionRecord:
            await deliver_leftovers(self.storage, self.session_id, self.run_dir)
            found = await self.storage.get_session(self.session_id)
            status = following.status
            if status in ("queued", "retrying"):
                self.resources["waits_since_us"] = await self.storage.leases.now_us()
                await self.storage.update_session(self.session_id, desired=desired, resources=dict(self.resources))
                # Back to the queue is a move from "stopping"; a worker that was gone before that is tried again.
                status = "retrying" if found.status != "stopping" else status
            return await self.storage.leases.release(
                self.session_id, self.owner, status=status, reason=following.reason, delay_seconds=following.delay
            )

        record = await self._stored(store)
        self.record = record if record is not None else self.record

    async def _stored(self, write: Callable[[], Awaitable[T]]) -> T | None:
        """What ``write`` returns, tried again while the database cannot be used; ``None`` when it is refused.

        After a while it is given up: the lease runs out, and whoever takes it over finds ``outcome.json``.
        """
        for _ in range(_STORE_TRIES):
            try:
                return await write()
            except (NotFoundError, StateError, LeaseLostError) as error:
                log.warning("session %s: %s", self.session_id, error)
                return None
            except StorageError as error:
                log.error("session %s: its state cannot be stored, it is tried again: %s", self.session_id, error)
                await asyncio.sleep(_STORE_AGAIN_SECONDS)
        return None

    async def end(self, stop: Stop, *, urgent: bool = False, within: float | None = None) -> None:
        """Ask the worker to end, in steps. The first wish stands, but for one that ends a session that was to go on.

        ``urgent`` begins with SIGTERM; ``within`` seconds after it a worker is killed, if its patience is not shorter.
        """
        if self.stop is None or self.stop.status == "queued":
            self.stop = stop
        # The signal goes first: it must not wait for a database that cannot be written.
        if urgent and self.worker is not None:
            self.worker.terminate()
        if self._escalation is None or urgent:
            if self._escalation is not None:
                self._escalation.cancel()
            begun = self.record.status != "starting" or await self._begun()
            grace = self.patience.grace if begun else min(_STARTING_GRACE_SECONDS, self.patience.grace)
            grace = grace if within is None else min(grace, within)
            polite = 0.0 if urgent else self.patience.polite
            self._escalation = asyncio.create_task(self._escalate(polite, grace), name=f"stop {self.session_id}")
        if self.stop.status == "queued" and self.record.desired == "paused":
            self.resources["was_paused"] = True
        self.resources["after_stop"] = self.stop.status
        try:
            self.record = await self.storage.update_session(
                self.session_id,
                desired="stopping" if self.stop.save else "cancelled",
                status="stopping",
                reason=self.stop.reason,
                resources=dict(self.resources),
                allowed_from=list(ACTIVE),
            )
        except (StateError, NotFoundError):
            pass  # it ended, or was deleted, meanwhile
        except StorageError as error:
            log.error("session %s: the stop could not be stored, signals will do: %s", self.session_id, error)

    async def _begun(self) -> bool:
        """Whether the worker has trained anything it could save."""
        try:
            async with asyncio.timeout(_LOOK_UP_SECONDS):
                return (await self.storage.get_session(self.session_id)).status not in ("starting", *TERMINAL)
        except (StorageError, TimeoutError) as error:
            log.warning("session %s: its status cannot be read: %s", self.session_id, error)
            return True

    async def _escalate(self, polite: float, grace: float) -> None:
        await asyncio.sleep(polite)
        if self.worker is not None:
            self.worker.terminate()
        await asyncio.sleep(grace)
        if self.worker is not None:
            log.warning("session %s did not end within its grace time and is killed", self.session_id)
            if self.stop is not None:
                self.stop = replace(self.stop, reason=f"{self.stop.reason}; it did not end in time and was killed")
            self.worker.kill()

    async def look_for_hang(self) -> None:
        """Kill a worker that does not get on; another attempt goes on from the newest checkpoint."""
        if self.worker is None or self._fault is not None or self.stop is not None:
            return
        sign = await asyncio.to_thread(last_sign, self.run_dir, self.worker.pid)
        if sign is None or self.worker is None or (fault := what_hangs(self.config, *sign)) is None:
            return
        self._fault = fault
        log.warning("session %s is killed: %s", self.session_id, fault)
        await self.worker.kill_hanging()

    async def let_go(self) -> None:
        """Leave the session to somebody else; its worker goes on."""
        if self.worker is not None:
            self.worker.leave()
        for task in (self._escalation, self.watcher):
            if task is not None and task is not asyncio.current_task():
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        self.ended.set()
