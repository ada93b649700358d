"""Seats are alike, masks are exact, scripted archers know what their seat sees and are ordered by skill."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from archers_stage import Stage, lively_actions

from gymcast.envs import game_spec
from gymcast.envs.games import archers as kernels
from gymcast.envs.games.archers_batch import ArchersBatch, contest

SPEC = game_spec("archers")
SEAT_FIELDS = [name for name in kernels.STATE.names or () if kernels.STATE[name].shape[:1] == (kernels.MAX_PLAYERS,)]


def busy_batch(games: int, players: int, decisions: int, seed: int = 0, **options: Any) -> ArchersBatch:
    """A batch in the middle of matches of all seats."""
    given = SPEC.complete_options({"players": players, "opponent": "self", "map": "random", **options})
    batch = ArchersBatch(games, given, players, autoreset=True)
    batch.state["seed"] = seed + np.arange(games)
    batch.reset(np.ones(games, np.bool_))
    random = np.random.default_rng(seed)
    for _ in range(decisions):
        batch.step(lively_actions(random, batch.lanes), 0, games)
    return batch


@pytest.mark.parametrize("players", [2, 3, 4])
def test_every_seat_sees_the_match_in_the_same_way(players: int) -> None:
    """Everyone moves one seat on: each sees from the new seat what it saw from the old one."""
    batch = busy_batch(32, players, 80)
    near = np.empty((kernels.SCRATCH_ROWS, kernels.MAX_ARROWS))
    before = np.zeros((players, kernels.observation_size(players)), np.float32)
    after, mask = np.zeros_like(before), np.zeros((2, kernels.MASK_SIZE), np.bool_)
    for game in range(batch.games):
        state = batch.state[game]
        moved = batch.state[game : game + 1].copy()[0]
        for name in SEAT_FIELDS:
            moved[name][:players] = np.roll(state[name][:players], 1, axis=0)
        moved["arrow_owner"][:] = (state["arrow_owner"] + 1) % players
        for p in range(players):
            kernels.observe_lane(state, batch.rules, batch.arenas, p, before[p], near)
            kernels.observe_lane(moved, batch.rules, batch.arenas, (p + 1) % players, after[p], near)
            kernels.legal_lane(state, p, mask[0])
            kernels.legal_lane(moved, (p + 1) % players, mask[1])
            assert (mask[0] == mask[1]).all()
        np.testing.assert_array_equal(before, after)


def test_an_illegal_action_is_the_neutral_one_and_a_legal_one_is_not() -> None:
    """For every entry of the mask: played alone, and compared bit for bit with the neutral entry of its group."""
    batch = busy_batch(300, 2, 60, frame_skip=1, kills_to_win=100)
    start, mask = batch.state.copy(), batch.out.mask.copy()
    assert mask.any(axis=0).all() and not mask[:, [1, 4, 5, 7, 12]].all(axis=0).any(), "all is legal here, not there"
    neutral = np.zeros((batch.lanes, 4), np.int64)
    groups = np.repeat(np.arange(4), kernels.ACTION_NVEC)
    entries = np.concatenate([np.arange(n) for n in kernels.ACTION_NVEC])

    def after(actions: Any) -> Any:
        batch.state[:] = start
        batch.step(actions, 0, batch.games)
        return batch.state.copy()

    idle = after(neutral)
    for index in range(kernels.MASK_SIZE):
        if entries[index] == 0:
            continue
        for seat in range(2):
            actions = neutral.copy()
            actions[seat::2, groups[index]] = entries[index]
            changed = after(actions) != idle
            legal = mask[seat::2, index]
            assert not (changed & ~legal).any(), f"entry {index} is illegal and does something"
            lands = idle["grounded"][:, seat] == 1  # within this tick anyway
            full_dive = (index == 5) & ((start["vy"][:, seat] >= kernels.MAX_SPEED) | lands)
            never_charged = (groups[index] == 3) & (start["charge"][:, seat] == 0)
            same = legal & ~changed & ~full_dive & ~never_charged
            assert not same.any(), f"entry {index} is legal and does nothing"


def test_masks_of_discrete_actions_are_products() -> None:
    from gymcast.envs.vector import joint_mask

    batch = busy_batch(8, 2, 30)
    joint = joint_mask(batch.out.mask, np.array(kernels.ACTION_NVEC))
    m, v, b, a = np.unravel_index(np.arange(288), kernels.ACTION_NVEC)
    expected = batch.out.mask[:, m] & batch.out.mask[:, 3 + v] & batch.out.mask[:, 6 + b] & batch.out.mask[:, 8 + a]
    np.testing.assert_array_equal(joint, expected)


# --------------------------------------------------------------------------------------------------- scripted archers


@pytest.mark.parametrize("level", range(1, 5))
def test_a_scripted_archer_knows_what_its_seat_sees_and_no_more(level: int) -> None:
    """All that seat 1 cannot see of seat 0 is changed: it decides the same, in the same time, with the same draws."""
    batch = busy_batch(64, 2, 70, seed=level)
    rules = batch.rules._replace(learners=1)
    seen = np.empty(kernels.observation_size(2), np.float32)
    near = np.empty((kernels.SCRATCH_ROWS, kernels.MAX_ARROWS))
    random = np.random.default_rng(level)
    decided = 0
    for game in range(batch.games):
        one = batch.state[game : game + 1].copy()
        one["level"][0] = (-1, level, -1, -1)
        other = one.copy()
        foe = other[0]
        foe["aim_x"][0], foe["aim_y"][0] = 0.6, -0.8
        foe["move"][0] = -1 if foe["move"][0] == 1 else 1
        foe["jumps"][0] = 2 - foe["jumps"][0]
        for name in ("deaths", "shots", "level"):
            foe[name][0] = random.integers(1, 5)
        foe["reward"][0], foe["episode_return"][0] = random.random(2)
        foe["bot"][0] = random.integers(0, 100, kernels.BOT_SIZE)
        foe["arrow_age"][:] = random.integers(0, 200, kernels.MAX_ARROWS)
        foe["arrow_near"][:] = random.random(kernels.MAX_ARROWS)
        results = []
        for state in (one[0], foe):
            now = int(state["tick"]) * kernels.TICK_MS
            kernels._watch(state, rules, batch.arenas, 1, now, seen, near)
            results.append((state["bot"][1].tolist(), state["streams"].tolist()))
        assert results[0] == results[1]
        decided += results[0][0][kernels.BOT_NEXT] != 0
    assert decided > 30


@pytest.mark.parametrize("level", range(5))
def test_scripted_archers_take_their_time(level: int) -> None:
    """Decisions come every `decision` ms; each takes effect `reaction` ms after it was made, not before."""
    options = SPEC.complete_options({"opponent": kernels.LEVELS[level], "frame_skip": 1, "kills_to_win": 100})
    batch = ArchersBatch(1, options, 1, autoreset=False)
    batch.state["seed"] = 5
    batch.reset(np.ones(1, np.bool_))
    looks = []
    for _ in range(200):
        before = batch.state["bot"][0, 1].copy()
        now = int(batch.state["tick"][0]) * kernels.TICK_MS
        still = [batch.state[name][0, 1] for name in ("move", "bow", "aim_x")]
        batch.step(np.zeros((1, 4), np.int64), 0, 1)
        after = batch.state["bot"][0, 1]
        if after[kernels.BOT_SLOT] != before[kernels.BOT_SLOT]:
            looks.append(now)
        if not looks or now < looks[0] + kernels.REACTION_MS[level]:
            assert [batch.state[name][0, 1] for name in ("move", "bow", "aim_x")] == still
    steps = np.diff(looks)
    assert looks[0] == 0 and (np.abs(steps - kernels.DECISION_MS[level]) < kernels.TICK_MS).all()
    assert abs(steps.mean() - kernels.DECISION_MS[level]) < 1


def test_the_levels_are_those_of_the_documented_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "archers.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (\d+) \| ([\d.]+) \| (\d+) \| ([\d.]+) \| ([\d.]+) \|$", page, re.M)
    documented = {name: tuple(map(float, numbers)) for name, *numbers in rows}
    tables = (kernels.REACTION_MS, kernels.ACCURACY, kernels.DECISION_MS, kernels.AGGRESSION, kernels.LOOK_AHEAD)
    used = {name: tuple(float(t[i]) for t in tables) for i, name in enumerate(kernels.LEVELS) if i > 0}
    assert documented == used


@pytest.mark.parametrize("higher", range(1, 5), ids=lambda level: kernels.LEVELS[level])
def test_each_level_beats_the_one_below(higher: int) -> None:
    """At least 60 % of decided games of 2,000, half of them from either seat, over all maps."""
    options = SPEC.complete_options({"map": "random"})
    strong, weak = kernels.LEVELS[higher], kernels.LEVELS[higher - 1]
    first = contest(strong, weak, 1000, 11, options)
    second = contest(weak, strong, 1000, 500_011, options)
    won, lost = first[0] + second[1], first[1] + second[0]
    assert sum(first) == sum(second) == 1000
    assert won + lost > 1000
    assert won >= 0.6 * (won + lost), f"{strong} won {won} and lost {lost} against {weak}"


def test_neither_seat_is_better() -> None:
    """A level against itself: seat 0 wins half of the decided games, within 4 standard errors."""
    won, lost, _ = contest("intermediate", "intermediate", 1000, 77, SPEC.complete_options({"map": "random"}))
    assert abs(won / (won + lost) - 0.5) < 4 * 0.5 / (won + lost) ** 0.5


def test_several_scripted_archers_play_on_all_maps() -> None:
    for arena in ("open", "tower", "gauntlet", "pit"):
        won, lost, drawn = contest("expert", "beginner", 60, 3, SPEC.complete_options({"map": arena, "players": 4}))
        assert won + lost + drawn == 60 and won > lost


def test_mixed_opponents_are_of_all_levels() -> None:
    batch = ArchersBatch(200, SPEC.complete_options({"opponent": "mixed", "players": 3}), 1, autoreset=True)
    batch.state["seed"] = np.arange(200)
    batch.reset(np.ones(200, np.bool_))
    levels, counts = np.unique(batch.state["level"][:, 1:3], return_counts=True)
    assert levels.tolist() == [1, 2, 3, 4] and counts.min() > 60


def test_a_stage_has_all_arrows() -> None:
    stage = Stage(players=4)
    stage.arrow(200.0, 60.0, 0.0, 0.0, owner=2)
    assert stage.arrows_in_all() == 16
