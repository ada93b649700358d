"""The scripted archers once more, slow and obvious: from the observation of a seat to a decision.

A decision is made from what the seat sees (32-bit floats, as a learner gets them), its own memory and chance.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from gymcast.envs.games import archers as settings

CLOSE_IN = 2
LOOK_EVERY = 0.04  # s between looked-at moments of a predicted flight


class Chance(Protocol):
    def unit(self) -> float: ...

    def below(self, n: int) -> int: ...


@dataclass
class Order:
    """A decision on its way from a scripted archer's head to its hands."""

    due: int  # ms
    move: int = 0
    vertical: int = 0
    bow: int = 0
    aim: int = 0


@dataclass
class Mind:
    """A scripted archer's memory, times in ms."""

    next_look: int = 0
    intent_until: int = 0
    intent: int = 0
    orders: int = 0  # how many there have been
    pending: list[Order | None] = field(default_factory=lambda: [None] * 4)


@dataclass
class Thing:
    """A foe or an arrow as seen: where it is from here (px) and how it moves (px/s)."""

    dx: float
    dy: float
    vx: float
    vy: float
    deadly: bool = False
    free: bool = False  # an arrow that can be picked up
    grounded: bool = False
    visible: bool = False


class View:
    """An observation read back into px, px/s and counts."""

    def __init__(self, observation: Sequence[float], players: int) -> None:
        numbers = [float(np.float32(value)) for value in observation]
        self.vx, self.vy = numbers[2] * 600, numbers[3] * 600
        self.rising = not numbers[3] > -0.1
        self.can_jump = numbers[4] > -0.5
        self.grounded = numbers[5] > 0.5
        self.quiver = round((numbers[8] + 1) * 2)
        self.drawn = numbers[9] > 0.5
        self.charge = numbers[10]
        rays = numbers[18:26]
        self.wall_east, self.wall_west = rays[0] < -0.85, rays[4] < -0.85
        self.foe: Thing | None = None
        nearest = 1e9
        for k in range(players - 1):
            row = numbers[26 + 11 * k : 37 + 11 * k]
            foe = Thing(row[1] * 400, row[2] * 300, row[3] * 600, row[4] * 600)
            foe.grounded, foe.visible = row[9] > 0.5, row[10] >= 0.5
            if row[0] > 0 and foe.dx**2 + foe.dy**2 < nearest:
                nearest, self.foe = foe.dx**2 + foe.dy**2, foe
        self.arrows: list[Thing] = []
        for start in range(26 + 11 * (players - 1), len(numbers), 7):
            row = numbers[start : start + 7]
            if row[0] > 0.5:
                arrow = Thing(row[1] * 400, row[2] * 300, row[3] * 600, row[4] * 600)
                arrow.deadly, arrow.free = row[5] > 0.5, row[6] > 0.5
                self.arrows.append(arrow)


def think(
    observation: Sequence[float], players: int, level: int, mind: Mind, order: Order, now: int, chance: Chance
) -> None:
    """Fill in an order: where to go, whether to dodge, whether to draw or shoot."""
    view = View(observation, players)
    delay = float(settings.REACTION_MS[level]) / 1000
    horizon = float(settings.LOOK_AHEAD[level])
    if now >= mind.intent_until:
        mind.intent_until = now + 400 + chance.below(600)
        eager = chance.unit() < settings.AGGRESSION[level]
        mind.intent = CLOSE_IN if eager else chance.below(3) - 1
    order.move, order.vertical = walk(view, mind.intent, chance)
    threat = soonest_threat(view, 0.4 * horizon, delay)
    if threat is not None:
        order.move, order.vertical = dodge(view, threat, order.move)
    order.aim = chance.below(16)
    if view.quiver > 0 and view.foe is not None:
        order.bow, order.aim = draw_or_shoot(view, view.foe, level, delay, horizon, order.aim, chance)
    else:
        order.bow = int(view.drawn)


def walk(view: View, intent: int, chance: Chance) -> tuple[int, int]:
    """Towards an arrow when short of them, towards the foe (away when near or unarmed), or about."""
    goal: tuple[float, float] | None = None
    free = [arrow for arrow in view.arrows if arrow.free]
    if free and (view.quiver < 2 or (view.quiver < 4 and view.foe is None)):
        goal = free[0].dx, free[0].dy
    elif view.foe is not None and (intent == CLOSE_IN or view.quiver == 0):
        goal = view.foe.dx, view.foe.dy
        if view.quiver == 0 or abs(goal[0]) + abs(goal[1]) < 140:
            goal = -goal[0], -40.0
    move = 0
    if goal is not None:
        move = (goal[0] > 12) - (goal[0] < -12)
    elif intent != CLOSE_IN:
        move = intent
    blocked = (move > 0 and view.wall_east) or (move < 0 and view.wall_west)
    if blocked or (goal is not None and goal[1] < -50):
        return move, int(view.can_jump and not view.rising)
    if chance.unit() < 0.05 and view.can_jump:
        return move, 1
    if goal is not None and goal[1] > 120 and not view.grounded and chance.unit() < 0.3:
        return move, 2
    return move, 0


