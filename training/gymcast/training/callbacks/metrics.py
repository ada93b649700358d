"""Metric readings as events, throttled at the source. Works in any Stable-Baselines3 script."""

from __future__ import annotations

import math
import time
from collections import deque
from datetime import datetime
from typing import Any

import psutil
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm

from gymcast.training.broadcast import EventSink, Sink, register_external_session
from gymcast.training.callbacks.progress import RunProgress
from gymcast.training.config import TrainingConfig
from gymcast.training.events import (
    GraphPoint,
    PerformanceGraphData,
    SessionStatus,
    TrainingMetricsData,
    TrainingStatusData,
    utc_now,
)
from gymcast.training.subproc import GymcastSubprocVecEnv
from gymcast.training.vec_env import GameVecEnv

RATE_WINDOW_SECONDS = 10.0
# Seconds; a rate over less says more about the clock than about training, and would dwarf all others on a chart.
SHORTEST_RATE = 0.01
GRAPH_SECONDS = 5.0
PAUSE_POLL_SECONDS = 0.05

# Our names for what the algorithms log; entropy is logged as a loss, that is with its sign turned.
_LOGGED = {
    "policy_loss": ("train/policy_gradient_loss", "train/policy_loss"),
    "value_loss": ("train/value_loss",),
    "entropy": ("train/entropy_loss",),
    "explained_variance": ("train/explained_variance",),
    "approx_kl": ("train/approx_kl",),
    "clip_fraction": ("train/clip_fraction",),
    "policy_objective": ("train/policy_objective",),
    "kl_divergence": ("train/kl_divergence_loss",),
    "line_search_success": ("train/is_line_search_success",),
    "actor_loss": ("train/actor_loss",),
    "critic_loss": ("train/critic_loss",),
    "ent_coef": ("train/ent_coef",),
    "ent_coef_loss": ("train/ent_coef_loss",),
    "action_std": ("train/std",),
    "delta_std": ("train/delta_std",),
    "step_size": ("train/step_size",),
    "return_std": ("train/return_std",),
    "loss": ("train/loss",),
}
# The same as below, of some algorithms only.
METRICS_OF_SOME = {
    "policy_objective": ("", "surrogate objective of the actor after the last update (trpo)"),
    "kl_divergence": ("nats", "divergence between the policies before and after the last update; 0: dropped (trpo)"),
    "line_search_success": ("share", "whether the line search of the last update found a step, 1 or 0 (trpo)"),
    "actor_loss": (
        "",
        "mean loss of the actor in the last updates: minus the critics' value of its actions (sac, td3)",
    ),
    "critic_loss": ("", "mean squared error of the critics in the last updates (sac, td3)"),
    "ent_coef": ("", "weight of the policy's entropy against the reward (sac)"),
    "ent_coef_loss": ("", "loss of that weight while it is learned; 0 where the entropy is on target (sac)"),
    "action_std": ("", "mean spread of continuous actions (on-policy algorithms)"),
    "delta_std": ("", "size of the change tried on each weight (ars)"),
    "step_size": ("", "learning rate over the number of directions and the spread of their returns (ars)"),
    "return_std": ("", "standard deviation of the returns of the policies tried (ars)"),
    "replay_size": ("decisions", "decisions in the replay buffer"),
    "warmup_left": ("decisions", "decisions until the first update of an off-policy algorithm"),
}
# Name -> (unit, meaning) of what gymcast's own trainer sends in a reading's ``extra``.
EXTRA_METRICS = {
    "timesteps": ("decisions", "decisions taken so far, all lanes together"),
    "epoch": ("updates", "rounds of collecting and learning so far; of off-policy algorithms gradient steps"),
    "samples_per_second": ("decisions/s", "decisions per second of training over about the last ten seconds"),
    "game_seconds_per_second": ("s/s", "game seconds simulated per second of training, all lanes together"),
    "episodes_per_minute": ("1/min", "episodes finished per minute of training"),
    "policy_loss": ("", "mean policy gradient loss of the last update"),
    "value_loss": ("", "mean squared error of the critic in the last update"),
    "entropy": ("nats", "mean entropy of the policy in the last update; falls as the bot makes up its mind"),
    "explained_variance": ("", "share of the returns' variance the critic explains; 1 is perfect, 0 a constant"),
    "approx_kl": ("nats", "approximate divergence between the policies before and after the last update"),
    "clip_fraction": ("share", "share of samples whose probability ratio was clipped in the last update"),
    "worst_reward": ("", "lowest return of any episode so far"),
    "wins": ("episodes", "training episodes won so far"),
    "losses": ("episodes", "training episodes lost so far"),
    "draws": ("episodes", "training episodes drawn so far"),
    "worker_restarts": ("restarts", "worker processes started again so far, when there are any"),
    "episodes_failed": ("episodes", "episodes cut short because their worker failed; they count in no other metric"),
    "pace": ("s/s", "game seconds of each lane per second over about the last ten seconds, when a speed is asked for"),
    "pace_lag": ("s", "time by which the game is behind the speed asked for, since this process began"),
    **METRICS_OF_SOME,
}
_GRAPHS = {
    "reward_progress": ("Reward", "return per episode", ("average_reward", "best_reward")),
    "win_rate": ("Win rate", "percent of recent episodes", ("win_rate",)),
    "losses": ("Losses", "loss", ("policy_loss", "value_loss", "actor_loss", "critic_loss")),
    "speed": ("Speed", "decisions per second", ("samples_per_second",)),
}


