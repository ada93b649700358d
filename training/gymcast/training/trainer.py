"""One training run, from an empty folder to a measured policy."""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback, CallbackList
from stable_baselines3.common.logger import configure
from stable_baselines3.common.vec_env import VecEnv

from gymcast.envs import GAMES, resolve_env_id
from gymcast.training.algorithms import BatchA2C, BatchMaskablePPO, BatchPPO
from gymcast.training.broadcast import Sink
from gymcast.training.callbacks import (
    BotDecisionCallback,
    CheckpointCallback,
    CollapseAlarmCallback,
    FootageCallback,
    MetricsBroadcastCallback,
    ProgressCallback,
    RunProgress,
    SessionControlCallback,
)
from gymcast.training.checkpoints import (
    POLICY_FILE,
    Checkpoint,
    CheckpointManager,
    load_state,
    load_tensors,
    model_tensors,
    restore_model,
)
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.evaluate import MAX_LANES, EvaluationResult, EvaluationStopped, evaluate
from gymcast.training.events import (
    CheckpointData,
    ErrorData,
    Message,
    Phase,
    SessionStatus,
    TrainingStatusData,
    utc_now,
)
from gymcast.training.models import build_model, torch_threads
from gymcast.training.policies import can_export, export_policy
from gymcast.training.signals import StopSignals
from gymcast.training.vec_env import GameVecEnv, is_builtin, make_training_vec_env

log = logging.getLogger(__name__)

