"""Rollout buffers of recurrent algorithms that keep the masks beside the actions."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch as th
from sb3_contrib.common.recurrent.buffers import RecurrentDictRolloutBuffer, RecurrentRolloutBuffer
from stable_baselines3.common.buffers import RolloutBuffer

from gymcast.training.masked_actions import Masks, mask_groups

if TYPE_CHECKING:
    from numpy.typing import NDArray


class MaskedSequences(NamedTuple):
    """What a batch of sequences begins with, and the masks its actions were chosen under.

    ``RecurrentPPO.train`` hands the LSTM states of a batch to ``evaluate_actions`` as they are. The masks travel with
    them, so that there is no second ``train``.
    """

    pi: tuple[th.Tensor, ...]
    vf: tuple[th.Tensor, ...]
    action_masks: th.Tensor
    """bool (sequences x longest, choices); rows that only fill up a sequence allow everything."""


class _WithMasks(RolloutBuffer):
    """Mixed into a recurrent rollout buffer: keeps ``action_masks``, bool (steps, lanes, choices), beside the rest."""

    action_masks: NDArray[np.bool_]
    pad: Any
    """Cuts rows into the sequences of the minibatch, all of the same length; set by the recurrent buffer."""

    def reset(self) -> None:
        shape = (self.buffer_size, self.n_envs, sum(mask_groups(self.action_space)))
        self.action_masks = np.ones(shape, dtype=np.bool_)
        super().reset()

    def add(self, *args: Any, action_masks: Masks = None, **kwargs: Any) -> None:
        """Like the recurrent buffer's, with the masks (lanes, choices) the actions were chosen under."""
        if action_masks is not None:
            self.action_masks[self.pos] = action_masks
        super().add(*args, **kwargs)

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        if not self.generator_ready:
            self.action_masks = self.swap_and_flatten(self.action_masks)
        return super().get(batch_size)

    def _get_samples(self, batch_inds: NDArray[Any], *others: Any) -> Any:
        samples: Any = super()._get_samples(batch_inds, *others)
        masks = self.pad(self.action_masks[batch_inds], padding_value=True)
        pi, vf = samples.lstm_states
        return samples._replace(lstm_states=MaskedSequences(pi, vf, masks.reshape(-1, masks.shape[-1])))


class MaskableRecurrentRolloutBuffer(_WithMasks, RecurrentRolloutBuffer):
    """sb3-contrib's ``RecurrentRolloutBuffer`` whose samples' ``lstm_states`` are :class:`MaskedSequences`."""


class MaskableRecurrentDictRolloutBuffer(_WithMasks, RecurrentDictRolloutBuffer):
    """The same for ``Dict`` observations."""
