"""Arrows and archers: hits, deaths, pick-ups, the end of a match, rewards."""

from __future__ import annotations

import numpy as np
import pytest
from archers_stage import FAR, Stage, lively_actions
from hypothesis import given, settings
from hypothesis import strategies as st

from gymcast.envs import GameVectorEnv
from gymcast.envs.games import archers as kernels
from gymcast.envs.games.archers_maps import NAMES

SKY = (200.0, 60.0)  # in the open map: in the air, nothing near


def duel(**options: object) -> Stage:
    """Seat 0 far away, seat 1 in the sky."""
    stage = Stage(**options)  # type: ignore[arg-type]
    stage.put(0, *FAR)
    stage.put(1, *SKY)
    return stage


def hit(stage: Stage, victim: int = 1, by: int = 0) -> None:
    """Put a deadly arrow into an archer and play a tick."""
    stage.arrow(float(stage.r["x"][victim]), float(stage.r["y"][victim]), 0.0, 0.0, owner=by)
    stage.step()


def test_the_flying_arrow_of_another_kills() -> None:
    stage = duel()
    hit(stage)
    assert stage.r["deaths"].tolist()[:2] == [0, 1] and stage.r["kills"].tolist()[:2] == [1, 0]
    assert stage.r["respawn"][1] > 0


def test_the_own_arrow_is_harmless() -> None:
    stage = duel()
    slot = stage.arrow(*SKY, 0.0, 0.0, owner=1)
    stage.step()
    assert stage.r["deaths"].tolist()[:2] == [0, 0] and stage.r["arrow_state"][slot] == kernels.FLYING


@pytest.mark.parametrize("state", [kernels.FALLING, kernels.STUCK])
def test_an_arrow_that_does_not_fly_is_harmless(state: int) -> None:
    stage = duel()
    stage.arrow(*SKY, 0.0, 100.0, owner=0, state=state)
    stage.step()
    assert stage.r["deaths"].tolist()[:2] == [0, 0]


@pytest.mark.parametrize(
    ("ahead", "beside", "dies"),
    [
        (0.0, 19.5, True),  # beside the tip
        (0.0, 20.5, False),
        (-19.0, 0.0, True),  # 19 px short of the centre
        (-20.5, 0.0, False),
        (39.0, 0.0, True),  # the tip 39 px past it, the tail 19 px
        (41.0, 0.0, False),
        (20.0, 19.5, True),  # beside the tail
        (10.0, 20.5, False),
    ],
)
def test_an_arrow_is_a_line_of_20_px_and_an_archer_a_disc_of_20_px(ahead: float, beside: float, dies: bool) -> None:
    """The tip is `ahead` px past the archer's centre along its flight to the East, `beside` px below it."""
    stage = duel()
    stage.put(1, *SKY, vy=-8.0)  # gravity takes that away: both stand still in y
    stage.arrow(SKY[0] + ahead - 12.0, SKY[1] + beside, 600.0, -8.0, owner=0)
    stage.step()
    assert bool(stage.r["deaths"][1] == 1) is dies


def test_a_hit_counts_across_the_edge_of_the_arena() -> None:
    stage = duel()
    stage.put(1, 5.0, 60.0)
    stage.arrow(780.0, 60.0, 600.0, 0.0, owner=0)  # comes to 792: 13 px from the archer
    stage.step()
    assert stage.r["deaths"][1] == 1


def test_the_victim_drops_one_arrow_and_comes_back_after_five_seconds_without_new_ones() -> None:
    stage = duel()
    stage.r["quiver"][1] = 3
    stage.arrow(790.0, 300.0, 0.0, 0.0, owner=1, state=kernels.STUCK)
    stage.r["quiver"][1] = 3
    hit(stage)
    assert stage.r["quiver"][1] == 2
    dropped = np.flatnonzero(stage.r["arrow_state"] == kernels.FALLING)
    assert sorted(stage.r["arrow_owner"][dropped].tolist()) == [0, 1], "the dropped one and the one that hit"
    waited = 0
    while stage.r["respawn"][1] > 0:
        stage.put(0, *FAR)
        stage.step((0, 0, 0, 0), (2, 1, 1, 5))
        waited += 1
        assert stage.r["move"][1] == 0, "the dead do nothing"
    assert waited == 5 * 50 - 1, "killed in one tick, back for the 250th after it"
    assert stage.r["quiver"][1] == 2 and stage.r["jumps"][1] == 2 and stage.r["bow"][1] == 0


def test_a_victim_without_arrows_drops_none() -> None:
    stage = duel()
    stage.r["quiver"][1] = 0
    hit(stage)
    assert stage.r["quiver"][1] == 0 and (stage.r["arrow_state"] != kernels.ABSENT).sum() == 1


