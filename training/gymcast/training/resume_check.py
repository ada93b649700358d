"""Proof that a killed and resumed training equals one that was left alone: real processes, SIGKILL, SHA-256.

``python -m gymcast.training.resume_check RUN_DIR`` is one such process; it trains what ``RUN_DIR/config.yaml`` says,
goes on from the newest checkpoint there, and prints one JSON object per line about what it does.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from gymcast.training.algorithm_table import AUTO
from gymcast.training.config import TrainingConfig
from gymcast.training.events import RESUMED, CheckpointData, DesiredState, ErrorData, Message, TrainingMetricsData
from gymcast.training.events import TrainingStatusData as Status
from gymcast.training.run_folder import CONFIG_NAME

ROLLOUTS: Final = 20
# Of algorithms that do not learn from rollouts of one size.
OTHER_DECISIONS: Final = 6000
_CHECKPOINTS: Final = 20
# The last kill comes before this share of the training, so that the process cannot have ended by then.
_LAST_KILL: Final = 0.9
_LONGEST_DELAY: Final = 0.02
_BEGINNING: Final = "the beginning"


class ResumeCheckError(RuntimeError):
    """A training of the check ended on its own, or before it could be killed often enough."""


@dataclass(frozen=True)
class Kill:
    """One SIGKILL: ``timesteps`` the process had reported, ``seconds`` after its start, and where the next began."""

    number: int
    timesteps: int
    seconds: float
    resumed_from: str


@dataclass(frozen=True)
class ResumeReport:
    """SHA-256 of the weights, and of all else that training goes on from, of both runs."""

    weights: tuple[str, str]
    states: tuple[str, str]
    timesteps: tuple[int, int]
    kills: list[Kill]
    seconds: float
    notes: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether the interrupted run ended as the uninterrupted one did."""
        return self.weights[0] == self.weights[1] and self.states[0] == self.states[1]


Tell = Callable[[str, float], None]


