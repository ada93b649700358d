"""Which processes step the environments of a training, and what is told when one of them had to be started again."""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Any, Final

import gymnasium as gym

from gymcast.envs import resolve_env_id
from gymcast.envs.subproc import WorkerRestart
from gymcast.training.broadcast import Sink
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.env_settings import problem_of_workers
from gymcast.training.episode_stats import EpisodeStats
from gymcast.training.events import ErrorData
from gymcast.training.vec_env import is_builtin

# Characters of a worker's traceback that an event carries: its end, which says most.
MAX_TRACEBACK: Final = 8000

log = logging.getLogger(__name__)


def resolve_workers(config: TrainingConfig, *, auto: bool = False) -> int:
    """How many processes step the environments of ``config``; 0: they are stepped in this one.

    With ``workers: auto`` games of gymcast and of Gymnasium itself are stepped here, any other one in a worker for each
    core, at most one for each lane: it may crash or hang. Without the argument ``auto`` all are stepped here: worker
    processes import the script that starts them, which not every script is made for.
    Raises :class:`~gymcast.training.config.ConfigError` for workers of a built-in game, and for a replay buffer that
    takes an episode which a failing worker cut short for one that ended.
    """
    env_id, wanted = resolve_env_id(config.env_id), config.workers
    if is_builtin(env_id):
        if text := problem_of_workers(env_id, wanted):
            raise ConfigError("invalid TrainingConfig", [("workers", text)])
        return 0
    if wanted != "auto":
        if wanted > 0:
            _check_replay_buffer(config)
        return min(wanted, config.parallel_episodes)
    entry = gym.spec(env_id).entry_point
    module = entry if isinstance(entry, str) else getattr(entry, "__module__", "")
    if not auto or sys.platform != "linux" or re.match(r"(gymnasium|gymcast)[.:]", module):
        return 0
    return min(len(os.sched_getaffinity(0)), config.parallel_episodes)


def _check_replay_buffer(config: TrainingConfig) -> None:
    given = config.hyperparameters.get("replay_buffer_kwargs")
    if isinstance(given, dict) and given.get("handle_timeout_termination") is False:
        text = (
            "got handle_timeout_termination false: an episode whose worker fails would be learned from as if the game "
            "had ended there; leave it out, or set workers to 0"
        )
        raise ConfigError("invalid TrainingConfig", [("hyperparameters.replay_buffer_kwargs", text)])


def worker_options(config: TrainingConfig) -> dict[str, Any] | None:
    """The arguments of ``GymcastSubprocVecEnv`` that ``config`` asks for; None when it wants no workers.

    A worker steps its lanes one after the other, and no step may last longer than an episode: so an ``episode_timeout``
    ends games that hang, too.
    """
    workers = resolve_workers(config)
    if workers == 0:
        return None
    return {
        "n_workers": workers,
        "start_method": config.worker_start_method,
        "step_timeout": config.longest_step(-(-config.parallel_episodes // workers)),
        "start_timeout": config.start_timeout,
        "max_restarts": config.max_restarts,
        "max_restarts_per_minute": config.max_restarts_per_minute,
    }


class RestartReports:
    """Counts restarts of workers and tells of each: a line in the log, and an ``error`` event ``worker_restarted``."""

    def __init__(self, stats: EpisodeStats, sink: Sink | None) -> None:
        self._stats = stats
        self._sink = sink

    def __call__(self, restart: WorkerRestart) -> None:
        """A worker was started again."""
        self._stats.restarts += 1
        count = self._stats.restarts
        message = f"{restart.reason}; started again after {restart.seconds:.1f} s (restart {count} of this run)"
        log.warning("%s%s", message, f"\n{restart.traceback.rstrip()}" if restart.traceback else "")
        if self._sink is not None:
            detail = {
                "worker": restart.worker,
                "lanes": list(restart.lanes),
                "restarts": count,
                "seconds": round(restart.seconds, 3),
                "traceback": restart.traceback[-MAX_TRACEBACK:],
            }
            self._sink.emit(ErrorData(code="worker_restarted", message=message[:2000], detail=detail))
