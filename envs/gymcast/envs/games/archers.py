"""Archers: a platform duel for 2 to 4 archers, as compiled kernels over a batch of games.

The batch is an array of records (`STATE`), one a game; one kernel steps any range of games by one decision and
writes rewards, ends, observations and masks into arrays the caller owns. A tick is 1/50 s of game time, always; a
decision is held for `frame_skip` ticks. Scripted archers act inside the kernel, from the observation of their own seat
and nothing else, with the delay and the rate of decisions of their level.

Lengths are px (20 px = 1 m) on a torus of 800 x 600 px, x to the right and y down; speeds are px/s.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import config
from numpy.typing import NDArray

from gymcast.envs.games.archers_maps import PAD, RAYS, SPAWNS
from gymcast.envs.rng import kernel, next_below, next_unit, seed_episode

VERSION = 0
TICK_RATE = 50  # ticks per second of game time
TICK_MS = 20
DT = 1.0 / TICK_RATE
WIDTH, HEIGHT = 800.0, 600.0
# NumPy scalars: float32 observations times these are float64 in NumPy as they are in compiled code.
HALF_WIDTH, HALF_HEIGHT = np.float64(400.0), np.float64(300.0)
BLOCKS_PER_PX = 0.05
MARGIN = PAD * 20.0

GRAVITY = 400.0  # 20 m/s^2
MAX_SPEED = np.float64(600.0)  # 30 m/s, per axis
RUN_SPEED = 300.0  # 15 m/s
IMPULSE = 400.0  # 20 m/s, of a jump and of a dive
JUMPS = 2
RADIUS = 20.0  # of an archer: a disc for arrows, a square of this half-width for blocks
SKIN = 0.01  # the square is this much smaller, so that touching is not overlapping
QUIVER = 4  # arrows at the start, and at most
ARROW_LENGTH = 20.0
STUCK_RADIUS = 10.0
REACH = RADIUS + STUCK_RADIUS  # centre to tip, below which an arrow is picked up
LAUNCH_SPEED = 894.0  # 44.7 m/s at full charge, before the cap per axis
FULL_CHARGE = 2 * TICK_RATE  # ticks
ARROW_LIFE = 5 * TICK_RATE  # ticks in flight after which an arrow is spent: it falls and no longer kills
RESPAWN = 5 * TICK_RATE  # ticks

ABSENT, FLYING, FALLING, STUCK = 0, 1, 2, 3

TO_WIDTH, TO_HEIGHT, TO_SPEED = 1.0 / HALF_WIDTH, 1.0 / HALF_HEIGHT, 1.0 / MAX_SPEED  # into [-1, 1]
TO_RESPAWN, TO_CHARGE = 1.0 / RESPAWN, 1.0 / FULL_CHARGE

AIMS = 16
_ANGLES = np.arange(AIMS) * (2 * np.pi / AIMS)
AIM_X: NDArray[np.float64] = np.round(np.cos(_ANGLES), 12)
AIM_Y: NDArray[np.float64] = np.round(np.sin(_ANGLES), 12)
ACTION_NVEC = (3, 3, 2, AIMS)  # move, vertical, bow, aim; the names of their values: gymcast.envs.registry
MASK_SIZE = sum(ACTION_NVEC)

SPARSE, KILLS, SHAPED = 0, 1, 2
REWARDS = ("sparse", "kills", "shaped")
# The shaped scheme: +1 per kill as in KILLS, and
SHAPED_DEATH = 0.5  # lost per death: less than a kill brings, or archers learn to hide and time runs out
SHAPED_MATCH = 1.0  # won (+) or lost (-)
SHAPED_ARROW = 0.02  # per arrow that comes into (+) or leaves (-) the quiver: sums to zero over a round trip
SHAPED_NEAR = 0.4  # at most, for an arrow that came close to a foe: falls linearly to 0 at NEAR px
NEAR = 100.0

# Scripted archers. Level -1 is a learner, 0 plays random legal actions, 1 .. 4 are the rows of the table in the docs.
LEVELS = ("random", "beginner", "intermediate", "advanced", "expert")
LEARNER, RANDOM, MIXED = -1, 0, 5
REACTION_MS = np.array([0, 300, 150, 80, 30], np.int64)
DECISION_MS = np.array([80, 200, 100, 50, 20], np.int64)
ACCURACY = np.array([0.0, 0.60, 0.75, 0.85, 0.95])
AGGRESSION = np.array([0.5, 0.3, 0.5, 0.7, 0.8])
LOOK_AHEAD = np.array([0.0, 0.5, 1.0, 1.5, 2.0])  # seconds

# Layout of the vector observation (float32, every entry in [-1, 1]).
SELF_SIZE = 14
MAP_AT = SELF_SIZE
RAYS_AT = MAP_AT + 4
FOES_AT = RAYS_AT + RAYS
FOE_SIZE = 11
ARROW_SIZE = 7
ARROWS_SEEN = 8
FARTHEST = np.float64(1e12)  # squared distance (px^2) beyond any on the torus

# Image observations, uint8, the own archer in the middle.
GRID, PIXELS = 1, 2
GRID_PLANES = ("blocks", "self", "foes", "deadly arrows", "own arrows in flight", "arrows to pick up", "gauges")
IMAGE_SHAPES = {GRID: (len(GRID_PLANES), 60, 80), PIXELS: (120, 160, 3)}
GAUGES = 5  # bars of the grid's last plane and of the pixels' lowest rows: quiver, charge, jumps, kills, time left
COLOURS = np.array(
    [[92, 98, 116], [86, 180, 233], [230, 97, 70], [255, 220, 90], [150, 220, 255], [180, 150, 90], [240, 240, 240]],
    np.uint8,
)
SKY = np.array([24, 26, 38], np.uint8)

# A scripted archer's memory (see `bot` in STATE).
BOT_NEXT, BOT_INTENT_UNTIL, BOT_INTENT, BOT_SLOT, BOT_QUEUE = 0, 1, 2, 3, 4
QUEUE_SLOTS, SLOT_SIZE = 4, 5  # due time in ms (-1: empty), move, vertical, bow, aim
BOT_SIZE = BOT_QUEUE + QUEUE_SLOTS * SLOT_SIZE


# Rows of a kernel's scratch space, float64 (SCRATCH_ROWS, MAX_ARROWS): of each arrow the way to it, its squared length
# and how many arrows are nearer; and the slots of those in the air.
DX, DY, SQUARE, BEFORE, IN_AIR, SCRATCH_ROWS = 0, 1, 2, 3, 4, 5


class Rules(NamedTuple):
    """Options of a batch, the same for every game in it."""

    frame_skip: int  # ticks a decision is held
    kills_to_win: int
    max_ticks: int  # of a match; then it is truncated
    reward: int  # SPARSE, KILLS or SHAPED
    arena: int  # index in archers_maps.NAMES, or -1: drawn for each match
    learners: int  # seats 0 .. learners - 1 are played by the caller
    opponent: int  # level of the other seats, or MIXED: drawn for each match and seat
    image: int  # 0: vector observation; GRID or PIXELS: images are painted too
    autoreset: int  # 1: a game that ended begins its next match in the same step


MAX_PLAYERS, MAX_ARROWS = 4, 16

# One game as one record: a batch is an array of these. A kernel gets a pointer to one game, so that a call costs
# nothing, and all of a game lies together in memory. What lies beyond the game's `players` and `arrows` stays zero.
_SEAT, _ARROW = (MAX_PLAYERS,), (MAX_ARROWS,)
STATE = np.dtype(
    [
        ("streams", np.uint32, (4,)),  # random stream of the match, see gymcast.envs.rng
        ("seed", np.int64),  # the lane's seed
        ("episode", np.int64),  # index of the match on its lane; with the seed it determines the match
        ("players", np.int32),
        ("arrows", np.int32),  # 4 per player
        ("arena", np.int32),  # index in archers_maps.NAMES
        ("tick", np.int32),  # ticks since the match began
        ("length", np.int32),  # decisions since the match began
        ("level", np.int32, _SEAT),  # LEARNER, or the level of a scripted archer
        ("x", np.float64, _SEAT),  # centre, px, [0, 800)
        ("y", np.float64, _SEAT),  # centre, px, [0, 600)
        ("vx", np.float64, _SEAT),  # px/s
        ("vy", np.float64, _SEAT),  # px/s
        ("aim_x", np.float64, _SEAT),  # unit direction of the last decision with the bow drawn
        ("aim_y", np.float64, _SEAT),
        ("move", np.int32, _SEAT),  # -1 left, 0, +1 right: held since the last decision
        ("bow", np.int32, _SEAT),  # 1 while the bow is drawn
        ("charge", np.int32, _SEAT),  # ticks the bow has been drawn, at most FULL_CHARGE
        ("jumps", np.int32, _SEAT),  # jumps left
        ("grounded", np.int32, _SEAT),  # 1 when standing on a block
        ("quiver", np.int32, _SEAT),  # arrows carried
        ("respawn", np.int32, _SEAT),  # ticks until the archer is back; 0 when alive
        ("kills", np.int32, _SEAT),
        ("deaths", np.int32, _SEAT),
        ("shots", np.int32, _SEAT),
        ("reward", np.float64, _SEAT),  # of the last decision
        ("episode_return", np.float64, _SEAT),  # sum of rewards of the match so far
        ("arrow_x", np.float64, _ARROW),  # tip, px
        ("arrow_y", np.float64, _ARROW),
        ("arrow_vx", np.float64, _ARROW),  # px/s; of a stuck arrow the velocity it had
        ("arrow_vy", np.float64, _ARROW),
        ("arrow_state", np.int32, _ARROW),  # ABSENT, FLYING, FALLING (harmless) or STUCK
        ("arrow_owner", np.int32, _ARROW),  # seat that shot it
        ("arrow_age", np.int32, _ARROW),  # ticks in the air
        ("arrow_near", np.float64, _ARROW),  # squared distance (px^2) of its line to the nearest foe so far
        ("bot", np.int32, (MAX_PLAYERS, BOT_SIZE)),  # memory of scripted archers: times in ms, pending commands
    ],
    align=True,
)


class Outputs(NamedTuple):
    """What a step writes, one row per lane; lane = game * learners + seat."""

    observation: NDArray[np.float32]  # (N, D)
    mask: NDArray[np.bool_]  # (N, MASK_SIZE) legal entries of each action group
    reward: NDArray[np.float64]  # (N,)
    terminated: NDArray[np.bool_]  # (N,)
    truncated: NDArray[np.bool_]  # (N,)
    # Of matches that ended in this step; rows of other lanes keep what they had.
    final_observation: NDArray[np.float32]  # (N, D)
    image: NDArray[np.uint8]  # (N, 7, 60, 80), (N, 120, 160, 3) or, with a vector observation, (0, 0, 0, 0)
    final_image: NDArray[np.uint8]
    final_return: NDArray[np.float64]  # (N,)
    final_length: NDArray[np.int32]  # (N,) decisions
    final_outcome: NDArray[np.int8]  # (N,) +1 won, 0 drawn, -1 lost
    final_kills: NDArray[np.int32]  # (N,)
    final_deaths: NDArray[np.int32]  # (N,)


def observation_size(players: int) -> int:
    """Length of the vector observation for a number of players: 93 for two, 104 for three, 115 for four."""
    return FOES_AT + FOE_SIZE * (players - 1) + ARROW_SIZE * ARROWS_SEEN


def new_state(games: int, players: int) -> NDArray[np.void]:
    """A batch of `games` >= 1 games for `players` 2 .. 4, STATE (games,), all zero; `reset` makes matches of it."""
    state = np.zeros(games, STATE)
    state["players"] = players
    state["arrows"] = QUIVER * players
    return state.view(np.recarray) if config.DISABLE_JIT else state  # type: ignore[attr-defined]


def new_outputs(lanes: int, players: int, image: int = 0) -> Outputs:
    """Zeroed output arrays for a number of lanes."""
    size = observation_size(players)
    image_shape = (lanes, *IMAGE_SHAPES[image]) if image else (0, 0, 0, 0)
    return Outputs(
        observation=np.zeros((lanes, size), np.float32),
        mask=np.zeros((lanes, MASK_SIZE), np.bool_),
        reward=np.zeros(lanes),
        terminated=np.zeros(lanes, np.bool_),
        truncated=np.zeros(lanes, np.bool_),
        final_observation=np.zeros((lanes, size), np.float32),
        image=np.zeros(image_shape, np.uint8),
        final_image=np.zeros(image_shape, np.uint8),
        final_return=np.zeros(lanes),
        final_length=np.zeros(lanes, np.int32),
        final_outcome=np.zeros(lanes, np.int8),
        final_kills=np.zeros(lanes, np.int32),
        final_deaths=np.zeros(lanes, np.int32),
    )


# --------------------------------------------------------------------------------------------------------- geometry


@kernel
def _wrap_x(x: float) -> float:
    if x < 0.0:
        x += WIDTH  # of a tiny negative x this is WIDTH itself
    if x >= WIDTH:
        x -= WIDTH
    return x


@kernel
def _wrap_y(y: float) -> float:
    if y < 0.0:
        y += HEIGHT  # of a tiny negative y this is HEIGHT itself
    if y >= HEIGHT:
        y -= HEIGHT
    return y


@kernel
def _delta_x(d: float) -> float:
    """Shortest horizontal difference on the torus, [-400, 400]."""
    if d > HALF_WIDTH:
        return d - WIDTH
    if d < -HALF_WIDTH:
        return d + WIDTH
    return d


@kernel
def _delta_y(d: float) -> float:
    """Shortest vertical difference on the torus, [-300, 300]."""
    if d > HALF_HEIGHT:
        return d - HEIGHT
    if d < -HALF_HEIGHT:
        return d + HEIGHT
    return d


@kernel
def _clip(value: float, limit: float) -> float:
    if value > limit:
        return limit
    if value < -limit:
        return -limit
    return value


@kernel
def _solid_at(solid: NDArray[np.uint8], arena: int, x: float, y: float) -> bool:
    """Whether a point is in a block; up to one margin outside the arena on any side."""
    return solid[arena, int((y + MARGIN) * BLOCKS_PER_PX), int((x + MARGIN) * BLOCKS_PER_PX)] != 0


@kernel
def _clear_line(solid: NDArray[np.uint8], arena: int, x: float, y: float, dx: float, dy: float) -> bool:
    """Whether no block lies on the way from (x, y) to (x + dx, y + dy), looked at every 20 px or less."""
    steps = int(max(abs(dx), abs(dy)) * BLOCKS_PER_PX) + 1
    step_x, step_y = dx * BLOCKS_PER_PX / steps, dy * BLOCKS_PER_PX / steps
    column, row = (x + MARGIN) * BLOCKS_PER_PX, (y + MARGIN) * BLOCKS_PER_PX
    for _ in range(steps - 1):
        column += step_x
        row += step_y
        if solid[arena, int(row), int(column)] != 0:
            return False
    return True


# ------------------------------------------------------------------------------------------------------------ rules


@kernel
def _place(r: Any, arenas: Any, p: int) -> None:
    """Put an archer on a place to appear: of two drawn at random the one farther from the nearest living foe."""
    best, best_distance = 0, -1.0
    for _ in range(2):
        spawn = next_below(r.streams, SPAWNS)
        nearest = 1e9
        for q in range(r.players):
            if q != p and r.respawn[q] == 0:
                dx = _delta_x(arenas.spawns[r.arena, spawn, 0] - r.x[q])
                dy = _delta_y(arenas.spawns[r.arena, spawn, 1] - r.y[q])
                nearest = min(nearest, dx * dx + dy * dy)
        if nearest > best_distance:
            best, best_distance = spawn, nearest
    r.x[p] = arenas.spawns[r.arena, best, 0]
    r.y[p] = arenas.spawns[r.arena, best, 1]
    r.vx[p] = 0.0
    r.vy[p] = 0.0
    r.move[p] = 0
    r.jumps[p] = JUMPS
    r.grounded[p] = 1
    r.respawn[p] = 0


@kernel
def reset_lane(r: Any, rules: Rules, arenas: Any) -> None:
    """Begin the match that (seed, episode) of game `g` determine."""
    seed_episode(r.streams, r.seed, r.episode)
    r.arena = rules.arena if rules.arena >= 0 else next_below(r.streams, arenas.solid.shape[0])
    r.tick = 0
    r.length = 0
    players = r.players
    for p in range(players):
        r.respawn[p] = 1  # nobody is there yet
    for p in range(players):
        _place(r, arenas, p)
        r.level[p] = LEARNER
        if p >= rules.learners:
            r.level[p] = rules.opponent if rules.opponent != MIXED else 1 + next_below(r.streams, 4)
        r.aim_x[p] = 1.0
        r.aim_y[p] = 0.0
        r.bow[p] = 0
        r.charge[p] = 0
        r.quiver[p] = QUIVER
        r.kills[p] = 0
        r.deaths[p] = 0
        r.shots[p] = 0
        r.reward[p] = 0.0
        r.episode_return[p] = 0.0
        r.bot[p, :] = 0
        for slot in range(QUEUE_SLOTS):
            r.bot[p, BOT_QUEUE + slot * SLOT_SIZE] = -1
    for a in range(r.arrows):  # wholly: a match's state depends on nothing that was before it
        r.arrow_x[a] = 0.0
        r.arrow_y[a] = 0.0
        r.arrow_vx[a] = 0.0
        r.arrow_vy[a] = 0.0
        r.arrow_state[a] = ABSENT
        r.arrow_owner[a] = 0
        r.arrow_age[a] = 0
        r.arrow_near[a] = 0.0


@kernel
def _free_arrow(r: Any) -> int:
    """A slot for an arrow that leaves a quiver. There is always one: slots and arrows are equal in number."""
    for a in range(r.arrows):
        if r.arrow_state[a] == ABSENT:
            return a
    return 0


@kernel
def _shoot(r: Any, rules: Rules, arenas: Any, p: int) -> None:
    """Release the bow. Launch speed 44.7 m/s x sqrt(charge / 2 s), then capped per axis."""
    speed = LAUNCH_SPEED * np.sqrt(r.charge[p] / FULL_CHARGE)
    a = _free_arrow(r)
    x = r.x[p] + r.aim_x[p] * ARROW_LENGTH
    y = r.y[p] + r.aim_y[p] * ARROW_LENGTH
    r.arrow_state[a] = FLYING
    if _solid_at(arenas.solid, r.arena, x, y):  # muzzle against a block: it sticks where the archer stands
        x, y = r.x[p], r.y[p]
        r.arrow_state[a] = STUCK
    r.arrow_x[a] = _wrap_x(x)
    r.arrow_y[a] = _wrap_y(y)
    r.arrow_vx[a] = _clip(r.aim_x[p] * speed, MAX_SPEED)
    r.arrow_vy[a] = _clip(r.aim_y[p] * speed, MAX_SPEED)
    r.arrow_owner[a] = p
    r.arrow_age[a] = 0
    r.arrow_near[a] = NEAR * NEAR
    r.quiver[p] -= 1
    r.shots[p] += 1
    if rules.reward == SHAPED:
        r.reward[p] -= SHAPED_ARROW


@kernel
def _command(
    r: Any, rules: Rules, arenas: Any, p: int, move: int, vertical: int, bow: int, aim_x: float, aim_y: float
) -> None:
    """A decision takes effect. What is illegal (see `legal_lane`) is ignored, entry by entry."""
    if r.respawn[p] > 0:
        return
    r.move[p] = move
    if r.bow[p] == 1:
        r.aim_x[p] = aim_x
        r.aim_y[p] = aim_y
    if vertical == 1 and r.jumps[p] > 0:
        r.jumps[p] -= 1
        r.grounded[p] = 0
        r.vy[p] = -IMPULSE
    elif vertical == 2 and r.grounded[p] == 0:
        r.vy[p] = min(max(r.vy[p], 0.0) + IMPULSE, MAX_SPEED)
    if bow == 1:
        if r.bow[p] == 0 and r.quiver[p] > 0:
            r.bow[p] = 1
            r.charge[p] = 0
    elif r.bow[p] == 1:
        r.bow[p] = 0
        if r.charge[p] > 0:
            _shoot(r, rules, arenas, p)
        r.charge[p] = 0


@kernel
def _move_archer(r: Any, solid: NDArray[np.uint8], p: int) -> None:
    """One tick of an archer: run, fall, stop at blocks (x first, then y), wrap around."""
    arena = r.arena
    half = RADIUS - SKIN
    vx = r.move[p] * RUN_SPEED
    x = r.x[p] + vx * DT
    y = r.y[p]
    if vx != 0.0:
        edge = x + half if vx > 0.0 else x - half
        column = int((edge + MARGIN) * BLOCKS_PER_PX)
        top = int((y - half + MARGIN) * BLOCKS_PER_PX)
        bottom = int((y + half + MARGIN) * BLOCKS_PER_PX)
        # An archer covers two or three rows and columns: three looks, one branch.
        if solid[arena, top, column] | solid[arena, top + 1, column] | solid[arena, bottom, column] != 0:
            x = (column - PAD) * 20.0 - RADIUS if vx > 0.0 else (column - PAD + 1) * 20.0 + RADIUS
            vx = 0.0
    vy = min(r.vy[p] + GRAVITY * DT, MAX_SPEED)
    y += vy * DT
    edge = y + half if vy > 0.0 else y - half
    row = int((edge + MARGIN) * BLOCKS_PER_PX)
    left = int((x - half + MARGIN) * BLOCKS_PER_PX)
    right = int((x + half + MARGIN) * BLOCKS_PER_PX)
    grounded = 0
    if solid[arena, row, left] | solid[arena, row, left + 1] | solid[arena, row, right] != 0:
        if vy > 0.0:
            y = (row - PAD) * 20.0 - RADIUS
            grounded = 1
            r.jumps[p] = JUMPS
        else:
            y = (row - PAD + 1) * 20.0 + RADIUS
        vy = 0.0
    r.grounded[p] = grounded
    r.x[p] = _wrap_x(x)
    r.y[p] = _wrap_y(y)
    r.vx[p] = vx
    r.vy[p] = vy


@kernel
def _end_flight(r: Any, rules: Rules, a: int) -> None:
    """An arrow missed: in the shaped scheme its archer is rewarded for how near it came."""
    if rules.reward == SHAPED and r.arrow_near[a] < NEAR * NEAR:
        r.reward[r.arrow_owner[a]] += SHAPED_NEAR * (1.0 - np.sqrt(r.arrow_near[a]) / NEAR)


@kernel
def _move_arrow(r: Any, rules: Rules, solid: NDArray[np.uint8], a: int) -> None:
    """One tick of an arrow in the air: fall, stick in a block where it was before it, wrap around."""
    vy = min(r.arrow_vy[a] + GRAVITY * DT, MAX_SPEED)
    r.arrow_vy[a] = vy
    x = _wrap_x(r.arrow_x[a] + r.arrow_vx[a] * DT)
    y = _wrap_y(r.arrow_y[a] + vy * DT)
    if _solid_at(solid, r.arena, x, y):
        if r.arrow_state[a] == FLYING:
            _end_flight(r, rules, a)
        r.arrow_state[a] = STUCK
        return
    r.arrow_x[a] = x
    r.arrow_y[a] = y
    r.arrow_age[a] += 1
    if r.arrow_state[a] == FLYING and r.arrow_age[a] >= ARROW_LIFE:
        _end_flight(r, rules, a)
        r.arrow_state[a] = FALLING


@kernel
def _arrow_distance(r: Any, a: int, p: int) -> float:
    """Squared distance (px^2) from an archer's centre to the line of a flying arrow, 20 px back from its tip."""
    dx = _delta_x(r.x[p] - r.arrow_x[a])
    dy = _delta_y(r.y[p] - r.arrow_y[a])
    square = dx * dx + dy * dy
    if square > NEAR * NEAR:
        return square  # farther than anyone asks
    vx, vy = r.arrow_vx[a], r.arrow_vy[a]
    speed = np.sqrt(vx * vx + vy * vy)
    along = (dx * vx + dy * vy) / speed if speed > 0.0 else 0.0
    back = min(max(-along, 0.0), ARROW_LENGTH)  # the nearest point lies this far back from the tip
    return square + 2.0 * back * along + back * back  # |d + back * u|^2 with u the unit velocity, along = d . u


