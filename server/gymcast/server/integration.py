"""For training engines in the same program as the server: what they report is committed as a REST request's is.

Every method may be called from the server's event loop or from that of another thread, see
:class:`~gymcast.server.TrainingMetricsServer`. They return after the commit and raise pydantic's ``ValidationError``
for values that the data models refuse, the errors of :mod:`gymcast.training.storage` (a session that is deleted, a
writer that cannot keep up) and :class:`~gymcast.server.ServerNotRunningError`.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from weakref import WeakKeyDictionary

from gymcast.training.episode_stats import RECENT_EPISODES, EpisodeStats
from gymcast.training.events import (
    BotDecisionData,
    EventReceipt,
    GraphPoint,
    Message,
    PerformanceGraphData,
    TrainingMetricsData,
)

from .app import RunningServer
from .rooms import RoomWanted
from .training_metrics_server import TrainingMetricsServer

AnyServer = TrainingMetricsServer | RunningServer

# graph id -> title, label of the y axis, and the metrics of the reading that are its curves
GRAPHS: Final[dict[str, tuple[str, str, tuple[str, ...]]]] = {
    "reward_progress": ("Reward Progress", "Reward", ("current_reward", "average_reward")),
    "win_rate": ("Win Rate", "Percent", ("win_rate",)),
    "episode_length": ("Episode Length", "Decisions", ("episode_length",)),
}


class UnknownTrainingError(LookupError):
    """A training id that was not registered, or whose training has ended."""


@dataclass(frozen=True, eq=False)
class RegisteredTraining:
    """A training that is under way."""

    session_id: str
    model_generation: int
    algorithm: str
    total_episodes: int | None
    began: float  # monotonic seconds


class TrainingEngineIntegration:
    """Lets a training engine report under its own training ids. One object serves any number of trainings."""

    def __init__(self, server: AnyServer) -> None:
        self.server = server
        self._trainings: dict[str, RegisteredTraining] = {}

    async def register_training_session(
        self,
        training_id: str,
        model_generation: int,
        algorithm: str,
        total_episodes: int | None,
        *,
        room_code: str | None = None,
        enable_spectators: bool = True,
    ) -> str:
        """Announce a training; returns the id of its session, which is running from now on.

        ``ValueError`` for a training id that is under way already.
        """
        if training_id in self._trainings:
            raise ValueError(
                f"training {training_id!r} is registered already, as session {self.session_id(training_id)};"
                " complete it before another one takes its id"
            )
        body = {
            "training_session_id": training_id,
            "model_generation": model_generation,
            "algorithm": algorithm,
            "total_episodes": total_episodes,
            "room_code": room_code,
            "enable_spectators": enable_spectators,
        }
        made = await self.server.work(lambda services: services.api.create_training_session(body))
        session_id: str = made["session_id"]
        self._trainings[training_id] = RegisteredTraining(
            session_id, model_generation, algorithm, total_episodes, time.monotonic()
        )
        return session_id

    def training(self, training_id: str) -> RegisteredTraining:
        """A training that is under way. Raises :class:`UnknownTrainingError`."""
        training = self._trainings.get(training_id)
        if training is None:
            known = ", ".join(sorted(self._trainings)) or "none"
            raise UnknownTrainingError(
                f"training {training_id!r} is not registered here (known: {known}); call register_training_session"
            )
        return training

    def session_id(self, training_id: str) -> str:
        """The session of a training that is under way. Raises :class:`UnknownTrainingError`."""
        return self.training(training_id).session_id

    def metrics(
        self, training_id: str, *, episode: int, current_reward: float | None, **more: Any
    ) -> TrainingMetricsData:
        """A reading of a registered training: fields of ``TrainingMetricsData`` that are left out are filled in.

        Algorithm, generation and total number of episodes are those it was registered with, the time elapsed is that
        since then, and whatever is not known is null.
        """
        training = self.training(training_id)
        known = {
            "total_episodes": training.total_episodes,
            "model_generation": training.model_generation,
            "algorithm": training.algorithm,
            "training_time_elapsed": time.monotonic() - training.began,
        }
        unknown = dict.fromkeys(("average_reward", "best_reward", "episode_length", "win_rate", "learning_rate"))
        return TrainingMetricsData.model_validate(
            {**unknown, **known, **more, "episode": episode, "current_reward": current_reward}
        )

    async def update_training_metrics(
        self, training_id: str, episode: int, current_reward: float | None, **more: Any
    ) -> EventReceipt:
        """Commit one reading; ``more`` are other fields of ``TrainingMetricsData``, see :meth:`metrics`."""
        return await self.report(
            training_id, self.metrics(training_id, episode=episode, current_reward=current_reward, **more)
        )

    async def update_bot_decision(
        self, training_id: str, action_probabilities: Mapping[str, float], **more: Any
    ) -> EventReceipt:
        """Commit one decision; ``more`` are other fields of ``BotDecisionData``."""
        decision = BotDecisionData.model_validate({**more, "action_probabilities": dict(action_probabilities)})
        return await self.report(training_id, decision)

    async def update_performance_graph(
        self,
        training_id: str,
        graph_id: str,
        title: str,
        y_label: str,
        metrics: Sequence[str],
        data_points: Mapping[str, Sequence[Any]],
        **more: Any,
    ) -> EventReceipt:
        """Commit points of a graph, beside those it has; ``more`` are other fields of ``PerformanceGraphData``."""
        graph = {"graph_id": graph_id, "title": title, "y_label": y_label, "metrics": list(metrics)}
        points = {name: list(curve) for name, curve in data_points.items()}
        return await self.report(
            training_id, PerformanceGraphData.model_validate({**more, **graph, "data_points": points})
        )

    async def report(self, training_id: str, *messages: Message) -> EventReceipt:
        """Commit messages together; ``desired`` of the receipt tells whether to go on, pause or stop."""
        session_id = self.session_id(training_id)
        return await self.server.work(lambda services: services.storage.add_data(session_id, messages))

    async def complete_training_session(self, training_id: str, *, status: str = "completed") -> None:
        """End a training as ``completed``, ``failed`` or ``cancelled``; its id is free for another one afterwards."""
        session_id = self.session_id(training_id)
        await self.server.work(lambda services: services.api.update_training_session(session_id, {"status": status}))
        del self._trainings[training_id]


class MetricsCollector:
    """Makes readings and graphs out of finished episodes: averages, best, win rate over the ``recent`` last ones."""

    def __init__(self, integration: TrainingEngineIntegration, *, recent: int = RECENT_EPISODES) -> None:
        if recent < 1:
            raise ValueError(f"recent has to be at least 1, got {recent}")
        self._integration = integration
        self._recent = recent
        # An id may come again for another training, and those that have ended are forgotten.
        self._stats: WeakKeyDictionary[RegisteredTraining, EpisodeStats] = WeakKeyDictionary()

    async def record_episode_end(
        self,
        training_id: str,
        reward: float,
        episode_length: int,
        won: bool | None = None,
        total_episodes: int | None = None,
        **more: Any,
    ) -> EventReceipt:
        """Count a finished episode and commit a reading with a point of each graph.

        ``won`` is ``None`` in games without a winner; ``more`` are other fields of ``TrainingMetricsData``.
        ``ValueError`` for a reward that is not finite or a negative length. An episode whose reading cannot be
        committed is counted all the same and shows in the next one.
        """
        if not math.isfinite(reward):
            raise ValueError(f"the reward of an episode has to be a finite number, got {reward}")
        if episode_length < 0:
            raise ValueError(f"the length of an episode cannot be negative, got {episode_length}")
        training = self._integration.training(training_id)
        stats = self._stats.setdefault(training, EpisodeStats(self._recent))
        stats.record(float(reward), int(episode_length), None if won is None else 1 if won else -1)
        counted = {
            "average_reward": stats.mean_return,
            "best_reward": stats.best_return,
            "episode_length": stats.last_length,
            "win_rate": stats.win_rate,
        }
        if total_episodes is not None:
            counted["total_episodes"] = total_episodes
        reading = self._integration.metrics(
            training_id, episode=stats.episodes, current_reward=stats.last_return, **counted, **more
        )
        return await self._integration.report(training_id, reading, *_graphs(reading))


def _graphs(reading: TrainingMetricsData) -> list[PerformanceGraphData]:
    """One point of each curve whose metric the reading has."""
    found = []
    for graph_id, (title, y_label, metrics) in GRAPHS.items():
        values = {name: getattr(reading, name) for name in metrics}
        points = {
            name: [GraphPoint(timestamp=reading.timestamp, value=value)]
            for name, value in values.items()
            if value is not None
        }
        if points:
            found.append(
                PerformanceGraphData(
                    graph_id=graph_id, title=title, y_label=y_label, metrics=list(metrics), data_points=points
                )
            )
    return found


class SpectatorManager(Protocol):
    """Somebody else's spectator system, which makes rooms of its own for trainings of this server."""

    async def create_room(
        self, *, training_session_id: str, max_spectators: int, password_protected: bool
    ) -> Mapping[str, Any]:
        """A new room as ``{"room_code": ..., "room_password": ...}``, the password ``None`` when there is none."""
        ...


