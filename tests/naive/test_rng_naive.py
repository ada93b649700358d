"""Random streams against the same generator on Python's integers."""

from __future__ import annotations

import numpy as np
import pytest
from archers_naive_world import Stream
from hypothesis import given, settings
from hypothesis import strategies as st

from gymcast.envs.rng import lane_seeds, next_below, next_u32, next_unit, seed_episode


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_streams_are_those_of_the_twin(seed: int, episode: int) -> None:
    stream = np.zeros(4, np.uint32)
    seed_episode(stream, seed, episode)
    twin = Stream(seed, episode)
    for n in (1, 2, 3, 8, 600, 2**31 - 1):
        assert next_u32(stream) == twin.bits()
        assert next_unit(stream) == twin.unit()
        assert next_below(stream, n) == twin.below(n)
    assert stream.tolist() == [twin.a, twin.b, twin.c, twin.counter]


def test_draws_are_even() -> None:
    """16,000 draws below 16: chi-square with 15 degrees of freedom below its 99.9 % point."""
    stream = np.zeros(4, np.uint32)
    seed_episode(stream, 1, 0)
    counts = np.bincount([next_below(stream, 16) for _ in range(16_000)], minlength=16)
    assert ((counts - 1000.0) ** 2 / 1000.0).sum() < 37.7


def test_neighbouring_seeds_and_episodes_share_nothing() -> None:
    firsts = set()
    for seed in range(40):
        for episode in range(40):
            stream = np.zeros(4, np.uint32)
            seed_episode(stream, seed, episode)
            firsts.add((next_u32(stream), next_u32(stream)))
    assert len(firsts) == 1600


def test_lane_seeds_count_up_and_are_drawn_without_a_seed() -> None:
    assert lane_seeds(7, 3).tolist() == [7, 8, 9]
    drawn = {int(lane_seeds(None, 1)[0]) for _ in range(4)}
    assert len(drawn) == 4 and min(drawn) >= 0
    long = lane_seeds(2**100, 2)
    assert (long >= 0).all() and long.tolist() == lane_seeds(2**100, 2).tolist()


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        lane_seeds(-1, 1)