# Stable-Baselines3 needs a number of timesteps even where minutes or episodes are the limit.
NO_LIMIT = 10**15
# Opponents that are no level of skill of their own.
UNRATED = ("random", "mixed", "self")
# Streams of random numbers derived from the run's seed.
_STREAM_EVALUATION, _STREAM_RESUMED = 1, 2


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

    The folder holds ``config.yaml`` (exact, the drawn seed included), ``log.txt``, ``tb/`` (TensorBoard),
    ``checkpoints/`` and, at the end, ``summary.json``. ``sink`` receives the events and says when to pause or stop;
    ``resume`` continues from the newest checkpoint in ``run_dir`` that verifies. ``signals`` may be entered already, by
    a process that has work to do before.
    """

    def __init__(
        self,
        config: TrainingConfig,
        *,
        run_dir: str | Path | None = None,
        sink: Sink | None = None,
        resume: bool = False,
        signals: StopSignals | None = None,
    ) -> None:
        seed = secrets.randbelow(2**31) if config.seed is None else config.seed
        self.config = config.model_copy(update={"seed": seed, "env_id": resolve_env_id(config.env_id)})
        self.seed = seed
        self.sink = sink
        self.resume = resume
        name = self.config.env_id.rsplit("/", 1)[-1]
        self.run_dir = Path(run_dir or Path("runs") / f"{name}-{utc_now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}")
        self.progress = RunProgress(self.config)
        self.signals = signals or StopSignals()
        self.checkpoints: CheckpointManager | None = None
        self.model: BaseAlgorithm | None = None

    def run_training_loop(self) -> TrainingResult:
        """Train until a limit is reached or someone stops it, then save, evaluate and summarise.

        Raises what went wrong after reporting it as an event and a log line; ``ConfigError`` and the environment's
        own errors for values that cannot work.
        """
        config = self.config
        self.run_dir.mkdir(parents=True, exist_ok=True)
        with self.signals, _log_file(self.run_dir / "log.txt"), self._failures_reported():
            log.info("training %s with %s in %s", config.env_id, config.algorithm, self.run_dir)
            self._write_text("config.yaml", config.to_yaml())
            self.checkpoints = CheckpointManager(
                self.run_dir / "checkpoints", keep=config.checkpoints_kept if config.auto_cleanup else None
            )
            self._report("starting", "compiling")
            newest = self.checkpoints.newest() if self.resume else None
            env = self._make_env(newest)
            try:
                model = self.model = build_model(config, env, self.seed)
                th.set_num_threads(torch_threads(config, model))
                # Checking every distribution's parameters took 5 % of the time; the collapse alarm looks for NaN.
                th.distributions.Distribution.set_default_validate_args(False)
                model.set_logger(configure(str(self.run_dir / "tb"), ["tensorboard"]))
                if newest is not None:
                    self._restore(model, newest)
                control = self._session_control(env)
                self._learn(model, [ProgressCallback(self.progress), control, *self._observers()])
                stopped = control.stop_kind if control.stop_kind not in (None, "limit") else None
                reason = control.reason or "total_timesteps reached"
                self._report("stopping" if stopped else "running", "saving", reason)
                checkpoint = self.save_checkpoint("signal" if stopped == "signal" else "final")
            finally:
                env.close()
                if self.model is not None:
                    self.model.logger.close()
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
            self._write_text("summary.json", json.dumps(asdict(result), default=str, indent=1))
            log.info("%s: %s, %d timesteps, %d episodes", result.status, reason, result.timesteps, result.episodes)
            self._report(result.status, "", result.reason)
            return result

    def save_checkpoint(self, reason: str) -> Checkpoint | None:
        """Write a checkpoint; a full disk or the like is reported and training goes on (``None`` is returned)."""
        model, manager = self.model, self.checkpoints
        if model is None or manager is None:
            raise RuntimeError("there is nothing to save before run_training_loop() has built the model")
        stats = self.progress.stats
        try:
            checkpoint = manager.save(
                {"model": model_tensors(model), "torch_rng": th.get_rng_state()},
                self._state(model),
                timesteps=model.num_timesteps,
                episodes=stats.episodes,
                reason=reason,
                score=stats.win_rate if stats.win_rate is not None else stats.mean_return,
                write_files=self._export,
            )
        except OSError as error:
            log.warning("checkpoint at %d timesteps not written, training goes on: %s", model.num_timesteps, error)
            detail = {"timesteps": model.num_timesteps, "errno": error.errno, "reason": reason}
            self._emit(ErrorData(code="checkpoint_failed", message=f"checkpoint not written: {error}", detail=detail))
            return None
        log.info("checkpoint %s (%s)", checkpoint.path.name, reason)
        path = str(checkpoint.path.relative_to(self.run_dir))
        facts = {name: getattr(checkpoint, name) for name in ("timesteps", "episodes", "bytes", "sha256", "reason")}
        self._emit(CheckpointData(path=path, **facts))
        return checkpoint

    def _make_env(self, newest: Checkpoint | None) -> VecEnv:
        config = self.config
        # A resumed run plays on with episodes it has not seen yet.
        seed = self.seed if newest is None else _derived_seed(self.seed, _STREAM_RESUMED, newest.timesteps)
        return make_training_vec_env(
            config.env_id,
            config.parallel_episodes,
            seed,
            episode_timeout=config.episode_timeout,
            options=config.env_kwargs,
        )

    def _session_control(self, env: VecEnv) -> SessionControlCallback:
        decision_seconds = env.env.decision_seconds if isinstance(env, GameVecEnv) else None
        return SessionControlCallback(
            self.progress, self.signals, self.sink, self._report, self.save_checkpoint, decision_seconds
        )

    def _observers(self) -> list[BaseCallback]:
        config, sink = self.config, self.sink
        callbacks: list[BaseCallback] = [CollapseAlarmCallback(sink)]
        if sink is not None:
            callbacks.append(MetricsBroadcastCallback(sink, hz=config.metrics_hz, progress=self.progress))
        if sink is not None and config.spectator_enabled:
            callbacks.append(BotDecisionCallback(sink))
            if config.footage_seconds is not None:
                callbacks.append(FootageCallback(sink, self.progress, config.footage_seconds))
        callbacks.append(
            CheckpointCallback(
                self.save_checkpoint,
                self.progress,
                minutes=config.checkpoint_interval_minutes,
                steps=config.checkpoint_interval_steps,
            )
        )
        return callbacks

    def _learn(self, model: BaseAlgorithm, callbacks: list[BaseCallback]) -> None:
        config = self.config
        remaining = NO_LIMIT if config.total_timesteps is None else config.total_timesteps - model.num_timesteps
        if isinstance(model, BatchPPO | BatchMaskablePPO | BatchA2C) and (config.max_minutes or config.max_episodes):
            model.progress_source = lambda: self.progress.progress
        if remaining > 0:
            model.learn(remaining, CallbackList(callbacks), log_interval=1, reset_num_timesteps=False)

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
            self._report("running", "evaluating")
            try:
                result = evaluate(
                    model,
                    config.env_id,
                    opponent,
                    config.evaluation_games,
                    seed=_derived_seed(self.seed, _STREAM_EVALUATION, number),
                    masked=config.algorithm == "maskable_ppo",
                    should_stop=self._wants_end,
                    options=config.env_kwargs,
                )
            except EvaluationStopped as stopped:
                log.info("evaluation: %s", stopped)
                break
            log.info("evaluation against %s: %s", opponent or "the environment", result)
            self._emit(result.as_event())
            results.append(result)
        return results

    def _wants_end(self) -> bool:
        asked = self.sink is not None and self.sink.desired in ("stopping", "cancelled")
        return asked or self.signals.received is not None

    def _state(self, model: BaseAlgorithm) -> dict[str, Any]:
        version, internal, gauss = random.getstate()
        kind, keys, *position = np.random.get_state(legacy=True)
        return {
            "config": self.config.model_dump(mode="json"),
            "timesteps": model.num_timesteps,
            "n_updates": getattr(model, "_n_updates", 0),
            "training_seconds": self.progress.seconds,
            "stats": self.progress.stats.to_state(),
            "python_rng": [version, list(internal), gauss],
            "numpy_rng": [kind, np.asarray(keys).tolist(), *position],
        }

    def _restore(self, model: BaseAlgorithm, checkpoint: Checkpoint) -> None:
        tensors, state = load_tensors(checkpoint), load_state(checkpoint)
        restore_model(model, tensors["model"])
        model.num_timesteps = state["timesteps"]
        model._n_updates = state["n_updates"]
        self.progress.seconds_before = state["training_seconds"]
        self.progress.timesteps = state["timesteps"]
        self.progress.stats.load_state(state["stats"])
        version, internal, gauss = state["python_rng"]
        random.setstate((version, tuple(internal), gauss))
        np.random.set_state(tuple(state["numpy_rng"]))
        th.set_rng_state(tensors["torch_rng"])
        log.info("resumed from %s at %d timesteps", checkpoint.path.name, checkpoint.timesteps)

    def _export(self, folder: Path) -> None:
        model = self.model
        if model is None or not can_export(model):
            return
        env_id, env = self.config.env_id, model.get_env()
        base = None if env is None else env.unwrapped
        export_policy(
            model,
            folder / POLICY_FILE,
            env_id=env_id,
            version=base.env.game.version if isinstance(base, GameVecEnv) else "",
            options=dict(base.env.options) if isinstance(base, GameVecEnv) else dict(self.config.env_kwargs),
        )

    def _report(self, status: SessionStatus, phase: Phase = "", reason: str | None = None) -> None:
        progress = self.progress
        ended = status in ("completed", "failed", "cancelled")
        self._emit(
            TrainingStatusData(
                status=status,
                phase=phase,
                reason=None if reason is None else reason[:2000],
                current_episode=progress.stats.episodes,
                timesteps=progress.timesteps,
                total_timesteps=self.config.total_timesteps,
                progress=1.0 if status == "completed" else progress.progress,
                eta_seconds=None if ended else progress.eta_seconds,
            )
        )

    def _emit(self, data: Message) -> None:
        if self.sink is not None:
            self.sink.emit(data)

    @contextmanager
    def _failures_reported(self) -> Iterator[None]:
        try:
            yield
        except ConfigError as error:
            # Settings that only the built environment or algorithm can check: no fault whose traceback would help.
            log.error("%s", error)
            self._emit(ErrorData(code="bad_config", message=str(error)[:2000]))
            self._report("failed", "", str(error))
            raise
        except Exception as error:
            log.exception("training failed")
            self._emit(ErrorData(code="training_failed", message=f"{type(error).__name__}: {error}"[:2000]))
            self._report("failed", "", f"{type(error).__name__}: {error}")
            raise

    def _write_text(self, name: str, text: str) -> None:
        unfinished = self.run_dir / f".{name}.unfinished"
        unfinished.write_text(text, encoding="utf-8")
        os.replace(unfinished, self.run_dir / name)


def _derived_seed(seed: int, *stream: int) -> int:
    return int(np.random.SeedSequence([seed, *stream]).generate_state(1)[0] & 0x7FFFFFFF)


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger = logging.getLogger("gymcast")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(min(level, logging.INFO) if level else logging.INFO)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        handler.close()