@kernel
def _kill(r: Any, rules: Rules, p: int, killer: int) -> None:
    r.deaths[p] += 1
    r.kills[killer] += 1
    r.respawn[p] = RESPAWN
    r.bow[p] = 0
    r.charge[p] = 0
    r.move[p] = 0
    r.vx[p] = 0.0
    r.vy[p] = 0.0
    for slot in range(QUEUE_SLOTS):
        r.bot[p, BOT_QUEUE + slot * SLOT_SIZE] = -1
    if r.quiver[p] > 0:
        r.quiver[p] -= 1
        if rules.reward == SHAPED:
            r.reward[p] -= SHAPED_ARROW
        a = _free_arrow(r)
        r.arrow_state[a] = FALLING
        r.arrow_owner[a] = p
        r.arrow_x[a] = r.x[p]
        r.arrow_y[a] = r.y[p]
        r.arrow_vx[a] = 0.0
        r.arrow_vy[a] = 0.0
        r.arrow_age[a] = 0
    if rules.reward != SPARSE:
        r.reward[killer] += 1.0
        r.reward[p] -= SHAPED_DEATH if rules.reward == SHAPED else 1.0


@kernel
def _hit(r: Any, rules: Rules, a: int) -> None:
    """A flying arrow kills the archer whose disc its line touches; of two at once the lower seat."""
    for p in range(r.players):
        if r.respawn[p] > 0 or r.arrow_owner[a] == p:
            continue
        distance = _arrow_distance(r, a, p)
        if distance < r.arrow_near[a]:
            r.arrow_near[a] = distance
        if distance < RADIUS * RADIUS:
            _kill(r, rules, p, r.arrow_owner[a])
            r.arrow_state[a] = FALLING
            r.arrow_vx[a] = 0.0
            r.arrow_vy[a] = 0.0
            break