class SpectatorManagerIntegration:
    """Announces a training together with a room for its spectators.

    Rooms are those of this server, unless a ``spectator_manager`` makes them; the session then names its code.
    """

    def __init__(self, server: AnyServer, spectator_manager: SpectatorManager | None = None) -> None:
        self.server = server
        self._manager = spectator_manager
        self.trainings = TrainingEngineIntegration(server)

    async def create_integrated_session(
        self,
        training_session_id: str,
        model_generation: int,
        algorithm: str,
        total_episodes: int | None,
        *,
        max_spectators: int = 20,
        password_protected: bool = True,
        expires_in: float | None = None,
    ) -> dict[str, Any]:
        """Register a training and open a room for it; :attr:`trainings` reports under ``training_session_id``.

        Returns ``session_id, training_session_id, room_code, room_password, max_spectators, expires_at, join_path``.
        The password is ``None`` without protection and cannot be read again. ``expires_in`` seconds are the room's
        life, without end when ``None``; another spectator system decides that itself.
        """
        about = (training_session_id, model_generation, algorithm, total_episodes)
        if self._manager is not None:
            made = await self._manager.create_room(
                training_session_id=training_session_id,
                max_spectators=max_spectators,
                password_protected=password_protected,
            )
            code, password, expires_at = made["room_code"], made["room_password"], None
            session_id = await self.trainings.register_training_session(*about, room_code=code)
        else:
            # Looked at first, so that no session is left over when a value is refused.
            draft = RoomWanted(
                session_id="later",
                password_protected=password_protected,
                max_spectators=max_spectators,
                expires_in=expires_in,
            )
            session_id = await self.trainings.register_training_session(*about)
            wanted = draft.model_copy(update={"session_id": session_id})
            new = await self.server.work(lambda services: services.rooms.create(wanted))
            code, password, expires_at = new.room.code, new.password, new.room.to_json()["expires_at"]
        return {
            "session_id": session_id,
            "training_session_id": training_session_id,
            "room_code": code,
            "room_password": password,
            "max_spectators": max_spectators,
            "expires_at": expires_at,
            "join_path": None if self._manager is not None else f"/#/room/{code}",
        }
