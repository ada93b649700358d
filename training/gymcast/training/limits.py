"""Limits that the sessions of one server run under. This module does not import torch."""

from __future__ import annotations

import os
from typing import Annotated, Self

from pydantic import Field

from gymcast.training.config import TrainingConfig
from gymcast.training.config_model import ConfigModel


class ResourceLimits(ConfigModel):
    """Limits that all sessions of one server share."""

    max_concurrent_sessions: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=5, description="sessions that may run at once"
    )
    max_parallel_episodes_per_session: Annotated[int, Field(ge=1, le=65_536)] = Field(
        default=16_384, description="parallel_episodes one session may ask for"
    )
    max_total_parallel_episodes: Annotated[int, Field(ge=1, le=1_000_000)] = Field(
        default=65_536, description="parallel_episodes of all running sessions together"
    )
    max_workers_per_session: Annotated[int, Field(ge=1, le=1024)] | None = Field(
        default=None,
        description="processes that step environments (workers) one session may ask for; null: twice the processors",
    )
    memory_limit_mb: Annotated[int, Field(ge=64)] | None = Field(
        default=None, description="resident memory of all workers together, MiB; null: not limited"
    )
    cpu_limit_percent: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] | None = Field(
        default=None, description="processor use of all workers together, percent of the machine; null: not limited"
    )

    @property
    def allowed_workers(self) -> int:
        """``max_workers_per_session``, as the machine has it."""
        return self.max_workers_per_session or 2 * (os.cpu_count() or 1)

    @classmethod
    def of_one(cls, config: TrainingConfig) -> Self:
        """For a session that has the machine for itself: what one session may have is no less than it asks for."""
        usual = cls()
        lanes = max(config.parallel_episodes, usual.max_parallel_episodes_per_session)
        workers = max(1, config.workers) if isinstance(config.workers, int) else None
        return cls(max_parallel_episodes_per_session=lanes, max_workers_per_session=workers)
