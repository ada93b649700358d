"""Augmented random search with every lane playing its own candidate.

The update is sb3-contrib's (Mania et al. 2018, https://arxiv.org/abs/1803.07055). sb3-contrib plays one candidate after
the other and asks no callback whether to go on; here the candidates are played side by side, one on each lane, their
networks in one batched forward, in a loop that can be stopped, saved and resumed like those of the other algorithms.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS
from sb3_contrib.common.vec_env.async_eval import AsyncEval
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.type_aliases import MaybeCallback
from stable_baselines3.common.vec_env import VecEnv


class BatchARS(ARS):
    """ARS that plays as many candidates at once as there are lanes."""

    weights: Any
    policy: Any
    _deltas: th.Tensor
    _candidate_returns: th.Tensor

    def learn(  # type: ignore[override]  # one argument more than the base class has, as in sb3-contrib
        self,
        total_timesteps: int,
        callback: MaybeCallback = None,
        log_interval: int = 1,
        tb_log_name: str = "ARS",
        reset_num_timesteps: bool = True,
        async_eval: AsyncEval | None = None,
        progress_bar: bool = False,
    ) -> BatchARS:
        """Train until ``total_timesteps`` decisions are taken; the round under way is finished, as in rollouts.

        A callback that returns false ends the training; what the unfinished round has found is dropped.
        """
        if async_eval is not None:
            raise ValueError("candidates are played side by side on the lanes; give more lanes instead of async_eval")
        total, called = self._setup_learn(total_timesteps, callback, reset_num_timesteps, tb_log_name, progress_bar)
        called.on_training_start(locals(), globals())
        assert self.env is not None, "learn() needs an environment"
        while self.num_timesteps < total:
            if not self.collect_rollouts(self.env, called):
                break
            self._update_current_progress_remaining(self.num_timesteps, total)
            if log_interval is not None and self._n_updates % log_interval == 0:
                self.dump_logs()
            self.train()
        called.on_training_end()
        return self

    def collect_rollouts(self, env: VecEnv, callback: BaseCallback) -> bool:
        """Draw directions and play a policy on both sides of each; false when a callback ended it."""
        callback.on_rollout_start()
        # From the policy: weights that were loaded there are those to go on from.
        self.weights = th.nn.utils.parameters_to_vector(self.policy.parameters()).detach()
        self._deltas = th.normal(mean=0.0, std=1.0, size=(self.n_delta, self.n_params), device=self.device)
        steps = self._deltas * self.delta_std_schedule(self._current_progress_remaining)
        candidates = th.cat([self.weights + steps, self.weights - steps])
        complete = self._play(candidates, env, callback)
        callback.on_rollout_end()
        return complete

    def _play(self, candidates: th.Tensor, env: VecEnv, callback: BaseCallback) -> bool:
        """Play ``n_eval_episodes`` episodes of each candidate (pop_size, weights) and add up its returns."""
        waiting = [index for index in range(len(candidates)) for _ in range(self.n_eval_episodes)][::-1]
        returns = np.zeros(len(candidates))
        # Lanes that have nothing left to play follow the present policy, which no result comes of.
        idle = -1
        plays = [waiting.pop() if waiting else idle for _ in range(env.num_envs)]
        networks = _networks(candidates, self.weights, plays)
        left = len(candidates) * self.n_eval_episodes
        running = np.zeros(env.num_envs)
        lengths = np.zeros(env.num_envs, dtype=np.int64)
        new_obs: Any = env.reset()
        self._last_obs = new_obs
        while left:
            actions = self._actions(networks, new_obs)
            new_obs, rewards, dones, infos = env.step(actions)
            self.num_timesteps += env.num_envs
            running += rewards
            lengths += 1
            # Callbacks find the names of Stable-Baselines3's own loops here.
            callback.update_locals(locals())
            if not callback.on_step():
                return False
            self._last_obs = new_obs
            for lane in np.flatnonzero(dones):
                if plays[lane] != idle:
                    monitored = infos[lane].get("episode")
                    gained = running[lane] if monitored is None else monitored["r"]
                    returns[plays[lane]] += gained + self.alive_bonus_offset * lengths[lane]
                    self._update_info_buffer([infos[lane]], dones[lane : lane + 1])
                    left -= 1
                plays[lane] = waiting.pop() if waiting else idle
                networks[lane] = self.weights if plays[lane] == idle else candidates[plays[lane]]
                running[lane], lengths[lane] = 0.0, 0
        self._candidate_returns = th.as_tensor(returns, dtype=th.float32, device=self.device)
        return True

    def _actions(self, networks: th.Tensor, obs: Any) -> np.ndarray[Any, Any]:
        """Actions (lanes, ...) for observations of all lanes, each by its own row of ``networks`` (lanes, weights)."""
        with th.no_grad():
            features = self.policy.extract_features(self.policy.obs_to_tensor(obs)[0], self.policy.features_extractor)
            outputs = th.vmap(self._forward)(networks, features)
        if isinstance(self.action_space, spaces.Discrete):
            chosen: np.ndarray[Any, Any] = outputs.argmax(dim=1).cpu().numpy()
            return chosen
        actions = outputs.cpu().numpy().reshape(-1, *(self.action_space.shape or ()))
        if self.policy.squash_output:
            unscaled: np.ndarray[Any, Any] = self.policy.unscale_action(actions)
            return unscaled
        assert isinstance(self.action_space, spaces.Box)
        clipped: np.ndarray[Any, Any] = np.clip(actions, self.action_space.low, self.action_space.high)
        return clipped

    def _forward(self, weights: th.Tensor, features: th.Tensor) -> th.Tensor:
        """The outputs (actions,) of the network with ``weights`` (weights,) for features (D,)."""
        parameters, start = {}, 0
        for name, value in self.policy.action_net.named_parameters():
            parameters[name] = weights[start : start + value.numel()].view_as(value)
            start += value.numel()
        outputs: th.Tensor = th.func.functional_call(self.policy.action_net, parameters, (features,))
        return outputs

    def train(self) -> None:
        """Step along the directions that made a difference, scaled by how much returns differed."""
        rate = self.lr_schedule(self._current_progress_remaining)
        plus, minus = self._candidate_returns[: self.n_delta], self._candidate_returns[self.n_delta :]
        best = th.argsort(th.maximum(plus, minus), descending=True)[: self.n_top]
        plus, minus = plus[best], minus[best]
        deviation = th.cat([plus, minus]).std()
        step_size = rate / (self.n_top * deviation + 1e-6)
        self.weights = self.weights + step_size * ((plus - minus) @ self._deltas[best])
        self.policy.load_from_vector(self.weights.cpu().numpy())
        self._n_updates += 1
        self.logger.record("train/iterations", self._n_updates, exclude="tensorboard")
        self.logger.record("train/delta_std", self.delta_std_schedule(self._current_progress_remaining))
        self.logger.record("train/learning_rate", rate)
        self.logger.record("train/step_size", step_size.item())
        self.logger.record("train/return_std", deviation.item())


def _networks(candidates: th.Tensor, weights: th.Tensor, plays: list[int]) -> th.Tensor:
    """The weights (lanes, weights) each lane plays with: its candidate's, or ``weights`` where it has none."""
    return th.stack([weights if index < 0 else candidates[index] for index in plays])
