"""Ratings, where the answer can be written down."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gymcast.training.ratings import Evaluated, Pairing, Rating, ladders, rate

ELO = 400 / math.log(10)


@pytest.mark.parametrize(("games", "score"), [(100, 75.0), (10, 10.0), (10, 0.0), (1000, 500.5), (1, 0.5)])
def test_two_players_are_the_log_odds_and_their_standard_error(games: int, score: float) -> None:
    share = (score + 0.5) / (games + 1)  # with the drawn game that is added
    expected = Rating(1000 + ELO * math.log(share / (1 - share)), ELO / math.sqrt((games + 1) * share * (1 - share)))
    found = rate([Pairing("bot", "anchor", games, score)], "anchor")
    assert found["anchor"] == Rating(1000.0, 0.0)
    assert found["bot"].rating == pytest.approx(expected.rating, abs=1e-6)
    assert found["bot"].error == pytest.approx(expected.error, rel=1e-6)
    assert (found["bot"].low + found["bot"].high) / 2 == pytest.approx(found["bot"].rating)
    assert found["bot"].high - found["bot"].low == pytest.approx(2 * 1.959964 * expected.error, rel=1e-6)
    turned = rate([Pairing("anchor", "bot", games, games - score)], "anchor")
    assert turned["bot"].rating == pytest.approx(found["bot"].rating)


def test_a_chain_adds_gaps_and_variances() -> None:
    """In a chain each gap is a two-player fit of its own, and the gaps are independent."""
    chain = rate([Pairing("a", "anchor", 50, 30.0), Pairing("b", "a", 80, 60.0)], "anchor")
    first = rate([Pairing("a", "anchor", 50, 30.0)], "anchor")["a"]
    second = rate([Pairing("b", "a", 80, 60.0)], "a")["b"]
    assert chain["a"].rating == pytest.approx(first.rating)
    assert chain["b"].rating - 1000 == pytest.approx(first.rating - 1000 + second.rating - 1000)
    assert chain["b"].error == pytest.approx(math.hypot(first.error, second.error))


def test_games_in_parts_and_in_either_order_are_the_same_games() -> None:
    whole = rate([Pairing("bot", "anchor", 30, 20.5)], "anchor")
    parts = [Pairing("bot", "anchor", 10, 8.0), Pairing("anchor", "bot", 20, 7.5), Pairing("bot", "anchor", 0, 0.0)]
    assert rate(parts, "anchor")["bot"].rating == pytest.approx(whole["bot"].rating)


def test_expected_scores_are_the_real_ones_in_a_round_robin() -> None:
    """At the greatest likelihood every player's expected score is the one it has (prior games included)."""
    scores = {("a", "b"): 61.0, ("b", "c"): 70.5, ("c", "a"): 12.0, ("a", "d"): 99.5, ("d", "c"): 30.0}
    found = rate([Pairing(one, other, 100, score) for (one, other), score in scores.items()], "a")
    for player in "bcd":
        expected = actual = 0.0
        for (one, other), score in scores.items():
            if player in (one, other):
                rival = other if player == one else one
                gap = found[rival].rating - found[player].rating
                expected += 101 / (1 + 10 ** (gap / 400))
                actual += 0.5 + (score if player == one else 100 - score)
        assert expected == pytest.approx(actual, abs=1e-6)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    truth = {"anchor": 1000.0, "a": 1120.0, "b": 930.0, "c": 1300.0}
    held = tried = 0
    for _ in range(400):
        pairings = []
        for one, other in (("a", "anchor"), ("b", "anchor"), ("c", "a"), ("c", "b"), ("b", "a")):
            chance = 1 / (1 + 10 ** ((truth[other] - truth[one]) / 400))
            pairings.append(Pairing(one, other, 200, float(random.binomial(200, chance))))
        found = rate(pairings, "anchor")
        held += sum(found[name].low <= truth[name] <= found[name].high for name in "abc")
        tried += 3
    assert 0.92 < held / tried < 0.975


def test_who_has_no_games_with_the_anchors_side_is_left_out() -> None:
    found = rate([Pairing("a", "anchor", 4, 2.0), Pairing("x", "y", 4, 2.0)], "anchor")
    assert set(found) == {"anchor", "a"}
    assert set(rate([], "anchor")) == {"anchor"}
    for wrong in (Pairing("a", "a", 1, 1.0), Pairing("a", "b", 1, 2.0), Pairing("a", "b", 1, -1.0)):
        with pytest.raises(ValueError, match="not a result"):
            rate([wrong], "anchor")


def test_ladders_are_one_for_each_game_with_the_best_first() -> None:
    def games(env: str, session: str, opponent: str, wins: int, losses: int) -> Evaluated:
        return Evaluated(env, session, f"name of {session}", opponent, wins, losses, 100 - wins - losses)

    duel, other = ladders(
        [
            games("duel", "s1", "easy", 90, 10),
            games("duel", "s1", "hard", 40, 50),
            games("duel", "s2", "easy", 60, 30),
            games("other", "s3", "easy", 10, 90),
            games("other", "s4", "lonely", 50, 50),
        ]
    )
    assert (duel["env_id"], duel["anchor"], duel["anchor_rating"]) == ("duel", "easy", 1000.0)
    assert [player["name"] for player in duel["players"]] == ["hard", "name of s1", "name of s2", "easy"]
    bot = duel["players"][1]
    assert (bot["kind"], bot["session_id"], bot["games"], bot["wins"], bot["losses"], bot["draws"]) == (
        *("bot", "s1", 200),
        *(130, 60, 10),
    )
    assert bot["ci_low"] < bot["rating"] < bot["ci_high"]
    assert [player["standard_error"] for player in duel["players"] if player["name"] == "easy"] == [0.0]
    assert [(player["name"], player["rating"] is None) for player in other["players"]] == [
        ("easy", False),
        ("name of s3", False),
        ("lonely", True),
        ("name of s4", True),
    ]
