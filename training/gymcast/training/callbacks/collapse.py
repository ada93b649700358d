"""Alarms for a training that has collapsed, or is about to."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Mapping
from statistics import fmean, median
from typing import Any, Final

import torch as th
from gymnasium import spaces
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from gymcast.training.broadcast import Sink
from gymcast.training.events import ErrorData

log = logging.getLogger(__name__)

# Entropy this small (nats) means that one action has practically all the probability everywhere.
COLLAPSED_ENTROPY: Final = 1e-3
# A value loss so many times the median of the updates before it is no noise any more.
EXPLODED_FACTOR: Final = 100.0
_UPDATES_KEPT: Final = 50
_UPDATES_NEEDED: Final = 10
# Nearly all recent episodes run into their time limit, and at some time at most half of them did.
STALLED_SHARE: Final = 0.9
_MOVING_SHARE: Final = 0.5
_EPISODES: Final = 200
# Alarm -> what it means and what helps. The first ends the training, the others warn once until their cause is gone.
ALARMS: Final = {
    "training_collapsed": "a loss or weight is not a finite number any more",
    "entropy_collapsed": "the policy hardly explores any more; a higher ent_coef or a lower learning rate helps",
    "value_loss_exploded": "the critic's error has jumped; a lower learning rate, clipping or normalised rewards help",
    "episodes_stalled": "nearly every episode now runs into its time limit, with lower returns than when they ended by"
    " themselves; look at what the bot does, and at what the reward pays for waiting",
}


class TrainingCollapsed(RuntimeError):
    """A loss or weight is NaN or infinite; the network is lost and only an earlier checkpoint helps."""


class CollapseAlarmCallback(BaseCallback):
    """Emits an ``error`` event and a log line for each of :data:`ALARMS`.

    After an update whose losses or weights are not finite it raises :class:`TrainingCollapsed`.
    """

    def __init__(self, sink: Sink | None = None) -> None:
        super().__init__()
        self._sink = sink
        self._raised: set[str] = set()
        self._value_losses: deque[float] = deque(maxlen=_UPDATES_KEPT)
        self._ended: deque[tuple[bool, float]] = deque(maxlen=_EPISODES)
        self._best_share = 1.0
        self._return_then = -math.inf

    def _on_training_start(self) -> None:
        # With many lanes the first to end are the short ones, so one episode of every lane is waited for.
        self._ended = deque(self._ended, maxlen=max(_EPISODES, self.training_env.num_envs))

    def _on_rollout_start(self) -> None:
        values = {name: float(value) for name, value in self.logger.name_to_value.items() if name.startswith("train/")}
        self._check_finite(values)
        entropy = -values.get("train/entropy_loss", -math.inf)
        discrete = not isinstance(self.model.action_space, spaces.Box)  # a density's entropy may well be negative
        self._set("entropy_collapsed", discrete and entropy < COLLAPSED_ENTROPY, {"entropy": entropy})
        if "train/value_loss" in values:
            self._check_value_loss(values["train/value_loss"])
        self._check_truncations()

    def _on_step(self) -> bool:
        for lane in self.locals["dones"].nonzero()[0]:
            info = self.locals["infos"][lane]
            if "episode" in info:
                self._ended.append((bool(info.get("TimeLimit.truncated", False)), float(info["episode"]["r"])))
        return True

    def _check_finite(self, values: Mapping[str, float]) -> None:
        broken = {name: str(value) for name, value in values.items() if "loss" in name and not math.isfinite(value)}
        # Off-policy algorithms begin a rollout every few steps, too often to look at every weight.
        if not broken and values and not isinstance(self.model, OffPolicyAlgorithm):
            broken = {
                name: "not finite"
                for name, weight in self.model.policy.named_parameters()
                if not bool(th.isfinite(weight).all())
            }
        if broken:
            self._set("training_collapsed", True, broken)
            raise TrainingCollapsed(
                f"at {self.model.num_timesteps} timesteps: {broken}; lower the learning rate or clip gradients harder, "
                "and resume from an earlier checkpoint"
            )

    def _check_value_loss(self, loss: float) -> None:
        past = self._value_losses
        usual = median(past) if len(past) >= _UPDATES_NEEDED else math.inf
        self._set("value_loss_exploded", loss > EXPLODED_FACTOR * usual > 0, {"value_loss": loss, "median": usual})
        past.append(loss)

    def _check_truncations(self) -> None:
        if len(self._ended) < (self._ended.maxlen or 0):
            return
        share = sum(truncated for truncated, _ in self._ended) / len(self._ended)
        mean = fmean(value for _, value in self._ended)
        if share < self._best_share:
            self._best_share, self._return_then = share, mean
        stalled = share >= STALLED_SHARE and self._best_share <= _MOVING_SHARE and mean < self._return_then
        facts = {"truncated_share": share, "mean_return": mean, "mean_return_before": self._return_then}
        self._set("episodes_stalled", stalled, facts)

    def _set(self, code: str, present: bool, facts: Mapping[str, Any]) -> None:
        """Raise an alarm whose cause has appeared; arm it again once the cause is gone."""
        if not present:
            self._raised.discard(code)
        elif code not in self._raised:
            self._raised.add(code)
            detail = {**facts, "timesteps": self.model.num_timesteps}
            log.warning("%s: %s (%s)", code, ALARMS[code], detail)
            if self._sink is not None:
                self._sink.emit(ErrorData(code=code, message=ALARMS[code], detail=detail))
