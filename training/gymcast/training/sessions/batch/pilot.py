"""A pilot leads one worker process through the episodes of the batches, and picks up the pieces when it fails."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Iterable
from typing import Final, Protocol

from gymcast.envs.channel import ChannelClosed
from gymcast.training.sessions.batch.play import DROPPED, FINISHED, Played
from gymcast.training.sessions.batch.state import Batch
from gymcast.training.sessions.batch.types import BatchStateError, EpisodeResult
from gymcast.training.sessions.batch.worker import EpisodeWorker, WorkerDown

log = logging.getLogger(__name__)

_AHEAD_SECONDS: Final = 0.1  # of work that is sent to a worker at once, when episodes are short
_MOST_AHEAD: Final = 1000
_GREETING_SECONDS: Final = 60.0
_SETUP_SECONDS: Final = 300.0  # to make an environment and load a policy; a first compilation is in it
_DROP_SECONDS: Final = 0.5  # for a worker to notice that everything is dropped
_LONGEST_DELAY: Final = 100.0  # seconds, of a retry


class Tower(Protocol):
    """Who sends pilots out and hears from them."""

    max_parallel_episodes: int
    max_retries: int
    episode_timeout: float
    retry_delay: float

    def batch_begun(self, batch: Batch) -> None:
        """The first episodes of a batch are on their way."""

    def episode_over(self, result: EpisodeResult) -> None:
        """An episode has its result."""

    def results_taken(self, batch: Batch) -> None:
        """Some episodes of a batch are over."""

    def fail_batch(self, batch: Batch, reason: str, trace: str) -> None:
        """A batch cannot be played at all."""

    def is_others_turn(self, batch: Batch) -> bool:
        """Whether a pilot of this batch is to leave it to another one."""
        ...


class Pilot:
    """Leads worker ``number``."""

    def __init__(self, tower: Tower, number: int) -> None:
        self._tower, self.number = tower, number
        self.worker = EpisodeWorker(number)
        self.batch: Batch | None = None
        self.restarts = 0
        """How often its process was started again."""
        self._sent: dict[int, None] = {}
        """Episodes that its worker has, in the order in which they were sent."""
        self._alone = False
        """Whether the worker has an episode that is tried again, and no other beside it."""
        self._quiet_deaths = 0
        """Deaths in a row with no episode to blame."""

    def wake(self) -> None:
        """Look again at what is to be done: something was cancelled."""
        self.worker.woken.set()

    def playing(self, batch: Batch) -> int:
        """How many episodes of its batch its worker plays now."""
        return min(len(self._sent), batch.lanes)

    async def greet(self) -> None:
        """Start the worker and wait for it. Raises ``BatchStateError`` when workers cannot be started here."""
        await asyncio.to_thread(self.worker.start)
        try:
            await self.worker.message(_GREETING_SECONDS)
        except ChannelClosed:
            failure = await asyncio.to_thread(self.worker.ended)
            raise BatchStateError(
                f"the first worker failed: {failure.reason}. If it printed that a process was started before another "
                'one had begun: what a program does belongs under `if __name__ == "__main__":`.'
            ) from None

    async def serve(self, batch: Batch) -> None:
        """Play episodes of a batch until there are none, or another batch has waited longer."""
        self.batch = batch
        batch.served_at = time.monotonic()
        try:
            if await self._prepare(batch):
                await self._play(batch)
        except (WorkerDown, ChannelClosed, OSError) as error:
            await self._died(batch, error)
        finally:
            self._give_back(batch, self._sent)
            self.batch = None

    # -------------------------------------------------------------------------------------------------- a worker ready

    async def _prepare(self, batch: Batch) -> bool:
        """Have a worker that knows the batch; false when the batch cannot be played at all."""
        worker = self.worker
        if not worker.alive:
            await asyncio.to_thread(worker.start)
        key, worker.board.lanes = batch.setup.key, batch.setup.lanes
        if key in worker.setups:
            worker.note_setup(key)
            return True
        if batch.compiles and not batch.prepared:
            async with batch.first_setup:  # one compiles a game, if that has to be done; the others find it compiled
                if not batch.prepared and not batch.ended.is_set():
                    return await self._set_up(batch)
        return not batch.ended.is_set() and await self._set_up(batch)

    async def _set_up(self, batch: Batch) -> bool:
        worker, key = self.worker, batch.setup.key
        worker.put("setup", batch.pickled_setup)
        deadline = time.monotonic() + _SETUP_SECONDS
        while (said := await worker.message(max(0.0, deadline - time.monotonic()))) is None or said[0] == "here":
            if batch.ended.is_set() or time.monotonic() >= deadline:
                reason = f"making the environment took longer than {_SETUP_SECONDS:g} s"
                failure = await asyncio.to_thread(worker.hangs, reason)
                self._tower.fail_batch(batch, failure.reason, failure.traceback)
                return False
        if said[0] == "ready":
            worker.note_setup(key)
            batch.lanes, batch.prepared = said[1], True
            return True
        self._tower.fail_batch(batch, said[1], said[2])
        return False

    async def _died(self, batch: Batch, error: Exception) -> None:
        """The worker is gone: blame what it was playing, give back the rest."""
        suspects = [number for number in self.worker.board.running() if number in self._sent]
        if isinstance(error, WorkerDown):
            failure = error.failure
        elif self.worker.alive:
            failure = await asyncio.to_thread(self.worker.ended)
        else:
            failure = None
        reason = failure.reason if failure is not None else f"its process cannot be started: {error}"
        trace = failure.traceback if failure is not None else ""
        self.restarts += 1
        log.warning("worker %d of batch %s: %s", self.number, batch.batch_id, reason)
        if batch.ended.is_set():
            return
        self._quiet_deaths = 0 if suspects else self._quiet_deaths + 1
        if not suspects and self._quiet_deaths > self._tower.max_retries:
            if not self._sent:
                self._tower.fail_batch(batch, reason, trace)
                return
            suspects = [next(iter(self._sent))]
        for number in suspects:
            self._sent.pop(number, None)
            self._attempt_failed(batch, Played(number, 1, error=reason, traceback=trace or None))
        if not suspects:
            await asyncio.sleep(random.uniform(0, self._tower.retry_delay))

    # ----------------------------------------------------------------------------------------------------- playing

    async def _play(self, batch: Batch) -> None:
        sent = self._sent
        while True:
            if self._wants_drop(batch):
                await self._drop(batch, [])
                return
            if not batch.ended.is_set() and not self._tower.is_others_turn(batch):
                self._send_more(batch)
            batch.coming.discard(self)
            if not sent:
                return
            said = await self.worker.message(self._patience())
            if said is not None and said[0] == "played":
                self._take(batch, said[1])
            if late := [n for n, spent in self.worker.board.running().items() if spent > self._timeout and n in sent]:
                await self._drop(batch, late)

    @property
    def _timeout(self) -> float:
        return self._tower.episode_timeout

    def _patience(self) -> float:
        """Seconds until an episode that runs now has lasted too long."""
        longest = max(self.worker.board.running().values(), default=0.0)
        return max(0.02, self._timeout - longest + 0.01)

    def _wants_drop(self, batch: Batch) -> bool:
        """Whether what the worker plays is of no use any more."""
        if not self._sent:
            return False
        if batch.ended.is_set():
            return True
        running = self.worker.board.running()
        # With others beside it, an episode that was cancelled ends with them.
        return len(running) == 1 and any(batch.is_over(number) for number in running if number in self._sent)

    def _send_more(self, batch: Batch) -> None:
        """Give the worker more episodes when it will soon be done."""
        lanes, sent = batch.lanes, self._sent
        ahead = 2 * lanes if lanes > 1 else 1  # no lane waits while there is more to play
        if batch.episode_seconds:
            ahead = max(ahead, min(_MOST_AHEAD, int(_AHEAD_SECONDS / batch.episode_seconds)))
        if self._alone or len(sent) > ahead // 2:
            return
        # Everyone gets a share of what is left, so that all end at about the same time.
        hands = max(1, min(batch.max_parallel, self._tower.max_parallel_episodes))
        fair = math.ceil(batch.waiting / (2 * hands)) if batch.waiting > hands else 1
        most = min(ahead, max(fair, min(lanes, math.ceil(batch.waiting / hands))))
        numbers = batch.take(most - len(sent)) if most > len(sent) else []
        if not numbers:
            return
        if batch.was_tried(numbers[0]):
            if sent:
                batch.give_back(numbers[0])
                return
            self._alone = True
        if batch.started_at is None:
            batch.started_at = time.monotonic()
            self._tower.batch_begun(batch)
        sent.update(dict.fromkeys(numbers))
        episodes = [(number, batch.ids[number]) for number in numbers]
        self.worker.put("play", self.worker.board.generation, batch.setup.key, episodes)

    def _take(self, batch: Batch, results: Iterable[Played]) -> None:
        """Take what the worker says it has played."""
        tower, number_of_worker = self._tower, self.number
        spent, count = 0.0, 0
        for said in results:
            if said.number not in self._sent:
                continue
            if said.kind == DROPPED:
                continue
            del self._sent[said.number]
            self._alone = False
            if batch.is_over(said.number):
                continue  # cancelled meanwhile
            self._quiet_deaths = 0
            if said.kind == FINISHED:
                spent, count = spent + said.seconds, count + 1
                tower.episode_over(batch.played(said, number_of_worker))
            else:
                self._attempt_failed(batch, said)
        if count:
            mean = spent / count / batch.lanes
            before = batch.episode_seconds
            batch.episode_seconds = mean if before is None else 0.8 * before + 0.2 * mean
        tower.results_taken(batch)

    def _attempt_failed(self, batch: Batch, said: Played) -> None:
        """Count a failed attempt; try again later, or give up."""
        self._alone = False
        if batch.is_over(said.number):
            return
        tower = self._tower
        attempts = batch.attempt(said.number)
        if attempts > tower.max_retries:
            tower.episode_over(batch.not_played(said, "failed", self.number))
            tower.results_taken(batch)
            return
        # Exponential backoff with full jitter.
        longest = min(_LONGEST_DELAY, tower.retry_delay * 2 ** (attempts - 1))
        batch.try_later(said.number, random.uniform(0.0, longest))

    async def _drop(self, batch: Batch, late: list[int]) -> None:
        """Have the worker drop everything; the episodes in ``late`` have lasted too long, others are given back.

        A worker that does not react hangs, and is killed.
        """
        worker, began = self.worker, time.monotonic()
        lengths: dict[int, int] = {}
        generation = worker.board.drop()
        worker.put("drop", generation)
        while (left := began + _DROP_SECONDS - time.monotonic()) > 0:
            said = await worker.message(left)
            if said is None:
                continue
            if said[0] == "dropped" and said[1] == generation:
                break
            if said[0] == "played":
                lengths |= {one.number: one.length for one in said[1] if one.kind == DROPPED}
                self._take(batch, said[1])
        else:
            doing = f"it hangs: the episode took longer than episode_timeout ({self._timeout:g} s)"
            if not late:
                doing = "it did not stop"
            failure = await asyncio.to_thread(worker.hangs, doing)
            self.restarts += 1
            for number in late:
                self._late(batch, number, failure.reason, failure.traceback)
            return
        for number in late:
            after = f" after {lengths[number]:,} decisions" if number in lengths else ""
            self._late(batch, number, f"the episode took longer than episode_timeout ({self._timeout:g} s){after}", "")
        self._give_back(batch, self._sent)

    def _late(self, batch: Batch, number: int, reason: str, trace: str) -> None:
        if number in self._sent:
            del self._sent[number]
            self._attempt_failed(batch, Played(number, 1, error=reason, traceback=trace or None))

    def _give_back(self, batch: Batch, numbers: Iterable[int]) -> None:
        """Episodes that the worker has not played."""
        for number in reversed(list(numbers)):
            del self._sent[number]
            batch.give_back(number)
        self._alone = False

    async def close(self, seconds: float) -> None:
        """End the worker, giving it some time to close its environments."""
        with contextlib.suppress(WorkerDown):
            if seconds > 0 and self.worker.alive:
                self.worker.put("close")
        await asyncio.to_thread(self.worker.end, seconds)
        await asyncio.to_thread(self.worker.discard)