@kernel
def _in_reach(r: Any, p: int, a: int) -> bool:
    """Whether an arrow lies or falls within reach of an archer."""
    dx = _delta_x(r.x[p] - r.arrow_x[a])
    dy = _delta_y(r.y[p] - r.arrow_y[a])
    return (r.arrow_state[a] >= FALLING) & (dx * dx + dy * dy < REACH * REACH)


@kernel
def _pick_up(r: Any, rules: Rules, p: int) -> None:
    """A living archer takes the arrows in reach, lower slots first, until its quiver is full."""
    if r.respawn[p] > 0 or r.quiver[p] == QUIVER:
        return
    found = 0
    for a in range(r.arrows):  # mostly none is: counting them needs no branch for each
        found += _in_reach(r, p, a)
    if found == 0:
        return
    for a in range(r.arrows):
        if r.quiver[p] < QUIVER and _in_reach(r, p, a):
            r.arrow_state[a] = ABSENT
            r.quiver[p] += 1
            if rules.reward == SHAPED:
                r.reward[p] += SHAPED_ARROW


@kernel
def _tick(r: Any, rules: Rules, arenas: Any, seen: NDArray[np.float32], scratch: NDArray[np.float64]) -> None:
    """One tick of a game: bots decide, archers move, arrows move and kill, archers pick up, the dead wait."""
    players = r.players
    now = r.tick * TICK_MS
    for p in range(rules.learners, players):  # all decide before anyone acts: no seat sees more than another
        _watch(r, rules, arenas, p, now, seen, scratch)
    for p in range(rules.learners, players):
        _act(r, rules, arenas, p, now)
    for p in range(players):
        if r.respawn[p] == 0:
            _move_archer(r, arenas.solid, p)
            if r.bow[p] == 1 and r.charge[p] < FULL_CHARGE:
                r.charge[p] += 1
    count = 0
    for a in range(r.arrows):  # listed without a branch, which would be guessed wrong as often as right
        scratch[IN_AIR, count] = a
        count += (r.arrow_state[a] == FLYING) | (r.arrow_state[a] == FALLING)
    for k in range(count):
        a = int(scratch[IN_AIR, k])
        _move_arrow(r, rules, arenas.solid, a)
        if r.arrow_state[a] == FLYING:
            _hit(r, rules, a)
    for p in range(players):
        _pick_up(r, rules, p)
    r.tick += 1
    for p in range(players):
        if r.respawn[p] > 0:
            r.respawn[p] -= 1
            if r.respawn[p] == 0:
                _place(r, arenas, p)


