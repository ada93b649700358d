"""Stable-Baselines3's on-policy algorithms for environments with thousands of lanes.

The mathematics, the random numbers and the options are Stable-Baselines3's. What changes is the bookkeeping between
steps: no Python loop over lanes that did not end, one batched forward for all truncated episodes of a step instead of
one each, and a rollout buffer that is allocated once and never transposed. With the same seed the weights are the same;
only where episodes are truncated may a bootstrapped value differ in its last bit, because a matrix product with many
rows rounds differently from one with a single row.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import TRPO, MaskablePPO
from sb3_contrib.common.maskable.buffers import MaskableRolloutBuffer, MaskableRolloutBufferSamples
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import A2C, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.on_policy_algorithm import OnPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutBufferSamples
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv

from gymcast.training.overlap import Choice, rollout_steps
from gymcast.training.vec_env import GameVecEnv

if TYPE_CHECKING:
    from numpy.typing import NDArray

_SAMPLED = ("observations", "actions", "values", "log_probs", "advantages", "returns")


class BatchRolloutBuffer(RolloutBuffer):
    """A ``RolloutBuffer`` for flat observations that keeps its arrays in the order of time, (steps, lanes, ...).

    Minibatches hold the same rows in the same order as Stable-Baselines3's: its flat index ``lane * steps + step`` is
    translated instead of transposing every array after every rollout.
    """

    sampled: tuple[str, ...] = _SAMPLED
    _allocated = False

    def reset(self) -> None:
        if not self._allocated:
            super().reset()
            self._allocated = True
        self.pos = 0
        self.full = False

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        assert self.full, "the rollout is not complete"
        total = self.buffer_size * self.n_envs
        indices = np.random.permutation(total)
        rows = th.from_numpy((indices % self.buffer_size) * self.n_envs + indices // self.buffer_size)
        flat = {name: self._flatten(getattr(self, name)) for name in self.sampled}
        size = batch_size or total
        for start in range(0, total, size):
            yield self._samples(flat, rows[start : start + size])

    def _flatten(self, array: NDArray[Any]) -> th.Tensor:
        per_row = array.shape[2:]
        return th.from_numpy(np.ascontiguousarray(array).reshape(self.buffer_size * self.n_envs, *per_row))

    def _samples(self, flat: dict[str, th.Tensor], rows: th.Tensor) -> Any:
        obs, actions, *rest = (flat[name].index_select(0, rows).to(self.device) for name in _SAMPLED)
        return RolloutBufferSamples(obs, actions.to(th.float32), *rest)


class BatchMaskableRolloutBuffer(MaskableRolloutBuffer, BatchRolloutBuffer):
    """:class:`BatchRolloutBuffer` with the action masks beside, kept as bool (a quarter of float32)."""

    sampled = (*_SAMPLED, "action_masks")

    def reset(self) -> None:
        if not self._allocated:
            super().reset()
            self.action_masks = self.action_masks.astype(np.bool_)
        BatchRolloutBuffer.reset(self)

    def get(self, batch_size: int | None = None) -> Generator[Any, None, None]:
        return BatchRolloutBuffer.get(self, batch_size)

    def _samples(self, flat: dict[str, th.Tensor], rows: th.Tensor) -> Any:
        plain = super()._samples(flat, rows)
        masks = flat["action_masks"].index_select(0, rows).to(self.device)
        parts: list[Any] = [*plain, masks]
        return MaskableRolloutBufferSamples(*parts)


class _BatchCollection(OnPolicyAlgorithm):
    """``collect_rollouts`` without per-lane loops; mixed into an on-policy algorithm."""

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        use_masking: bool = True,
    ) -> bool:
        """Fill ``rollout_buffer`` with ``n_rollout_steps`` steps of every lane; false when a callback ended it."""
        if self.use_sde:
            complete: bool = super().collect_rollouts(env, callback, rollout_buffer, n_rollout_steps)
            return complete
        self.policy.set_training_mode(False)
        masked = use_masking and isinstance(self, MaskablePPO)
        if masked and not is_masking_supported(env):
            raise ValueError("the environment has no action_masks(); use the algorithm without masks")
        assert self._last_obs is not None and self._last_episode_starts is not None, (
            "learn() resets the environment first"
        )
        rollout_buffer.reset()
        callback.on_rollout_start()

        def choose(obs: Any, lanes: slice) -> Choice:
            masks = _masks_of(env)[lanes] if masked else None
            with th.no_grad():
                chosen = self.policy(
                    obs_as_tensor(obs, self.device), **({"action_masks": masks} if masks is not None else {})
                )
            actions = chosen[0].cpu().numpy()
            return Choice(obs, actions, self._actions_for_env(actions), chosen[1], chosen[2], masks)

        steps = rollout_steps(env, self._last_obs, choose, n_rollout_steps)
        for choice, new_obs, rewards, dones, infos in steps:
            last_obs, actions, clipped_actions, values, log_probs, action_masks = choice
            self.num_timesteps += env.num_envs
            # Callbacks find the names of Stable-Baselines3's own loop here.
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            ended = np.flatnonzero(dones)
            if len(ended):
                self._update_info_buffer([infos[lane] for lane in ended], np.ones(len(ended), dtype=np.bool_))
                self._bootstrap_truncated(ended, infos, rewards)
            if isinstance(self.action_space, spaces.Discrete):
                actions = actions.reshape(-1, 1)
            extra = {} if action_masks is None else {"action_masks": action_masks}
            rollout_buffer.add(last_obs, actions, rewards, self._last_episode_starts, values, log_probs, **extra)
            self._last_obs = new_obs
            self._last_episode_starts = dones
        with th.no_grad():
            values = self.policy.predict_values(obs_as_tensor(new_obs, self.device))
        rollout_buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _actions_for_env(self, actions: NDArray[Any]) -> NDArray[Any]:
        if not isinstance(self.action_space, spaces.Box):
            return actions
        if self.policy.squash_output:
            unscaled: NDArray[Any] = self.policy.unscale_action(actions)
            return unscaled
        clipped: NDArray[Any] = np.clip(actions, self.action_space.low, self.action_space.high)
        return clipped

    def _bootstrap_truncated(self, ended: NDArray[Any], infos: list[dict[str, Any]], rewards: NDArray[Any]) -> None:
        """Add the discounted value of the terminal observation to the reward of truncated episodes.

        Source: Pardo et al. 2018, "Time Limits in Reinforcement Learning", https://arxiv.org/abs/1712.00378.
        """
        lanes = [
            lane
            for lane in ended
            if infos[lane].get("TimeLimit.truncated", False) and infos[lane].get("terminal_observation") is not None
        ]
        if lanes:
            terminal = np.stack([infos[lane]["terminal_observation"] for lane in lanes])
            with th.no_grad():
                values = self.policy.predict_values(self.policy.obs_to_tensor(terminal)[0])
            rewards[lanes] += self.gamma * values.cpu().numpy().reshape(-1)


class BatchPPO(_BatchCollection, PPO):
    """PPO (Schulman et al. 2017, https://arxiv.org/abs/1707.06347) for environments with very many lanes."""


class BatchA2C(_BatchCollection, A2C):
    """A2C for environments with very many lanes."""


class BatchTRPO(_BatchCollection, TRPO):
    """TRPO (Schulman et al. 2015, https://arxiv.org/abs/1502.05477) for environments with very many lanes."""


class BatchMaskablePPO(_BatchCollection, MaskablePPO):
    """PPO with invalid actions masked, for environments with very many lanes."""


def _masks_of(env: VecEnv) -> NDArray[np.bool_]:
    base = env.unwrapped
    if isinstance(base, GameVecEnv):
        return base.action_mask
    masks: NDArray[np.bool_] = get_action_masks(env)
    return masks
