"""PPO with an LSTM and invalid actions masked: sb3-contrib's ``RecurrentPPO`` and ``MaskablePPO`` in one.

The algorithm is ``RecurrentPPO``: with masks that allow everything the weights are the same bit for bit. The masks are
``MaskablePPO``'s (Huang and Ontañón 2020, https://arxiv.org/abs/2006.14171), at the same places of the interface::

    from gymcast.training import MaskableRecurrentPPO

    model = MaskableRecurrentPPO("MlpLstmPolicy", env)
    model.learn(100_000)
    action, state = model.predict(obs, state, episode_start, action_masks=masks)
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import RecurrentPPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from sb3_contrib.common.recurrent.policies import (
    RecurrentActorCriticCnnPolicy,
    RecurrentActorCriticPolicy,
    RecurrentMultiInputActorCriticPolicy,
)
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.distributions import MultiCategoricalDistribution
from stable_baselines3.common.policies import BasePolicy
from stable_baselines3.common.type_aliases import MaybeCallback, Schedule
from stable_baselines3.common.utils import obs_as_tensor
from stable_baselines3.common.vec_env import VecEnv
from torch import nn

from gymcast.training.masked_actions import Masks, checked_masks, mask_groups, masked_distribution
from gymcast.training.masked_buffers import (
    MaskableRecurrentDictRolloutBuffer,
    MaskableRecurrentRolloutBuffer,
    MaskedSequences,
)

if TYPE_CHECKING:
    import gymnasium as gym
    from numpy.typing import NDArray

LstmStates = tuple[th.Tensor, th.Tensor]


# ------------------------------------------------------------------------------------------------------------ policies


class MaskableRecurrentActorCriticPolicy(RecurrentActorCriticPolicy):
    """Actor and critic with LSTMs, for flat observations; every method that weighs actions takes ``action_masks``.

    The arguments are those of sb3-contrib's ``RecurrentActorCriticPolicy``, among them ``lstm_hidden_size``,
    ``n_lstm_layers``, ``shared_lstm`` and ``enable_critic_lstm``. ``whole_sequences=True`` gives the LSTM each sequence
    of a minibatch at once instead of step by step, which makes training several times faster; gradients are then
    summed in another order, so that their last bits are not ``RecurrentPPO``'s.
    """

    _action_masks: Masks = None

    def __init__(self, *args: Any, whole_sequences: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.whole_sequences = whole_sequences

    def _process_sequence(  # type: ignore[override]
        self, features: th.Tensor, lstm_states: LstmStates, episode_starts: th.Tensor, lstm: nn.LSTM
    ) -> tuple[th.Tensor, LstmStates]:
        sequences = lstm_states[0].shape[1]
        starts = episode_starts.reshape(sequences, -1)
        # The buffer cuts sequences where episodes start, so there are starts in the first column only.
        if not self.whole_sequences or bool((starts[:, 1:] != 0).any()):
            done: Any = super()._process_sequence(features, lstm_states, episode_starts, lstm)
            step_by_step: tuple[th.Tensor, LstmStates] = done
            return step_by_step
        kept = (1.0 - starts[:, 0]).view(1, sequences, 1)
        rows = features.reshape(sequences, -1, lstm.input_size).swapaxes(0, 1)
        output, after = lstm(rows, (kept * lstm_states[0], kept * lstm_states[1]))
        return output.transpose(0, 1).flatten(0, 1), after

    def _build(self, lr_schedule: Schedule) -> None:
        masked = masked_distribution(self.action_space)
        if isinstance(self.action_space, spaces.MultiBinary):  # a logit for 0 and one for 1 of every bit
            self.action_dist = MultiCategoricalDistribution(mask_groups(self.action_space))
        super()._build(lr_schedule)
        self.action_dist = masked

    @contextmanager
    def _masked(self, action_masks: Masks) -> Iterator[None]:
        # The distribution of a policy is one object for all calls in Stable-Baselines3, and so are its masks. One
        # method may call another, which is not told the masks again.
        before = self._action_masks
        if action_masks is not None:
            self._action_masks = action_masks
        try:
            yield
        finally:
            self._action_masks = before

    def _get_action_dist_from_latent(self, latent_pi: th.Tensor) -> Any:
        distribution: Any = self.action_dist.proba_distribution(action_logits=self.action_net(latent_pi))
        if self._action_masks is not None:
            distribution.apply_masking(self._action_masks)
        return distribution

    def forward(  # type: ignore[override]
        self,
        obs: th.Tensor,
        lstm_states: RNNStates,
        episode_starts: th.Tensor,
        deterministic: bool = False,
        action_masks: Masks = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor, RNNStates]:
        """Actions, values, logarithms of the probabilities, and the states after; masks (N, choices)."""
        with self._masked(action_masks):
            return super().forward(obs, lstm_states, episode_starts, deterministic)

    def get_distribution(  # type: ignore[override]
        self, obs: th.Tensor, lstm_states: LstmStates, episode_starts: th.Tensor, action_masks: Masks = None
    ) -> tuple[Any, tuple[th.Tensor, ...]]:
        """The distribution of the actions, and the actor's states after; masks (N, choices)."""
        with self._masked(action_masks):
            return super().get_distribution(obs, lstm_states, episode_starts)

    def evaluate_actions(  # type: ignore[override]
        self,
        obs: th.Tensor,
        actions: th.Tensor,
        lstm_states: RNNStates | MaskedSequences,
        episode_starts: th.Tensor,
        action_masks: Masks = None,
    ) -> tuple[th.Tensor, th.Tensor, th.Tensor]:
        """Values, logarithms of the probabilities of ``actions``, and entropies over what the masks allow.

        Masks (N, choices) are those of :class:`MaskedSequences` where ``action_masks`` are not given.
        """
        if action_masks is None and isinstance(lstm_states, MaskedSequences):
            action_masks = lstm_states.action_masks
        states: Any = lstm_states
        with self._masked(action_masks):
            return super().evaluate_actions(obs, actions, states, episode_starts)

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: Masks = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """Actions (N, ...) and the states after, (layers, N, units) each, for observations (N, ...) or one of them.

        A lane's ``state`` begins anew where ``episode_start`` (N,) is true, and everywhere without a ``state``. Masks
        (N, choices), or (choices,) for one observation. Raises :class:`ActionMaskError`.
        """
        if action_masks is not None:
            tensor: Any = self.obs_to_tensor(observation)[0]
            lanes = len(next(iter(tensor.values())) if isinstance(tensor, dict) else tensor)
            action_masks = checked_masks(action_masks, self.action_space, lanes)
        with self._masked(action_masks):
            return super().predict(observation, state, episode_start, deterministic)