def test_a_drawn_bow_is_lost_with_its_archer() -> None:
    stage = duel()
    stage.step((0, 0, 0, 0), (0, 0, 1, 0), n=5)
    stage.put(1, *SKY)
    hit(stage)
    assert stage.r["bow"][1] == 0 and stage.r["charge"][1] == 0


@pytest.mark.parametrize(("away", "taken"), [(29.5, True), (30.5, False)])
@pytest.mark.parametrize("state", [kernels.FALLING, kernels.STUCK])
def test_an_arrow_within_30_px_is_picked_up(away: float, taken: bool, state: int) -> None:
    """The archer's 20 px and the arrow's 10 px."""
    stage = duel()
    stage.put(1, *SKY, vy=-8.0)
    slot = stage.arrow(SKY[0] - away, SKY[1], 0.0, -8.0, owner=0, state=state)
    stage.r["quiver"][:2] = (4, 3)
    stage.step()
    assert bool(stage.r["arrow_state"][slot] == kernels.ABSENT) is taken
    assert stage.r["quiver"][1] == (4 if taken else 3)


def test_nobody_carries_more_than_four_arrows() -> None:
    stage = duel()
    slot = stage.arrow(*SKY, 0.0, 0.0, owner=0, state=kernels.STUCK)
    stage.step()
    assert stage.r["quiver"][1] == 4 and stage.r["arrow_state"][slot] == kernels.STUCK


def test_an_empty_quiver_draws_no_bow() -> None:
    stage = duel()
    stage.r["quiver"][1] = 0
    stage.step((0, 0, 0, 0), (0, 0, 1, 0), n=3)
    assert stage.r["bow"][1] == 0 and not stage.batch.out.mask[1, 7]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**40),
    players=st.sampled_from((2, 3, 4)),
    arena=st.sampled_from((*NAMES, "random")),
    observation=st.sampled_from(("vector", "vector", "grid", "pixels")),
    frame_skip=st.sampled_from((1, 4, 9)),
    kills_to_win=st.sampled_from((1, 3)),
    opponent=st.sampled_from(("self", "mixed", "expert", "random")),
)
def test_arrows_are_conserved_and_observations_bounded(
    seed: int, players: int, arena: str, observation: str, frame_skip: int, kills_to_win: int, opponent: str
) -> None:
    env = GameVectorEnv(
        "archers",
        4 * players if opponent == "self" else 4,
        threads=1,
        players=players,
        map=arena,
        opponent=opponent,
        observation=observation,
        frame_skip=frame_skip,
        kills_to_win=kills_to_win,
        max_duration_s=8,
    )
    random = np.random.default_rng(seed)
    seen, infos = env.reset(seed=seed)
    for _ in range(60):
        state = env.batch.state
        total = (state["arrow_state"] != kernels.ABSENT).sum(axis=1) + state["quiver"].sum(axis=1)
        assert (total == 4 * players).all()
        assert (state["x"] >= 0).all() and (state["x"] < 800).all() and (state["arrow_x"] < 800).all()
        assert (state["y"] >= 0).all() and (state["y"] < 600).all() and (state["arrow_y"] < 600).all()
        for array in (seen, infos.get("final_obs", seen)):
            if observation == "vector":
                assert np.isfinite(array).all() and (np.abs(array) <= 1).all()
            else:
                assert array.dtype == np.uint8
        assert infos["action_mask"][:, [0, 3, 6, 8]].all(), "every group has a legal action"
        seen, _, _, _, infos = env.step(lively_actions(random, env.num_envs))


# ------------------------------------------------------------------------------------------------------------ the end


@pytest.mark.parametrize("needed", [1, 2, 3])
def test_enough_kills_terminate_the_match(needed: int) -> None:
    stage = duel(kills_to_win=needed)
    for kill in range(needed):
        assert stage.ended == ""
        stage.put(1, *SKY, respawn=0)
        stage.put(0, *FAR)
        hit(stage)
        assert stage.r["kills"][0] == kill + 1
    assert stage.ended == "terminated"
    assert stage.batch.out.final_outcome.tolist() == [1, -1]
    assert stage.batch.out.final_kills.tolist() == [needed, 0] and stage.batch.out.final_deaths.tolist() == [0, needed]


def test_the_time_limit_truncates_the_match() -> None:
    stage = Stage(max_duration_s=1)
    stage.step(n=49)
    assert stage.ended == ""
    stage.step()
    assert stage.ended == "truncated" and stage.batch.out.final_outcome.tolist() == [0, 0]


def test_the_default_match_lasts_60_seconds_and_three_kills() -> None:
    assert Stage().batch.rules[1:3] == (3, 60 * 50)


def test_a_kill_in_the_last_tick_terminates() -> None:
    stage = duel(max_duration_s=1, kills_to_win=1)
    stage.r["tick"] = 49
    hit(stage)
    assert stage.ended == "terminated"