def check_config(env_id: str, **overrides: Any) -> TrainingConfig:
    """The preset of ``env_id`` as a short training with a budget in decisions, which alone can be met exactly.

    Raises ``ConfigError``.
    """
    settings = {"evaluation_games": 0, "seed": 1, "checkpoint_interval_minutes": None, **overrides}
    config = TrainingConfig.for_env(env_id, **settings)
    total = overrides.get("total_timesteps")
    if total is None:
        total = ROLLOUTS * _rollout_size(config) if _learns_in_rollouts(config) else OTHER_DECISIONS
    limits = {"total_timesteps": total, "max_minutes": None, "max_episodes": None}
    if "checkpoint_interval_steps" not in overrides:
        limits["checkpoint_interval_steps"] = max(1, total // _CHECKPOINTS)
    return TrainingConfig.parse({**config.model_dump(mode="json"), **limits})


def _learns_in_rollouts(config: TrainingConfig) -> bool:
    return config.algorithm != AUTO and "gae_lambda" in config.spec.rules


def _rollout_size(config: TrainingConfig) -> int:
    steps = config.hyperparameters.get("n_steps", 5 if config.algorithm == "a2c" else 2048)
    return int(str(steps)) * config.parallel_episodes


def check_resume(
    config: TrainingConfig, kills: int, folder: Path, *, tell: Tell, on_kill: Callable[[Kill], None], seed: int = 0
) -> ResumeReport:
    """Train ``config`` once undisturbed and once killed ``kills`` times, in ``folder``; ``seed`` picks the moments.

    ``tell(what, share)`` is called while either run goes on. Raises :class:`ResumeCheckError`.
    """
    begun = time.monotonic()
    total = config.total_timesteps
    if total is None:
        raise ValueError("the check needs total_timesteps: a budget in minutes cannot be met exactly")
    notes: list[str] = []
    alone, killed = folder / "undisturbed", folder / "killed"
    for run_dir in (alone, killed):
        run_dir.mkdir(parents=True)
        (run_dir / CONFIG_NAME).write_text(config.to_yaml(), encoding="utf-8")
    with _training(alone) as undisturbed:
        for timesteps in undisturbed.reports():
            tell("undisturbed", timesteps / total)
        undisturbed.must_have_ended_well()
    done: list[Kill] = []
    waiting: tuple[int, int, float] | None = None
    chooser = random.Random(seed)
    moments = [round(total * _LAST_KILL * (number + chooser.random()) / kills) for number in range(kills)]
    for number, moment in enumerate([*moments, None], start=1):
        with _training(killed) as process:
            last = 0
            for last in process.reports():
                tell("killed", last / total)
                if moment is not None and last >= moment:
                    time.sleep(chooser.random() * _LONGEST_DELAY)
                    process.kill()
            if waiting is not None:
                done.append(Kill(*waiting, process.resumed_from))
                on_kill(done[-1])
            waiting = (number, last, round(process.seconds, 2))
            notes += [note for note in process.notes if note not in notes]
            if moment is None:
                process.must_have_ended_well()
            elif not process.killed:
                raise ResumeCheckError(f"the training ended before kill {number} of {kills}: {process.ending}")
    ends = [_final(run_dir) for run_dir in (alone, killed)]
    first, second = ends
    return ResumeReport(
        (first[0], second[0]), (first[1], second[1]), (first[2], second[2]), done, time.monotonic() - begun, notes
    )


class _Training:
    """One training process and what it says."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self._process = process
        self._log = log
        self._begun = time.monotonic()
        self.seconds = 0.0
        self.resumed_from = _BEGINNING
        self.notes: list[str] = []
        self.killed = False

    def reports(self) -> Iterator[int]:
        """Decisions taken, as the process reports them, until it ends."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            try:
                said = json.loads(line)
            except json.JSONDecodeError:
                continue  # the last line of a process that was killed while it wrote
            self.resumed_from = said.get("resumed_from", self.resumed_from)
            self.notes += [said["note"]] if "note" in said else []
            if "timesteps" in said and not self.killed:
                yield said["timesteps"]
        self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self.killed = True
        self.seconds = time.monotonic() - self._begun

    @property
    def ending(self) -> str:
        said = [line for line in self._log.read_text(encoding="utf-8").splitlines() if line.strip()]
        return f"exit code {self._process.returncode}" + (f", {said[-1].strip()}" if said else "")

    def must_have_ended_well(self) -> None:
        if self._process.returncode != 0:
            raise ResumeCheckError(f"a training of the check failed: {self.ending}")


@contextmanager
def _training(run_dir: Path) -> Iterator[_Training]:
    log = run_dir / "process.log"
    command = [sys.executable, "-m", "gymcast.training.resume_check", str(run_dir)]
    with open(log, "w", encoding="utf-8") as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)
    try:
        yield _Training(process, log)
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def _final(run_dir: Path) -> tuple[str, str, int]:
    """Hashes of the weights and of all else training depends on, and the decisions taken, at the end of a run."""
    from gymcast.training.checkpoints import CheckpointManager, load_arrays, load_state, load_tensors, tensors_sha256
    from gymcast.training.replay_files import REPLAY_PREFIX

    checkpoint = CheckpointManager(run_dir / "checkpoints", keep=None).newest()
    if checkpoint is None:
        raise ResumeCheckError(f"{run_dir} ended without a checkpoint that verifies")
    model, state, arrays = load_tensors(checkpoint)["model"], load_state(checkpoint), load_arrays(checkpoint)
    digest = hashlib.sha256(tensors_sha256(model).encode())
    # Nothing samples observations, so the stream of that space is seeded by nobody.
    known = [state["counters"], state["stats"], state["spaces"]["action_space"]]
    digest.update(json.dumps(known, sort_keys=True).encode())
    for name in sorted(arrays):
        # Snapshots of foreign environments hold times of day, such as when they were made.
        if not name.startswith("game/"):
            digest.update(name.encode() + arrays[name].tobytes())
    for path in sorted(checkpoint.path.glob(f"{REPLAY_PREFIX}*")):
        digest.update(path.name.encode() + path.read_bytes())
    return tensors_sha256(model["policy"]), digest.hexdigest(), checkpoint.timesteps


class _Printer:
    """A sink that prints what the check has to know."""

    desired: DesiredState = "running"

    def emit(self, data: Message) -> None:
        """Print one line for progress, the checkpoint that was resumed from, and whatever spoils exactness."""
        said: dict[str, Any] = {}
        if isinstance(data, TrainingMetricsData):
            said = {"timesteps": int(data.extra["timesteps"] or 0)}
        elif isinstance(data, CheckpointData):
            said = {"timesteps": data.timesteps}
        elif isinstance(data, Status) and (data.reason or "").startswith(RESUMED):
            said = {"resumed_from": str(data.reason).removeprefix(RESUMED)}
        elif isinstance(data, ErrorData):
            said = {"note": data.message}
        if said:
            print(json.dumps(said), flush=True)


def main(run_dir: Path) -> int:
    """Train in ``run_dir`` as it stands; returns the exit code."""
    from gymcast.training.trainer import Trainer

    config = TrainingConfig.from_yaml(run_dir / CONFIG_NAME).model_copy(update={"metrics_hz": 50.0})
    return Trainer(config, run_dir=run_dir, sink=_Printer(), resume=True).run_training_loop().exit_code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