class MetricsBroadcastCallback(BaseCallback):
    """Sends :class:`TrainingMetricsData` ``hz`` times a second at most, and graph points every five seconds.

    ``sink`` is an :class:`~gymcast.training.broadcast.EventSink`, or the URL of a server such as
    ``"http://127.0.0.1:8000"``: then a session is announced there when training starts, the callback sends and
    closes by itself, and the server can pause or stop the training. In a script of your own nothing else is needed::

        model.learn(100_000, callback=MetricsBroadcastCallback("http://127.0.0.1:8000"))

    The same values go to the algorithm's own logger under ``gymcast/``, at most ``hz`` times a second, and with it to
    TensorBoard and whatever else it feeds; with ``None`` as the sink they go there only.
    """

    def __init__(
        self,
        sink: Sink | str | None,
        *,
        hz: float = 2.0,
        progress: RunProgress | None = None,
        name: str | None = None,
        model_generation: int = 1,
    ) -> None:
        super().__init__()
        self.sink = None if isinstance(sink, str) else sink
        self.session_id: str | None = None
        self._url = sink if isinstance(sink, str) else None
        self._name = name
        self._own_sink: EventSink | None = None
        self._final_status: SessionStatus = "completed"
        self._shared_progress = progress is not None
        self.progress = progress or RunProgress(TrainingConfig())
        self._generation = model_generation
        self._period = 1.0 / hz
        self._next = 0.0
        self._next_record = 0.0
        self._next_graph = 0.0
        self._rates: deque[tuple[float, int, int]] = deque()
        self._losses: dict[str, float] = {}
        self._points: dict[str, list[tuple[datetime, float]]] = {}
        self._process = psutil.Process()
        self._game_seconds_per_step: float | None = None
        self._ticks_per_step: float | None = None

    def _on_training_start(self) -> None:
        if not self._shared_progress:
            self.progress.timesteps = self.model.num_timesteps
        if self._url is not None:
            self._open_session(self._url)
        base = self.training_env.unwrapped
        if isinstance(base, GameVecEnv):
            self._game_seconds_per_step = base.env.decision_seconds
            self._ticks_per_step = base.env.decision_seconds * base.env.game.tick_rate

    def _open_session(self, url: str) -> None:
        name = self._name or f"{type(self.model).__name__}-{utc_now():%Y%m%d-%H%M%S}"
        self.session_id = register_external_session(
            url, training_session_id=name, algorithm=self._algorithm, model_generation=self._generation
        )
        self._own_sink = EventSink(url, self.session_id)
        self.sink = self._own_sink
        self._own_sink.emit(self._status("running"))

    @property
    def _algorithm(self) -> str:
        return type(self.model).__name__.removeprefix("Batch")

    def _on_rollout_start(self) -> None:
        # Right after an update the logger holds its losses; they are gone once it has written them out.
        values = self.logger.name_to_value
        for name, keys in _LOGGED.items():
            for key in keys:
                if key in values and math.isfinite(values[key]):
                    self._losses[name] = -float(values[key]) if name == "entropy" else float(values[key])
        self._note_rate()

    def _on_rollout_end(self) -> None:
        if time.monotonic() < self._next_record:
            return
        self._next_record = time.monotonic() + self._period
        data = self.reading()
        for name, value in {**data.model_dump(exclude={"extra"}), **data.extra}.items():
            if isinstance(value, int | float):
                self.logger.record(f"gymcast/{name}", value)

    def _on_step(self) -> bool:
        if not self._shared_progress:
            self.progress.start()
            self.progress.timesteps = self.model.num_timesteps
            self.progress.stats.update(self.locals["rewards"], self.locals["dones"], self.locals["infos"])
        if not self._rates:
            self._note_rate()
        now = time.monotonic()
        if now >= self._next:
            self._next = now + self._period
            self.broadcast()
        return self._own_sink is None or self._follow(self._own_sink)

    def _follow(self, sink: EventSink) -> bool:
        """Do what the server asks of a session this callback has announced; false to stop training."""
        if sink.desired == "paused":
            self.progress.pause()
            sink.emit(self._status("paused"))
            while sink.desired == "paused":
                time.sleep(PAUSE_POLL_SECONDS)
            self.progress.resume()
            sink.emit(self._status("running"))
        if sink.desired in ("stopping", "cancelled"):
            self._final_status = "cancelled"
            return False
        return True

    def _status(self, status: SessionStatus) -> TrainingStatusData:
        episodes = self.progress.stats.episodes
        return TrainingStatusData(status=status, current_episode=episodes, timesteps=self.progress.timesteps)

    def _on_training_end(self) -> None:
        self.broadcast()
        self._send_graphs()
        if self._own_sink is not None:
            self._own_sink.emit(self._status(self._final_status))
            self._own_sink.close()

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
        if progress.pacer is not None:
            extra.update(pace=progress.pacer.rate, pace_lag=progress.pacer.lag)
        return TrainingMetricsData(
            episode=stats.episodes,
            total_episodes=progress.config.max_episodes,
            current_reward=stats.last_return,
            average_reward=stats.mean_return,
            best_reward=stats.best_return,
            episode_length=stats.last_length,
            win_rate=stats.win_rate,
            loss_value=self._losses.get("loss"),
            learning_rate=float(self.model.lr_schedule(max(0.0, self.model._current_progress_remaining))),
            epsilon=getattr(self.model, "exploration_rate", None),
            model_generation=self._generation,
            algorithm=self._algorithm,
            training_time_elapsed=progress.seconds,
            actions_per_second=samples,
            frames_per_second=None
            if self._ticks_per_step is None or samples is None
            else samples * self._ticks_per_step,
            memory_usage_mb=self._process.memory_info().rss / 2**20,
            extra=extra,
        )

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


def _replay_facts(model: OffPolicyAlgorithm) -> dict[str, float]:
    buffer = model.replay_buffer
    held = 0 if buffer is None else buffer.size() * model.n_envs
    return {"replay_size": held, "warmup_left": max(0, model.learning_starts - model.num_timesteps)}
