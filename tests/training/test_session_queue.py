"""The rules of the queue, of retries and of limits, worked out by hand."""

from __future__ import annotations

import math

import pytest

from gymcast.training.limits import ResourceLimits
from gymcast.training.run_folder import Outcome
from gymcast.training.sessions.process import WorkerExit
from gymcast.training.sessions.queue import Running, Waiting, in_order, plan
from gymcast.training.sessions.supervise import Next, Stop, retry_delay, what_follows
from gymcast.training.sessions.usage import Usage, Watch, judge, pick_victim

LIMITS = ResourceLimits(max_concurrent_sessions=3, max_parallel_episodes_per_session=10, max_total_parallel_episodes=10)


def test_priority_then_age_and_a_minute_of_waiting_is_a_point() -> None:
    waiting = [
        Waiting("new-low", 0, 1, waited=1),
        Waiting("old-low", 0, 1, waited=2),
        Waiting("high", 3, 1),
        Waiting("aged", 0, 1, waited=4 * 60),
        Waiting("almost", 0, 1, waited=3 * 60 - 1),
    ]
    assert [one.session_id for one in in_order(waiting)] == ["aged", "high", "almost", "old-low", "new-low"]


def test_what_does_not_fit_is_passed_by() -> None:
    made = plan([Waiting("big", 5, 8), Waiting("small", 0, 4)], [Running("one", 0, 4)], LIMITS)
    assert made.start == ["small"]
    assert made.reasons == {"big": "max_total_parallel_episodes: 8 wanted, 6 of 10 free"}
    full = [Running(name, 0, 1) for name in ("a", "b", "c")]
    assert plan([Waiting("next", 0, 1)], full, LIMITS).reasons == {"next": "max_concurrent_sessions: 3 of 3 taken"}


def test_what_has_waited_long_keeps_its_place() -> None:
    old = Waiting("big", 0, 8, waited=600)
    made = plan([old, Waiting("small", 0, 4)], [Running("one", 0, 4)], LIMITS)
    assert made.start == []
    assert "kept for big" in made.reasons["small"]
    # With the place free it starts first, and the small one does not fit beside it.
    made = plan([old, Waiting("small", 0, 4)], [], LIMITS)
    assert made.start == ["big"]
    assert made.reasons == {"small": "max_total_parallel_episodes: 4 wanted, 2 of 10 free"}


def test_a_much_higher_priority_makes_room() -> None:
    running = [
        Running("old-low", 0, 4, ran=100),
        Running("young-low", 0, 3, ran=10),
        Running("middle", 5, 3, ran=1),
    ]
    made = plan([Waiting("urgent", 10, 3)], running, LIMITS)
    assert (made.start, made.preempt) == ([], {"young-low": "urgent"})
    # Seven lanes take both of low priority; the middle one is only five below.
    assert plan([Waiting("urgent", 10, 7)], running, LIMITS).preempt == {"young-low": "urgent", "old-low": "urgent"}
    assert plan([Waiting("urgent", 10, 8)], running, LIMITS).preempt == {}
    assert plan([Waiting("urgent", 9, 3)], running, LIMITS).preempt == {}
    # Waiting does not make a priority much higher: else two endless trainings would throw each other out for ever.
    assert plan([Waiting("aged", 0, 3, waited=3600)], running, LIMITS).preempt == {}


def test_no_more_than_it_takes_and_not_twice() -> None:
    running = [Running("tiny", 0, 1, ran=1), Running("large", 0, 9, ran=2)]
    made = plan([Waiting("urgent", 50, 9)], running, LIMITS)
    assert made.preempt == {"large": "urgent"}
    leaving = [Running("tiny", 0, 1, ran=1), Running("large", 0, 9, ran=2, leaving=True)]
    made = plan([Waiting("urgent", 50, 9), Waiting("small", 0, 1)], leaving, LIMITS)
    assert (made.start, made.preempt) == ([], {})
    assert "save its checkpoint" in made.reasons["urgent"]
    # A paused one has no need to run, but its state is in its process.
    assert plan([Waiting("urgent", 50, 9)], [Running("large", 0, 9, fixed=True)], LIMITS).preempt == {}


def test_what_must_not_start_says_why() -> None:
    waiting = [Waiting("later", 9, 1, delay=2.5), Waiting("held", 8, 1, held="not yet"), Waiting("now", 0, 1)]
    made = plan(waiting, [], LIMITS)
    assert made.start == ["now"]
    assert made.reasons == {"later": "retry: waits before the next attempt", "held": "not yet"}
    assert plan([Waiting("now", 0, 1)], [], LIMITS, "memory_limit_mb: 90 of 100 MiB used").reasons == {
        "now": "memory_limit_mb: 90 of 100 MiB used"
    }


