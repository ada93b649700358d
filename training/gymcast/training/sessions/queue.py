"""Which waiting session starts, which waits and why, and which running one has to make room. Pure functions.

- Order: priority, plus one point for every minute of waiting; among equals the older one first.
- Best effort: what does not fit is passed by, and smaller ones behind it may start. But after ten minutes its place
  is kept: nothing behind it starts until it does, so nothing waits for ever.
- A session whose own priority, without waiting, is higher by ten or more than that of running ones makes them leave:
  the lowest priority first, the youngest among equals, no more than it takes, and none if all were not enough.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from gymcast.training.limits import ResourceLimits

AGE_SECONDS: Final = 60.0
RESERVE_SECONDS: Final = 600.0
PREEMPT_GAP: Final = 10


@dataclass(frozen=True)
class Waiting:
    """A session that waits. ``waited`` is seconds since it was queued, ``delay`` seconds until it may start at all."""

    session_id: str
    priority: int
    lanes: int
    waited: float = 0.0
    delay: float = 0.0
    held: str | None = None
    """Why it is not to be started, whatever is free."""

    @property
    def rank(self) -> int:
        """Priority with age."""
        return self.priority + int(self.waited // AGE_SECONDS)


@dataclass(frozen=True)
class Running:
    """A session that has a worker. ``leaving`` when its place is about to become free; ``fixed`` when it stays."""

    session_id: str
    priority: int
    lanes: int
    ran: float = 0.0
    leaving: bool = False
    fixed: bool = False


@dataclass
class Plan:
    """What to do now: sessions to start, sessions to preempt (victim: for whom), and why the others wait."""

    start: list[str] = field(default_factory=list)
    preempt: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass
class _Free:
    """Places and lanes that nobody has."""

    limits: ResourceLimits
    places: int
    lanes: int

    def fits(self, lanes: int) -> bool:
        return self.places >= 1 and self.lanes >= lanes

    def take(self, lanes: int) -> None:
        self.places -= 1
        self.lanes -= lanes

    def lack(self, lanes: int) -> str:
        """Which limit a session of ``lanes`` does not fit under."""
        limits = self.limits
        if self.places < 1:
            most = limits.max_concurrent_sessions
            return f"max_concurrent_sessions: {most} of {most} taken"
        return (
            f"max_total_parallel_episodes: {lanes} wanted, {max(0, self.lanes)} of"
            f" {limits.max_total_parallel_episodes} free"
        )


def in_order(waiting: Iterable[Waiting]) -> list[Waiting]:
    """The queue, whoever is next first."""
    return sorted(waiting, key=lambda one: (-one.rank, -one.waited, one.session_id))


def plan(
    waiting: Iterable[Waiting], running: Sequence[Running], limits: ResourceLimits, pressure: str | None = None
) -> Plan:
    """What to do. ``pressure`` says which measured resource is too scarce to start anything more."""
    made = Plan()
    free = _Free(
        limits,
        limits.max_concurrent_sessions - len(running),
        limits.max_total_parallel_episodes - sum(one.lanes for one in running),
    )
    kept_for: str | None = None
    for one in in_order(waiting):
        if one.held is not None:
            made.reasons[one.session_id] = one.held
        elif one.delay > 0:
            made.reasons[one.session_id] = "retry: waits before the next attempt"
        elif kept_for is not None:
            made.reasons[one.session_id] = f"the next place is kept for {kept_for}, which has waited long"
        elif pressure is not None:
            made.reasons[one.session_id] = pressure
        elif free.fits(one.lanes):
            free.take(one.lanes)
            made.start.append(one.session_id)
        else:
            made.reasons[one.session_id] = free.lack(one.lanes)
            if (leaving := _room_by_preemption(one, free, running, made.preempt)) is not None:
                made.preempt |= leaving
                free.take(one.lanes)
                made.reasons[one.session_id] = "waits for a session of lower priority to save its checkpoint"
            elif one.waited >= RESERVE_SECONDS:
                kept_for = one.session_id
    return made


def _room_by_preemption(
    one: Waiting, free: _Free, running: Sequence[Running], chosen: Mapping[str, str]
) -> dict[str, str] | None:
    """Who has to leave so that ``one`` fits (nobody, when enough leave anyway); ``None`` when that will not do."""
    places, lanes = free.places, free.lanes
    for other in running:
        if other.leaving or other.session_id in chosen:
            places, lanes = places + 1, lanes + other.lanes
    victims: list[Running] = []
    candidates = [
        other
        for other in running
        if not (other.leaving or other.fixed or other.session_id in chosen)
        and one.priority - other.priority >= PREEMPT_GAP
    ]
    lower = any(one.priority - other.priority >= PREEMPT_GAP for other in running if other.leaving)
    for other in sorted(candidates, key=lambda other: (other.priority, other.ran)):
        if places >= 1 and lanes >= one.lanes:
            break
        places, lanes = places + 1, lanes + other.lanes
        victims.append(other)
    if places < 1 or lanes < one.lanes or not (victims or lower):
        return None
    for other in tuple(victims):  # a larger one that came later may make an earlier one unnecessary
        if places >= 2 and lanes - other.lanes >= one.lanes:
            places, lanes = places - 1, lanes - other.lanes
            victims.remove(other)
    return {other.session_id: one.session_id for other in victims}
