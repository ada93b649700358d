"""Archers once more, slow and obvious: the rules, what a seat sees, rewards, scripted archers and random streams.

Plain Python objects and floats; nothing here is shared with the compiled game except the drawings of the arenas and the
numbers that are settings (reward terms, the table of scripted levels), so that tuning those needs no change here.
Lengths are px on a torus of 800 x 600, y down; speeds px/s; a tick is 1/50 s.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from archers_naive_bots import Mind, Order, think
from archers_naive_world import CELL, DIRECTIONS, HEIGHT, TICK, WIDTH, Arena, Stream, around, cell_of, clamp, shortest

from gymcast.envs.games import archers as settings
from gymcast.envs.games.archers_maps import NAMES

# ------------------------------------------------------------------------------------------------------------ players


@dataclass
class Archer:
    level: int
    x: float = 0.0
    y: float = 0.0
    vx: float = 0.0
    vy: float = 0.0
    aim: tuple[float, float] = (1.0, 0.0)
    move: int = 0
    drawn: bool = False
    charge: int = 0
    jumps: int = 2
    grounded: bool = True
    quiver: int = 4
    respawn: int = 0
    kills: int = 0
    deaths: int = 0
    shots: int = 0
    reward: float = 0.0
    total: float = 0.0
    mind: Mind = field(default_factory=Mind)

    @property
    def alive(self) -> bool:
        return self.respawn == 0


@dataclass
class Arrow:
    """An arrow outside a quiver."""

    x: float
    y: float
    vx: float
    vy: float
    state: str  # "flying", "falling" or "stuck"
    owner: int
    age: int = 0
    near: float = settings.NEAR  # px to the nearest foe so far, NEAR at most


# -------------------------------------------------------------------------------------------------------------- match


@dataclass(frozen=True)
class Options:
    players: int = 2
    learners: int = 1
    map: str = "open"  # or "random"
    opponent: int = 0  # a level, or 5: drawn
    frame_skip: int = 4
    kills_to_win: int = 3
    max_ticks: int = 3000
    reward: str = "shaped"


class Match:
    """One match, begun from a seed and an episode's index."""

    def __init__(self, options: Options, seed: int, episode: int) -> None:
        self.options = options
        self.chance = Stream(seed, episode)
        name = options.map if options.map != "random" else NAMES[self.chance.below(4)]
        self.arena = Arena(name)
        self.ticks = 0
        self.archers: list[Archer] = []
        everyone = [Archer(level=-1, respawn=1) for _ in range(options.players)]
        self.archers = everyone
        for seat, archer in enumerate(everyone):
            self.appear(seat)
            if seat >= options.learners:
                archer.level = options.opponent if options.opponent != 5 else 1 + self.chance.below(4)
        self.arrows: list[Arrow | None] = [None] * (4 * options.players)

    # ------------------------------------------------------------------------------------------------------- moments

    def appear(self, seat: int) -> None:
        """Two places are drawn; the one farther from the nearest living foe is taken, the first when equal."""
        archer = self.archers[seat]

        def room(place: tuple[float, float]) -> float:
            foes = [foe for other, foe in enumerate(self.archers) if other != seat and foe.alive]
            return min((self.square(*place, foe.x, foe.y) for foe in foes), default=1e9)

        places = [self.arena.spawns[self.chance.below(8)] for _ in range(2)]
        archer.x, archer.y = max(places, key=room)
        archer.vx = archer.vy = 0.0
        archer.move, archer.jumps, archer.grounded, archer.respawn = 0, 2, True, 0

    def square(self, x: float, y: float, to_x: float, to_y: float) -> float:
        return shortest(x - to_x, WIDTH) ** 2 + shortest(y - to_y, HEIGHT) ** 2

    def pay(self, seat: int, amount: float, *schemes: str) -> None:
        if self.options.reward in schemes:
            self.archers[seat].reward += amount

    def leave_quiver(self, seat: int, arrow: Arrow) -> None:
        """An arrow gets the first free slot."""
        self.arrows[self.arrows.index(None)] = arrow
        self.archers[seat].quiver -= 1
        self.pay(seat, -settings.SHAPED_ARROW, "shaped")

    def command(self, seat: int, move: int, vertical: int, bow: int, aim: tuple[float, float]) -> None:
        archer = self.archers[seat]
        if not archer.alive:
            return
        archer.move = move
        if vertical == 1 and archer.jumps > 0:
            archer.jumps, archer.grounded, archer.vy = archer.jumps - 1, False, -400.0
        if vertical == 2 and not archer.grounded:
            archer.vy = min(600.0, 400.0 + max(0.0, archer.vy))
        if archer.drawn:
            archer.aim = aim
            if not bow:
                if archer.charge > 0:
                    self.shoot(seat)
                archer.drawn, archer.charge = False, 0
        elif bow and archer.quiver > 0:
            archer.drawn, archer.charge = True, 0

    def shoot(self, seat: int) -> None:
        archer = self.archers[seat]
        speed = 894.0 * math.sqrt(archer.charge / 100)
        vx, vy = (clamp(part * speed, -600.0, 600.0) for part in archer.aim)
        tip = archer.x + 20 * archer.aim[0], archer.y + 20 * archer.aim[1]
        if self.arena.is_solid(*tip):
            arrow = Arrow(archer.x, archer.y, vx, vy, "stuck", seat)
        else:
            arrow = Arrow(around(tip[0], WIDTH), around(tip[1], HEIGHT), vx, vy, "flying", seat)
        self.leave_quiver(seat, arrow)
        archer.shots += 1

    def decide(self, commands: Sequence[tuple[int, int, int, tuple[float, float]]]) -> str:
        """One decision of the learners; "", "terminated" or "truncated"."""
        for archer in self.archers:
            archer.reward = 0.0
        for seat, command in enumerate(commands):
            self.command(seat, *command)
        end = ""
        for _ in range(self.options.frame_skip):
            self.tick()
            if max(archer.kills for archer in self.archers) >= self.options.kills_to_win:
                end = "terminated"
            elif self.ticks >= self.options.max_ticks:
                end = "truncated"
            if end:
                break
        for seat, archer in enumerate(self.archers):
            if end == "terminated":
                self.pay(seat, self.outcome(seat), "sparse")
                self.pay(seat, self.outcome(seat) * settings.SHAPED_MATCH, "shaped")
            archer.total += archer.reward
        return end

    def outcome(self, seat: int) -> int:
        best_other = max(archer.kills for other, archer in enumerate(self.archers) if other != seat)
        mine = self.archers[seat].kills
        return (mine > best_other) - (mine < best_other)

    # ---------------------------------------------------------------------------------------------------------- a tick

    def tick(self) -> None:
        now = self.ticks * 20
        scripted = range(self.options.learners, self.options.players)
        for seat in scripted:
            self.look(seat, now)
        for seat in scripted:
            self.obey(seat, now)
        for archer in self.archers:
            if archer.alive:
                self.walk(archer)
                if archer.drawn:
                    archer.charge = min(100, archer.charge + 1)
        for arrow in [arrow for arrow in self.arrows if arrow is not None and arrow.state in ("flying", "falling")]:
            self.fly(arrow)
            if arrow.state == "flying":
                self.strike(arrow)
        for seat in range(self.options.players):
            self.pick_up(seat)
        self.ticks += 1
        for seat, archer in enumerate(self.archers):
            if not archer.alive:
                archer.respawn -= 1
                if archer.respawn == 0:
                    self.appear(seat)

    def walk(self, archer: Archer) -> None:
        """Run, then fall; a block in the way stops the archer where it touches it."""
        half = 20.0 - 0.01
        archer.vx = 300.0 * archer.move
        x, y = archer.x + archer.vx * TICK, archer.y
        if archer.move:
            column = cell_of(x + half * archer.move)
            rows = range(cell_of(y - half), cell_of(y + half) + 1)
            if any(self.arena.is_block(column, row) for row in rows):
                x = column * CELL - 20.0 if archer.move > 0 else (column + 1) * CELL + 20.0
                archer.vx = 0.0
        archer.vy = min(600.0, archer.vy + 400.0 * TICK)
        y += archer.vy * TICK
        down = archer.vy > 0
        row = cell_of(y + half if down else y - half)
        columns = range(cell_of(x - half), cell_of(x + half) + 1)
        archer.grounded = False
        if any(self.arena.is_block(column, row) for column in columns):
            y = row * CELL - 20.0 if down else (row + 1) * CELL + 20.0
            archer.vy = 0.0
            if down:
                archer.grounded, archer.jumps = True, 2
        archer.x, archer.y = around(x, WIDTH), around(y, HEIGHT)

    def fly(self, arrow: Arrow) -> None:
        arrow.vy = min(600.0, arrow.vy + 400.0 * TICK)
        x, y = around(arrow.x + arrow.vx * TICK, WIDTH), around(arrow.y + arrow.vy * TICK, HEIGHT)
        flying = arrow.state == "flying"
        if self.arena.is_solid(x, y):
            arrow.state = "stuck"  # where it was before the block
        else:
            arrow.x, arrow.y, arrow.age = x, y, arrow.age + 1
            if arrow.age >= 250:
                arrow.state = "falling"
        if flying and arrow.state != "flying" and arrow.near < settings.NEAR:
            self.pay(arrow.owner, settings.SHAPED_NEAR * (1 - arrow.near / settings.NEAR), "shaped")

    def distance(self, arrow: Arrow, archer: Archer) -> float:
        """From an archer's centre to the arrow's 20 px behind its tip; of an arrow beyond NEAR the tip counts."""
        tip_x, tip_y = shortest(archer.x - arrow.x, WIDTH), shortest(archer.y - arrow.y, HEIGHT)
        to_tip = math.hypot(tip_x, tip_y)
        speed = math.hypot(arrow.vx, arrow.vy)
        if to_tip > settings.NEAR or speed == 0.0:
            return to_tip
        back_x, back_y = -arrow.vx / speed, -arrow.vy / speed
        along = clamp(tip_x * back_x + tip_y * back_y, 0.0, 20.0)
        return math.hypot(tip_x - along * back_x, tip_y - along * back_y)

    def strike(self, arrow: Arrow) -> None:
        for seat, archer in enumerate(self.archers):
            if archer.alive and seat != arrow.owner:
                distance = self.distance(arrow, archer)
                arrow.near = min(arrow.near, distance)
                if distance < 20.0:
                    self.kill(seat, arrow.owner)
                    arrow.state, arrow.vx, arrow.vy = "falling", 0.0, 0.0
                    return

    def pick_up(self, seat: int) -> None:
        archer = self.archers[seat]
        for slot, arrow in enumerate(self.arrows):
            if arrow is None or arrow.state == "flying" or not archer.alive or archer.quiver == 4:
                continue
            if math.sqrt(self.square(archer.x, archer.y, arrow.x, arrow.y)) < 30.0:
                self.arrows[slot] = None
                archer.quiver += 1
                self.pay(seat, settings.SHAPED_ARROW, "shaped")

    def kill(self, seat: int, killer: int) -> None:
        victim = self.archers[seat]
        victim.deaths += 1
        self.archers[killer].kills += 1
        victim.respawn, victim.drawn, victim.charge, victim.move = 250, False, 0, 0
        victim.vx = victim.vy = 0.0
        victim.mind.pending = [None] * 4
        if victim.quiver > 0:
            self.leave_quiver(seat, Arrow(victim.x, victim.y, 0.0, 0.0, "falling", seat))
        self.pay(killer, 1.0, "kills", "shaped")
        self.pay(seat, -1.0, "kills")
        self.pay(seat, -settings.SHAPED_DEATH, "shaped")

    # ------------------------------------------------------------------------------------------- what a seat is shown

    def observation(self, seat: int) -> list[float]:
        me = self.archers[seat]
        goal = self.options.kills_to_win
        own = [me.x / 400 - 1, me.y / 300 - 1, me.vx / 600, me.vy / 600, me.jumps - 1, float(me.grounded)]
        own += [1.0 if me.alive else -1.0, me.respawn / 250, me.quiver / 2 - 1, float(me.drawn), me.charge / 100]
        own += [min(1.0, me.kills / goal), me.deaths / (me.deaths + 3), 1 - 2 * self.ticks / self.options.max_ticks]
        seen = own + [float(self.arena.index == index) for index in range(4)]
        seen += [self.arena.free_cells(me.x, me.y, direction) / 10 - 1 for direction in DIRECTIONS]
        for offset in range(1, self.options.players):
            foe = self.archers[(seat + offset) % self.options.players]
            dx, dy = shortest(foe.x - me.x, WIDTH), shortest(foe.y - me.y, HEIGHT)
            visible = foe.alive and me.alive and self.arena.sees(me.x, me.y, dx, dy)
            seen += [1.0 if foe.alive else -1.0, dx / 400, dy / 300, foe.vx / 600, foe.vy / 600, foe.quiver / 2 - 1]
            seen += [foe.charge / 100, foe.respawn / 250, min(1.0, foe.kills / goal), float(foe.grounded)]
            seen.append(float(visible))
        there = [arrow for arrow in self.arrows if arrow is not None]
        there.sort(key=lambda arrow: self.square(arrow.x, arrow.y, me.x, me.y))
        for arrow in there[:8]:
            dx, dy = shortest(arrow.x - me.x, WIDTH), shortest(arrow.y - me.y, HEIGHT)
            vx, vy = (0.0, 0.0) if arrow.state == "stuck" else (arrow.vx, arrow.vy)
            deadly = arrow.state == "flying" and arrow.owner != seat
            seen += [1.0, dx / 400, dy / 300, vx / 600, vy / 600, float(deadly), float(arrow.state != "flying")]
        return seen + [0.0] * (7 * (8 - len(there[:8])))

    def mask(self, seat: int) -> list[bool]:
        me = self.archers[seat]
        moves = [True, me.alive, me.alive]
        verticals = [True, me.alive and me.jumps > 0, me.alive and not me.grounded]
        bows = [True, me.alive and (me.drawn or me.quiver > 0)]
        aims = [True] + [me.alive and me.drawn] * 15
        return moves + verticals + bows + aims

    # ------------------------------------------------------------------------------------------------ scripted archers

    def look(self, seat: int, now: int) -> None:
        archer = self.archers[seat]
        mind, level = archer.mind, archer.level
        if not archer.alive or now < mind.next_look:
            return
        mind.next_look = max(now, mind.next_look + int(settings.DECISION_MS[level]))
        order = Order(due=now + int(settings.REACTION_MS[level]))
        if level == 0:
            order.move, order.vertical = self.chance.below(3) - 1, self.chance.below(3)
            order.bow, order.aim = self.chance.below(2), self.chance.below(16)
        else:
            think(self.observation(seat), self.options.players, level, mind, order, now, self.chance)
        mind.pending[mind.orders % 4] = order
        mind.orders += 1

    def obey(self, seat: int, now: int) -> None:
        pending = self.archers[seat].mind.pending
        for index in range(4):
            order = pending[index]
            if order is not None and order.due <= now:
                pending[index] = None
                self.command(seat, order.move, order.vertical, order.bow, direction_of(order.aim))


def direction_of(aim: int) -> tuple[float, float]:
    """Unit vector of one of 16 aims, clockwise from East (y is down)."""
    angle = 2 * math.pi * aim / 16
    return round(math.cos(angle), 12), round(math.sin(angle), 12)