@kernel
def outcome(r: Any, p: int) -> int:
    """+1 when seat `p` alone has the most kills, 0 when it shares them, -1 otherwise."""
    mine, others = r.kills[p], -1
    for q in range(r.players):
        if q != p:
            others = max(others, r.kills[q])
    if mine > others:
        return 1
    return 0 if mine == others else -1


@kernel
def step_lane(r: Any, rules: Rules, arenas: Any, seen: NDArray[np.float32], scratch: NDArray[np.float64]) -> int:
    """Play one decision (commands already given); 0: goes on, 1: terminated, 2: truncated. The arrays are scratch."""
    players = r.players
    ended = 0
    for _ in range(rules.frame_skip):
        _tick(r, rules, arenas, seen, scratch)
        for p in range(players):
            if r.kills[p] >= rules.kills_to_win:
                ended = 1
        if ended == 0 and r.tick >= rules.max_ticks:
            ended = 2
        if ended != 0:
            break
    if ended == 1 and rules.reward != KILLS:
        value = 1.0 if rules.reward == SPARSE else SHAPED_MATCH
        for p in range(players):
            r.reward[p] += value * outcome(r, p)
    r.length += 1
    for p in range(players):
        r.episode_return[p] += r.reward[p]
    return ended


# ------------------------------------------------------------------------------------------- observation and mask


