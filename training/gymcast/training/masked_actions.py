"""Actions of which some are masked: what a mask has to look like, and the distributions that keep to it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import (
    MaskableCategorical,
    MaskableCategoricalDistribution,
    MaskableDistribution,
    MaskableMultiCategoricalDistribution,
)
from torch.distributions import Categorical

if TYPE_CHECKING:
    from numpy.typing import NDArray

# An array or tensor with a true entry for every legal choice, the groups of an action side by side.
Masks = Any


class ActionMaskError(ValueError):
    """Action masks of the wrong shape, or masks that leave a lane nothing to choose."""


def mask_groups(space: spaces.Space[Any]) -> list[int]:
    """The number of choices in each group of an action; a ``MultiBinary`` has two for each of its bits: 0, then 1.

    Raises ``ValueError`` for a space that has no list of choices.
    """
    if isinstance(space, spaces.Discrete):
        return [int(space.n)]
    if isinstance(space, spaces.MultiDiscrete) and len(space.shape) == 1:
        return [int(n) for n in space.nvec]
    if isinstance(space, spaces.MultiBinary) and len(space.shape) == 1:
        return [2] * space.shape[0]
    raise ValueError(
        f"masks need Discrete, MultiDiscrete or MultiBinary actions of one dimension, got {space}; "
        "RecurrentPPO takes actions without masks"
    )


def checked_masks(masks: Masks, space: spaces.Space[Any], lanes: int) -> NDArray[np.bool_]:
    """``masks`` as bool (lanes, choices). Raises :class:`ActionMaskError` naming the lane and the group."""
    groups = mask_groups(space)
    array = np.asarray(masks)
    if array.size != lanes * sum(groups):
        raise ActionMaskError(
            f"got action masks of shape {array.shape}, needed ({lanes}, {sum(groups)}): one entry for every choice of "
            f"{space} in each of {lanes} lanes"
        )
    legal: NDArray[np.bool_] = array.reshape(lanes, sum(groups)).astype(np.bool_)
    starts = np.cumsum([0, *groups[:-1]])
    some: NDArray[np.bool_] = np.logical_or.reduceat(legal, starts, axis=1)
    if not some.all():
        lane, group = np.argwhere(~some)[0]
        where = f" in group {group} of {space}" if len(groups) > 1 else f" of {space}"
        raise ActionMaskError(
            f"lane {lane}: the action mask allows none of the {groups[group]} choices{where}; at least one has to be "
            "legal (end the episode where there is none, or add a choice that waits)"
        )
    return legal


class _MaskedOnce(MaskableCategorical):
    """sb3-contrib's categorical without its second normalisation, which moves the last bit of unmasked probabilities.

    What is masked has the logit -1e8: its probability and the gradient to its logit are exactly 0.
    """

    def __init__(self, logits: th.Tensor) -> None:
        Categorical.__init__(self, logits=logits)
        self.masks = None
        self._original_logits = logits


class MaskedChoice(MaskableCategoricalDistribution):
    """One choice of several (``Discrete``)."""

    def proba_distribution(self, action_logits: th.Tensor) -> Self:
        """Take logits (N, choices); masks of before are gone."""
        self.distribution = _MaskedOnce(action_logits.view(-1, self.action_dim))
        return self


class MaskedChoices(MaskableMultiCategoricalDistribution):
    """One choice in each group (``MultiDiscrete``, ``MultiBinary``)."""

    def proba_distribution(self, action_logits: th.Tensor) -> Self:
        """Take logits (N, all choices); masks of before are gone."""
        logits = action_logits.view(-1, sum(self.action_dims))
        parts = th.split(logits, list(self.action_dims), dim=1)
        self.distributions: list[MaskableCategorical] = [_MaskedOnce(part) for part in parts]
        return self


def masked_distribution(space: spaces.Space[Any]) -> MaskableDistribution:
    """The distribution over the choices of ``space``. Raises ``ValueError`` as :func:`mask_groups`."""
    groups = mask_groups(space)
    return MaskedChoice(groups[0]) if isinstance(space, spaces.Discrete) else MaskedChoices(groups)
