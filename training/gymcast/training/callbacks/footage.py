"""Real training footage: whole episodes of single lanes, sent as replays with the decisions behind them."""

from __future__ import annotations

import base64
import secrets
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from gymcast.envs import GameVectorEnv, Replay, ReplayRecorder
from gymcast.training.broadcast import Sink
from gymcast.training.callbacks.decisions import DecisionExplainer, can_explain
from gymcast.training.callbacks.progress import RunProgress
from gymcast.training.events import ReplayData, ReplayDecision
from gymcast.training.vec_env import GameVecEnv

if TYPE_CHECKING:
    from numpy.typing import NDArray

RECORDED_LANES = 8
# Decisions of longer episodes are thinned out, so that a replay stays far below the limit of one POST.
MAX_SENT_DECISIONS = 400


@dataclass(frozen=True)
class RecordedEpisode:
    """A whole episode with what the policy saw: observations (T, D), masks (T, M) and actions (T, ...)."""

    replay: Replay
    obs: NDArray[Any]
    masks: NDArray[np.bool_]
    actions: NDArray[Any]


class LaneRecorder:
    """Records one lane: the actions as a :class:`~gymcast.envs.Replay`, and what the policy saw beside it.

    The episode that is under way when recording starts is left out.
    """

    def __init__(self, env: GameVectorEnv, lane: int) -> None:
        self._env = env
        self._recorder = ReplayRecorder(env, lanes=[lane])
        self._lane = lane
        self._obs: list[NDArray[Any]] = []
        self._masks: list[NDArray[np.bool_]] = []
        self._actions: list[NDArray[Any]] = []
        self.finished: RecordedEpisode | None = None
        """The newest whole episode; whoever takes it puts ``None`` in its place."""

    def before_step(self, obs: NDArray[Any], action_mask: NDArray[np.bool_], actions: NDArray[Any]) -> None:
        self._obs.append(obs[self._lane].copy())
        self._masks.append(action_mask[self._lane].copy())
        self._actions.append(np.array(actions[self._lane]))

    def after_step(self) -> None:
        replays = self._recorder.finish()
        if self._lane not in self._env.ended:
            return
        for replay in replays:
            if len(replay.actions) == len(self._obs):
                self.finished = RecordedEpisode(
                    replay, np.stack(self._obs), np.stack(self._masks), np.stack(self._actions)
                )
        self._obs, self._masks, self._actions = [], [], []


class FootageCallback(BaseCallback):
    """Sends a whole finished training episode every ``seconds`` as a ``replay`` event.

    A few lanes are recorded all the time, which costs a few rows per step; what the policy makes of the episode is
    evaluated afterwards in one batched forward. Needs a :class:`~gymcast.training.vec_env.GameVecEnv` at the bottom.
    """

    def __init__(self, sink: Sink, progress: RunProgress, seconds: float = 10.0, lanes: int = RECORDED_LANES) -> None:
        super().__init__()
        self._sink = sink
        self._progress = progress
        self._seconds = seconds
        self._lanes = lanes
        self._next = 0.0
        self._recorders: list[LaneRecorder] = []
        self._base: GameVecEnv | None = None
        self._explainer: DecisionExplainer | None = None

    def _on_training_start(self) -> None:
        base = self.training_env.unwrapped
        if not isinstance(base, GameVecEnv):
            return
        self._base = base
        self._explainer = DecisionExplainer(self.model) if can_explain(self.model) else None
        self._recorders = [LaneRecorder(base.env, lane) for lane in range(min(self._lanes, base.num_envs))]
        base.listeners.extend(self._recorders)

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now >= self._next:
            for recorder in self._recorders:
                if recorder.finished is not None:
                    self._next = now + self._seconds
                    self._send(recorder.finished)
                    recorder.finished = None
                    break
        return True

    def _on_training_end(self) -> None:
        if self._base is not None:
            for recorder in self._recorders:
                self._base.listeners.remove(recorder)
        self._recorders = []

    def _send(self, episode: RecordedEpisode) -> None:
        replay = episode.replay
        self._sink.emit(
            ReplayData(
                replay_id=f"{replay.env_id.rsplit('/', 1)[-1]}-{secrets.token_hex(8)}".replace(".", "_"),
                env_id=replay.env_id,
                episode=self._progress.stats.episodes,
                timesteps=self._progress.timesteps,
                summary=replay.summary,
                bytes_base64=base64.b64encode(replay.to_bytes()).decode("ascii"),
                decisions=self._decisions(episode),
            )
        )

    def _decisions(self, episode: RecordedEpisode) -> list[ReplayDecision]:
        if self._explainer is None:
            return []
        steps = np.arange(0, len(episode.obs), 1 + (len(episode.obs) - 1) // MAX_SENT_DECISIONS)
        obs = episode.obs[steps]
        normalise = self.model.get_vec_normalize_env()
        if normalise is not None:
            obs = np.asarray(normalise.normalize_obs(obs))
        explained = self._explainer.explain(obs, episode.masks[steps], episode.actions[steps])
        return [
            ReplayDecision(
                step=int(step),
                action_probabilities=decision.action_probabilities,
                groups=decision.groups,
                state_values=decision.state_values,
                selected_action=decision.selected_action,
            )
            for step, decision in zip(steps, explained, strict=True)
        ]