def test_killing_each_other_in_one_tick_is_a_draw() -> None:
    stage = duel(kills_to_win=1)
    stage.arrow(*FAR, 0.0, 0.0, owner=1)
    stage.arrow(*SKY, 0.0, 0.0, owner=0)
    stage.step()
    assert stage.ended == "terminated" and stage.batch.out.final_outcome.tolist() == [0, 0]
    assert stage.rewards == [0.0, 0.0]


def test_more_kills_than_needed_in_one_tick_stay_within_the_observation() -> None:
    stage = Stage(players=3, kills_to_win=1)
    stage.put(0, *FAR)
    stage.put(1, *SKY)
    stage.put(2, 500.0, 60.0)
    stage.arrow(*SKY, 0.0, 0.0, owner=0)
    stage.arrow(500.0, 60.0, 0.0, 0.0, owner=0)
    stage.step()
    assert stage.r["kills"][0] == 2 and stage.batch.out.final_outcome.tolist() == [1, -1, -1]
    assert (np.abs(stage.batch.out.final_observation) <= 1).all()


def test_of_three_only_the_best_alone_wins() -> None:
    stage = Stage(players=3, max_duration_s=1)
    stage.r["tick"] = 49
    stage.r["kills"][:3] = (2, 2, 1)
    stage.step()
    assert stage.batch.out.final_outcome.tolist() == [0, 0, -1]


# ------------------------------------------------------------------------------------------------------------ rewards


@pytest.mark.parametrize(("scheme", "death"), [("kills", 1.0), ("shaped", kernels.SHAPED_DEATH)])
def test_a_kill_is_worth_one_and_costs_the_victim(scheme: str, death: float) -> None:
    stage = duel(reward=scheme)
    stage.r["quiver"][1] = 0  # so that no arrow is dropped
    hit(stage)
    assert stage.rewards == [1.0, -death]


def test_sparse_rewards_are_of_the_end_only() -> None:
    stage = duel(kills_to_win=2)
    hit(stage)
    assert stage.rewards == [0.0, 0.0]
    stage.put(1, *SKY, respawn=0)
    stage.put(0, *FAR)
    hit(stage)
    assert stage.rewards == [1.0, -1.0]


def test_the_end_adds_the_match_to_the_shaped_reward() -> None:
    stage = duel(kills_to_win=1, reward="shaped")
    stage.r["quiver"][1] = 0
    hit(stage)
    assert stage.rewards == [1.0 + kernels.SHAPED_MATCH, -kernels.SHAPED_DEATH - kernels.SHAPED_MATCH]


def test_the_end_adds_nothing_to_kills_and_truncation_nothing_to_any() -> None:
    stage = duel(kills_to_win=1, reward="kills")
    hit(stage)
    assert stage.ended == "terminated" and stage.rewards == [1.0, -1.0]
    for scheme in ("sparse", "kills", "shaped"):
        stage = Stage(max_duration_s=1, reward=scheme)
        stage.r["tick"] = 49
        stage.r["kills"][0] = 1
        stage.step()
        assert stage.ended == "truncated" and stage.rewards == [0.0, 0.0]


def test_the_shaped_scheme_counts_arrows_in_the_quiver() -> None:
    stage = duel(reward="shaped")
    stage.step((0, 0, 1, 0), n=4)
    assert stage.rewards == [0.0, 0.0]
    stage.step((0, 0, 0, 12))  # up
    assert stage.rewards == pytest.approx([-kernels.SHAPED_ARROW, 0.0])
    stage.put(1, *SKY)
    stage.arrow(*SKY, 0.0, 0.0, owner=0, state=kernels.STUCK)
    stage.r["quiver"][1] = 3
    stage.step()
    assert stage.rewards == pytest.approx([0.0, kernels.SHAPED_ARROW])
    stage.put(1, *SKY)
    hit(stage)  # the victim drops one
    assert stage.rewards == pytest.approx([1.0, -kernels.SHAPED_DEATH - kernels.SHAPED_ARROW])


@pytest.mark.parametrize("distance", [30.0, 60.0, 90.0, 130.0])
def test_the_shaped_scheme_rewards_a_near_miss_when_the_flight_ends(distance: float) -> None:
    stage = duel(reward="shaped")
    slot = stage.arrow(SKY[0] + distance, SKY[1], 0.0, 0.0, owner=0)
    stage.put(1, *SKY)
    stage.step()
    assert stage.rewards == [0.0, 0.0], "not before the flight ends"
    stage.r["arrow_age"][slot] = 249
    stage.put(1, *FAR[:1], 300.0)
    stage.step()
    assert stage.r["arrow_state"][slot] == kernels.FALLING
    near = max(0.0, 1 - distance / kernels.NEAR) * kernels.SHAPED_NEAR
    assert stage.rewards == pytest.approx([near, 0.0], abs=1e-9)
