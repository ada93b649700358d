"""The compiled game and its slow twin play the same matches, compared after every decision, field by field."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from archers_naive import Archer, Arrow, Match, Options, direction_of

from gymcast.envs import game_spec
from gymcast.envs.games import archers as kernels
from gymcast.envs.games.archers_batch import ArchersBatch

SPEC = game_spec("archers")
STATES = {"flying": kernels.FLYING, "falling": kernels.FALLING, "stuck": kernels.STUCK}
NEAR = 1e-6  # px; the twin computes some distances in another way

# players, learners, map, opponent, frame_skip, kills_to_win, seconds, reward, decisions
CASES = [
    (2, 1, "open", "expert", 4, 3, 12.0, "shaped", 400),
    (2, 1, "tower", "advanced", 1, 1, 4.0, "sparse", 500),
    (2, 2, "gauntlet", "self", 4, 3, 8.0, "kills", 400),
    (2, 1, "pit", "intermediate", 4, 2, 20.0, "shaped", 400),
    (3, 1, "open", "mixed", 4, 1, 10.0, "shaped", 300),
    (3, 3, "pit", "self", 1, 2, 6.0, "shaped", 600),
    (4, 1, "random", "beginner", 4, 5, 8.0, "kills", 300),
    (4, 4, "open", "self", 4, 2, 15.0, "sparse", 300),
    (2, 1, "random", "random", 7, 3, 5.0, "shaped", 200),
    (4, 1, "tower", "expert", 1, 3, 7.0, "sparse", 500),
]


class Chooser:
    """Actions that make matches happen: the bow is held for a while and then released, the rest is random."""

    def __init__(self, seed: int, lanes: int) -> None:
        self.random = np.random.default_rng(seed)
        self.lanes = lanes

    def __call__(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        draws = self.random.integers(0, (3, 3, 2, 16), (self.lanes, 4))
        draws[:, 1] = np.where(self.random.random(self.lanes) < 0.7, 0, draws[:, 1])
        draws[:, 2] = self.random.random(self.lanes) < 0.85
        return draws


def check_archer(r: Any, p: int, archer: Archer, where: str) -> None:
    exact = {
        "level": archer.level,
        "move": archer.move,
        "bow": archer.drawn,
        "charge": archer.charge,
        "jumps": archer.jumps,
        "grounded": archer.grounded,
        "quiver": archer.quiver,
        "respawn": archer.respawn,
        "kills": archer.kills,
        "deaths": archer.deaths,
        "shots": archer.shots,
    }
    found = {name: int(r[name][p]) for name in exact}
    assert found == {name: int(value) for name, value in exact.items()}, where
    close = {
        "x": archer.x,
        "y": archer.y,
        "vx": archer.vx,
        "vy": archer.vy,
        "aim_x": archer.aim[0],
        "aim_y": archer.aim[1],
        "reward": archer.reward,
        "episode_return": archer.total,
    }
    for name, value in close.items():
        assert r[name][p] == pytest.approx(value, abs=NEAR), f"{where}: {name}"
    if archer.level >= 0:
        check_mind(r["bot"][p], archer, where)


def check_mind(bot: Any, archer: Archer, where: str) -> None:
    mind = archer.mind
    found = [int(bot[i]) for i in (kernels.BOT_NEXT, kernels.BOT_INTENT_UNTIL, kernels.BOT_INTENT, kernels.BOT_SLOT)]
    assert found == [mind.next_look, mind.intent_until, mind.intent, mind.orders % 4], where
    for k, order in enumerate(mind.pending):
        at = kernels.BOT_QUEUE + kernels.SLOT_SIZE * k
        if order is None:
            assert bot[at] == -1, where
        else:
            expected = [order.due, order.move, order.vertical, order.bow, order.aim]
            assert bot[at : at + kernels.SLOT_SIZE].tolist() == expected, where


def check_arrow(r: Any, a: int, arrow: Arrow | None, where: str) -> None:
    if arrow is None:
        assert r["arrow_state"][a] == kernels.ABSENT, where
        return
    found = [int(r[name][a]) for name in ("arrow_state", "arrow_owner", "arrow_age")]
    assert found == [STATES[arrow.state], arrow.owner, arrow.age], where
    place = [float(r[name][a]) for name in ("arrow_x", "arrow_y", "arrow_vx", "arrow_vy")]
    assert place == pytest.approx([arrow.x, arrow.y, arrow.vx, arrow.vy], abs=NEAR), where
    if arrow.state == "flying":
        assert r["arrow_near"][a] ** 0.5 == pytest.approx(arrow.near, abs=NEAR), where


def check_match(batch: ArchersBatch, match: Match, where: str) -> None:
    r = batch.state[0]
    assert [int(word) for word in r["streams"]] == [
        match.chance.a,
        match.chance.b,
        match.chance.c,
        match.chance.counter,
    ], where
    assert (int(r["tick"]), int(r["arena"])) == (match.ticks, match.arena.index), where
    for p, archer in enumerate(match.archers):
        check_archer(r, p, archer, f"{where}, seat {p}")
    for a, arrow in enumerate(match.arrows):
        check_arrow(r, a, arrow, f"{where}, arrow {a}")


def check_seen(batch: ArchersBatch, match: Match, where: str) -> None:
    for lane in range(batch.lanes):
        np.testing.assert_allclose(
            batch.out.observation[lane], match.observation(lane), rtol=0, atol=1e-6, err_msg=f"{where}, seat {lane}"
        )
        assert batch.out.mask[lane].tolist() == match.mask(lane), f"{where}, seat {lane}"


def check_final(batch: ArchersBatch, match: Match, decisions: int, where: str) -> None:
    out = batch.out
    for lane in range(batch.lanes):
        archer = match.archers[lane]
        np.testing.assert_allclose(out.final_observation[lane], match.observation(lane), rtol=0, atol=1e-6)
        assert out.final_return[lane] == pytest.approx(archer.total, abs=NEAR), where
        found = (out.final_outcome[lane], out.final_kills[lane], out.final_deaths[lane], out.final_length[lane])
        assert found == (match.outcome(lane), archer.kills, archer.deaths, decisions), where


def tally(seen: Counter[str], match: Match, before: list[tuple[float, float, bool]]) -> None:
    """What happened, so that the comparison cannot be of matches in which nothing does."""
    for archer, (x, y, alive) in zip(match.archers, before, strict=True):
        seen["wrapped sideways"] += archer.alive and alive and abs(archer.x - x) > 400
        seen["wrapped up or down"] += archer.alive and alive and abs(archer.y - y) > 300
        seen["died"] += alive and not archer.alive
        seen["came back"] += archer.alive and not alive
        seen["picked up"] += archer.alive and archer.quiver + archer.shots > 4
    for arrow in match.arrows:
        if arrow is not None:
            seen[arrow.state] += 1


def play(case: int, seen: Counter[str]) -> None:
    players, learners, arena, opponent, frame_skip, kills_to_win, seconds, reward, decisions = CASES[case]
    options = SPEC.complete_options(
        {
            "players": players,
            "map": arena,
            "opponent": opponent,
            "frame_skip": frame_skip,
            "kills_to_win": kills_to_win,
            "max_duration_s": seconds,
            "reward": reward,
        }
    )
    batch = ArchersBatch(1, options, learners, autoreset=True)
    levels = (*kernels.LEVELS, "mixed")
    plain = Options(
        players=players,
        learners=learners,
        map=arena,
        opponent=levels.index(opponent) if opponent in levels else 0,
        frame_skip=frame_skip,
        kills_to_win=kills_to_win,
        max_ticks=round(seconds * 50),
        reward=reward,
    )
    seed, episode, length = (case << 33) + 7, 0, 0
    batch.state["seed"] = seed
    batch.reset(np.ones(1, np.bool_))
    match = Match(plain, seed, episode)
    choose = Chooser(case, learners)
    check_match(batch, match, "at the start")
    check_seen(batch, match, "at the start")
    for decision in range(decisions):
        where = f"case {case}, decision {decision}"
        actions = choose()
        before = [(archer.x, archer.y, archer.alive) for archer in match.archers]
        batch.step(actions, 0, 1)
        end = match.decide(
            [((0, -1, 1)[m], int(v), int(b), direction_of(int(aim))) for m, v, b, aim in actions.tolist()]
        )
        length += 1
        tally(seen, match, before)
        rewards = [archer.reward for archer in match.archers[:learners]]
        assert batch.out.reward.tolist() == pytest.approx(rewards, abs=NEAR), where
        assert batch.out.terminated.tolist() == [end == "terminated"] * learners, where
        assert batch.out.truncated.tolist() == [end == "truncated"] * learners, where
        if end:
            seen[end] += 1
            check_final(batch, match, length, where)
            episode, length = episode + 1, 0
            match = Match(plain, seed, episode)
        check_match(batch, match, where)
        check_seen(batch, match, where)


@pytest.fixture(scope="module")
def seen() -> Counter[str]:
    return Counter()


@pytest.mark.parametrize("case", range(len(CASES)), ids=lambda c: "-".join(map(str, CASES[c][:8])))
def test_the_kernel_plays_as_its_twin(case: int, seen: Counter[str]) -> None:
    play(case, seen)


def test_everything_happened_in_the_compared_matches(seen: Counter[str], request: pytest.FixtureRequest) -> None:
    if not seen:
        pytest.skip("run together with the comparisons")
    events = ["died", "came back", "picked up", "wrapped sideways", "wrapped up or down", "flying", "falling", "stuck"]
    assert {name for name in [*events, "terminated", "truncated"] if not seen[name]} == set()