@kernel
def observe_lane(
    r: Any, rules: Rules, arenas: Any, p: int, out: NDArray[np.float32], scratch: NDArray[np.float64]
) -> None:
    """Write what seat `p` sees, ego-centred, every entry in [-1, 1]; see the environment's docstring for the table."""
    players = r.players
    x, y = r.x[p], r.y[p]
    arena = r.arena
    alive = r.respawn[p] == 0
    to_win = 1.0 / rules.kills_to_win
    out[0] = x * TO_WIDTH - 1.0
    out[1] = y * TO_HEIGHT - 1.0
    out[2] = r.vx[p] * TO_SPEED
    out[3] = r.vy[p] * TO_SPEED
    out[4] = r.jumps[p] - 1.0
    out[5] = r.grounded[p]
    out[6] = 1.0 if alive else -1.0
    out[7] = r.respawn[p] * TO_RESPAWN
    out[8] = r.quiver[p] * 0.5 - 1.0
    out[9] = r.bow[p]
    out[10] = r.charge[p] * TO_CHARGE
    out[11] = min(r.kills[p] * to_win, 1.0)  # the last tick may bring more kills than it takes
    out[12] = r.deaths[p] / (r.deaths[p] + 3.0)
    out[13] = 1.0 - 2.0 * r.tick / rules.max_ticks
    for m in range(4):
        out[MAP_AT + m] = 1.0 if m == arena else 0.0
    column, row = int(x * BLOCKS_PER_PX), int(y * BLOCKS_PER_PX)
    for ray in range(RAYS):
        out[RAYS_AT + ray] = arenas.rays[arena, row, column, ray]
    at = FOES_AT
    for offset in range(1, players):
        q = (p + offset) % players
        dx = _delta_x(r.x[q] - x)
        dy = _delta_y(r.y[q] - y)
        there = r.respawn[q] == 0
        out[at] = 1.0 if there else -1.0
        out[at + 1] = dx * TO_WIDTH
        out[at + 2] = dy * TO_HEIGHT
        out[at + 3] = r.vx[q] * TO_SPEED
        out[at + 4] = r.vy[q] * TO_SPEED
        out[at + 5] = r.quiver[q] * 0.5 - 1.0
        out[at + 6] = r.charge[q] * TO_CHARGE
        out[at + 7] = r.respawn[q] * TO_RESPAWN
        out[at + 8] = min(r.kills[q] * to_win, 1.0)
        out[at + 9] = r.grounded[q]
        out[at + 10] = 1.0 if there and alive and _clear_line(arenas.solid, arena, x, y, dx, dy) else 0.0
        at += FOE_SIZE
    _observe_arrows(r, p, at, out, scratch)


@kernel
def _observe_arrows(r: Any, p: int, at: int, out: NDArray[np.float32], scratch: NDArray[np.float64]) -> None:
    """The nearest arrows outside quivers, nearest first (equal distances: lower slot first), ARROWS_SEEN at most.

    An arrow's row is the number of arrows before it, counted over all pairs: a sort would branch on every comparison
    and took three times as long. Arrows in quivers come last and leave zeros; there are never fewer than ARROWS_SEEN.
    """
    x, y = r.x[p], r.y[p]
    for a in range(MAX_ARROWS):
        dx = _delta_x(r.arrow_x[a] - x)
        dy = _delta_y(r.arrow_y[a] - y)
        scratch[DX, a] = dx
        scratch[DY, a] = dy
        scratch[SQUARE, a] = dx * dx + dy * dy if r.arrow_state[a] != ABSENT else FARTHEST
        scratch[BEFORE, a] = 0.0
    for b in range(r.arrows):
        square = scratch[SQUARE, b]
        for a in range(MAX_ARROWS):  # of a fixed length, so that it becomes a few vector instructions
            before = (square < scratch[SQUARE, a]) | ((square == scratch[SQUARE, a]) & (b < a))
            scratch[BEFORE, a] += 1.0 if before else 0.0
    for a in range(r.arrows):
        rank = int(scratch[BEFORE, a])
        if rank >= ARROWS_SEEN:
            continue
        state = r.arrow_state[a]
        there = state != ABSENT
        moving = there and state != STUCK
        row = at + ARROW_SIZE * rank
        out[row] = 1.0 if there else 0.0
        out[row + 1] = scratch[DX, a] * TO_WIDTH if there else 0.0
        out[row + 2] = scratch[DY, a] * TO_HEIGHT if there else 0.0
        out[row + 3] = r.arrow_vx[a] * TO_SPEED if moving else 0.0
        out[row + 4] = r.arrow_vy[a] * TO_SPEED if moving else 0.0
        out[row + 5] = 1.0 if state == FLYING and r.arrow_owner[a] != p else 0.0
        out[row + 6] = 1.0 if there and state != FLYING else 0.0


@kernel
def legal_lane(r: Any, p: int, out: NDArray[np.bool_]) -> None:
    """Legal entries of the groups move (3), vertical (3), bow (2), aim (16); each group has at least one."""
    alive = r.respawn[p] == 0
    out[0] = True
    out[1] = alive
    out[2] = alive
    out[3] = True
    out[4] = alive and r.jumps[p] > 0
    out[5] = alive and r.grounded[p] == 0
    out[6] = True
    out[7] = alive and (r.quiver[p] > 0 or r.bow[p] == 1)
    out[8] = True
    aims = alive and r.bow[p] == 1
    for i in range(9, MASK_SIZE):
        out[i] = aims


# ------------------------------------------------------------------------------------------------------------ images


@kernel
def _dot(out: NDArray[np.uint8], image: int, kind: int, row: int, column: int) -> None:
    """Set one cell: a plane of the grid, or a colour of the pixels. Cells off the image wrap around."""
    if image == GRID:
        out[kind, row % out.shape[1], column % out.shape[2]] = 255
    else:
        for channel in range(3):
            out[row % out.shape[0], column % out.shape[1], channel] = COLOURS[kind, channel]


@kernel
def _disc(
    out: NDArray[np.uint8],
    image: int,
    kind: int,
    cell: float,
    x: float,
    y: float,
    radius: float,
    rows: int,
    columns: int,
) -> None:
    """Fill the cells whose centres lie within `radius` px of (x, y), px from the image's upper left corner."""
    reach = int(radius / cell) + 1
    middle_row, middle_column = int(y / cell), int(x / cell)
    for row in range(middle_row - reach, middle_row + reach + 1):
        for column in range(middle_column - reach, middle_column + reach + 1):
            dx, dy = (column + 0.5) * cell - x, (row + 0.5) * cell - y
            if dx * dx + dy * dy < radius * radius:
                _dot(out, image, kind, row + rows, column + columns)  # + a whole turn: no negative remainder


