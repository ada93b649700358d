"""Ratings with error bars out of who beat whom how often: a Bradley-Terry model on the Elo scale.

The chance that i beats j is ``1 / (1 + 10 ** ((R_j - R_i) / 400))``; a draw counts as half a win. The ratings are those
of the greatest likelihood (R. A. Bradley and M. E. Terry, *Rank analysis of incomplete block designs*, Biometrika 39,
1952; D. R. Hunter, *MM algorithms for generalized Bradley-Terry models*, Annals of Statistics 32, 2004). One drawn game
is added to every pair that has met, so that who won all games has a finite rating, too. One player is the anchor, whose
rating is given; the standard errors are the square roots of the diagonal of the inverse Fisher information of the
others (E. L. Lehmann and G. Casella, *Theory of Point Estimation*, 2nd edition, section 6.5).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ANCHOR_RATING: Final = 1000.0
PRIOR_DRAWS: Final = 1.0
Z_95: Final = 1.959963984540054
_ELO: Final = 400 / math.log(10)  # rating points in one unit of log-odds
_STEPS: Final = 100
_CLOSE: Final = 1e-10


@dataclass(frozen=True, slots=True)
class Pairing:
    """Games of ``first`` against ``second``; ``score`` is the first one's wins and half its draws, 0..games."""

    first: str
    second: str
    games: int
    score: float


@dataclass(frozen=True, slots=True)
class Rating:
    """A rating in Elo points; ``error`` is its standard error, 0 for the anchor."""

    rating: float
    error: float

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval."""
        return self.rating - Z_95 * self.error

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval."""
        return self.rating + Z_95 * self.error


def rate(pairings: Iterable[Pairing], anchor: str) -> dict[str, Rating]:
    """Ratings of all whom games connect to ``anchor``; of the others nothing is known, and they are left out.

    ``ValueError`` for a score outside 0..games or a player against itself.
    """
    met: dict[tuple[str, str], list[float]] = defaultdict(lambda: [PRIOR_DRAWS, PRIOR_DRAWS / 2])
    for pairing in pairings:
        if pairing.first == pairing.second or not 0 <= pairing.score <= pairing.games:
            raise ValueError(f"not a result between two players: {pairing}")
        if pairing.games:
            # One entry for both orders, so that a pair gets its drawn game once.
            turned = pairing.first > pairing.second
            total = met[(pairing.second, pairing.first) if turned else (pairing.first, pairing.second)]
            total[0] += pairing.games
            total[1] += pairing.games - pairing.score if turned else pairing.score
    players = _connected(met, anchor)
    rows = [(players[a], players[b], *total) for (a, b), total in met.items() if a in players]
    strength, variance = _fit(len(players), np.array(rows, dtype=np.float64).reshape(-1, 4))
    return {
        name: Rating(ANCHOR_RATING + _ELO * float(strength[place]), _ELO * math.sqrt(float(variance[place])))
        for name, place in players.items()
    }


def _fit(players: int, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Log-odds strengths (players,) and their variances (players,) out of rows of first, second, games, score (N, 4).

    Newton's method; the likelihood is concave, and a step that overshoots is halved. Player 0 stays at 0.
    """
    first, second = rows[:, 0].astype(np.intp), rows[:, 1].astype(np.intp)
    games, score = rows[:, 2], rows[:, 3]

    def likelihood(strength: NDArray[np.float64]) -> float:
        gap = strength[first] - strength[second]
        return float(np.sum(score * gap - games * np.logaddexp(0.0, gap)))

    strength, information = np.zeros(players), np.zeros((players, players))
    for _ in range(_STEPS):
        chance = 1.0 / (1.0 + np.exp(strength[second] - strength[first]))
        gradient, information = np.zeros(players), np.zeros((players, players))
        np.add.at(gradient, first, score - games * chance)
        np.add.at(gradient, second, games * chance - score)
        weight = games * chance * (1.0 - chance)
        for one, other, sign in ((first, first, 1), (second, second, 1), (first, second, -1), (second, first, -1)):
            np.add.at(information, (one, other), sign * weight)
        step = np.zeros(players)
        step[1:] = np.linalg.solve(information[1:, 1:], gradient[1:])
        if np.max(np.abs(step)) < _CLOSE:
            break
        before = likelihood(strength)
        while likelihood(strength + step) < before and np.max(np.abs(step)) > _CLOSE:
            step /= 2
        strength = strength + step
    variance = np.zeros(players)
    variance[1:] = np.diag(np.linalg.inv(information[1:, 1:]))
    return strength, variance


def _connected(met: Iterable[tuple[str, str]], anchor: str) -> dict[str, int]:
    """Places of the players connected to the anchor, whose own is 0."""
    neighbours: dict[str, list[str]] = defaultdict(list)
    for first, second in met:
        neighbours[first].append(second)
        neighbours[second].append(first)
    found = {anchor: 0}
    waiting = [anchor]
    while waiting:
        for other in neighbours[waiting.pop()]:
            if other not in found:
                found[other] = len(found)
                waiting.append(other)
    return found


@dataclass(frozen=True, slots=True)
class Evaluated:
    """The newest games of a session's bot against one scripted opponent."""

    env_id: str
    session_id: str
    name: str
    opponent: str
    wins: int
    losses: int
    draws: int


def ladders(results: Sequence[Evaluated]) -> list[dict[str, Any]]:
    """One ladder for each environment, as ``GET /api/ratings`` shows it: best first, unrated ones last.

    The anchor is the opponent that most bots have met, the first by name of several.
    """
    by_env: dict[str, list[Evaluated]] = defaultdict(list)
    for result in results:
        by_env[result.env_id].append(result)
    return [_ladder(env_id, by_env[env_id]) for env_id in sorted(by_env)]


def _ladder(env_id: str, results: Sequence[Evaluated]) -> dict[str, Any]:
    met = Counter(result.opponent for result in results)
    anchor = min(met, key=lambda opponent: (-met[opponent], opponent))
    # Two prefixes, because a bot's id and an opponent's name might be the same text.
    pairings = [
        Pairing(f"bot {r.session_id}", f"scripted {r.opponent}", r.wins + r.losses + r.draws, r.wins + r.draws / 2)
        for r in results
    ]
    rated = rate(pairings, f"scripted {anchor}")
    players: dict[str, dict[str, Any]] = {}
    for result in results:
        for key, kind, session_id, name, won, lost in (
            (f"bot {result.session_id}", "bot", result.session_id, result.name, result.wins, result.losses),
            (f"scripted {result.opponent}", "scripted", None, result.opponent, result.losses, result.wins),
        ):
            player = players.setdefault(
                key,
                {"kind": kind, "name": name, "session_id": session_id, "games": 0, "wins": 0, "losses": 0, "draws": 0},
            )
            player["games"] += result.wins + result.losses + result.draws
            player["wins"] += won
            player["losses"] += lost
            player["draws"] += result.draws
    listed = []
    for key, player in players.items():
        found = rated.get(key)
        numbers = (None, None, None, None) if found is None else (found.rating, found.low, found.high, found.error)
        listed.append({**player, **dict(zip(("rating", "ci_low", "ci_high", "standard_error"), numbers, strict=True))})
    listed.sort(key=lambda player: (player["rating"] is None, -(player["rating"] or 0.0), player["name"]))
    return {"env_id": env_id, "anchor": anchor, "anchor_rating": ANCHOR_RATING, "players": listed}