def moments(start: float, end: float) -> Iterator[float]:
    while start < end:
        yield start
        start += LOOK_EVERY


def soonest_threat(view: View, horizon: float, delay: float) -> Thing | None:
    """The deadly arrow that comes within 32 px first, if everything goes on as it does."""
    gravity = 400.0 if view.grounded else 0.0
    soonest, found = horizon, None
    for arrow in view.arrows:
        if not arrow.deadly:
            continue
        for t in moments(delay, soonest):
            x = arrow.dx + (arrow.vx - view.vx) * t
            y = arrow.dy + (arrow.vy - view.vy) * t + gravity * t * t / 2
            if x * x + y * y < 32**2:
                soonest, found = t, arrow
                break
    return found


def dodge(view: View, threat: Thing, move: int) -> tuple[int, int]:
    """Across the flight: over or under a flat one, aside of a steep one."""
    if abs(threat.vx) <= abs(threat.vy):
        return (-1 if threat.dx > 0 else 1), 0
    from_above = threat.dy / 300 < -0.04
    if (from_above and not view.grounded) or not view.can_jump:
        return move, 2
    return move, 1


def draw_or_shoot(
    view: View, foe: Thing, level: int, delay: float, horizon: float, aim: int, chance: Chance
) -> tuple[int, int]:
    """Draw; when drawn, hold until an arrow would pass within 16 px of the foe, then let go (with a slip at times)."""
    if not view.drawn:
        return 1, aim
    charge = min(view.charge + delay / 2, 1.0)
    if charge < 0.08 or not foe.visible:
        return 1, aim
    dx, dy = foe.dx + (foe.vx - view.vx) * delay, foe.dy + (foe.vy - view.vy) * delay
    gravity = 400.0 if foe.grounded else 0.0
    aim, miss = best_aim(dx, dy, foe.vx, foe.vy, gravity, charge, min(horizon, 1.0))
    if miss > 16:
        return 1, aim
    if chance.unit() > settings.ACCURACY[level]:
        aim = (aim + (1 if chance.unit() < 0.5 else -1)) % 16
    return 0, aim


def unit_vector(aim: int) -> tuple[float, float]:
    angle = 2 * math.pi * aim / 16
    return round(math.cos(angle), 12), round(math.sin(angle), 12)


def best_aim(
    dx: float, dy: float, vx: float, vy: float, gravity: float, charge: float, horizon: float
) -> tuple[int, float]:
    """The direction towards where the foe will be and its two neighbours: the one that passes nearest, and how near."""
    speed = 894.0 * math.sqrt(charge)
    to_x, to_y = dx, dy
    for _ in range(2):
        t = min(math.hypot(to_x, to_y) / speed, horizon)
        to_x, to_y = dx + vx * t, dy + vy * t - gravity * t * t / 2
    towards = max(range(16), key=lambda aim: unit_vector(aim)[0] * to_x + unit_vector(aim)[1] * to_y)
    around = [(towards - 1) % 16, towards, (towards + 1) % 16]
    misses = [passing(dx, dy, vx, vy, gravity, aim, speed, horizon) for aim in around]
    best = misses.index(min(misses))
    return around[best], misses[best]


def passing(
    dx: float, dy: float, vx: float, vy: float, gravity: float, aim: int, speed: float, horizon: float
) -> float:
    """How near (px) an arrow shot now comes to a foe that goes on as it does."""
    ux, uy = unit_vector(aim)
    arrow_vx, arrow_vy = (max(-600.0, min(600.0, part * speed)) for part in (ux, uy))
    best = math.inf
    for t in moments(0.0, horizon):
        x = 20 * ux - dx + (arrow_vx - vx) * t
        y = 20 * uy - dy + (arrow_vy - vy) * t + gravity * t * t / 2
        square = x * x + y * y
        if square > best + 120**2:  # it only flies on from here
            break
        best = min(best, square)
    return math.sqrt(best)