@kernel
def paint_lane(r: Any, rules: Rules, arenas: Any, p: int, out: NDArray[np.uint8]) -> None:
    """Write what seat `p` sees as an image, the own archer in the middle (`rules.image`: GRID or PIXELS)."""
    image = rules.image
    rows, columns = (out.shape[1], out.shape[2]) if image == GRID else (out.shape[0], out.shape[1])
    cell = WIDTH / columns
    left, top = r.x[p] - HALF_WIDTH, r.y[p] - HALF_HEIGHT
    out[:] = 0
    for row in range(rows):
        y = _wrap_y(_wrap_y(top + (row + 0.5) * cell))
        for column in range(columns):
            x = _wrap_x(_wrap_x(left + (column + 0.5) * cell))
            if _solid_at(arenas.solid, r.arena, x, y):
                _dot(out, image, 0, row, column)
            elif image == PIXELS:
                for channel in range(3):
                    out[row, column, channel] = SKY[channel]
    for q in range(r.players):
        if r.respawn[q] == 0:
            dx, dy = _delta_x(r.x[q] - r.x[p]), _delta_y(r.y[q] - r.y[p])
            kind = 1 if q == p else 2
            _disc(out, image, kind, cell, dx + HALF_WIDTH, dy + HALF_HEIGHT, RADIUS, rows, columns)
    for a in range(r.arrows):
        if r.arrow_state[a] == ABSENT:
            continue
        kind = 5
        if r.arrow_state[a] == FLYING:
            kind = 4 if r.arrow_owner[a] == p else 3
        x = _delta_x(r.arrow_x[a] - r.x[p]) + HALF_WIDTH
        y = _delta_y(r.arrow_y[a] - r.y[p]) + HALF_HEIGHT
        speed = np.sqrt(r.arrow_vx[a] * r.arrow_vx[a] + r.arrow_vy[a] * r.arrow_vy[a])
        back_x = r.arrow_vx[a] / speed if speed > 0.0 else 0.0
        back_y = r.arrow_vy[a] / speed if speed > 0.0 else 1.0
        for k in range(5):
            along = k * ARROW_LENGTH / 4.0
            row = int((y - back_y * along) / cell + rows)
            column = int((x - back_x * along) / cell + columns)
            _dot(out, image, kind, row, column)
    _paint_gauges(r, rules, p, rows, columns, out)


@kernel
def _paint_gauges(r: Any, rules: Rules, p: int, rows: int, columns: int, out: NDArray[np.uint8]) -> None:
    """Bars from the left: quiver, charge, jumps, kills, time left; a plane of the grid, the pixels' lowest rows."""
    high = rows // GAUGES if rules.image == GRID else 2
    first = 0 if rules.image == GRID else rows - high * GAUGES
    for k in range(GAUGES):
        value = r.quiver[p] / QUIVER
        if k == 1:
            value = r.charge[p] / FULL_CHARGE
        elif k == 2:
            value = r.jumps[p] / JUMPS
        elif k == 3:
            value = r.kills[p] / rules.kills_to_win
        elif k == 4:
            value = 1.0 - r.tick / rules.max_ticks
        for row in range(first + k * high, first + (k + 1) * high):
            for column in range(int(value * columns)):
                _dot(out, rules.image, 6, row, column)


# --------------------------------------------------------------------------------------------------- scripted archers


@kernel
def _watch(
    r: Any, rules: Rules, arenas: Any, p: int, now: int, seen: NDArray[np.float32], scratch: NDArray[np.float64]
) -> None:
    """Let a scripted archer see and decide when its time has come; the command waits for its reaction time."""
    level = r.level[p]
    if r.respawn[p] > 0 or now < r.bot[p, BOT_NEXT]:
        return
    r.bot[p, BOT_NEXT] = max(r.bot[p, BOT_NEXT] + DECISION_MS[level], now)
    slot = BOT_QUEUE + SLOT_SIZE * r.bot[p, BOT_SLOT]
    r.bot[p, BOT_SLOT] = (r.bot[p, BOT_SLOT] + 1) % QUEUE_SLOTS
    r.bot[p, slot] = now + REACTION_MS[level]
    if level == RANDOM:
        _decide_random(r, p, slot)
    else:
        observe_lane(r, rules, arenas, p, seen, scratch)
        _decide(seen, r.bot[p], slot, now, level, r.players, r.streams)


@kernel
def _act(r: Any, rules: Rules, arenas: Any, p: int, now: int) -> None:
    """Give the commands of a scripted archer whose time has come."""
    for k in range(QUEUE_SLOTS):
        slot = BOT_QUEUE + SLOT_SIZE * k
        due = r.bot[p, slot]
        if due >= 0 and due <= now:
            r.bot[p, slot] = -1
            aim = r.bot[p, slot + 4]
            move, vertical, bow = r.bot[p, slot + 1], r.bot[p, slot + 2], r.bot[p, slot + 3]
            _command(r, rules, arenas, p, move, vertical, bow, AIM_X[aim], AIM_Y[aim])


@kernel
def _decide_random(r: Any, p: int, slot: int) -> None:
    r.bot[p, slot + 1] = next_below(r.streams, 3) - 1
    r.bot[p, slot + 2] = next_below(r.streams, 3)
    r.bot[p, slot + 3] = next_below(r.streams, 2)
    r.bot[p, slot + 4] = next_below(r.streams, AIMS)


@kernel
def _nearest_foe(seen: NDArray[np.float32], players: int) -> int:
    """Where in the observation the nearest living foe stands, or -1."""
    best, found = 1e9, -1
    for k in range(players - 1):
        at = FOES_AT + k * FOE_SIZE
        dx = seen[at + 1] * HALF_WIDTH
        dy = seen[at + 2] * HALF_HEIGHT
        if seen[at] > 0.0 and dx * dx + dy * dy < best:
            best, found = dx * dx + dy * dy, at
    return found


@kernel
def _threat(seen: NDArray[np.float32], at: int, horizon: float, delay: float) -> int:
    """Where in the observation the deadly arrow stands that would come within 32 px soonest, or -1.

    Straight-line prediction of the archer, free fall of the arrow, looked at every 0.04 s up to `horizon` seconds, from
    `delay` on (an earlier hit can no longer be avoided).
    """
    vx, vy = seen[2] * MAX_SPEED, seen[3] * MAX_SPEED
    fall = GRAVITY if seen[5] > 0.5 else 0.0  # an airborne archer falls like the arrow
    soonest, found = horizon, -1
    for k in range(ARROWS_SEEN):
        i = at + k * ARROW_SIZE
        if seen[i] < 0.5:
            break
        if seen[i + 5] < 0.5:
            continue
        dx, dy = seen[i + 1] * HALF_WIDTH, seen[i + 2] * HALF_HEIGHT
        rx, ry = seen[i + 3] * MAX_SPEED - vx, seen[i + 4] * MAX_SPEED - vy
        t = delay
        while t < soonest:
            mx = dx + rx * t
            my = dy + ry * t + 0.5 * fall * t * t
            if mx * mx + my * my < 32.0 * 32.0:
                soonest, found = t, i
                break
            t += 0.04
    return found


