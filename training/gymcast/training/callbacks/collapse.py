"""Alarms for a training that has collapsed."""

from __future__ import annotations

import math
from collections.abc import Mapping

from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback

from gymcast.training.broadcast import Sink
from gymcast.training.events import ErrorData

# Entropy this small (nats) means that one action has practically all the probability everywhere.
COLLAPSED_ENTROPY = 1e-3


class TrainingCollapsed(RuntimeError):
    """A loss is NaN or infinite; the network is lost and only an earlier checkpoint helps."""


class CollapseAlarmCallback(BaseCallback):
    """Raises :class:`TrainingCollapsed` when a loss is not finite, and warns once when the policy's entropy is gone."""

    def __init__(self, sink: Sink | None = None) -> None:
        super().__init__()
        self._sink = sink
        self._warned = False

    def _on_rollout_start(self) -> None:
        values = self.logger.name_to_value
        broken = {
            name: str(value)
            for name, value in values.items()
            if name.startswith("train/") and "loss" in name and not math.isfinite(value)
        }
        if broken:
            self._emit("training_collapsed", "a loss is not a finite number any more", broken)
            raise TrainingCollapsed(
                f"at {self.model.num_timesteps} timesteps: {broken}; lower the learning rate or clip gradients harder, "
                "and resume from an earlier checkpoint"
            )
        entropy = -values.get("train/entropy_loss", -math.inf)
        discrete = not isinstance(self.model.action_space, spaces.Box)  # a density's entropy may well be negative
        if discrete and entropy < COLLAPSED_ENTROPY and not self._warned:
            self._warned = True
            self._emit(
                "entropy_collapsed",
                "the policy hardly explores any more; a higher ent_coef or a lower learning rate helps",
                {"entropy": entropy, "timesteps": self.model.num_timesteps},
            )

    def _emit(self, code: str, message: str, detail: Mapping[str, object]) -> None:
        if self._sink is not None:
            self._sink.emit(ErrorData(code=code, message=message, detail=dict(detail)))

    def _on_step(self) -> bool:
        return True
