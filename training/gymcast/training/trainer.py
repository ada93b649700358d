"""One training run, from an empty folder to a measured policy."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv

from gymcast.envs import GAMES, resolve_env_id
from gymcast.envs.episode_log import FOLDER as EPISODES
from gymcast.training.boundary import RolloutBoundary
from gymcast.training.broadcast import Sink
from gymcast.training.callbacks import (
    BotDecisionCallback,
    CheckpointCallback,
    CollapseAlarmCallback,
    EpisodeLogCallback,
    EpisodeReportCallback,
    FootageCallback,
    GuardedCallback,
    MetricsBroadcastCallback,
    ProgressCallback,
    RunProgress,
    SessionControlCallback,
    WatchedCallbacks,
)
from gymcast.training.checkpoints import Checkpoint, CheckpointManager, Found
from gymcast.training.compute import keep_freed_memory
from gymcast.training.config import INITIAL_FILE, TrainingConfig
from gymcast.training.env_workers import RestartReports, resolve_workers, worker_options
from gymcast.training.evaluate import MAX_LANES, EvaluationResult, EvaluationStopped, evaluate
from gymcast.training.events import (
    CHOSEN,
    RESUMED,
    CheckpointData,
    ErrorData,
    SessionStatus,
    utc_now,
)
from gymcast.training.hang_watch import WATCH, Place
from gymcast.training.logged_values import EVALUATION
from gymcast.training.models import build_model, follow_progress, normalized, resolve_algorithm, torch_threads
from gymcast.training.resume import resume_run, save_run
from gymcast.training.run_folder import CONFIG_NAME
from gymcast.training.run_log import RunLog, write_text
from gymcast.training.run_reports import RunReports
from gymcast.training.run_state import capture, streams_untouched
from gymcast.training.sb3_zip import load_weights, read_sb3_zip
from gymcast.training.signals import StopSignals
from gymcast.training.subproc import GymcastSubprocVecEnv
from gymcast.training.vec_env import decision_seconds, is_builtin, make_training_vec_env, try_foreign

log = logging.getLogger(__name__)

# Stable-Baselines3 needs a number of timesteps even where minutes or episodes are the limit.
NO_LIMIT = 10**15
# Opponents that are no level of skill of their own.
UNRATED = ("random", "mixed", "self")
# Streams of random numbers derived from the run's seed.
_STREAM_EVALUATION, _STREAM_RESUMED, _STREAM_SCORE = 1, 2, 3


@dataclass(frozen=True)
class TrainingResult:
    """What a run came to. ``exit_code`` is 0, or 128 + the signal that ended it."""

    status: SessionStatus
    reason: str
    timesteps: int
    episodes: int
    training_seconds: float
    run_dir: Path
    checkpoint: Path | None
    exit_code: int = 0
    evaluations: list[EvaluationResult] = field(default_factory=list)


class Trainer:
    """Trains what ``config`` describes and leaves everything in ``run_dir``.

    The folder holds ``config.yaml`` (exact, with the seed and the precision that were chosen), ``log.txt``,
    ``log.jsonl`` (the same and the values of the updates as JSON lines), ``tb/`` (TensorBoard), ``checkpoints/``,
    ``episodes/`` (every episode, for replay) and, at the end, ``summary.json``. ``sink`` receives the events and says
    when to pause or stop; ``resume`` continues from the newest checkpoint in ``run_dir`` that verifies. ``signals`` may
    be entered already, by a process that has work to do before. ``callbacks``
    are called like Stable-Baselines3's own; one that raises is reported and left out.
    """

    def __init__(
        self,
        config: TrainingConfig,
        *,
        run_dir: str | Path | None = None,
        sink: Sink | None = None,
        resume: bool = False,
        signals: StopSignals | None = None,
        callbacks: Sequence[BaseCallback] = (),
    ) -> None:
        seed = secrets.randbelow(2**31) if config.seed is None else config.seed
        env_id = resolve_env_id(config.env_id, config.gym_packages)
        self.config = config.model_copy(update={"env_id": env_id, "seed": seed})
        self.seed = seed
        self.sink = sink
        self.callbacks = callbacks
        self.resume = resume
        name = self.config.env_id.rsplit("/", 1)[-1]
        self.run_dir = Path(run_dir or Path("runs") / f"{name}-{utc_now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")
        self.progress = RunProgress(self.config)
        self.reports = RunReports(sink, self.progress)
        self.signals = signals or StopSignals()
        self.checkpoints: CheckpointManager | None = None
        self.model: BaseAlgorithm | None = None
        self._boundary: RolloutBoundary | None = None
        self.episode_log: EpisodeLogCallback | None = None

    def run_training_loop(self) -> TrainingResult:
        """Train until a limit is reached or someone stops it, then save, evaluate and summarise.

        Raises what went wrong after reporting it as an event and a log line; ``ConfigError`` and the environment's
        own errors for values that cannot work.
        """
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with RunLog(self.run_dir, self.reports.given_up) as run_log, self.signals, self.reports.failures():
            # Written down, so that a resumed run has as many.
            self.config = self.config.model_copy(update={"workers": resolve_workers(self.config)})
            self.checkpoints = self._checkpoint_manager()
            self.reports.status("starting", "compiling")
            found = self.checkpoints.find_newest() if self.resume else None
            env = self._make_env()
            keep_freed_memory()
            try:
                config = self._settle(env)
                env = normalized(env, config)
                model = self.model = build_model(config, env, self.seed)
                th.set_num_threads(torch_threads(config, model))
                # Checking every distribution's parameters took 5 % of the time; the collapse alarm looks for NaN.
                th.distributions.Distribution.set_default_validate_args(False)
                model.set_logger(run_log.logger(config))
                if found is not None:
                    self._resume_from(model, env, found)
                if (found is None or found.checkpoint is None) and (self.run_dir / INITIAL_FILE).exists():
                    load_weights(model, read_sb3_zip(self.run_dir / INITIAL_FILE))
                control = self._session_control(env)
                self._boundary = RolloutBoundary(model, lambda: capture(model, self.progress), control.may_go_on)
                self._learn(model, [ProgressCallback(self.progress), control, *self._observers()])
                if control.stop_kind == "limit":
                    self._boundary.give_up_rollout(control.locals)
                stopped = control.stop_kind if control.stop_kind not in (None, "limit") else None
                reason = control.reason or "total_timesteps reached"
                self.reports.status("stopping" if stopped else "running", "saving", reason)
                # Who cancels wants the end, not what was reached.
                checkpoint = None
                if stopped != "cancelled":
                    checkpoint = self.save_checkpoint("signal" if stopped == "signal" else "final")
            finally:
                if self.episode_log is not None:
                    self.episode_log.close()
                env.close()
            with WATCH.at(Place.EVALUATING):
                evaluations = [] if stopped else self._evaluate(model)
            interrupted = self.signals.received is not None
            result = TrainingResult(
                status="cancelled" if stopped or interrupted else "completed",
                reason=f"received {self.signals.received.name}" if self.signals.received is not None else reason,
                timesteps=self.progress.timesteps,
                episodes=self.progress.stats.episodes,
                training_seconds=self.progress.seconds,
                run_dir=self.run_dir,
                checkpoint=None if checkpoint is None else checkpoint.path,
                exit_code=self.signals.exit_code,
                evaluations=evaluations,
            )
            run_log.summarise(asdict(result))
            done = f"{result.timesteps} timesteps, {result.episodes} episodes"
            log.info("%s: %s, %s", result.status, result.reason, done)
            self.reports.status(result.status, "", result.reason)
            return result

    def save_checkpoint(self, reason: str) -> Checkpoint | None:
        """Write a checkpoint; a full disk or the like is reported and training goes on (``None`` is returned).

        Only for the thread that trains. In the middle of a rollout the state it began with is written, see
        :mod:`gymcast.training.boundary`.
        """
        model, manager, boundary = self.model, self.checkpoints, self._boundary
        if model is None or manager is None or boundary is None:
            raise RuntimeError("there is nothing to save before run_training_loop() has built the model")
        with WATCH.at(Place.SAVING):
            state = boundary.state()
            timesteps = state.timesteps
            if self.episode_log is not None:
                self.episode_log.flush()  # episodes under way here are finished by whoever resumes
            try:
                checkpoint = save_run(manager, model, state, self.config, reason=reason, score=self._score(model))
            except OSError as error:
                log.warning("checkpoint at %d timesteps not written, training goes on: %s", timesteps, error)
                detail = {"timesteps": timesteps, "errno": error.errno, "reason": reason}
                text = f"checkpoint not written: {error}"
                self.reports.emit(ErrorData(code="checkpoint_failed", message=text, detail=detail))
                return None
        log.info("checkpoint %s (%s)", checkpoint.path.name, reason)
        if again := model.num_timesteps - timesteps:
            log.info("%d decisions of the unfinished rollout will be taken again, the same ones", again)
        path = str(checkpoint.path.relative_to(self.run_dir))
        facts = {name: getattr(checkpoint, name) for name in ("timesteps", "episodes", "bytes", "sha256", "reason")}
        self.reports.emit(CheckpointData(path=path, **facts))
        return checkpoint

    def _score(self, model: BaseAlgorithm) -> float | None:
        """What tells the best checkpoint: games played for it where they are asked for, else the recent training."""
        config, stats = self.config, self.progress.stats
        if config.checkpoint_evaluation_games == 0:
            return stats.win_rate if stats.win_rate is not None else stats.mean_return
        opponent = str(config.env_kwargs.get("opponent", ""))
        try:
            with streams_untouched(model):
                result = self._play(model, opponent, config.checkpoint_evaluation_games, _STREAM_SCORE)
        except EvaluationStopped:
            return None
        log.info("checkpoint evaluation: %s", result)
        self.reports.emit(result.as_event())
        return result.win_rate if result.win_rate is not None else result.mean_return

    def _checkpoint_manager(self) -> CheckpointManager:
        config, limit = self.config, self.config.checkpoints_max_mb
        cleaned = config.auto_cleanup
        return CheckpointManager(
            self.run_dir / "checkpoints",
            keep=config.checkpoints_kept if cleaned else None,
            max_bytes=round(limit * 2**20) if cleaned and limit is not None else None,
        )

    def _make_env(self) -> VecEnv:
        config = self.config
        if not is_builtin(config.env_id) and not config.workers:
            try_foreign(config)
        env = make_training_vec_env(
            config.env_id,
            config.parallel_episodes,
            self.seed,
            workers=worker_options(config),
            episode_timeout=config.episode_timeout,
            episode_steps=config.max_episode_steps,
            options=config.env_kwargs,
            extras=config.extras,
        )
        if isinstance(env, GymcastSubprocVecEnv):
            env.on_restart = RestartReports(self.progress.stats, self.sink)
            log.info("environments run in %d worker processes", config.workers)
        if not is_builtin(config.env_id) and (unseen := env.get_attr("unseen", [0])[0]):
            text = f"the policy does not see {', '.join(unseen)} of the observations, which is text"
            self.reports.warn("observation_text", text)
        return env

    def _settle(self, env: VecEnv) -> TrainingConfig:
        """Decide what the environment and the machine have to say about, tell the choice and keep it in the folder."""
        self.config, reason = resolve_algorithm(self.config, env)
        # They share the settings, limits included.
        self.progress.config = self.config
        config = self.config
        write_text(self.run_dir / CONFIG_NAME, config.to_yaml())
        log.info("training %s with %s in %s", config.env_id, config.algorithm, self.run_dir)
        if reason is not None:
            self.reports.status("starting", "compiling", f"{CHOSEN}{config.algorithm}: {reason}")
            log.info("algorithm %s, chosen because of the actions: %s", config.algorithm, reason)
        return config

    def _session_control(self, env: VecEnv) -> SessionControlCallback:
        seconds, pace = decision_seconds(env), self.config.pacing
        if pace is not None and seconds is None:
            log.warning("no pacing: %s does not say how long a step is (metadata render_fps)", self.config.env_id)
        log.info("speed: %s", "unlimited" if pace is None or seconds is None else f"{pace:g} x real time")
        return SessionControlCallback(
            self.progress,
            self.signals,
            self.sink,
            self.reports.status,
            self.save_checkpoint,
            seconds,
            lambda: self._boundary is not None and self._boundary.can_go_back,
        )

    def _observers(self) -> list[BaseCallback]:
        config, sink = self.config, self.sink
        callbacks: list[BaseCallback] = [CollapseAlarmCallback(sink)]
        if config.replays_kept != 0:
            self.episode_log = EpisodeLogCallback(
                self.run_dir / EPISODES,
                max_mb=config.replays_max_mb,
                kept=config.replays_kept,
                sink=sink,
                extras=config.extras,
            )
            callbacks.append(self.episode_log)
        callbacks.append(MetricsBroadcastCallback(sink, hz=config.metrics_hz, progress=self.progress))
        if sink is not None and self.progress.stats.reports is not None:
            callbacks.append(EpisodeReportCallback(sink, self.progress.stats))
        if sink is not None and config.spectator_enabled:
            callbacks.append(BotDecisionCallback(sink))
            if config.footage_seconds is not None:
                callbacks.append(FootageCallback(sink, self.progress, config.footage_seconds, extras=config.extras))
        callbacks.append(
            CheckpointCallback(
                self.save_checkpoint,
                self.progress,
                minutes=config.checkpoint_interval_minutes,
                steps=config.checkpoint_interval_steps,
                episodes=config.checkpoint_interval_episodes,
            )
        )
        return [*callbacks, *(GuardedCallback(callback, self.reports.given_up) for callback in self.callbacks)]

    def _learn(self, model: BaseAlgorithm, callbacks: list[BaseCallback]) -> None:
        config = self.config
        remaining = NO_LIMIT if config.total_timesteps is None else config.total_timesteps - model.num_timesteps
        if config.max_minutes or config.max_episodes:
            follow_progress(model, lambda: self.progress.progress)
        if remaining > 0:
            with WATCH.at(Place.TRAINING):
                model.learn(remaining, WatchedCallbacks(callbacks), log_interval=1, reset_num_timesteps=False)

    def _evaluate(self, model: BaseAlgorithm) -> list[EvaluationResult]:
        config = self.config
        if config.evaluation_games == 0:
            return []
        opponents = config.evaluation_opponents
        if is_builtin(config.env_id) and opponents is None:
            opponents = tuple(name for name in GAMES[config.env_id].opponents if name not in UNRATED)
        th.set_num_threads(torch_threads(config, model, min(config.evaluation_games, MAX_LANES)))
        results = []
        for number, opponent in enumerate(opponents or ("",)):
            self.reports.status("running", "evaluating")
            try:
                result = self._play(model, opponent, config.evaluation_games, _STREAM_EVALUATION, number)
            except EvaluationStopped as stopped:
                log.info("evaluation: %s", stopped)
                break
            log.info("evaluation against %s: %s", opponent or "the environment", result.summary)
            self.reports.emit(result.as_event())
            for name in ("win_rate", "mean_return", "mean_length"):
                if (value := getattr(result, name)) is not None:
                    model.logger.record(f"{EVALUATION}{opponent or 'games'}/{name}", value)
            results.append(result)
        model.logger.dump(model.num_timesteps)
        return results

    def _play(self, model: BaseAlgorithm, opponent: str, games: int, *stream: int) -> EvaluationResult:
        """Games for measurement; what the policy sees is normalised as in training."""
        config, normalise = self.config, model.get_vec_normalize_env()
        return evaluate(
            model,
            config.env_id,
            opponent,
            games,
            seed=_derived_seed(self.seed, *stream),
            masked=config.spec.masked,
            # Off-policy algorithms explore by noise that is no part of what they have learned.
            deterministic=config.spec.off_policy,
            should_stop=self._wants_end,
            normalize=None if normalise is None else normalise.normalize_obs,
            workers=worker_options(config),
            options=config.env_kwargs,
            extras=config.extras,
        )

    def _wants_end(self) -> bool:
        asked = self.sink is not None and self.sink.desired in ("stopping", "cancelled")
        return asked or self.signals.received is not None

    def _resume_from(self, model: BaseAlgorithm, env: VecEnv, found: Found) -> None:
        """Go on from a checkpoint, and say from which one, which were skipped, and what is not exact."""
        for name, why in found.skipped:
            self.reports.emit(ErrorData(code="checkpoint_skipped", message=f"{name} skipped: {why}"[:2000]))
        checkpoint = found.checkpoint
        if checkpoint is None:
            log.warning("there is no checkpoint to resume from, training begins anew: %s", found)
            self.reports.status("starting", "compiling", f"{RESUMED}{found}")
            return
        no_games, other_machine = resume_run(model, self.progress, checkpoint)
        if no_games is not None:
            # The resumed run plays on with episodes it has not seen yet.
            env.seed(_derived_seed(self.seed, _STREAM_RESUMED, checkpoint.timesteps))
            self.reports.warn(
                "resume_not_exact", f"the games begin anew, so the run goes on, but not exactly: {no_games}"
            )
        if other_machine is not None:
            self.reports.warn("resume_not_exact", other_machine)
        log.info("resumed from %s at %d timesteps", found, checkpoint.timesteps)
        self.reports.status("starting", "compiling", f"{RESUMED}{found}")


def _derived_seed(seed: int, *stream: int) -> int:
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1)[0] & 0x7FFFFFFF)