@kernel
def _miss(
    dx: float,
    dy: float,
    tvx: float,
    tvy: float,
    fall: float,
    avx: float,
    avy: float,
    ux: float,
    uy: float,
    horizon: float,
) -> float:
    """Smallest distance (px) between an arrow shot now and a target that goes on as it does, within `horizon` s.

    (dx, dy): target minus archer; (tvx, tvy): its velocity; `fall`: how much stronger the arrow falls than the target.
    """
    best = 1e12
    mx, my = ux * ARROW_LENGTH - dx, uy * ARROW_LENGTH - dy
    rx, ry = avx - tvx, avy - tvy
    t = 0.0
    while t < horizon:
        ex = mx + rx * t
        ey = my + ry * t + 0.5 * fall * t * t
        square = ex * ex + ey * ey
        if square < best:
            best = square
        elif square > best + 14400.0:  # well past the nearest point
            break
        t += 0.04
    return np.sqrt(best)


@kernel
def _best_aim(
    dx: float, dy: float, tvx: float, tvy: float, fall: float, charge: float, horizon: float
) -> tuple[int, float]:
    """The aim (0 .. 15) whose arrow comes closest to the target, and how close (px).

    The target's place after the flight gives the direction (two rounds of lead and drop); its neighbours are tried too.
    """
    speed = LAUNCH_SPEED * np.sqrt(charge)
    lead_x, lead_y = dx, dy
    for _ in range(2):
        t = min(np.sqrt(lead_x * lead_x + lead_y * lead_y) / speed, horizon)
        lead_x = dx + tvx * t
        lead_y = dy + tvy * t - 0.5 * fall * t * t
    ideal, best_dot = 0, -1e12
    for i in range(AIMS):
        dot = AIM_X[i] * lead_x + AIM_Y[i] * lead_y
        if dot > best_dot:
            ideal, best_dot = i, dot
    best, best_miss = ideal, 1e12
    for k in range(3):
        i = (ideal + k + AIMS - 1) % AIMS
        avx, avy = _clip(AIM_X[i] * speed, MAX_SPEED), _clip(AIM_Y[i] * speed, MAX_SPEED)
        miss = _miss(dx, dy, tvx, tvy, fall, avx, avy, AIM_X[i], AIM_Y[i], horizon)
        if miss < best_miss:
            best, best_miss = i, miss
    return best, best_miss


@kernel
def _decide(
    seen: NDArray[np.float32],
    memory: NDArray[np.int64],
    slot: int,
    now: int,
    level: int,
    players: int,
    streams: NDArray[np.uint32],
) -> None:
    """A scripted archer's decision, from its own observation and memory only, written into `memory[slot + 1 ..]`."""
    delay = REACTION_MS[level] * 0.001
    horizon = LOOK_AHEAD[level]
    foe = _nearest_foe(seen, players)
    arrows_at = FOES_AT + FOE_SIZE * (players - 1)
    arrows = int((seen[8] + 1.0) * 2.0 + 0.5)
    if now >= memory[BOT_INTENT_UNTIL]:  # what to do for the next while: close in (2) or roam (-1, 0, 1)
        memory[BOT_INTENT_UNTIL] = now + 400 + next_below(streams, 600)
        memory[BOT_INTENT] = 2 if next_unit(streams) < AGGRESSION[level] else next_below(streams, 3) - 1
    move, vertical = _walk(seen, memory, arrows_at, foe, arrows, streams)
    threat = _threat(seen, arrows_at, 0.4 * horizon, delay)
    if threat >= 0:
        move, vertical = _dodge(seen, threat, move)
    bow, aim = 0, next_below(streams, AIMS)
    if arrows > 0 and foe >= 0:
        bow, aim = _draw(seen, foe, level, delay, horizon, aim, streams)
    elif seen[9] > 0.5:
        bow = 1  # nobody to shoot at: stay drawn
    memory[slot + 1] = move
    memory[slot + 2] = vertical
    memory[slot + 3] = bow
    memory[slot + 4] = aim


@kernel
def _walk(
    seen: NDArray[np.float32], memory: NDArray[np.int64], at: int, foe: int, arrows: int, streams: NDArray[np.uint32]
) -> tuple[int, int]:
    """Where to run and whether to jump: to an arrow when short of them, to or from the foe, or about."""
    goal_x, goal_y, has_goal = 0.0, 0.0, False
    if arrows < 2 or (arrows < QUIVER and foe < 0):
        for k in range(ARROWS_SEEN):
            i = at + k * ARROW_SIZE
            if seen[i] > 0.5 and seen[i + 6] > 0.5:
                goal_x, goal_y, has_goal = seen[i + 1] * HALF_WIDTH, seen[i + 2] * HALF_HEIGHT, True
                break
    intent = memory[BOT_INTENT]
    if not has_goal and foe >= 0 and (intent == 2 or arrows == 0):
        goal_x, goal_y, has_goal = seen[foe + 1] * HALF_WIDTH, seen[foe + 2] * HALF_HEIGHT, True
        if arrows == 0 or abs(goal_x) + abs(goal_y) < 140.0:
            goal_x, goal_y = -goal_x, -40.0  # too near, or unarmed: away
    move = 0
    if has_goal:
        move = 1 if goal_x > 12.0 else (-1 if goal_x < -12.0 else 0)
    elif intent != 2:
        move = intent
    vertical = 0
    wall = move != 0 and seen[RAYS_AT + (0 if move > 0 else 4)] < -0.85
    if wall or (has_goal and goal_y < -50.0):
        if seen[4] > -0.5 and seen[3] > -0.1:  # a jump is left, and the last one is spent
            vertical = 1
    elif next_unit(streams) < 0.05 and seen[4] > -0.5:
        vertical = 1
    elif has_goal and goal_y > 120.0 and seen[5] < 0.5 and next_unit(streams) < 0.3:
        vertical = 2
    return move, vertical


@kernel
def _dodge(seen: NDArray[np.float32], threat: int, move: int) -> tuple[int, int]:
    """Out of an arrow's way: across its flight."""
    avx, avy = seen[threat + 3], seen[threat + 4]
    if abs(avx) > abs(avy):
        if seen[threat + 2] < -0.04 and seen[5] < 0.5:  # it comes from above: below it
            return move, 2
        if seen[4] > -0.5:
            return move, 1
        return move, 2
    return (-1 if seen[threat + 1] > 0.0 else 1), 0


@kernel
def _draw(
    seen: NDArray[np.float32], foe: int, level: int, delay: float, horizon: float, aim: int, streams: NDArray[np.uint32]
) -> tuple[int, int]:
    """Draw the bow, or release it when the arrow would hit: (bow, aim)."""
    if seen[9] < 0.5:
        return 1, aim
    charge = min(seen[10] + delay * 0.5, 1.0)  # what it will be when the command takes effect
    if charge < 0.08 or seen[foe + 10] < 0.5:
        return 1, aim
    tvx, tvy = seen[foe + 3] * MAX_SPEED, seen[foe + 4] * MAX_SPEED
    dx = seen[foe + 1] * HALF_WIDTH + (tvx - seen[2] * MAX_SPEED) * delay
    dy = seen[foe + 2] * HALF_HEIGHT + (tvy - seen[3] * MAX_SPEED) * delay
    fall = GRAVITY if seen[foe + 9] > 0.5 else 0.0
    aim, miss = _best_aim(dx, dy, tvx, tvy, fall, charge, min(horizon, 1.0))
    if miss > 16.0:
        return 1, aim
    if next_unit(streams) > ACCURACY[level]:  # a slip: one direction off
        aim = (aim + (1 if next_unit(streams) < 0.5 else AIMS - 1)) % AIMS
    return 0, aim


# ----------------------------------------------------------------------------------------------------- batch loops