class MaskableRecurrentActorCriticCnnPolicy(MaskableRecurrentActorCriticPolicy, RecurrentActorCriticCnnPolicy):
    """:class:`MaskableRecurrentActorCriticPolicy` for images."""


class MaskableRecurrentMultiInputActorCriticPolicy(
    MaskableRecurrentActorCriticPolicy, RecurrentMultiInputActorCriticPolicy
):
    """:class:`MaskableRecurrentActorCriticPolicy` for ``Dict`` observations."""


# ----------------------------------------------------------------------------------------------------------- algorithm


class MaskedPredictor:
    """A model whose ``predict`` takes the masks from an environment, which has to be in step with what it is shown."""

    def __init__(self, model: MaskableRecurrentPPO, env: gym.Env[Any, Any] | VecEnv) -> None:
        self._model, self._env = model, env

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """The model's ``predict`` under the masks of now."""
        return self._model.predict(observation, state, episode_start, deterministic, get_action_masks(self._env))


class MaskableRecurrentPPO(RecurrentPPO):
    """``RecurrentPPO`` with invalid actions masked: arguments of ``RecurrentPPO``, ``action_masks`` of ``MaskablePPO``.

    The environment has a method ``action_masks()`` (bool, one entry for every choice), its own or of sb3-contrib's
    ``ActionMasker``. Actions are ``Discrete``, ``MultiDiscrete`` or ``MultiBinary``; policies are ``MlpLstmPolicy``,
    ``CnnLstmPolicy`` and ``MultiInputLstmPolicy``. Raises ``ValueError`` for other actions, for an environment without
    masks, and for a rollout whose last minibatch would be a single sample, which has no standard deviation to
    normalise its advantage with; :class:`ActionMaskError` while learning, when a lane has nothing to choose.
    """

    policy_aliases: ClassVar[dict[str, type[BasePolicy]]] = {
        "MlpLstmPolicy": MaskableRecurrentActorCriticPolicy,
        "CnnLstmPolicy": MaskableRecurrentActorCriticCnnPolicy,
        "MultiInputLstmPolicy": MaskableRecurrentMultiInputActorCriticPolicy,
    }
    policy: MaskableRecurrentActorCriticPolicy
    _use_masking = True

    def _setup_model(self) -> None:
        mask_groups(self.action_space)
        rows = self.n_steps * self.n_envs
        if self.normalize_advantage and self.batch_size and rows % self.batch_size == 1:
            raise ValueError(
                f"n_steps x lanes = {rows} leaves a minibatch of one sample with batch_size {self.batch_size}, and one "
                "advantage cannot be normalised; choose another batch_size or n_steps, or normalize_advantage=False"
            )
        if not issubclass(self.policy_class, MaskableRecurrentActorCriticPolicy):
            raise ValueError(
                f"{self.policy_class.__name__} takes no masks; needed: a MaskableRecurrentActorCriticPolicy"
            )
        super()._setup_model()
        plain: Any = self.rollout_buffer
        with_dict = isinstance(self.observation_space, spaces.Dict)
        buffer: Any = MaskableRecurrentDictRolloutBuffer if with_dict else MaskableRecurrentRolloutBuffer
        self.rollout_buffer = buffer(
            self.n_steps,
            self.observation_space,
            self.action_space,
            plain.hidden_state_shape,
            self.device,
            gae_lambda=self.gae_lambda,
            gamma=self.gamma,
            n_envs=self.n_envs,
        )

    def collect_rollouts(
        self,
        env: VecEnv,
        callback: BaseCallback,
        rollout_buffer: RolloutBuffer,
        n_rollout_steps: int,
        use_masking: bool | None = None,
    ) -> bool:
        """Fill ``rollout_buffer`` with ``n_rollout_steps`` steps of every lane; false when a callback ended it.

        ``use_masking`` is what :meth:`learn` was told unless it is given.
        """
        masked = self._use_masking if use_masking is None else use_masking
        if masked and not is_masking_supported(env):
            raise ValueError(
                f"{env.unwrapped} has no action_masks(): wrap it in sb3-contrib's ActionMasker, or learn with "
                "use_masking=False"
            )
        assert self._last_obs is not None, "learn() resets the environment first"
        buffer: Any = rollout_buffer
        self.policy.set_training_mode(False)
        buffer.reset()
        callback.on_rollout_start()
        last_obs: Any = self._last_obs
        new_obs: Any = last_obs
        lstm_states: Any = deepcopy(self._last_lstm_states)
        obs_tensor: Any = None
        action_masks = None
        for _ in range(n_rollout_steps):
            if masked:
                action_masks = checked_masks(get_action_masks(env), self.action_space, env.num_envs)
            with th.no_grad():
                obs_tensor = obs_as_tensor(last_obs, self.device)
                actions, values, log_probs, lstm_states = self.policy(
                    obs_tensor, lstm_states, self._starts(self._last_episode_starts), action_masks=action_masks
                )
            actions = actions.cpu().numpy()
            new_obs, rewards, dones, infos = env.step(actions)
            self.num_timesteps += env.num_envs
            # Callbacks find the names of sb3-contrib's own loops here.
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._update_info_buffer(infos, dones)
            self._bootstrap_truncated(dones, infos, rewards, lstm_states)
            if isinstance(self.action_space, spaces.Discrete):
                actions = actions.reshape(-1, 1)
            buffer.add(
                last_obs, actions, rewards, self._last_episode_starts, values, log_probs,
                lstm_states=self._last_lstm_states, action_masks=action_masks,
            )  # fmt: skip
            self._last_obs = last_obs = new_obs
            self._last_episode_starts = dones
            self._last_lstm_states = lstm_states
        with th.no_grad():
            obs_tensor = obs_as_tensor(new_obs, self.device)
            values = self.policy.predict_values(obs_tensor, lstm_states.vf, self._starts(dones))
        buffer.compute_returns_and_advantage(last_values=values, dones=dones)
        callback.update_locals(locals())
        callback.on_rollout_end()
        return True

    def _starts(self, flags: Any) -> th.Tensor:
        return th.tensor(flags, dtype=th.float32, device=self.device)

    def _bootstrap_truncated(
        self, dones: NDArray[np.bool_], infos: list[dict[str, Any]], rewards: NDArray[Any], lstm_states: RNNStates
    ) -> None:
        """Add the discounted value of the terminal observation, as the lane's own memory sees it, to the reward of
        truncated episodes.

        Source: Pardo et al. 2018, "Time Limits in Reinforcement Learning", https://arxiv.org/abs/1712.00378.
        """
        for lane in np.flatnonzero(dones):
            terminal = infos[lane].get("terminal_observation")
            if terminal is None or not infos[lane].get("TimeLimit.truncated", False):
                continue
            state: Any = tuple(part[:, lane : lane + 1].contiguous() for part in lstm_states.vf)
            with th.no_grad():
                obs: Any = self.policy.obs_to_tensor(terminal)[0]
                value = self.gamma * self.policy.predict_values(obs, state, self._starts([False]))
            rewards[lane] += value.item()

    def predict(
        self,
        observation: NDArray[Any] | dict[str, NDArray[Any]],
        state: tuple[NDArray[Any], ...] | None = None,
        episode_start: NDArray[Any] | None = None,
        deterministic: bool = False,
        action_masks: Masks = None,
    ) -> tuple[NDArray[Any], tuple[NDArray[Any], ...] | None]:
        """The policy's :meth:`~MaskableRecurrentActorCriticPolicy.predict`."""
        return self.policy.predict(observation, state, episode_start, deterministic, action_masks)

    def masked_by(self, env: gym.Env[Any, Any] | VecEnv) -> MaskedPredictor:
        """This model for functions that know no masks, with those of ``env`` at the time of each ``predict``.

        ``evaluate_policy(model.masked_by(env), env)`` is right with Stable-Baselines3's function; sb3-contrib's own for
        masks forgets the LSTM state after every step.
        """
        return MaskedPredictor(self, env)

    def learn(
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "MaskableRecurrentPPO",
        reset_num_timesteps: bool = True,
        progress_bar: bool = False,
        use_masking: bool = True,
    ) -> Self:
        """Learn for ``total_timesteps`` decisions; ``use_masking=False`` leaves ``action_masks()`` alone."""
        self._use_masking = use_masking
        return super().learn(total_timesteps, callback, log_interval, tb_log_name, reset_num_timesteps, progress_bar)
