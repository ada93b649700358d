"""Distributions of actions in several groups, computed for all groups at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableMultiCategoricalDistribution
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.policies import BasePolicy

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Logit of what cannot be chosen: its probability is exactly 0 in float32. The value is sb3-contrib's.
NEVER: Final = -1e8
# Keeps a uniform number times a total below that total when it is rounded.
_BELOW_ONE: Final = 1.0 - 1e-6


class GroupedCategoricals:
    """Independent categoricals, one for each group of a ``MultiDiscrete`` action, as one tensor (N, groups, largest).

    The mathematics are those of Stable-Baselines3's and sb3-contrib's distributions, which keep one ``Categorical`` for
    each group: with four small groups their many small operations took a fifth of the training time. Samples are drawn
    by inverting the cumulative distribution, so the same seed draws other actions than there.
    """

    action_dims: list[int]
    _logits: th.Tensor
    _masks: th.Tensor | None = None
    _log_probs: th.Tensor | None = None
    _spread: th.Tensor | None = None
    _padding: th.Tensor

    def proba_distribution(self, action_logits: th.Tensor) -> Self:
        """Take logits (N, sum of sizes), the groups side by side; masks of before are gone."""
        self._logits = action_logits.reshape(-1, sum(self.action_dims))
        self._masks = self._log_probs = None
        return self

    def apply_masking(self, masks: Any) -> None:
        """Leave only actions with a true entry in ``masks``, bool (N, sum of sizes); ``None`` allows all again."""
        if masks is not None:
            masks = th.as_tensor(masks, dtype=th.bool, device=self._logits.device).reshape(self._logits.shape)
        self._masks, self._log_probs = masks, None

    @property
    def log_probs(self) -> th.Tensor:
        """Logarithms of the probabilities, (N, groups, largest); about ``NEVER`` where a group has no such action."""
        if self._log_probs is None:
            logits = self._logits if self._masks is None else th.where(self._masks, self._logits, NEVER)
            spread, padding = self._tables(logits)
            # A product with zeros and ones moves every logit to its place, exactly, and its gradient back.
            padded = th.addmm(padding, logits, spread).view(len(logits), len(self.action_dims), -1)
            self._log_probs = th.log_softmax(padded, dim=-1)
        return self._log_probs

    def log_prob(self, actions: th.Tensor) -> th.Tensor:
        """Logarithm of the probability of ``actions`` (N, groups), summed over groups: (N,)."""
        chosen = actions.long().reshape(-1, len(self.action_dims), 1)
        return self.log_probs.gather(2, chosen).sum(dim=(1, 2))

    def entropy(self) -> th.Tensor:
        """Entropy in nats, summed over groups: (N,)."""
        return -(self.log_probs.exp() * self.log_probs).sum(dim=(1, 2))

    def sample(self) -> th.Tensor:
        """Actions (N, groups), int64, drawn at random."""
        cumulative = self.log_probs.exp().cumsum(dim=-1)
        total = cumulative[..., -1:]
        drawn = th.rand_like(total) * (total * _BELOW_ONE)
        return (cumulative <= drawn).sum(dim=-1)

    def mode(self) -> th.Tensor:
        """The most probable action of each group, (N, groups), int64."""
        return self.log_probs.argmax(dim=-1)

    def group_probabilities(self) -> list[NDArray[np.float64]]:
        """Probabilities (N, size) of each group."""
        probabilities = self.log_probs.detach().exp().cpu().numpy().astype(np.float64)
        return [probabilities[:, group, :size] for group, size in enumerate(self.action_dims)]

    def _tables(self, logits: th.Tensor) -> tuple[th.Tensor, th.Tensor]:
        if self._spread is None or self._spread.device != logits.device:
            largest = max(self.action_dims)
            places = [group * largest + k for group, size in enumerate(self.action_dims) for k in range(size)]
            spread = np.zeros((len(places), len(self.action_dims) * largest), np.float32)
            spread[np.arange(len(places)), places] = 1.0
            self._spread = th.from_numpy(spread).to(logits.device)
            self._padding = th.from_numpy(np.where(spread.any(axis=0), 0.0, NEVER).astype(np.float32)).to(logits.device)
        return self._spread, self._padding


class BatchMultiCategorical(GroupedCategoricals, MultiCategoricalDistribution):
    """:class:`GroupedCategoricals` in place of Stable-Baselines3's distribution."""


class BatchMaskableMultiCategorical(GroupedCategoricals, MaskableMultiCategoricalDistribution):
    """:class:`GroupedCategoricals` in place of sb3-contrib's distribution."""


def compute_groups_together(policy: BasePolicy) -> None:
    """Put the faster distribution into an actor-critic policy on ``MultiDiscrete`` actions; others stay as they are."""
    current = getattr(policy, "action_dist", None)
    if not isinstance(policy.action_space, spaces.MultiDiscrete):
        return
    sizes = [int(n) for n in policy.action_space.nvec]
    if type(current) is MultiCategoricalDistribution:
        policy.action_dist = BatchMultiCategorical(sizes)  # type: ignore[assignment]
    elif isinstance(current, MaskableMultiCategoricalDistribution) and not isinstance(current, GroupedCategoricals):
        policy.action_dist = BatchMaskableMultiCategorical(sizes)  # type: ignore[assignment]
