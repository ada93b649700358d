"""Weights & Biases as a destination of a run's values; needs the extra ``gymcast[wandb]``.

W&B's own environment variables hold: ``WANDB_API_KEY``, ``WANDB_MODE=offline`` (a folder to ``wandb sync`` later),
``WANDB_ENTITY``, ``WANDB_BASE_URL``.
"""

from __future__ import annotations

import re
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

from stable_baselines3.common.logger import KVWriter

from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.logged_values import is_result, scalars

# W&B keeps every value it is given; one set a second is more than its charts show.
LOG_SECONDS: Final = 1.0
# How long a training waits for a network that does not answer, at its beginning and at its end.
_INIT_SECONDS: Final = 20.0
_FINISH_SECONDS: Final = 20.0


def require_wandb() -> None:
    """Raise :class:`~gymcast.training.config.ConfigError` when the package is missing."""
    if find_spec("wandb") is None:
        problem = "the package wandb is not installed; run: pip install 'gymcast[wandb]'   or leave use_wandb off"
        raise ConfigError("invalid TrainingConfig", [("use_wandb", problem)])


class WandbLog(KVWriter):
    """One W&B run for one run folder; resuming the run goes on with the same one."""

    def __init__(self, config: TrainingConfig, run_dir: Path) -> None:
        import wandb

        name = config.wandb_name or run_dir.name
        self._run = wandb.init(
            project=config.wandb_project,
            name=name,
            tags=list(config.wandb_tags) or None,
            id=re.sub(r"[^A-Za-z0-9_-]", "-", run_dir.name)[-64:],
            resume="allow",
            dir=str(run_dir),
            config=config.model_dump(mode="json"),
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                save_code=False,
                init_timeout=_INIT_SECONDS,
                finish_timeout=_FINISH_SECONDS,
                finish_timeout_raises=True,
            ),
        )
        self._next = 0.0

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Log the numbers at ``step`` decisions, at most once a second; evaluation results always."""
        numbers = {name: value for name, value in scalars(key_values).items() if value is not None}
        now = time.monotonic()
        if now >= self._next or is_result(numbers):
            self._next = now + LOG_SECONDS
            self._run.log(numbers, step=step)

    def close(self) -> None:
        """Send what is left and finish the run. Raises ``TimeoutError`` when the network does not take it."""
        self._run.finish()
