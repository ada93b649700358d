"""The steps of a rollout: one after the other, or stepping one half of the lanes while choosing for the other.

With halves A and B, a step of all lanes is

    A begins, choose B (while A steps), B begins, A has stepped, choose A (while B steps), B has stepped: a step is done

Every lane is stepped with an action that the policy of this rollout chose for the observation before it, exactly as
without overlap: the rollout is on-policy and has the same rows. Between two steps of all lanes nothing is in flight, so
callbacks find what they always find. What differs is the order in which random numbers are drawn, and that a network
rounds a batch of N/2 rows in another way than one of N.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch as th
from numpy.typing import NDArray
from stable_baselines3.common.vec_env import VecEnv

from gymcast.training.subproc import GymcastSubprocVecEnv


class Choice(NamedTuple):
    """What the policy says about some lanes; arrays have a row for each."""

    obs: Any
    actions: NDArray[Any]
    clipped: NDArray[Any]
    """The actions as the environment takes them."""
    values: th.Tensor
    log_probs: th.Tensor
    masks: NDArray[np.bool_] | None


Stepped = tuple[Choice, Any, NDArray[Any], NDArray[np.bool_], list[dict[str, Any]]]
"""A step of all lanes: what was chosen, and the observations, rewards, ends and infos that followed."""


def rollout_steps(env: VecEnv, obs: Any, choose: Callable[[Any, slice], Choice], count: int) -> Iterator[Stepped]:
    """``count`` steps of all lanes from ``obs`` on; ``choose`` is given observations and the lanes they are of.

    Raises ``ValueError`` for a wrapped environment with ``overlap=True``: wrappers know of no halves.
    """
    base = env.unwrapped
    if isinstance(base, GymcastSubprocVecEnv) and base.overlap:
        if env is not base or type(base).step_wait is not GymcastSubprocVecEnv.step_wait:
            raise ValueError(
                f"overlap=True steps halves of the lanes, of which {type(env).__name__} knows nothing: leave out the "
                "wrapper, or overlap"
            )
        yield from _overlapped(base, obs, choose, count)
        return
    for _ in range(count):
        choice = choose(obs, slice(None))
        obs, rewards, dones, infos = env.step(choice.clipped)
        yield choice, obs, rewards, dones, infos


def _overlapped(
    env: GymcastSubprocVecEnv, obs: Any, choose: Callable[[Any, slice], Choice], count: int
) -> Iterator[Stepped]:
    first, second = (slice(lanes.start, lanes.stop) for lanes in env.halves)
    ahead = choose(_rows(obs, first), first)
    second_obs = _rows(obs, second)
    for step in range(count):
        env.half_step_async(0, ahead.clipped)
        behind = choose(second_obs, second)
        env.half_step_async(1, behind.clipped)
        choice = _joined_choice(ahead, behind)
        first_obs, first_rewards, first_dones, first_infos = env.half_step_wait(0)
        if step + 1 < count:
            ahead = choose(first_obs, first)
        second_obs, rewards, dones, infos = env.half_step_wait(1)
        yield (
            choice,
            _joined(first_obs, second_obs),
            np.concatenate([first_rewards, rewards]),
            np.concatenate([first_dones, dones]),
            first_infos + infos,
        )


def _rows(obs: Any, lanes: slice) -> Any:
    return {key: part[lanes] for key, part in obs.items()} if isinstance(obs, dict) else obs[lanes]


def _joined(first: Any, second: Any) -> Any:
    if isinstance(first, dict):
        return {key: np.concatenate([part, second[key]]) for key, part in first.items()}
    return np.concatenate([first, second])


def _joined_choice(first: Choice, second: Choice) -> Choice:
    masks = None if first.masks is None or second.masks is None else np.concatenate([first.masks, second.masks])
    return Choice(
        _joined(first.obs, second.obs),
        np.concatenate([first.actions, second.actions]),
        np.concatenate([first.clipped, second.clipped]),
        th.cat([first.values, second.values]),
        th.cat([first.log_probs, second.log_probs]),
        masks,
    )
