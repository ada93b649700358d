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
from gymcast.envs.foreign_make import NO_EXTRAS, EnvExtras
from gymcast.training.broadcast import Sink
from gymcast.training.callbacks.decisions import Decision, DecisionExplainer, is_recurrent
from gymcast.training.callbacks.episodes import header_of
from gymcast.training.callbacks.foreign_footage import ForeignRecorder
from gymcast.training.callbacks.progress import RunProgress
from gymcast.training.episode_taps import Tap, TappedDummyVecEnv, TappedSubprocVecEnv
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
    evaluated afterwards in one batched forward. Of environments that are not gymcast's lane 0 is recorded, with
    ``extras`` for playing it again; nothing is drawn here.
    """

    def __init__(
        self,
        sink: Sink,
        progress: RunProgress,
        seconds: float = 10.0,
        lanes: int = RECORDED_LANES,
        extras: EnvExtras = NO_EXTRAS,
    ) -> None:
        super().__init__()
        self._sink = sink
        self._progress = progress
        self._seconds = seconds
        self._lanes = lanes
        self._extras = extras
        self._foreign: ForeignRecorder | None = None
        self._taps: list[Tap] = []
        self._next = 0.0
        self._recorders: list[LaneRecorder] = []
        self._base: GameVecEnv | None = None
        self._explainer: DecisionExplainer | None = None

    def _on_training_start(self) -> None:
        base = self.training_env.unwrapped
        self._explainer = DecisionExplainer(self.model)
        if isinstance(base, TappedDummyVecEnv | TappedSubprocVecEnv):
            header = header_of(base, 0, self._extras)
            if header is not None:
                self._foreign = ForeignRecorder(header, base.action_space, lambda: self.model._last_obs)
                self._taps = base.taps
                self._taps.append(self._foreign)
        if not isinstance(base, GameVecEnv):
            return
        self._base = base
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
            if self._foreign is not None and self._foreign.finished is not None:
                self._next = now + self._seconds
                replay, steps, obs, actions = self._foreign.finished
                self._emit(replay, self._explained(len(replay.actions), steps, obs, actions))
                self._foreign.finished = None
        return True

    def _on_training_end(self) -> None:
        if self._base is not None:
            for recorder in self._recorders:
                self._base.listeners.remove(recorder)
        self._recorders = []
        if self._foreign is not None:
            self._taps.remove(self._foreign)
            self._foreign = None

    def _send(self, episode: RecordedEpisode) -> None:
        self._emit(episode.replay, self._decisions(episode))

    def _emit(self, replay: Replay, decisions: list[ReplayDecision]) -> None:
        self._sink.emit(
            ReplayData(
                replay_id=f"{replay.env_id.rsplit('/', 1)[-1]}-{secrets.token_hex(8)}".replace(".", "_"),
                env_id=replay.env_id,
                episode=self._progress.stats.episodes,
                timesteps=self._progress.timesteps,
                summary=replay.summary,
                bytes_base64=base64.b64encode(replay.to_bytes()).decode("ascii"),
                decisions=decisions,
            )
        )

    def _decisions(self, episode: RecordedEpisode) -> list[ReplayDecision]:
        if self._explainer is None:
            return []
        steps = np.arange(0, len(episode.obs), 1 + (len(episode.obs) - 1) // MAX_SENT_DECISIONS)
        # A recurrent policy has to see everything to know what it knew.
        rows = slice(None) if is_recurrent(self.model) else steps
        obs = episode.obs[rows]
        normalise = self.model.get_vec_normalize_env()
        if normalise is not None:
            obs = np.asarray(normalise.normalize_obs(obs))
        explained = self._explainer.explain(obs, episode.masks[rows], episode.actions[rows])
        if is_recurrent(self.model):
            explained = [explained[step] for step in steps]
        return _sent(steps, explained)

    def _explained(self, length: int, steps: list[int], obs: Any, actions: NDArray[Any]) -> list[ReplayDecision]:
        """What a policy made of a part of the steps; of a recurrent one only from all of them, as it remembers."""
        if self._explainer is None or (is_recurrent(self.model) and len(steps) < length):
            return []
        return _sent(np.array(steps), self._explainer.explain(obs, None, actions))


def _sent(steps: NDArray[Any], explained: list[Decision]) -> list[ReplayDecision]:
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
