"""The crew of a manager: which worker plays what, and what follows when episodes and batches are over."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from typing import Final

from gymcast.training.sessions.batch.handlers import Handlers
from gymcast.training.sessions.batch.pilot import Pilot
from gymcast.training.sessions.batch.state import Batch
from gymcast.training.sessions.batch.types import EpisodeResult, EpisodeState

log = logging.getLogger(__name__)

_FINISHED_KEPT: Final = 1000  # batches
_PROGRESS_SECONDS: Final = 0.25


class Crew:
    """Pilots and the batches that they play, in the order in which those came. For one event loop.

    Arguments are those of ``BatchEpisodeManager``, and ``handlers`` for "episode", "batch" and "progress".
    """

    def __init__(
        self,
        max_parallel_episodes: int,
        max_retries: int,
        episode_timeout: float,
        retry_delay: float,
        handlers: Handlers,
    ) -> None:
        self.max_parallel_episodes, self.max_retries = max_parallel_episodes, max_retries
        self.episode_timeout, self.retry_delay = episode_timeout, retry_delay
        self.batches: OrderedDict[str, Batch] = OrderedDict()
        self.changed = asyncio.Event()
        """Set it when there may be something to play."""
        self._handlers = handlers
        self._pilots: list[Pilot] = []
        self._idle: list[Pilot] = []
        self._flights: set[asyncio.Task[None]] = set()
        self._leader: asyncio.Task[None] | None = None
        self._progress_at: dict[str, float] = {}

    async def start(self) -> None:
        """Begin, with a first worker ready. Raises ``BatchStateError`` when workers cannot be started here."""
        first = self._new_pilot()
        await first.greet()
        self._idle.append(first)
        self._leader = asyncio.create_task(self._lead(), name="batch-episodes")

    async def stop(self) -> None:
        """End all workers."""
        tasks = [task for task in (self._leader, *self._flights) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(pilot.close(0.0 if pilot.batch else 1.0) for pilot in self._pilots))

    def worker_pids(self) -> dict[int, int]:
        """Process ids of the workers that run, by their number."""
        return {pilot.number: pid for pilot in self._pilots if (pid := pilot.worker.pid) is not None}

    # ---------------------------------------------------------------------------------------------- what is over

    def episode_over(self, result: EpisodeResult) -> None:
        """Tell of an episode."""
        self._handlers.emit("episode", result)

    def batch_begun(self, batch: Batch) -> None:
        """Tell of a batch."""
        self._handlers.emit("batch", batch.status())

    def results_taken(self, batch: Batch) -> None:
        """Some episodes are over: tell how far the batch is, and end it when there are no more."""
        if batch.ended.is_set():
            return
        if batch.error is not None:
            self.end(batch, "cancelled")
        elif batch.over == len(batch.ids):
            self._close(batch)
        elif self._handlers.wanted("progress"):
            now = time.monotonic()
            if now - self._progress_at.get(batch.batch_id, 0.0) >= _PROGRESS_SECONDS:
                self._progress_at[batch.batch_id] = now
                self._handlers.emit("progress", batch.status())

    def fail_batch(self, batch: Batch, reason: str, trace: str) -> None:
        """A batch that cannot be played at all: its environment or policy cannot be had."""
        if not batch.ended.is_set() and batch.error is None:
            batch.error = reason
            log.error("batch %s cannot be played: %s%s", batch.batch_id, reason, f"\n{trace}" if trace else "")
            self.end(batch, "failed")

    def end(self, batch: Batch, state: EpisodeState) -> None:
        """Nothing of a batch is played any more: what is not over is counted as ``state``, without a result each."""
        batch.end_rest(state)
        self._close(batch)

    def _close(self, batch: Batch) -> None:
        if batch.ended.is_set():
            return
        batch.close()
        self._progress_at.pop(batch.batch_id, None)
        status = batch.status()
        self._handlers.emit("progress", status)
        self._handlers.emit("batch", status)
        batch.wake_workers()
        over = [known for known in self.batches.values() if known.ended.is_set()]
        for old in over[: max(0, len(over) - _FINISHED_KEPT)]:
            del self.batches[old.batch_id]
        self.changed.set()

    # --------------------------------------------------------------------------------------------- who plays what

    def is_others_turn(self, batch: Batch) -> bool:
        """Whether another batch has fewer workers than this one and could use one, when all are busy."""
        if len(self.batches) == 1 or self._idle or len(self._pilots) < self.max_parallel_episodes:
            return False
        return any(
            len(other.workers) < min(len(batch.workers), other.max_parallel) and other.has_waiting
            for other in self.batches.values()
            if other is not batch
        )

    async def _lead(self) -> None:
        """Hand batches to idle pilots, for as long as the manager runs."""
        while True:
            self.changed.clear()
            while (batch := self._neediest()) is not None:
                if not self._idle and len(self._pilots) >= self.max_parallel_episodes:
                    break
                pilot = self._idle.pop() if self._idle else self._new_pilot()
                batch.workers.add(pilot)
                batch.coming.add(pilot)
                flight = asyncio.create_task(self._fly(pilot, batch), name=f"pilot-{pilot.number}")
                self._flights.add(flight)
                flight.add_done_callback(self._flights.discard)
            due = min((b.next_due for b in self.batches.values() if b.next_due is not None), default=None)
            try:
                async with asyncio.timeout(None if due is None else max(0.0, due - time.monotonic())):
                    await self.changed.wait()
            except TimeoutError:
                pass

    def _neediest(self) -> Batch | None:
        """The batch that should have the next worker: the one with fewest; of those the one that waited longest."""
        able = [
            batch
            for batch in self.batches.values()
            if len(batch.workers) < batch.max_parallel and batch.has_waiting and batch.waiting > len(batch.coming)
        ]
        return min(able, key=lambda batch: (len(batch.workers), batch.served_at), default=None)

    async def _fly(self, pilot: Pilot, batch: Batch) -> None:
        try:
            await pilot.serve(batch)
        except Exception as error:
            log.exception("worker %d", pilot.number)
            self.fail_batch(batch, f"internal error: {type(error).__name__}: {error}", "")
        finally:
            batch.workers.discard(pilot)
            batch.coming.discard(pilot)
            self._idle.append(pilot)
            self.changed.set()

    def _new_pilot(self) -> Pilot:
        pilot = Pilot(self, len(self._pilots))
        self._pilots.append(pilot)
        return pilot