def test_retries_wait_for_up_to_two_to_their_number_seconds() -> None:
    for retries, cap in ((0, 1.0), (3, 8.0), (6, 64.0), (7, 100.0), (1000, 100.0)):
        delays = [retry_delay(retries) for _ in range(200)]
        assert min(delays) >= 0.0 and max(delays) <= cap
        # Full jitter: the mean of 200 uniform numbers is within five standard errors of the middle.
        assert abs(sum(delays) / 200 - cap / 2) < 5 * cap / math.sqrt(12 * 200)


KILLED = WorkerExit(-9)


@pytest.mark.parametrize(
    ("exit_", "outcome", "stop", "retries", "keeps", "status"),
    [
        (WorkerExit(0), Outcome(1, "completed", "done"), None, 0, True, "completed"),
        # A goal that was reached is reached, also when a stop came at that moment.
        (WorkerExit(0), Outcome(1, "completed", "done"), Stop("enough"), 0, True, "completed"),
        (WorkerExit(0), Outcome(1, "cancelled", "stopped"), Stop("enough"), 0, True, "cancelled"),
        (WorkerExit(0), Outcome(1, "cancelled", "stopped"), Stop("room", "queued"), 0, True, "queued"),
        (KILLED, None, Stop("over memory_limit_mb", "failed"), 0, True, "failed"),
        (KILLED, None, None, 0, False, "retrying"),
        (KILLED, None, None, 2, True, "retrying"),
        (KILLED, None, None, 3, True, "failed"),
        (WorkerExit(2), Outcome(1, "failed", "bad config"), None, 0, True, "failed"),
        (WorkerExit(1), Outcome(1, "failed", "OSError", retry=True), None, 0, True, "retrying"),
        # Nobody asked for this end: whose sessions are kept goes on, a training at somebody's terminal ends.
        # It has saved what there was, so it uses up no retry.
        (WorkerExit(143), Outcome(1, "cancelled", "received SIGTERM"), None, 3, True, "retrying"),
        (WorkerExit(-15), None, None, 3, True, "failed"),
        (WorkerExit(143), Outcome(1, "cancelled", "received SIGTERM"), None, 0, False, "cancelled"),
        (WorkerExit(None), None, None, 0, True, "retrying"),
    ],
)
def test_what_follows_an_attempt(
    exit_: WorkerExit, outcome: Outcome | None, stop: Stop | None, retries: int, keeps: bool, status: str
) -> None:
    following = what_follows(exit_, outcome, stop, retries, 3, keeps=keeps)
    assert isinstance(following, Next)
    assert following.status == status
    assert (following.delay is not None) == (status == "retrying")
    if stop is not None and status != "completed":
        assert following.reason == stop.reason


def test_limits_are_judged_at_eighty_percent_and_above() -> None:
    assert [judge(used, 100.0) for used in (79.9, 80.0, 100.0, 100.1)] == [None, "alert", "alert", "exceeded"]


def test_an_alert_comes_once_and_an_excess_each_time() -> None:
    watch = Watch(ResourceLimits(memory_limit_mb=100))
    told = []
    for memory in (50, 85, 90, 101, 102, 60, 85):
        told.append([alert.level for alert in watch.look({"a": Usage(memory - 10), "b": Usage(10)})])
    assert told == [[], ["alert"], [], ["exceeded"], ["exceeded"], [], ["alert"]]
    assert watch.pressure == "memory_limit_mb: 85 of 100 MiB used"


def test_processor_use_is_a_mean_of_five_samples() -> None:
    watch = Watch(ResourceLimits(cpu_limit_percent=50))
    assert [watch.look({"a": Usage(cpu_percent=90)}) for _ in range(4)] == [[]] * 4
    (alert,) = watch.look({"a": Usage(cpu_percent=0)})
    assert (alert.level, alert.used, alert.message) == ("exceeded", 72.0, "cpu_limit_percent: 72 of 50 % used")


def test_the_one_that_uses_most_of_the_lowest_priority_goes() -> None:
    usage = {"vip": Usage(900, 1), "small": Usage(10, 80), "large": Usage(50, 5)}
    priorities = {"vip": 5}
    assert pick_victim("memory", usage, priorities) == "large"
    assert pick_victim("cpu", usage, priorities) == "small"
    assert pick_victim("cpu", {}, {}) is None
