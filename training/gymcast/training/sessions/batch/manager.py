"""``BatchEpisodeManager``: batches of whole episodes, played by worker processes that are allowed to fail."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from gymcast.training.sessions.batch.crew import Crew
from gymcast.training.sessions.batch.handlers import HandlerCounts, Handlers
from gymcast.training.sessions.batch.play import FAILED, Played
from gymcast.training.sessions.batch.setup import make_setup
from gymcast.training.sessions.batch.state import Batch, ResultStream
from gymcast.training.sessions.batch.types import (
    MAX_PARALLEL,
    BatchStateError,
    BatchStatus,
    DuplicateBatchError,
    EpisodeResult,
    UnknownBatchError,
    check_episode_ids,
    check_id,
    check_room_code,
    seconds,
    whole,
)

_HANDLER_SECONDS: Final = 2.0  # at the end, for handlers to finish


class BatchEpisodeManager:
    """Plays batches of episodes of any Gymnasium environment, with any policy, in worker processes.

    Workers take whole episodes: a slow one holds up nobody. An episode whose worker crashes, raises or hangs is tried
    again, by a new process if need be. What an episode comes to follows from the batch's seed and the episode's id
    alone, wherever and beside whatever it is played. All methods belong into one event loop.

    Args:
        max_parallel_episodes: workers at most, over all batches; 1 to 1,024.
        max_retries: how often an episode is tried again; 0 to 1,000.
        episode_timeout: wall-clock seconds an attempt may take.
        retry_delay: seconds; before retry n an episode waits a random time up to ``retry_delay * 2**n``, at most 100.

    Raises:
        BatchInputError: a value that is not allowed.
    """

    def __init__(
        self,
        max_parallel_episodes: int = 8,
        max_retries: int = 3,
        episode_timeout: float = 300,
        *,
        retry_delay: float = 1.0,
    ) -> None:
        self.max_parallel_episodes = whole("max_parallel_episodes", max_parallel_episodes, 1, MAX_PARALLEL)
        self.max_retries = whole("max_retries", max_retries, 0, 1000)
        self.episode_timeout = seconds("episode_timeout", episode_timeout)
        self.retry_delay = seconds("retry_delay", retry_delay)
        self._state = "new"
        self._keys = itertools.count(1)
        self._handlers = Handlers("episode", "batch", "progress")
        self._crew = Crew(
            self.max_parallel_episodes, self.max_retries, self.episode_timeout, self.retry_delay, self._handlers
        )

    async def start(self) -> None:
        """Begin, with a first worker ready.

        Raises ``BatchStateError`` the second time, and when workers cannot be started in this program.
        """
        if self._state != "new":
            raise BatchStateError(f"this manager is {self._state}: make another one.")
        self._state = "running"
        try:
            await self._crew.start()
        except BatchStateError:
            self._state = "stopped"
            raise

    async def stop(self) -> None:
        """Cancel what is not over, end all workers, and let handlers finish. Doing it again does nothing."""
        if self._state != "running":
            return
        self._state = "stopped"
        for batch in list(self._crew.batches.values()):
            if not batch.ended.is_set():
                batch.cancelled = True
                self._crew.end(batch, "cancelled")
        await self._crew.stop()
        await self._handlers.close(_HANDLER_SECONDS)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def submit_batch(
        self,
        batch_id: str,
        episode_ids: Sequence[str],
        room_code: str | None = None,
        max_parallel: int | None = None,
        *,
        env: str | Callable[[], Any] = "archers",
        env_kwargs: Mapping[str, Any] | None = None,
        policy: str | Path | Callable[[Any], Any] = "random",
        deterministic: bool = False,
        seed: int = 0,
        lanes: int = 1,
        replays: str | Path | None = None,
        results_file: str | Path | None = None,
        keep_results: int | None = 10_000,
        gym_packages: Sequence[str] = (),
        wrappers: Sequence[str | Mapping[str, Any]] = (),
        frame_stack: int | None = None,
    ) -> BatchStatus:
        """Have a batch of episodes played; returns at once.

        Args:
            batch_id: its name among the batches of this manager.
            episode_ids: a name for each episode, none twice.
            room_code: of the room that the episodes belong to; results and status carry it.
            max_parallel: workers of this batch at most; by default as many as there are.
            env: name or id of a built-in game, any Gymnasium id (``MODULE:ID`` imports the module that registers it),
                or a function that makes the environment.
            env_kwargs: options of the environment; those of a trained policy are taken from its run.
            gym_packages, wrappers, frame_stack: as in ``TrainingConfig``; those of a trained policy are taken from its
                run.
            policy: "random" (legal actions), a scripted level of a built-in game, the folder of a run (its newest
                checkpoint) or of a checkpoint, a ``policy.npz``, a ``.zip`` of Stable-Baselines3 (no pickle in it is
                loaded), or a function from an observation to an action.
            deterministic: trained policies take the likeliest action instead of drawing one.
            seed: of the batch.
            lanes: of a built-in game, how many episodes a worker plays side by side as one compiled batch, up to 256;
                toward ``max_parallel`` they count as one. The results are the same.
            replays: folder to which a replay of each episode is written.
            results_file: file to which each result is written as a line of JSON; an existing one is replaced.
            keep_results: how many results to keep in memory, the latest ones; ``None``: all.

        Raises:
            BatchInputError, DuplicateBatchError: a value that is not allowed.
            UnknownEnvError, UnknownOptionError, OptionValueError: the environment, with the nearest valid name.
            BatchStateError: the manager is not running.
            OSError: ``results_file`` cannot be written.
        """
        self._check_new(batch_id)
        ids = check_episode_ids(episode_ids)
        check_room_code(room_code)
        if max_parallel is not None:
            whole("max_parallel", max_parallel, 1, MAX_PARALLEL)
        if keep_results is not None:
            whole("keep_results", keep_results, 0, 2**62)
        # In a thread: it imports modules, and hashes the files of a checkpoint.
        setup = await asyncio.to_thread(
            make_setup,
            next(self._keys),
            env,
            env_kwargs,
            policy,
            deterministic=deterministic,
            seed=seed,
            lanes=lanes,
            replays=replays,
            gym_packages=gym_packages,
            wrappers=wrappers,
            frame_stack=frame_stack,
        )
        self._check_new(batch_id)
        file = None if results_file is None else Path(results_file)
        parallel = max_parallel or self.max_parallel_episodes
        batch = Batch(batch_id, ids, setup, room_code, parallel, keep_results, file, self._crew.changed)
        self._crew.batches[batch_id] = batch
        self._crew.changed.set()
        return batch.status()

    def _check_new(self, batch_id: str) -> None:
        if self._state != "running":
            raise BatchStateError(f"this manager is {self._state}: submit batches between start() and stop().")
        if check_id("batch_id", batch_id) in self._crew.batches:
            raise DuplicateBatchError(f"there is a batch {batch_id!r} already: give another batch_id.")

    async def wait_batch(self, batch_id: str) -> BatchStatus:
        """Wait until every episode of a batch is over. Raises ``UnknownBatchError``."""
        batch = self._batch(batch_id)
        await batch.ended.wait()
        return batch.status()

    async def cancel_batch(self, batch_id: str) -> BatchStatus:
        """End a batch: episodes that are not over are cancelled, and only counted.

        Raises ``UnknownBatchError``, ``BatchStateError``.
        """
        batch = self._batch(batch_id)
        if batch.ended.is_set():
            raise BatchStateError(f"batch {batch_id!r} is over ({batch.state}).")
        batch.cancelled = True
        self._crew.end(batch, "cancelled")
        return batch.status()

    async def cancel_episode(self, batch_id: str, episode_id: str) -> EpisodeResult:
        """Cancel one episode, whether it waits or runs.

        Raises ``UnknownBatchError``, ``UnknownEpisodeError``, and ``BatchStateError`` when it is over.
        """
        batch = self._batch(batch_id)
        number = batch.number_of(episode_id)
        if batch.is_over(number):
            raise BatchStateError(f"episode {episode_id!r} of batch {batch_id!r} is over.")
        result = batch.not_played(Played(number, FAILED, error="it was cancelled"), "cancelled", None)
        self._crew.episode_over(result)
        self._crew.results_taken(batch)
        batch.wake_workers()
        return result

    async def get_batch_status(self, batch_id: str) -> BatchStatus:
        """How far a batch is. Raises ``UnknownBatchError``."""
        return self._batch(batch_id).status()

    async def list_batches(self) -> list[BatchStatus]:
        """All batches that are known, the oldest first: those that are not over, and the last 1,000 that are."""
        return [batch.status() for batch in self._crew.batches.values()]

    async def get_results(self, batch_id: str) -> list[EpisodeResult]:
        """The results of a batch that are kept in memory, in the order in which episodes ended."""
        return list(self._batch(batch_id).kept)

    def stream_results(self, batch_id: str) -> ResultStream:
        """The results of a batch for ``async for``, as episodes end; those that are kept already come first.

        While a thousand results wait for the reader, the batch begins no further episodes.
        """
        return ResultStream(self._batch(batch_id))

    async def forget_batch(self, batch_id: str) -> None:
        """Forget a batch that is over. Raises ``UnknownBatchError``, ``BatchStateError``."""
        if not self._batch(batch_id).ended.is_set():
            raise BatchStateError(f"batch {batch_id!r} is not over: cancel it first.")
        del self._crew.batches[batch_id]

    def worker_pids(self) -> dict[int, int]:
        """Process ids of the workers that run, by their number."""
        return self._crew.worker_pids()

    def register_episode_handler(self, handler: Callable[[EpisodeResult], Any]) -> None:
        """Have a function, or a coroutine function, called with the result of each episode."""
        self._handlers.register("episode", handler)

    def register_batch_handler(self, handler: Callable[[BatchStatus], Any]) -> None:
        """Have it called with the status of each batch when it begins and when it is over."""
        self._handlers.register("batch", handler)

    def register_progress_handler(self, handler: Callable[[BatchStatus], Any]) -> None:
        """Have it called with the status of each batch that goes on, four times a second at most, and at its end."""
        self._handlers.register("progress", handler)

    def handler_counts(self) -> list[HandlerCounts]:
        """What became of the events of each handler."""
        return self._handlers.counts()

    def _batch(self, batch_id: str) -> Batch:
        try:
            return self._crew.batches[batch_id]
        except (KeyError, TypeError):
            raise UnknownBatchError(f"there is no batch {batch_id!r}") from None
