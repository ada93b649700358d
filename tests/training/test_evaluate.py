"""Measuring a policy: exact numbers of games, no bias, intervals by their formula."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from gymcast.training.evaluate import EvaluationStopped, evaluate, wilson_interval


class Constant:
    """Always the same action."""

    def __init__(self, action: Any) -> None:
        self.action = np.asarray(action)

    def predict(
        self, observation: Any, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> Any:
        return np.broadcast_to(self.action, (len(observation), *self.action.shape)).copy(), None


class MaskedRandom:
    """A legal action at random; fails without masks."""

    def __init__(self, nvec: list[int]) -> None:
        self.nvec, self.rng = nvec, np.random.default_rng(0)

    def predict(self, observation: Any, action_masks: Any, deterministic: bool = False) -> Any:
        assert action_masks.shape == (len(observation), sum(self.nvec)) and action_masks.any(axis=1).all()
        groups = np.split(action_masks, np.cumsum(self.nvec)[:-1], axis=1)
        return np.stack([(self.rng.random(g.shape) * g).argmax(axis=1) for g in groups], axis=1), None


class ShortWins(gym.Env[Any, Any]):
    """Odd games last 1 step and are worth 1; even ones last 9 steps and are worth 0. The true mean is 0.5."""

    observation_space = spaces.Box(0.0, 1.0, (1,), np.float32)
    action_space = spaces.Discrete(2)
    games = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        self.games += 1
        self._left = 1 if self.games % 2 else 9
        self._worth = float(self.games % 2)
        return np.zeros(1, dtype=np.float32), {}

    def step(self, action: Any) -> Any:
        self._left -= 1
        done = self._left == 0
        return np.zeros(1, dtype=np.float32), self._worth if done else 0.0, done, False, {}


@pytest.fixture
def short_wins() -> Iterator[str]:
    gym.register("ShortWins-v0", entry_point=ShortWins)
    yield "ShortWins-v0"
    del gym.registry["ShortWins-v0"]


# From the formula in Wilson 1927 by hand; 0/10 and 10/10 mirror each other.
@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(0, 10, 0.0, 0.2775328), (10, 10, 0.7224672, 1.0), (5, 10, 0.2365931, 0.7634069)],
)
def test_wilson_interval(successes: int, trials: int, low: float, high: float) -> None:
    assert wilson_interval(successes, trials) == pytest.approx((low, high), abs=1e-6)
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "trials"), [(900, 1000), (1, 3), (499, 1000)])
def test_wilson_bounds_are_the_shares_the_observation_lies_on_the_edge_of(successes: int, trials: int) -> None:
    observed = successes / trials
    for bound in wilson_interval(successes, trials):
        assert abs(observed - bound) == pytest.approx(1.959963984540054 * (bound * (1 - bound) / trials) ** 0.5)


def test_short_games_do_not_count_more_often(short_wins: str) -> None:
    result = evaluate(Constant(0), short_wins, games=40, lanes=10)
    assert result.games == 40 and result.mean_return == 0.5 and result.mean_length == 5.0
    assert result.win_rate is None and result.as_event().games == 40


@pytest.mark.parametrize(("games", "lanes"), [(7, 3), (1, 8), (10, 10)])
def test_exactly_the_games_asked_for_are_counted(games: int, lanes: int) -> None:
    still = Constant([0, 0, 0, 0])
    result = evaluate(still, "archers", "expert", games, lanes=lanes, max_duration_s=5.0)
    assert result.games == games and result.wins + result.losses + result.draws == games


def test_standing_still_loses_to_an_expert_and_the_seed_decides_how() -> None:
    still = Constant([0, 0, 0, 0])
    first = evaluate(still, "archers", "expert", 16, seed=3, options={"kills_to_win": 1})
    again = evaluate(still, "archers", "expert", 16, seed=3, options={"kills_to_win": 1})
    assert first.losses > 12 and first.win_rate is not None and first.ci_high is not None
    assert first.ci_high < 50.0
    assert (first.mean_return, first.mean_length) == (again.mean_return, again.mean_length)


def test_masks_are_handed_to_policies_that_want_them() -> None:
    result = evaluate(MaskedRandom([3, 3, 2, 16]), "archers", "random", 4, masked=True, max_duration_s=1.0)
    assert result.games == 4


def test_it_can_be_stopped() -> None:
    with pytest.raises(EvaluationStopped, match="0 of 5"):
        evaluate(Constant([0, 0, 0, 0]), "archers", "expert", 5, should_stop=lambda: True)


def test_no_games_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        evaluate(Constant([0, 0, 0, 0]), "archers", "expert", 0)