@kernel
def reset(state: NDArray[np.void], rules: Rules, arenas: Any, out: Outputs, chosen: NDArray[np.bool_]) -> None:
    """Begin the matches of the games in `chosen` (bool (B,)) and write their first observations and masks."""
    observation, mask, image = out.observation, out.mask, out.image
    scratch = np.empty((SCRATCH_ROWS, MAX_ARROWS))
    for g in range(chosen.shape[0]):
        if chosen[g]:
            reset_lane(state[g], rules, arenas)
            for p in range(rules.learners):
                lane = g * rules.learners + p
                observe_lane(state[g], rules, arenas, p, observation[lane], scratch)
                legal_lane(state[g], p, mask[lane])
                if rules.image != 0:
                    paint_lane(state[g], rules, arenas, p, image[lane])


@kernel
def step(
    state: NDArray[np.void],
    rules: Rules,
    arenas: Any,
    out: Outputs,
    command: NDArray[np.int64],
    aim: NDArray[np.float64],
    start: int,
    stop: int,
) -> None:
    """Play one decision of games start .. stop - 1; games that end begin their next match in the same step.

    command: int64 (N, 3) move (-1, 0, 1), vertical (0, 1 jump, 2 dive), bow (0, 1); aim: float64 (N, 2) unit vectors.
    """
    # The arrays are unpacked once: handing the tuple itself to a function would count references of each of them.
    observation, mask, reward = out.observation, out.mask, out.reward
    terminated, truncated, final_observation = out.terminated, out.truncated, out.final_observation
    final_return, final_length, final_outcome = out.final_return, out.final_length, out.final_outcome
    final_kills, final_deaths, image, final_image = out.final_kills, out.final_deaths, out.image, out.final_image
    seen = np.empty(observation.shape[1], np.float32)
    scratch = np.empty((SCRATCH_ROWS, MAX_ARROWS))
    learners = rules.learners
    for g in range(start, stop):
        r = state[g]
        for p in range(r.players):
            r.reward[p] = 0.0
        for p in range(learners):
            n = g * learners + p
            _command(r, rules, arenas, p, command[n, 0], command[n, 1], command[n, 2], aim[n, 0], aim[n, 1])
        ended = step_lane(r, rules, arenas, seen, scratch)
        for p in range(learners):
            n = g * learners + p
            reward[n] = r.reward[p]
            terminated[n] = ended == 1
            truncated[n] = ended == 2
            if ended != 0:
                observe_lane(r, rules, arenas, p, final_observation[n], scratch)
                if rules.image != 0:
                    paint_lane(r, rules, arenas, p, final_image[n])
                final_return[n] = r.episode_return[p]
                final_length[n] = r.length
                final_outcome[n] = outcome(r, p)
                final_kills[n] = r.kills[p]
                final_deaths[n] = r.deaths[p]
        if ended != 0 and rules.autoreset == 1:
            r.episode += 1
            reset_lane(r, rules, arenas)
        for p in range(learners):
            n = g * learners + p
            observe_lane(r, rules, arenas, p, observation[n], scratch)
            legal_lane(r, p, mask[n])
            if rules.image != 0:
                paint_lane(r, rules, arenas, p, image[n])


@kernel
def play_out(
    state: NDArray[np.void], rules: Rules, arenas: Any, levels: NDArray[np.int64], results: NDArray[np.int64]
) -> None:
    """Play one match of every game between scripted archers; `rules.learners` must be 0.

    levels: int64 (P,) level of each seat; results: int64 (B, 2), written: outcome of seat 0 and ticks played.
    """
    seen = np.empty(FOES_AT + FOE_SIZE * (levels.shape[0] - 1) + ARROW_SIZE * ARROWS_SEEN, np.float32)
    scratch = np.empty((SCRATCH_ROWS, MAX_ARROWS))
    for g in range(state.shape[0]):
        r = state[g]
        reset_lane(r, rules, arenas)
        for p in range(r.players):
            r.level[p] = levels[p]
        while step_lane(r, rules, arenas, seen, scratch) == 0:
            pass
        results[g, 0] = outcome(r, 0)
        results[g, 1] = r.tick


@kernel
def script(
    seen: NDArray[np.float32],
    level: int,
    players: int,
    now: NDArray[np.int64],
    memory: NDArray[np.int32],
    streams: NDArray[np.uint32],
    actions: NDArray[np.int64],
) -> None:
    """A scripted archer (level 1 .. 4) in a learner's place: it decides from its observation when its time has come.

    seen: float32 (N, D); now: game time, ms, int64 (N,); memory: int32 (N, BOT_SIZE), all zero but due times of -1 when
    a match begins; streams: uint32 (N, 4), its own; actions: MultiDiscrete, int64 (N, 4), what it held, overwritten.
    An order takes effect at the first decision of the learner that is due, so it is slower than in the game itself.
    """
    for n in range(seen.shape[0]):
        bot, time = memory[n], now[n]
        if seen[n, 6] > 0.0 and time >= bot[BOT_NEXT]:
            bot[BOT_NEXT] = max(bot[BOT_NEXT] + DECISION_MS[level], time)
            slot = BOT_QUEUE + SLOT_SIZE * bot[BOT_SLOT]
            bot[BOT_SLOT] = (bot[BOT_SLOT] + 1) % QUEUE_SLOTS
            bot[slot] = time + REACTION_MS[level]
            _decide(seen[n], bot, slot, time, level, players, streams[n])
        actions[n, 1] = 0  # a jump or dive is over once it was given; the rest is held
        for k in range(QUEUE_SLOTS):
            slot = BOT_QUEUE + SLOT_SIZE * k
            if bot[slot] >= 0 and bot[slot] <= time:
                bot[slot] = -1
                actions[n, 0] = 1 if bot[slot + 1] < 0 else 2 * bot[slot + 1]
                actions[n, 1] = bot[slot + 2]
                actions[n, 2] = bot[slot + 3]
                actions[n, 3] = bot[slot + 4]


@kernel
def decode_multidiscrete(actions: NDArray[np.int64], command: NDArray[np.int64], aim: NDArray[np.float64]) -> None:
    """MultiDiscrete([3, 3, 2, 16]) actions, int64 (N, 4), to commands and aims."""
    for i in range(actions.shape[0]):
        command[i, 0] = (0, -1, 1)[actions[i, 0]]
        command[i, 1] = actions[i, 1]
        command[i, 2] = actions[i, 2]
        aim[i, 0] = AIM_X[actions[i, 3]]
        aim[i, 1] = AIM_Y[actions[i, 3]]


@kernel
def decode_box(actions: NDArray[np.float64], command: NDArray[np.int64], aim: NDArray[np.float64]) -> None:
    """Box(-1, 1, (5,)) actions, float64 (N, 5), to commands and aims: move, vertical (up < 0), bow, aim x, aim y.

    Beyond a third of the range counts; the bow is held above 0; the aim is the direction of (x, y), East for (0, 0).
    """
    third = 1.0 / 3.0
    for i in range(actions.shape[0]):
        command[i, 0] = 1 if actions[i, 0] > third else (-1 if actions[i, 0] < -third else 0)
        command[i, 1] = 1 if actions[i, 1] < -third else (2 if actions[i, 1] > third else 0)
        command[i, 2] = 1 if actions[i, 2] > 0.0 else 0
        norm = np.sqrt(actions[i, 3] * actions[i, 3] + actions[i, 4] * actions[i, 4])
        aim[i, 0] = actions[i, 3] / norm if norm > 1e-6 else 1.0
        aim[i, 1] = actions[i, 4] / norm if norm > 1e-6 else 0.0
