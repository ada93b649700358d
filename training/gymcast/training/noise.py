"""Noise on continuous actions, for algorithms whose policy does not explore by itself or not enough."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from gymnasium import spaces
from stable_baselines3.common.noise import (
    ActionNoise,
    NormalActionNoise,
    OrnsteinUhlenbeckActionNoise,
    VectorizedActionNoise,
)

from gymcast.training.config import TrainingConfig

# Of td3, whose policy has no exploration of its own (Fujimoto et al. 2018, https://arxiv.org/abs/1802.09477).
USUAL_TYPE: Final = "normal"
USUAL_STD: Final = 0.1


class LaneNoise(VectorizedActionNoise):
    """Noise of its own for every lane. ``learn()`` starts it anew when it begins, except after :meth:`resume`."""

    _resumed = False

    def resume(self, last: Iterable[Any]) -> None:
        """Go on from the ``last`` values (actions,) of every lane's noise, of a kind that remembers."""
        for noise, value in zip(self.remembering(), last, strict=True):
            noise.noise_prev = value
        self._resumed = True

    def remembering(self) -> list[OrnsteinUhlenbeckActionNoise]:
        """The noises whose next value depends on the last one."""
        return [one for one in self.noises if isinstance(one, OrnsteinUhlenbeckActionNoise)]

    def reset(self, indices: Iterable[int] | None = None) -> None:
        if self._resumed:
            self._resumed = False
            return
        super().reset(indices)


def make_noise(config: TrainingConfig, actions: spaces.Space[Any], lanes: int, *, plain: bool) -> ActionNoise | None:
    """The noise that ``noise_type`` and ``noise_std`` ask for, of Stable-Baselines3's own class when ``plain``.

    A policy that explores by itself has none unless it is asked for. None for algorithms without noise.
    """
    given, spec = config.hyperparameters, config.spec
    kind = given.get("noise_type", USUAL_TYPE if spec.deterministic else None)
    if kind is None or "noise_type" not in spec.rules:
        return None
    size = int(np.prod(actions.shape or (1,)))
    deviation: Any = given.get("noise_std", USUAL_STD)
    mean, std = np.zeros(size), np.full(size, float(deviation))
    one = NormalActionNoise(mean, std) if kind == "normal" else OrnsteinUhlenbeckActionNoise(mean, std)
    if plain and lanes == 1:
        return one
    return VectorizedActionNoise(one, lanes) if plain else LaneNoise(one, lanes)
