"""``GET /api/ratings`` out of stored evaluations."""

from __future__ import annotations

import math
from typing import Any

import aiohttp
import pytest

from gymcast.server import RunningServer

from .conftest import event, expect_problem

RATINGS = "/api/ratings"


def evaluation(opponent: str, wins: int, losses: int) -> dict[str, Any]:
    numbers = {"games": wins + losses, "wins": wins, "losses": losses, "draws": 0}
    return {"opponent": opponent, **numbers, "win_rate": None, "ci_low": None, "ci_high": None,
            "mean_return": 0.0, "mean_length": 1.0}  # fmt: skip


async def report(client: aiohttp.ClientSession, session_id: str, *found: dict[str, Any]) -> None:
    events = [event(number, "evaluation", data) for number, data in enumerate(found, 1)]
    path = f"/api/training/sessions/{session_id}/events"
    async with client.post(path, json={"producer": "w", "events": events}) as answer:
        assert answer.status == 201, await answer.text()


async def test_the_ladder_of_what_is_stored(
    server: RunningServer, client: aiohttp.ClientSession, database_url: str
) -> None:
    async def session(name: str, env_id: str | None) -> str:
        record = await server.storage.create_session(
            kind="external", algorithm="PPO", training_session_id=name, env_id=env_id
        )
        return record.session_id

    async with client.get(RATINGS) as answer:
        assert await answer.json() == {"ladders": []}
    bot, other, unknown = await session("bot", "duel"), await session("other", "maze"), await session("x", None)
    # Of two evaluations against the same opponent the newer one counts; without an opponent there is nothing to rate.
    await report(client, bot, evaluation("easy", 1, 99), evaluation("easy", 75, 25), evaluation("", 10, 0))
    await report(client, other, evaluation("easy", 10, 0))
    await report(client, unknown, evaluation("easy", 10, 0))
    async with client.get(RATINGS) as answer:
        assert [ladder["env_id"] for ladder in (await answer.json())["ladders"]] == ["duel", "maze"]
    async with client.get(RATINGS, params={"env_id": "duel"}) as answer:
        (ladder,) = (await answer.json())["ladders"]
    best, anchor = ladder["players"]
    assert (best["session_id"], best["games"], best["wins"]) == (bot, 100, 75)
    assert best["rating"] == pytest.approx(1000 + 400 * math.log10(75.5 / 25.5))
    assert (anchor["name"], anchor["rating"], anchor["standard_error"]) == ("easy", 1000.0, 0.0)
    async with client.get(RATINGS, params={"limit": "1"}) as answer:
        await expect_problem(answer, 422)
