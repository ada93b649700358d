"""Metric readings as events, throttled at the source. Works in any Stable-Baselines3 script."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from gymcast.training.broadcast import Sink
from gymcast.training.callbacks.decisions import BotDecisionCallback
from gymcast.training.callbacks.footage import FootageCallback
from gymcast.training.callbacks.guarded import GuardedCallback
from gymcast.training.callbacks.metric_names import LOGGED
from gymcast.training.callbacks.pictures import PictureCallback
from gymcast.training.callbacks.progress import RunProgress
from gymcast.training.callbacks.script import note_rollout, note_step, without_training
from gymcast.training.config import TrainingConfig
from gymcast.training.events import (
    ErrorData,
    GraphPoint,
    PerformanceGraphData,
    TrainingMetricsData,
)
from gymcast.training.script_session import ScriptOptions, ScriptSession, algorithm_name, join_session
from gymcast.training.subproc import GymcastSubprocVecEnv
from gymcast.training.vec_env import GameVecEnv

RATE_WINDOW_SECONDS = 10.0
# Seconds; a rate over less says more about the clock than about training, and would dwarf all others on a chart.
SHORTEST_RATE = 0.01
GRAPH_SECONDS = 5.0
# How often decisions and pictures may be asked for.
SHOW_SECONDS = 0.1
# Numbers of a script's own in a reading, which has room for 32 in all.
MOST_OWN_VALUES = 8

_GRAPHS = {
    "reward_progress": ("Reward", "return per episode", ("average_reward", "best_reward")),
    "win_rate": ("Win rate", "percent of recent episodes", ("win_rate",)),
    "losses": ("Losses", "loss", ("policy_loss", "value_loss", "actor_loss", "critic_loss")),
    "speed": ("Speed", "decisions per second", ("samples_per_second",)),
}


class MetricsBroadcastCallback(BaseCallback):
    """Sends :class:`TrainingMetricsData` ``hz`` times a second at most, and graph points every five seconds.

    ``sink`` is the URL of a server such as ``"http://127.0.0.1:8000"``. In a script of your own nothing else is
    needed, whatever the environment and the algorithm::

        model.learn(100_000, callback=MetricsBroadcastCallback("http://127.0.0.1:8000"))

    Then a session is announced there when training starts, and readings, graphs, the bot's decisions and, while
    somebody watches, pictures of the game (``render_mode="rgb_array"``) are sent from a background thread, which
    never holds the training up; what cannot arrive yet waits in a spool folder. :class:`SessionCallback` beside it
    lets the server pause and stop the training; see docs/your-own-script.md.

    ``token`` defaults to ``GYMCAST_TOKEN``, ``name`` to algorithm, environment and time; ``extra`` is a function that
    returns up to eight numbers of your own for each reading. With ``decisions=False`` or ``pictures=False`` these are
    left out. Raises ``ValueError`` for a URL that is none.

    gymcast's own trainer gives an :class:`~gymcast.training.broadcast.Sink`, or ``None``. Then the same values go to
    the algorithm's own logger under ``gymcast/``, at most ``hz`` times a second, and with it to TensorBoard and
    whatever else it feeds.
    """

    def __init__(
        self,
        sink: Sink | str | None,
        *,
        hz: float = 2.0,
        progress: RunProgress | None = None,
        token: str | None = None,
        name: str | None = None,
        model_generation: int = 1,
        spool_dir: str | Path | None = None,
        extra: Callable[[], Mapping[str, float | None]] | None = None,
        decisions: bool = True,
        pictures: bool = True,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        self.sink = None if isinstance(sink, str) else sink
        self.options = (
            ScriptOptions(sink, token, name, model_generation, spool_dir, verbose) if isinstance(sink, str) else None
        )
        self._session: ScriptSession | None = None
        self._shows = (decisions, pictures)
        self._shown: CallbackList | None = None
        self._next_shown = 0.0
        self._own_values = extra
        self._shared_progress = progress is not None
        self.progress = progress or RunProgress(TrainingConfig())
        self._generation = model_generation
        self._period = 1.0 / hz
        self._begin()
        self._process = psutil.Process()
        self._game_seconds_per_step: float | None = None
        self._ticks_per_step: float | None = None

    def _begin(self) -> None:
        self._next = 0.0
        self._next_record = 0.0
        self._next_graph = 0.0
        self._rates: deque[tuple[float, int, int]] = deque()
        self._losses: dict[str, float] = {}
        self._points: dict[str, list[tuple[datetime, float]]] = {}

    @property
    def session_id(self) -> str | None:
        """The id of the script's session; ``None`` until the server has told it."""
        return None if self._session is None else self._session.sink.session_id

    def close(self, timeout: float = 5.0) -> bool:
        """Wait at most ``timeout`` seconds for everything to arrive; returns whether it has. Not needed in a script."""
        return self._session is None or self._session.sink.flush(timeout)

    def _on_training_start(self) -> None:
        if self.options is not None:
            self._join(self.options)
        elif not self._shared_progress:
            self.progress.timesteps = self.model.num_timesteps
        base = self.training_env.unwrapped
        if isinstance(base, GameVecEnv):
            self._game_seconds_per_step = base.env.decision_seconds
            self._ticks_per_step = base.env.decision_seconds * base.env.game.tick_rate

    def _join(self, options: ScriptOptions) -> None:
        session = join_session(self.model, options)
        if session is not self._session:
            self._session = session
            self.sink, self.progress = session, session.progress
            self._begin()
        self._shared_progress = session.keeper is not None
        session.keeper = session.keeper or self
        shown: list[BaseCallback] = []
        watchers = lambda: session.sink.watchers  # noqa: E731
        if self._shows[0]:
            shown.append(BotDecisionCallback(session, watchers=watchers))
        if isinstance(self.training_env.unwrapped, GameVecEnv):
            shown.append(FootageCallback(session, session.progress))
        elif self._shows[1]:
            shown.append(PictureCallback(session, session.progress, session.env_id, watchers))
        self._shown = CallbackList([GuardedCallback(callback, self._failed) for callback in shown])
        self._shown.init_callback(self.model)
        self._shown.on_training_start(self.locals, self.globals)

    def _failed(self, code: str, what: str, text: str) -> None:
        if self.sink is not None:
            self.sink.emit(ErrorData(code=code, message=f"{what} is left out: {text}"[:2000]))

    @property
    def _algorithm(self) -> str:
        return algorithm_name(self.model)

    def _on_rollout_start(self) -> None:
        # Right after an update the logger holds its losses; they are gone once it has written them out.
        values = self.logger.name_to_value
        for name, keys in LOGGED.items():
            for key in keys:
                if key in values and math.isfinite(values[key]):
                    self._losses[name] = -float(values[key]) if name == "entropy" else float(values[key])
        self._note_rate()

    def _on_rollout_end(self) -> None:
        if not self._shared_progress:
            note_rollout(self.progress, self)
        # A script's tables are its own.
        if self.options is not None or time.monotonic() < self._next_record:
            return
        self._next_record = time.monotonic() + self._period
        data = self.reading()
        for name, value in {**data.model_dump(exclude={"extra"}), **data.extra}.items():
            if isinstance(value, int | float):
                self.logger.record(f"gymcast/{name}", value)

    def _on_step(self) -> bool:
        if not self._shared_progress:
            note_step(self.progress, self)
        if not self._rates:
            self._note_rate()
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._period
            self.broadcast()
            if self._session is not None:
                self._session.tick()
        if self._shown is not None and now >= self._next_shown:
            self._next_shown = now + SHOW_SECONDS
            self._shown.update_locals(self.locals)
            self._shown.on_step()
        return True

    def _on_training_end(self) -> None:
        self.broadcast()
        self._send_graphs()
        if self._shown is not None:
            self._shown.on_training_end()
        if self._session is not None:
            self._session.leave()

    def __getstate__(self) -> dict[str, Any]:
        """Without the training it is in: a copy joins one of its own."""
        values = without_training(self.__dict__)
        if self.options is not None:
            values |= {"sink": None, "_session": None, "_shown": None, "progress": RunProgress(TrainingConfig())}
        return {name: value for name, value in values.items() if name != "_process"}

    def __setstate__(self, values: dict[str, Any]) -> None:
        self.__dict__.update(values)
        self._process = psutil.Process()

    def broadcast(self) -> None:
        """Send one reading now."""
        if self.sink is None:
            return
        data = self.reading()
        self.sink.emit(data)
        values: dict[str, Any] = {**data.model_dump(), **data.extra}
        for _, _, metrics in _GRAPHS.values():
            for metric in metrics:
                if values.get(metric) is not None:
                    self._points.setdefault(metric, []).append((data.timestamp, float(values[metric])))
        if time.monotonic() >= self._next_graph:
            self._next_graph = time.monotonic() + GRAPH_SECONDS
            self._send_graphs()

    def reading(self) -> TrainingMetricsData:
        """The metrics now."""
        stats, progress = self.progress.stats, self.progress
        samples, episodes = self._rate()
        per_step = self._game_seconds_per_step
        game_seconds = None if per_step is None or samples is None else samples * per_step
        extra: dict[str, float | None] = {
            "timesteps": progress.timesteps,
            "worst_reward": stats.worst_return,
            "epoch": self._epoch(),
            "samples_per_second": samples,
            "episodes_per_minute": None if episodes is None else 60.0 * episodes,
            **{name: value for name, value in self._losses.items() if name != "loss"},
        }
        if game_seconds is not None:
            extra["game_seconds_per_second"] = game_seconds
        if stats.win_rate is not None:
            extra.update(wins=stats.wins, losses=stats.losses, draws=stats.draws)
        if isinstance(self.training_env.unwrapped, GymcastSubprocVecEnv):
            extra.update(worker_restarts=stats.restarts, episodes_failed=stats.failed)
        if isinstance(self.model, OffPolicyAlgorithm):
            extra.update(_replay_facts(self.model))
        if self._own_values is not None:
            own = list(self._own_values().items())[:MOST_OWN_VALUES]
            extra.update((str(name)[:128], None if value is None else float(value)) for name, value in own)
        if progress.pacer is not None:
            extra.update(pace=progress.pacer.rate, pace_lag=progress.pacer.lag)
        return TrainingMetricsData(
            episode=stats.episodes,
            total_episodes=progress.config.max_episodes,
            current_reward=_finite(stats.last_return),
            average_reward=_finite(stats.mean_return),
            best_reward=_finite(stats.best_return),
            episode_length=stats.last_length,
            win_rate=stats.win_rate,
            loss_value=self._losses.get("loss"),
            learning_rate=self._learning_rate(),
            epsilon=getattr(self.model, "exploration_rate", None),
            model_generation=self._generation,
            algorithm=self._algorithm,
            training_time_elapsed=progress.seconds,
            actions_per_second=samples,
            frames_per_second=None
            if self._ticks_per_step is None or samples is None
            else samples * self._ticks_per_step,
            memory_usage_mb=self._process.memory_info().rss / 2**20,
            extra={name: _finite(value) for name, value in extra.items()},
        )

    def _learning_rate(self) -> float | None:
        # Algorithms of other packages need not have a schedule.
        schedule = getattr(self.model, "lr_schedule", None)
        return None if schedule is None else _finite(schedule(max(0.0, self.model._current_progress_remaining)))

    def _epoch(self) -> int:
        model = self.model
        if isinstance(model, OnPolicyAlgorithm):
            return int(model.num_timesteps // (model.n_steps * model.n_envs))
        return int(getattr(model, "_n_updates", 0))

    def _note_rate(self) -> None:
        if not self.progress.started:
            return
        now = self.progress.seconds
        self._rates.append((now, self.progress.timesteps, self.progress.stats.episodes))
        # The oldest point kept is just beyond the window, so that rollouts longer than the window still give a rate.
        while len(self._rates) > 2 and now - self._rates[1][0] > RATE_WINDOW_SECONDS:
            self._rates.popleft()

    def _rate(self) -> tuple[float | None, float | None]:
        """Samples and episodes per second of training over about the last ten seconds; None at the very beginning."""
        if not self._rates:
            return None, None
        then, timesteps, episodes = self._rates[0]
        seconds = self.progress.seconds - then
        if seconds < SHORTEST_RATE:
            return None, None
        return (self.progress.timesteps - timesteps) / seconds, (self.progress.stats.episodes - episodes) / seconds

    def _send_graphs(self) -> None:
        if self.sink is None:
            return
        for graph_id, (title, y_label, metrics) in _GRAPHS.items():
            curves = {
                metric: [GraphPoint(timestamp=moment, value=value) for moment, value in self._points[metric]]
                for metric in metrics
                if self._points.get(metric)
            }
            if curves:
                self.sink.emit(
                    PerformanceGraphData(
                        graph_id=graph_id, title=title, y_label=y_label, metrics=list(metrics), data_points=curves
                    )
                )
        self._points.clear()


def _finite(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _replay_facts(model: OffPolicyAlgorithm) -> dict[str, float]:
    buffer = model.replay_buffer
    held = 0 if buffer is None else buffer.size() * model.n_envs
    return {"replay_size": held, "warmup_left": max(0, model.learning_starts - model.num_timesteps)}
