"""One training as an object: ``TrainingSession(config=config)``."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.env_settings import problem_of_workers, problems_of_environment
from gymcast.training.events import EpisodesData, TrainingMetricsData
from gymcast.training.limits import ResourceLimits
from gymcast.training.storage import Committed, SessionRecord

from .batch.handlers import Handlers
from .manager import SessionManager
from .metrics import SessionMetrics, session_metrics

_HANDLER_SECONDS = 5.0


class TrainingFailedError(RuntimeError):
    """A training ended as failed; the text says why. ``info`` is what is known of the session."""

    def __init__(self, info: dict[str, Any]) -> None:
        self.info = info
        super().__init__(f"session {info['session_id']} failed: {info['reason']}")


@dataclass(frozen=True, slots=True)
class TrainedEpisode:
    """A finished training episode."""

    episode_id: str
    episode: int
    """Its number, counted from 1 in the order of the ends."""
    total_reward: float | None
    """Its return; ``None`` where it is not a finite number."""
    length: int
    """Decisions."""
    outcome: Literal["win", "draw", "loss"] | None
    """``None``: the environment does not say who won."""

    def to_json(self) -> dict[str, Any]:
        """All fields."""
        return asdict(self)


class TrainingSession:
    """A training in a process of its own, from ``initialize()`` over ``start_training()`` to its end.

    Without a ``manager`` it brings one of its own, which lives until the training has ended; what is trained and
    reported is kept in ``runs_dir``. ``async with TrainingSession(...)`` initializes it and ends it in any case.

    Handlers may be plain or ``async`` functions; one that raises, blocks or is slow is counted and logged and stops
    nothing.
    """

    def __init__(
        self,
        config: TrainingConfig | None = None,
        *,
        manager: SessionManager | None = None,
        priority: int = 0,
        runs_dir: str | Path = "runs",
    ) -> None:
        self.config = config if config is not None else TrainingConfig()
        self.priority = priority
        self._runs_dir = Path(runs_dir)
        self._own = manager is None
        self._manager = manager
        self._session_id: str | None = None
        self._final: dict[str, Any] | None = None
        self._handlers = Handlers("episode", "metrics")
        self._episodes_told = 0
        self._record: SessionRecord | None = None
        self._unlisten: Callable[[], None] | None = None

    async def __aenter__(self) -> Self:
        await self.initialize()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def session_id(self) -> str:
        """Its id. ``RuntimeError`` before :meth:`initialize`."""
        if self._session_id is None:
            raise RuntimeError("the session is not initialized; await initialize() first")
        return self._session_id

    async def initialize(self) -> None:
        """Check the configuration and enter the session into the queue, where it waits for :meth:`start_training`.

        Raises :class:`~gymcast.training.ConfigError` for a configuration that cannot be trained, ``StorageError``,
        ``OSError``.
        """
        if self._session_id is not None:
            raise RuntimeError("the session has been initialized already")
        config = await asyncio.to_thread(known_game, self.config)
        if self._manager is None:
            # One session has the machine for itself; the limits are there to share it.
            self._manager = SessionManager(resource_limits=ResourceLimits.of_one(config), runs_dir=self._runs_dir)
            await self._manager.start()
        manager = self._manager
        self._unlisten = manager.storage.listen(self._take)
        self._session_id = await manager.create_session(config, priority=self.priority, report_episodes=True, hold=True)

    async def start_training(self) -> dict[str, Any]:
        """Train until the goal is reached or somebody stops it; returns :meth:`get_session_info`.

        Raises :class:`TrainingFailedError` when the training fails.
        """
        session_id = self.session_id
        if self._manager is None or self._final is not None:
            raise RuntimeError("the session has ended; make another one")
        self._manager.release_session(session_id)
        await self._manager.wait(session_id)
        info = await self.get_session_info()
        await self.close()
        if info["status"] == "failed":
            raise TrainingFailedError(info)
        return info

    async def get_session_info(self) -> dict[str, Any]:
        """What is known of the session as JSON values; its ``metrics`` are those of docs/metrics.md."""
        if self._final is not None:
            return self._final
        session_id = self.session_id
        assert self._manager is not None
        return await self._manager.get_session_info(session_id)

    async def pause(self) -> None:
        """Pause; everything is kept. Raises ``StateError`` unless it runs."""
        await self._running_manager().pause_session(self.session_id)

    async def resume(self) -> None:
        """Go on exactly where :meth:`pause` stopped. Raises ``StateError``."""
        await self._running_manager().resume_session(self.session_id)

    async def stop(self) -> None:
        """Stop with a checkpoint; :meth:`start_training` returns once it is written. Raises ``StateError``."""
        await self._running_manager().stop_session(self.session_id)

    async def cancel(self) -> None:
        """End without another checkpoint. Raises ``StateError``."""
        await self._running_manager().cancel_session(self.session_id)

    def _running_manager(self) -> SessionManager:
        if self._manager is None:
            raise RuntimeError("the session is not initialized, or has ended")
        return self._manager

    async def close(self) -> None:
        """Stop what runs and give everything back; afterwards :meth:`get_session_info` answers what was known last."""
        if self._manager is None or self._final is not None:
            return
        manager = self._manager
        if self._session_id is not None:
            if manager.manages(self._session_id):
                await manager.stop_session(self._session_id, urgent=True, reason="its owner has ended")
                await manager.wait(self._session_id)
            self._final = await manager.get_session_info(self._session_id)
        if self._unlisten is not None:
            self._unlisten()
        await self._handlers.close(_HANDLER_SECONDS)
        if self._own:
            await manager.stop()

    # Handlers

    def register_episode_handler(self, handler: Callable[[TrainedEpisode], Any]) -> None:
        """Call ``handler(episode)`` for every finished training episode, each once and in order."""
        self._handlers.register("episode", handler)

    def register_metrics_handler(self, handler: Callable[[SessionMetrics], Any]) -> None:
        """Call ``handler(metrics)`` with every reading, ``config.metrics_hz`` times a second at most."""
        self._handlers.register("metrics", handler)

    def _take(self, committed: Committed) -> None:
        if committed.session_id != self._session_id:
            return
        if committed.session is not None:
            self._record = committed.session
        for event in committed.events:
            if isinstance(event.data, EpisodesData) and self._handlers.wanted("episode"):
                self._tell_episodes(event.data)
            elif isinstance(event.data, TrainingMetricsData) and self._record is not None:
                usage = self._manager.usage(self.session_id) if self._manager is not None else None
                self._handlers.emit("metrics", session_metrics(self._record, event.data, usage))

    def _tell_episodes(self, data: EpisodesData) -> None:
        words: dict[int | None, Literal["win", "draw", "loss"]] = {1: "win", 0: "draw", -1: "loss"}
        played = zip(data.rewards, data.lengths, data.outcomes, strict=True)
        for number, (reward, length, outcome) in enumerate(played, data.first):
            # A worker that was killed plays the episodes since its checkpoint again, the same ones.
            if number <= self._episodes_told:
                continue
            self._episodes_told = number
            episode = TrainedEpisode(f"ep_{number:06d}", number, reward, length, words.get(outcome))
            self._handlers.emit("episode", episode)


def known_game(config: TrainingConfig) -> TrainingConfig:
    """``config`` with the full id of its environment. Raises :class:`ConfigError` for an unknown one or bad options."""
    # Loaded on first use: the games bring their compiled kernels along.
    from gymcast.envs import (
        GAMES,
        EnvMakeError,
        OptionValueError,
        UnknownEnvError,
        UnknownOptionError,
        resolve_env_id,
    )

    try:
        env_id = resolve_env_id(config.env_id, config.gym_packages)
    except UnknownEnvError as error:
        raise ConfigError("unknown environment", [("env_id", str(error))]) from None
    except EnvMakeError as error:
        raise ConfigError("unknown environment", [(error.field, str(error))]) from None
    problems = problems_of_environment(env_id, config.model_dump())
    if text := problem_of_workers(env_id, config.workers):
        problems.append(("workers", text))
    if env_id in GAMES:
        for name, value in config.env_kwargs.items():
            try:
                GAMES[env_id].complete_options({name: value})
            except (UnknownOptionError, OptionValueError) as error:
                problems.append((f"env_kwargs.{name}", str(error)))
    if problems:
        raise ConfigError("bad options of the environment", problems)
    return config.model_copy(update={"env_id": env_id})
