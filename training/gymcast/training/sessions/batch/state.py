"""One batch of episodes while it is played: what is left, what runs, what came out."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import json
import time
import weakref
from collections import deque
from pathlib import Path
from typing import Final, Protocol, TextIO

import cloudpickle

from gymcast.envs import GAMES
from gymcast.training.intervals import wilson_interval
from gymcast.training.sessions.batch.find import Setup
from gymcast.training.sessions.batch.play import Played, seeds_of
from gymcast.training.sessions.batch.types import (
    BatchState,
    BatchStatus,
    EpisodeResult,
    EpisodeState,
    Moments,
    Outcome,
    UnknownEpisodeError,
)

WAITING, OVER = 0, 1
_STREAMED: Final = 1000  # results that wait for the reader of a stream; then the batch pauses


class ResultStream:
    """The results of a batch one by one, as ``async for`` takes them.

    While 1,000 of them wait to be read, the batch begins no further episodes: however many there are, they never fill
    the memory. Close it, or let go of it, to have the batch go on without a reader.
    """

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self._results: deque[EpisodeResult] = deque(batch.kept)
        self._arrived = asyncio.Event()
        self._closed = False
        batch.streams.add(self)

    @property
    def full(self) -> bool:
        """Whether as many wait as may."""
        return not self._closed and len(self._results) >= _STREAMED

    def put(self, result: EpisodeResult) -> None:
        """Take a result."""
        if not self._closed:
            self._results.append(result)
            self._arrived.set()

    def finish(self) -> None:
        """Nothing more will come."""
        self._arrived.set()

    def close(self) -> None:
        """Stop reading."""
        self._closed = True
        self._results.clear()
        self._arrived.set()
        self._batch.streams.discard(self)
        self._batch.changed()

    def __aiter__(self) -> ResultStream:
        return self

    async def __anext__(self) -> EpisodeResult:
        while not self._results:
            if self._closed or self._batch.ended.is_set():
                raise StopAsyncIteration
            self._arrived.clear()
            await self._arrived.wait()
        was_full = self.full
        result = self._results.popleft()
        if was_full:
            self._batch.changed()
        return result


class Player(Protocol):
    """Who plays episodes of a batch."""

    def playing(self, batch: Batch) -> int:
        """How many it plays now."""
        ...

    def wake(self) -> None:
        """Look again at what is to be done."""


class Batch:
    """The episodes of one batch. Its methods are called in the event loop of its manager only."""

    def __init__(
        self,
        batch_id: str,
        ids: tuple[str, ...],
        setup: Setup,
        room_code: str | None,
        max_parallel: int,
        keep_results: int | None,
        results_file: Path | None,
        changed: asyncio.Event,
    ) -> None:
        self.batch_id, self.ids, self.setup, self.room_code = batch_id, ids, setup, room_code
        self.max_parallel = max_parallel
        self.first_setup = asyncio.Lock()
        """Held by the pilot that has the batch set up first."""
        self.compiles = setup.env_id in GAMES and not setup.factory
        self.prepared = False
        """Whether a worker has been set up for it."""
        self.lanes = setup.lanes
        """Episodes that a worker plays side by side: 1 for policies that play alone."""
        self.pickled_setup: bytes = cloudpickle.dumps(setup)
        self.workers: set[Player] = set()
        """Who plays it now."""
        self.coming: set[Player] = set()
        """Those of them that have not begun yet."""
        self.served_at = time.monotonic()
        """When a worker last began with it; at first when it was submitted."""
        self.started_at: float | None = None
        self.ended_at: float | None = None
        self.submitted_at = time.monotonic()
        self.ended = asyncio.Event()
        self.error: str | None = None
        self.cancelled = False
        self.episode_seconds: float | None = None
        """Worker's time per episode, a moving average."""
        self.kept: deque[EpisodeResult] = deque(maxlen=keep_results)
        self.streams: weakref.WeakSet[ResultStream] = weakref.WeakSet()
        self.counts: dict[EpisodeState, int] = {"completed": 0, "failed": 0, "cancelled": 0}
        self.retries = 0
        self.rewards, self.lengths = Moments(), Moments()
        self._wins = self._draws = self._losses = 0
        self._successes = self._known = 0
        self._replays = self._replays_failed = 0
        self._changed = changed
        self._states = bytearray(len(ids))
        self._numbers: dict[str, int] | None = None
        self._attempts: dict[int, int] = {}
        self._fresh = 0
        self._again: deque[int] = deque()
        self._later: list[tuple[float, int]] = []
        self._file: TextIO | None = None if results_file is None else results_file.open("w", encoding="utf-8")
        self._flushed_at = 0.0

    # ------------------------------------------------------------------------------------------------ what is left

    @property
    def over(self) -> int:
        """Episodes that are over."""
        return sum(self.counts.values())

    @property
    def running(self) -> int:
        """Episodes that workers play now."""
        return sum(player.playing(self) for player in self.workers)

    def wake_workers(self) -> None:
        """Something was cancelled: what is played may be of no use any more."""
        for player in self.workers:
            player.wake()

    @property
    def has_waiting(self) -> bool:
        """Whether there is an episode that a worker could begin now."""
        if self.ended.is_set() or any(stream.full for stream in self.streams):
            return False
        self._take_due()
        while self._fresh < len(self.ids) and self._states[self._fresh] == OVER:
            self._fresh += 1
        while self._again and self._states[self._again[0]] == OVER:
            self._again.popleft()
        return bool(self._again) or self._fresh < len(self.ids)

    @property
    def waiting(self) -> int:
        """Upper bound of the number of episodes a worker could begin now."""
        return len(self._again) + len(self.ids) - self._fresh

    @property
    def next_due(self) -> float | None:
        """When (``time.monotonic``) the next episode is to be tried again."""
        return self._later[0][0] if self._later else None

    def take(self, most: int) -> list[int]:
        """Up to ``most`` episodes to be played now: first those that wait to be tried again, one at a time."""
        if not self.has_waiting:
            return []
        if self._again:
            return [self._again.popleft()]
        taken: list[int] = []
        while len(taken) < most and self._fresh < len(self.ids):
            if self._states[self._fresh] != OVER:
                taken.append(self._fresh)
            self._fresh += 1
        return taken

    def give_back(self, number: int) -> None:
        """An episode that was not played is to be played by another worker, before all others."""
        if not self.is_over(number):
            self._again.appendleft(number)
            self.changed()

    def try_later(self, number: int, seconds: float) -> None:
        """Try an episode again after some time."""
        self.retries += 1
        heapq.heappush(self._later, (time.monotonic() + seconds, number))
        self.changed()

    def attempt(self, number: int) -> int:
        """Count one more attempt at an episode; returns how many there have been."""
        self._attempts[number] = self._attempts.get(number, 0) + 1
        return self._attempts[number]

    def was_tried(self, number: int) -> bool:
        """Whether an attempt at an episode failed before."""
        return number in self._attempts

    def is_over(self, number: int) -> bool:
        """Whether an episode is over (played, failed for good, or cancelled)."""
        return self._states[number] == OVER

    def number_of(self, episode_id: str) -> int:
        """The place of an episode. Raises ``UnknownEpisodeError``."""
        if self._numbers is None:
            self._numbers = {name: number for number, name in enumerate(self.ids)}
        try:
            return self._numbers[episode_id]
        except KeyError:
            raise UnknownEpisodeError(f"batch {self.batch_id!r} has no episode {episode_id!r}") from None

    def end_rest(self, state: EpisodeState) -> None:
        """Count all episodes that are not over as ``state``."""
        self.counts[state] += len(self.ids) - self.over
        self._states = bytearray([OVER]) * len(self.ids)

    def changed(self) -> None:
        """Something may be possible now that was not before."""
        self._changed.set()

    def _take_due(self) -> None:
        now = time.monotonic()
        while self._later and self._later[0][0] <= now:
            self._again.append(heapq.heappop(self._later)[1])

    # -------------------------------------------------------------------------------------------------- what came out

    def played(self, said: Played, worker: int) -> EpisodeResult:
        """The result of an episode that was played to its end."""
        self.rewards.add(said.reward)
        self.lengths.add(said.length)
        outcome = said.outcome
        if outcome is not None:
            self._wins += outcome > 0
            self._draws += outcome == 0
            self._losses += outcome < 0
        if said.success is not None:
            self._known += 1
            self._successes += said.success
        if self.setup.replays is not None:
            self._replays += said.replay is not None
            self._replays_failed += said.replay is None
        return self._over(said, "completed", self.attempt(said.number), worker)

    def not_played(self, said: Played, state: EpisodeState, worker: int | None) -> EpisodeResult:
        """The result of an episode that failed for good or was cancelled."""
        return self._over(said, state, self._attempts.get(said.number, 0), worker)

    def _over(self, said: Played, state: EpisodeState, attempts: int, worker: int | None) -> EpisodeResult:
        number, done = said.number, state == "completed"
        self._states[number] = OVER
        self._attempts.pop(number, None)
        self.counts[state] += 1
        episode_id = self.ids[number]
        result = EpisodeResult(
            batch_id=self.batch_id,
            episode_id=episode_id,
            status=state,
            total_reward=said.reward if done else None,
            length=said.length if done else None,
            outcome=_OUTCOMES.get(said.outcome) if done and said.outcome is not None else None,
            success=said.success if done else False if state == "failed" else None,
            truncated=said.truncated if done else None,
            duration_seconds=round(said.seconds, 6) if state != "cancelled" else None,
            game_seconds=said.game_seconds,
            seed=seeds_of(self.setup.seed, episode_id)[0],
            attempts=attempts,
            worker=worker,
            replay=said.replay,
            error=said.error,
            traceback=said.traceback,
            room_code=self.room_code,
        )
        self.kept.append(result)
        for stream in self.streams:
            stream.put(result)
        self._write(result)
        return result

    def _write(self, result: EpisodeResult) -> None:
        if self._file is None:
            return
        try:
            self._file.write(json.dumps(result.to_json()) + "\n")
            if (now := time.monotonic()) - self._flushed_at > 0.25:
                self._file.flush()
                self._flushed_at = now
        except OSError as error:
            self._file_failed(error)

    def _file_failed(self, error: OSError) -> None:
        assert self._file is not None
        file, self._file = self._file, None
        self.error = f"cannot write results to {file.name}: {error.strerror}"
        with contextlib.suppress(OSError):  # what is in its buffer cannot be written either
            file.close()

    def close(self) -> None:
        """Every episode is over."""
        self.ended_at = time.monotonic()
        if self._file is not None:
            try:
                self._file.close()
            except OSError as error:
                self._file_failed(error)
            self._file = None
        self.ended.set()
        self._later.clear()
        for stream in self.streams:
            stream.finish()

    @property
    def state(self) -> BatchState:
        """See ``BatchStatus``."""
        if not self.ended.is_set():
            return "queued" if self.started_at is None else "running"
        if self.error is not None or self.counts["failed"] == len(self.ids):
            return "failed"
        return "cancelled" if self.cancelled else "completed"

    def status(self) -> BatchStatus:
        """How far it is."""
        over, total, done, running = self.over, len(self.ids), self.counts["completed"], self.running
        now = self.ended_at if self.ended_at is not None else time.monotonic()
        elapsed = 0.0 if self.started_at is None else now - self.started_at
        rate = done / elapsed if done and elapsed > 0 else None
        low, high = wilson_interval(self._successes, self._known) if self._known else (None, None)
        return BatchStatus(
            batch_id=self.batch_id,
            state=self.state,
            room_code=self.room_code,
            env_id=self.setup.env_id,
            policy=self.setup.policy.name,
            seed=self.setup.seed,
            total=total,
            queued=total - over - running,
            running=running,
            **self.counts,
            retries=self.retries,
            progress=100.0 * over / total,
            elapsed_seconds=round(elapsed, 3),
            episodes_per_minute=None if rate is None else 60.0 * rate,
            eta_seconds=0.0 if over == total else None if rate is None else (total - over) / rate,
            average_reward=self.rewards.mean if done else None,
            reward_error=self.rewards.standard_error,
            best_reward=self.rewards.high if done else None,
            worst_reward=self.rewards.low if done else None,
            average_length=self.lengths.mean if done else None,
            success_rate=100.0 * self._successes / self._known if self._known else None,
            success_low=None if low is None else 100.0 * low,
            success_high=None if high is None else 100.0 * high,
            wins=self._wins,
            draws=self._draws,
            losses=self._losses,
            replays=self._replays,
            replays_failed=self._replays_failed,
            error=self.error,
        )


_OUTCOMES: Final[dict[int, Outcome]] = {1: "win", 0: "draw", -1: "loss"}
