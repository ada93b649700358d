"""Environments that are not gymcast's, made so that every episode can be had again.

Each episode begins with a seed of its own, drawn from the lane's seed and the episode's number, so that it depends on
nothing that was before it; the vector environments tell taps what was played.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import gymnasium as gym
import numpy as np
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvObs, VecEnvStepReturn

from gymcast.training.hang_watch import REMEDY, WATCH, Place
from gymcast.training.subproc import GymcastSubprocVecEnv

if TYPE_CHECKING:
    from numpy.typing import NDArray

_RESETTING, _STEPPING, _WAITING = WATCH.at(Place.RESETTING), WATCH.at(Place.STEPPING), WATCH.at(Place.WAITING)
FACTS_KEY = "episode_facts"
"""Name in the last ``info`` of an episode: its ``seed``, its ``index`` on its lane, ``length`` and ``return``."""


class EpisodeSeeds(gym.Wrapper[Any, Any, Any, Any]):
    """Resets with a seed every time: with the one given, and later with seeds drawn from it and the episode's number.

    Gymnasium's own way, a seed for the first reset only, makes every episode depend on all those before it.
    """

    last_observation: Any = None
    """What the last step or reset returned."""

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        super().__init__(env)
        self._lane_seed: int | None = None
        self._index = 0
        self._episode_seed = 0
        self._length, self._return = 0, 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        if seed is not None or self._lane_seed is None:
            self._lane_seed = _drawn(np.random.SeedSequence()) if seed is None else int(seed)
            self._index, self._episode_seed = 0, self._lane_seed
        else:
            self._index += 1
            self._episode_seed = _drawn(np.random.SeedSequence([self._lane_seed, self._index]))
        self._length, self._return = 0, 0.0
        with _RESETTING:
            obs, info = self.env.reset(seed=self._episode_seed, options=options)
        self.last_observation = obs
        return obs, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        with _STEPPING:
            obs, reward, terminated, truncated, info = self.env.step(action)
        self.last_observation = obs
        self._length += 1
        self._return += float(reward)
        if not (terminated or truncated):  # an info that says nothing need not travel from a worker process
            return obs, reward, terminated, truncated, info
        facts = {"seed": self._episode_seed, "index": self._index, "length": self._length, "return": self._return}
        return obs, reward, terminated, truncated, {**info, FACTS_KEY: facts}


def _drawn(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1)[0] & 0x7FFFFFFF)


class Tap(Protocol):
    """Told what was played."""

    def stepped(self, actions: NDArray[Any], dones: NDArray[np.bool_], infos: list[dict[str, Any]]) -> None:
        """Called after each step with the actions (N, ...) and what came of them."""
        ...


class _Tapped(VecEnv):
    """Mixed into a ``VecEnv``: calls every tap in ``taps`` after each step."""

    taps: list[Tap]
    _played: NDArray[Any]

    def step_async(self, actions: NDArray[Any]) -> None:
        self._played = actions
        super().step_async(actions)  # type: ignore[safe-super]

    def step_wait(self) -> VecEnvStepReturn:
        result = super().step_wait()  # type: ignore[safe-super]
        for tap in self.taps:
            tap.stepped(self._played, result[2], result[3])
        return result


class TappedDummyVecEnv(_Tapped, DummyVecEnv):
    """Stable-Baselines3's ``DummyVecEnv`` that tells taps what was played, and what helps when a game raises."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.taps = []
        super().__init__(*arguments, **named)

    def reset(self) -> VecEnvObs:
        """Begin an episode in every lane. What a game raises gets a note that names the remedy."""
        try:
            return super().reset()
        except Exception as error:
            error.add_note(f"Raised by the environment's reset(): {REMEDY}.")
            raise

    def step_wait(self) -> VecEnvStepReturn:
        """Step every lane. What a game raises gets a note that names the remedy."""
        try:
            return super().step_wait()
        except Exception as error:
            error.add_note(f"Raised by the environment's step(): {REMEDY}.")
            raise


class TappedSubprocVecEnv(_Tapped, GymcastSubprocVecEnv):
    """:class:`~gymcast.training.subproc.GymcastSubprocVecEnv` that tells taps what was played.

    It watches its workers itself, so that waiting for them is no hanging.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.taps = []
        with _WAITING:
            super().__init__(*arguments, **named)

    def reset(self) -> VecEnvObs:
        """Begin an episode in every lane."""
        with _WAITING:
            return super().reset()

    def step_wait(self) -> VecEnvStepReturn:
        """The results of a step of every lane."""
        with _WAITING:
            return super().step_wait()
