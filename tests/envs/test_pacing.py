"""Pacing by a clock of the test's own: rates, stalls and lag come out exactly, however busy the machine is."""

from __future__ import annotations

import pytest

from gymcast.envs import Pacer


class Clock:
    """A clock that moves by sleeping (late by `oversleep`) and by what the test adds."""

    def __init__(self, oversleep: float = 0.0) -> None:
        self.now = 1000.0
        self.slept = 0.0
        self.oversleep = oversleep

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0.0
        self.now += seconds + self.oversleep
        self.slept += seconds


def pacer(clock: Clock, multiplier: float | None) -> Pacer:
    return Pacer(0.08, multiplier, clock=clock, sleep=clock.sleep)


@pytest.mark.parametrize("multiplier", [1.0, 10.0, 50.0, 100.0])
@pytest.mark.parametrize("oversleep", [0.0, 0.0001])
def test_the_rate_is_held_without_drift(multiplier: float, oversleep: float) -> None:
    clock = Clock(oversleep)
    paced = pacer(clock, multiplier)
    paced.wait()
    start, steps = clock.now, round(10.0 * multiplier / 0.08)
    for number in range(steps):
        clock.now += 0.0002 * (number % 3)  # the game takes its time, not always the same
        paced.wait()
    rate = steps * 0.08 / (clock.now - start)
    assert rate == pytest.approx(multiplier, rel=1e-4)
    assert paced.rate == pytest.approx(multiplier, rel=0.01)
    assert paced.lag <= 0.001


def test_a_stall_is_made_up_for_within_bounds_and_the_rest_is_lag() -> None:
    clock = Clock()
    paced = pacer(clock, 10.0)  # a decision every 8 ms
    for _ in range(100):
        paced.wait()
    clock.now += 3.0
    paced.wait()
    assert paced.lag == pytest.approx(3.0 - 0.008)
    before, slept = clock.now, clock.slept
    for _ in range(1000):
        paced.wait()
    # A quarter of a second is made up for, then the game is back at its rate and the rest stays lost.
    assert clock.now - before == pytest.approx(8.0 - 0.25)
    assert clock.slept - slept == pytest.approx(8.0 - 0.25)
    assert paced.lag == pytest.approx(2.75 - 0.008)


def test_small_delays_are_made_up_for_entirely() -> None:
    clock = Clock()
    paced = pacer(clock, 10.0)
    start = clock.now
    for number in range(1, 1001):
        clock.now += 0.1 if number % 100 == 50 else 0.0
        paced.wait()
    assert clock.now - start == pytest.approx(1000 * 0.008) and paced.lag == 0.0


def test_a_game_that_is_too_slow_reports_its_lag_and_its_rate() -> None:
    clock = Clock()
    paced = pacer(clock, 100.0)  # 0.8 ms
    for _ in range(20_000):
        clock.now += 0.002
        paced.wait()
    assert clock.slept == pytest.approx(0.0008)  # none but the first decision came in time
    assert paced.rate == pytest.approx(40.0, rel=0.01)
    assert paced.lag == pytest.approx(20_000 * 0.0012, rel=0.01)


def test_a_pause_is_no_lag() -> None:
    clock = Clock()
    paced = pacer(clock, 1.0)
    for _ in range(10):
        paced.wait()
    clock.now += 600.0
    paced.restart()
    start = clock.now
    for _ in range(10):
        paced.wait()
    assert paced.lag == 0.0 and clock.now - start == pytest.approx(0.8)


def test_unlimited_never_sleeps_and_still_knows_its_rate() -> None:
    clock = Clock()
    paced = pacer(clock, None)
    assert paced.rate is None
    for _ in range(2000):
        clock.now += 0.001
        paced.wait()
    assert clock.slept == 0.0 and paced.lag == 0.0 and paced.rate == pytest.approx(80.0, rel=0.01)


@pytest.mark.parametrize("multiplier", [0.5, 101.0, 0.0, float("nan")])
def test_a_multiplier_out_of_range_is_refused(multiplier: float) -> None:
    with pytest.raises(ValueError, match="give 1 to 100, or None"):
        Pacer(0.08, multiplier)


def test_a_step_without_time_is_refused() -> None:
    with pytest.raises(ValueError, match="game time"):
        Pacer(0.0, 1.0)
