"""The moments at which a run can be saved and resumed exactly: between an update and the rollout that follows.

Whoever asks for a stop or a pause in between waits for the next such moment, which is mostly near: a rollout of the
native batch takes a fraction of a second, one of DQN a few steps. Where rollouts are long the state that each begins
with is kept in memory instead, and a stop goes back to it: an on-policy algorithm has not used anything of a rollout
before it is whole, and a resumed run takes the same decisions again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, cast

import torch as th
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm
from stable_baselines3.common.type_aliases import RolloutReturn

from gymcast.training.run_state import RunState

if TYPE_CHECKING:
    from numpy.typing import NDArray

# From this on a rollout is long: keeping its first state, some milliseconds, is not noticed.
LONG_ROLLOUT_SECONDS: Final = 1.0


class RolloutBoundary:
    """Comes between an algorithm and its ``collect_rollouts``.

    ``capture`` takes the state of the run; ``may_go_on``, asked before each rollout, ends the training by returning
    false.
    """

    def __init__(self, model: BaseAlgorithm, capture: Callable[[], RunState], may_go_on: Callable[[], bool]) -> None:
        self._model = cast(Any, model)
        self._capture = capture
        self._may_go_on = may_go_on
        self._off_policy = isinstance(model, OffPolicyAlgorithm)
        self._rollout_start: RunState | None = None
        self._torch_stream: NDArray[Any] | None = None
        self._rollout_seconds = math.inf
        self._unfinished = False
        self._collect: Callable[..., Any] = self._model.collect_rollouts
        self._model.collect_rollouts = self._collect_from_here

    def _collect_from_here(self, *args: Any, **kwargs: Any) -> Any:
        if not self._may_go_on():
            return RolloutReturn(0, 0, continue_training=False) if self._off_policy else False
        # State-dependent exploration draws its noise before any callback could save.
        if not self._off_policy and (self._rollout_seconds >= LONG_ROLLOUT_SECONDS or self._model.use_sde):
            self._rollout_start = self._capture()
        elif self._model.use_sde:  # rollouts of a few steps: the one stream that is drawn from is enough
            self._torch_stream = th.get_rng_state().numpy().copy()
        begun = time.monotonic()
        collected = self._collect(*args, **kwargs)
        self._torch_stream = None
        self._rollout_seconds = time.monotonic() - begun
        self._unfinished = not self._off_policy and not collected
        if not self._unfinished:
            self._rollout_start = None
        return collected

    @property
    def can_go_back(self) -> bool:
        """Whether the state that the present rollout began with is kept, so that a stop need not wait for its end."""
        return self._rollout_start is not None

    def state(self) -> RunState:
        """The state to save: that of the rollout's start where it is kept, else that of now."""
        if self._rollout_start is not None:
            return self._rollout_start
        state = self._capture()
        if self._torch_stream is not None:
            state.arrays["random/torch"] = self._torch_stream
        return state

    def give_up_rollout(self, last_step: dict[str, Any]) -> None:
        """Let a run stand where it is, in the middle of a rollout that nobody will complete; else do nothing.

        ``last_step`` are the names of the collecting loop (``BaseCallback.locals``). The run has reached its limit:
        what was collected is dropped, and should it be given more to do it begins a new rollout here.
        """
        if not self._unfinished:
            return
        self._rollout_start = None
        self._model._last_obs = last_step["new_obs"]
        self._model._last_episode_starts = last_step["dones"]
        if "lstm_states" in last_step:
            self._model._last_lstm_states = last_step["lstm_states"]
