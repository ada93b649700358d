"""What is kept and listed: retention in small steps, rollups that stay, pages newest first."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from gymcast.training.events import Event, TrainingMetricsData
from gymcast.training.storage import HistoryRange, NewEpisode, NotFoundError, Page, Storage, retention, schema, to_us

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def storage(database_url: str) -> AsyncIterator[Storage]:
    async with await Storage.open(database_url) as opened:
        yield opened


async def external(storage: Storage) -> str:
    return (await storage.create_session(kind="external", algorithm="PPO")).session_id


def reading(number: int) -> TrainingMetricsData:
    optional = ("average_reward", "best_reward", "episode_length", "win_rate", "learning_rate", "total_episodes")
    return TrainingMetricsData.model_validate(
        {
            **dict.fromkeys(optional),
            "timestamp": START + timedelta(seconds=number),
            "episode": number,
            "current_reward": float(number),
            "algorithm": "PPO",
            "training_time_elapsed": 0.0,
        }
    )


def event(number: int, kind: str, data: dict[str, Any]) -> Event:
    return Event.model_validate({"seq": number, "ts": START + timedelta(seconds=number), "type": kind, "data": data})


async def count(storage: Storage, table: sa.Table, session_id: str) -> int:
    query = sa.select(sa.func.count()).select_from(table).where(table.c.session_id == session_id)
    return await storage._database.read(lambda connection: connection.execute(query).scalar_one())


async def test_old_readings_go_and_their_sums_stay(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 70)
    long, short = await external(storage), await external(storage)
    for start in range(0, 600, 200):
        await storage.add_data(long, [reading(n) for n in range(start, start + 200)])
    await storage.add_data(short, [reading(n) for n in range(60)])
    await storage.add_data(long, [reading(600)])  # waits to be summed up, so it stays whatever comes
    assert await storage.clean_up(100) == 500
    assert await storage.clean_up(100) == 0
    assert await count(storage, schema.metrics, long) == 101
    assert await count(storage, schema.metrics, short) == 60
    page = await storage.history_raw(long, HistoryRange(), limit=1000)
    assert [item["episode"] for item in page.items] == list(range(500, 601))
    buckets = await storage.history(long, HistoryRange(), points=20)
    assert sum(bucket["count"] for bucket in buckets) == 601
    rewards = [bucket["metrics"]["current_reward"] for bucket in buckets]
    assert (rewards[0]["min"], rewards[-1]["max"]) == (0.0, 600.0)
    assert sum(value["mean"] * value["count"] for value in rewards) == pytest.approx(sum(range(601)))
    early = HistoryRange(end_us=to_us(START + timedelta(seconds=99)))
    assert sum(bucket["count"] for bucket in await storage.history(long, early, points=20)) == 100


async def test_other_writes_go_in_between(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "BATCH", 10)
    session_id = await external(storage)
    await storage.add_data(session_id, [reading(n) for n in range(400)])
    cleaning = asyncio.create_task(storage.clean_up(100))
    for number in range(1, 6):
        await storage.add_events(session_id, "w", [event(number, "training_metrics", reading(400).to_json())])
        assert not cleaning.done(), "each waits for one batch, not for all of them"
    assert await cleaning >= 300


async def test_decisions_and_reports_are_kept_up_to_the_same_number(storage: Storage) -> None:
    session_id = await external(storage)
    decision = {"timestamp": "2026-01-01T12:00:00Z", "action_probabilities": {"jump": 1.0}}
    error = {"code": "env_restarted", "message": "a lane was restarted"}
    sent = [event(n, "bot_decision", decision) for n in range(1, 151)]
    sent += [event(n, "error", error) for n in range(151, 301)]
    for start in (0, 150):
        await storage.add_events(session_id, "w", sent[start : start + 150])
    beyond_a_gap = event(302, "error", error)
    await storage.add_events(session_id, "w", [beyond_a_gap])
    assert await storage.clean_up(100) == 100
    assert await count(storage, schema.decisions, session_id) == 100
    assert await count(storage, schema.events, session_id) == 101
    again = await storage.add_events(session_id, "w", [sent[0], sent[200], beyond_a_gap])
    assert (again.accepted, again.duplicates) == (0, 3), "a repeat is one still"


async def test_keys_of_requests_go_after_a_day(storage: Storage) -> None:
    now = to_us(datetime.now(UTC))
    await storage.claim_key("k", "f")
    await storage.settle_key("k", "s1")
    assert await storage.clean_up(100, moment_us=now + 23 * 3_600_000_000) == 0
    assert await storage.claim_key("k", "f") == "s1"
    assert await storage.clean_up(100, moment_us=now + 25 * 3_600_000_000) == 1
    assert await storage.claim_key("k", "f") is None


async def test_a_session_and_its_key_are_made_together(storage: Storage) -> None:
    assert await storage.claim_key("k", "f") is None
    record = await storage.create_session(kind="external", algorithm="PPO", repeat_key="k")
    assert await storage.claim_key("k", "f") == record.session_id


async def all_pages(read: Any, session_id: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    page: Page[Any] = await read(session_id, limit=3)
    while True:
        found += page.items
        if page.next_cursor is None:
            return found
        page = await read(session_id, limit=3, cursor=page.next_cursor)


async def test_lists_come_newest_first_and_whole(storage: Storage) -> None:
    session_id = await external(storage)
    sent: list[Event] = []
    for n in range(1, 9):
        checkpoint = {"path": f"step-{n}", "timesteps": n, "episodes": n, "bytes": 1, "sha256": "0" * 64, "reason": "x"}
        games = {"games": 4, "wins": 3, "losses": 1, "draws": 0, "win_rate": 75.0, "ci_low": 30.0, "ci_high": 95.0}
        evaluation = {**games, "opponent": f"o{n}", "mean_return": 1.0, "mean_length": 9.0}
        replay = {
            "replay_id": f"{session_id}-{n}", "env_id": "e", "episode": n, "timesteps": n, "summary": {},
            "bytes_base64": "QUJD",
        }  # fmt: skip
        first = 3 * n - 2
        sent += [
            event(first, "checkpoint", checkpoint),
            event(first + 1, "evaluation", evaluation),
            event(first + 2, "replay", replay),
        ]
    await storage.add_events(session_id, "w", sent)
    down = list(range(8, 0, -1))
    assert [item["timesteps"] for item in await all_pages(storage.checkpoints, session_id)] == down
    assert [item["opponent"] for item in await all_pages(storage.evaluations, session_id)] == [f"o{n}" for n in down]
    replays = await all_pages(storage.replays, session_id)
    assert [item["episode"] for item in replays] == down
    assert "content" not in replays[0]
    for status in ("paused", "running", "paused", "completed"):
        await storage.update_session(session_id, status=status, reason=f"to {status}")
    moves = await all_pages(storage.transition_page, session_id)
    assert [(move["to_status"], move["reason"], move["version"]) for move in moves] == [
        ("completed", "to completed", 5),
        ("paused", "to paused", 4),
        ("running", "to running", 3),
        ("paused", "to paused", 2),
        ("running", None, 1),
    ]
    assert list(reversed(moves)) == await storage.transitions(session_id)


async def test_episodes_are_stored_once(storage: Storage) -> None:
    session_id = await external(storage)
    first: NewEpisode = {"episode_id": "e1", "status": "completed", "total_reward": 1.5, "length": 9, "outcome": "win"}
    failed: NewEpisode = {
        "episode_id": "e2",
        "status": "failed",
        "attempts": 4,
        "error": "it hung",
        "data": {"seed": 7},
    }
    assert await storage.add_episodes(session_id, [first, failed, {**first, "total_reward": 9.0}]) == 2
    assert await storage.add_episodes(session_id, [failed, {"episode_id": "e3", "status": "completed"}]) == 1
    third, second, one = await all_pages(storage.episodes, session_id)
    assert third["episode_id"] == "e3"
    assert (second["status"], second["attempts"], second["error"], second["data"]) == (
        "failed",
        4,
        "it hung",
        {"seed": 7},
    )
    assert (one["total_reward"], one["length"], one["outcome"], one["attempts"]) == (1.5, 9, "win", 1)
    with pytest.raises(NotFoundError):
        await storage.add_episodes("nobody", [])
