"""The storage on SQLite and on PostgreSQL: sessions, states, repeats, history, group commit, failures."""

from __future__ import annotations

import asyncio
import math
import random
import sqlite3
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from gymcast.training.events import Event, TrainingMetricsData
from gymcast.training.storage import (
    MOVES,
    TERMINAL,
    Committed,
    HistoryRange,
    IdempotencyError,
    NotFoundError,
    StateError,
    Storage,
    StorageBusyError,
    StorageUnavailableError,
    VersionConflictError,
    new_id,
    repeats,
    rfc3339,
    rollups,
    schema,
    to_us,
    writer,
)
from gymcast.training.storage import storage as storage_module
from gymcast.training.storage.rollups import WIDTHS_S
from gymcast.training.storage.schema import metadata

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.fixture
async def storage(database_url: str) -> AsyncIterator[Storage]:
    async with await Storage.open(database_url) as opened:
        yield opened


@pytest.fixture
async def sqlite_storage(tmp_path: Path) -> AsyncIterator[Storage]:
    async with await Storage.open(f"sqlite:///{tmp_path / 'a.db'}") as opened:
        yield opened


def reading(episode: int, seconds: float = 0.0, **changes: Any) -> TrainingMetricsData:
    return TrainingMetricsData.model_validate(
        {
            "timestamp": START + timedelta(seconds=seconds),
            "episode": episode,
            "total_episodes": None,
            "current_reward": float(episode),
            "average_reward": None,
            "best_reward": None,
            "episode_length": None,
            "win_rate": None,
            "learning_rate": None,
            "algorithm": "PPO",
            "training_time_elapsed": seconds,
            **changes,
        }
    )


def events(*numbers: int) -> list[Event]:
    return [
        Event.model_validate({"seq": number, "ts": START, "type": "training_metrics", "data": reading(number)})
        for number in numbers
    ]


async def external(storage: Storage, **more: Any) -> str:
    return (await storage.create_session(kind="external", algorithm="PPO", **more)).session_id


def test_ids_sort_by_time_and_times_survive() -> None:
    made = [new_id() for _ in range(1000)]
    assert made == sorted(set(made))
    assert rfc3339(to_us(START + timedelta(microseconds=1))) == "2026-01-01T12:00:00.000001Z"
    assert rfc3339(None) is None


async def test_versions_count_up_and_conflicts_are_told(storage: Storage) -> None:
    session_id = await external(storage)
    record = await storage.update_session(session_id, expected_version=1, priority=5)
    assert record.version == 2
    with pytest.raises(VersionConflictError, match="version 2"):
        await storage.update_session(session_id, expected_version=1, priority=6)
    assert (await storage.update_session(session_id, priority=5)).version == 2, "no change, no new version"
    with pytest.raises(NotFoundError):
        await storage.update_session("nobody", priority=1)
    with pytest.raises(VersionConflictError):
        await storage.delete_session(session_id, expected_version=1)


async def test_one_of_many_updates_at_one_version_wins(storage: Storage) -> None:
    session_id = await external(storage)
    results = await asyncio.gather(
        *(storage.update_session(session_id, expected_version=1, priority=number) for number in range(1, 21)),
        return_exceptions=True,
    )
    won = [result for result in results if not isinstance(result, BaseException)]
    assert len(won) == 1
    assert sum(isinstance(result, VersionConflictError) for result in results) == 19
    assert (await storage.get_session(session_id)).priority == won[0].priority


@pytest.mark.parametrize("status", sorted(MOVES))
async def test_only_the_moves_of_the_state_machine(storage: Storage, status: str) -> None:
    for wanted in MOVES:
        session_id = await external(storage, status=status)
        if wanted == status or wanted in MOVES[status]:
            record = await storage.update_session(session_id, status=wanted)
            assert record.status == wanted
            assert (record.end_time is not None) == (wanted in TERMINAL and wanted != status)
        else:
            with pytest.raises(StateError, match=f"{status} cannot become {wanted}"):
                await storage.update_session(session_id, status=wanted)
            assert (await storage.get_session(session_id)).version == 1


async def test_an_ended_session_is_reopened_only_on_request(storage: Storage) -> None:
    session_id = await external(storage)
    await storage.update_session(session_id, status="cancelled", reason="stopped", desired="stopping")
    record = await storage.update_session(session_id, status="queued", reopen=True)
    assert (record.status, record.end_time, record.reason, record.desired) == ("queued", None, None, "running")
    moves = [(move["from_status"], move["to_status"]) for move in await storage.transitions(session_id)]
    assert moves == [(None, "running"), ("running", "cancelled"), ("cancelled", "queued")]


async def test_repeats_are_counted_and_not_stored(storage: Storage) -> None:
    session_id = await external(storage)
    first = await storage.add_events(session_id, "w", events(1, 2, 3))
    again = await storage.add_events(session_id, "w", events(2, 3, 4, 4))
    other = await storage.add_events(session_id, "v", events(2))
    assert (first.accepted, first.duplicates, first.last_seq) == (3, 0, 3)
    assert (again.accepted, again.duplicates, again.last_seq) == (1, 3, 4)
    assert (other.accepted, other.duplicates, other.last_seq) == (1, 0, 2)
    late = await storage.add_events(session_id, "late", events(9, 7, 8))
    assert (late.accepted, late.last_seq) == (3, 9)
    assert await storage.count_readings(session_id, HistoryRange()) == 8
    with pytest.raises(NotFoundError):
        await storage.add_events("nobody", "w", events(1))


async def test_numbers_beyond_a_gap_are_remembered_until_it_closes(storage: Storage) -> None:
    session_id = await external(storage)

    async def accepted(*numbers: int) -> tuple[int, int, int]:
        receipt = await storage.add_events(session_id, "w", events(*numbers))
        return receipt.accepted, receipt.last_seq, await _count(storage, schema.events)

    assert await accepted(1, 2) == (2, 2, 0), "in order: no row is needed"
    assert await accepted(5, 6, 9) == (3, 9, 3)
    assert await accepted(9, 6, 2) == (0, 9, 3)
    assert await accepted(3) == (1, 9, 3)
    assert await accepted(4, 5) == (1, 9, 1), "4 closed the gap up to 6"
    assert await accepted(8, 7) == (2, 9, 0)
    assert await accepted(*range(1, 11)) == (1, 10, 0)
    assert await storage.count_readings(session_id, HistoryRange()) == 10


async def _count(storage: Storage, table: sa.Table) -> int:
    query = sa.select(sa.func.count()).select_from(table)
    return await storage._database.read(lambda connection: connection.execute(query).scalar_one())


async def test_the_same_batch_many_times_at_once_is_stored_once(storage: Storage) -> None:
    session_id = await external(storage)
    receipts = await asyncio.gather(*(storage.add_events(session_id, "w", events(*range(1, 11))) for _ in range(20)))
    assert sum(receipt.accepted for receipt in receipts) == 10
    assert await storage.count_readings(session_id, HistoryRange()) == 10


async def test_listeners_hear_commits_in_order_and_a_broken_one_stops_nobody(
    storage: Storage, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[int] = []

    def broken(_committed: Committed) -> None:
        raise RuntimeError("broken listener")

    session_id = await external(storage)
    storage.listen(broken)
    stop = storage.listen(lambda committed: heard.extend(event.seq for event in committed.events))
    await asyncio.gather(*(storage.add_events(session_id, "w", events(number)) for number in range(1, 31)))
    assert heard == list(range(1, 31))
    assert "broken listener" in caplog.text
    stop()
    await storage.add_events(session_id, "w", events(31))
    assert heard[-1] == 30


async def test_a_failing_job_harms_no_other_of_its_group(storage: Storage) -> None:
    session_id = await external(storage)
    results = await asyncio.gather(
        *(
            storage.add_events("nobody" if number % 5 == 0 else session_id, "w", events(number))
            for number in range(1, 21)
        ),
        return_exceptions=True,
    )
    failed = [number for number, result in enumerate(results, 1) if isinstance(result, NotFoundError)]
    assert failed == [5, 10, 15, 20]
    assert await storage.count_readings(session_id, HistoryRange()) == 16


async def test_a_full_queue_refuses_at_once(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "MAX_WAITING_ROWS", 10)
    session_id = await external(storage)
    results = await asyncio.gather(
        *(storage.add_events(session_id, "w", events(number, number + 100)) for number in range(1, 21)),
        return_exceptions=True,
    )
    refused = [result for result in results if isinstance(result, StorageBusyError)]
    assert len(refused) == 15
    kept = await storage.count_readings(session_id, HistoryRange())
    assert kept == 2 * (20 - len(refused)), "what was refused is not stored, what was not is"


async def test_a_locked_database_is_told_and_recovers(sqlite_storage: Storage, tmp_path: Path) -> None:
    storage = sqlite_storage
    session_id = await external(storage)
    await _pragma(storage, "busy_timeout = 50")  # a short wait instead of five seconds
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StorageUnavailableError):
        await storage.add_events(session_id, "w", events(1))
    assert (await storage.get_session(session_id)).current_episode == 0, "reads go on beside a writer"
    other.execute("ROLLBACK")
    other.close()
    assert (await storage.add_events(session_id, "w", events(1))).accepted == 1


async def test_close_commits_what_waits(database_url: str) -> None:
    storage = await Storage.open(database_url)
    session_id = await external(storage)
    posting = [asyncio.create_task(storage.add_events(session_id, "w", events(number))) for number in range(1, 31)]
    await asyncio.sleep(0)
    await storage.close()
    assert sum(receipt.accepted for receipt in await asyncio.gather(*posting)) == 30
    with pytest.raises(StorageUnavailableError, match="closed"):
        await storage.add_events(session_id, "w", events(99))
    async with await Storage.open(database_url) as again:
        assert await again.count_readings(session_id, HistoryRange()) == 30


async def test_a_caller_that_leaves_does_not_undo_its_write(storage: Storage) -> None:
    session_id = await external(storage)
    heard: list[int] = []
    storage.listen(lambda committed: heard.extend(event.seq for event in committed.events))
    leaving = asyncio.create_task(storage.add_events(session_id, "w", events(1)))
    await asyncio.sleep(0)
    leaving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leaving
    await storage.add_events(session_id, "w", events(2))
    assert await storage.count_readings(session_id, HistoryRange()) == 2
    assert heard == [1, 2]


async def test_delete_takes_everything_along(storage: Storage) -> None:
    session_id = await external(storage)
    kept = await external(storage)
    for one in (session_id, kept):
        await storage.add_events(one, "w", events(1))
    await storage.delete_session(session_id)
    for table in metadata.sorted_tables:
        if "session_id" in table.c and table.name != "idempotency":
            query = sa.select(sa.func.count()).where(table.c.session_id == session_id)
            assert await storage._database.read(partial(sa.Connection.scalar, statement=query)) == 0, table.name
    assert await storage.count_readings(kept, HistoryRange()) == 1


async def test_rollups_equal_the_raw_readings(storage: Storage) -> None:
    session_id = await external(storage)
    # Unordered, uneven, over several days: every level of the rollup is used. Metrics come and go, some are a tail.
    chance = random.Random(7)
    sent = []
    for number in range(600):
        values = {"win_rate": chance.choice([None, 0.0, 62.5])}
        extra = {name: chance.choice([None, chance.uniform(-9, 9)]) for name in "abc" if chance.random() < 0.4}
        sent.append(reading(number, (number * 7919) % 400_000 / 1.7, extra=extra, **values))
    for start, end in ((0, 300), (300, 570), (570, 600)):
        await storage.add_data(session_id, sent[start:end])
    numbers = [(rfc3339(to_us(one.timestamp)), rollups.metric_values(one.__dict__)) for one in sent]
    for points, chosen in ((1, None), (7, ["b", "current_reward", "none"]), (100, ["win_rate"]), (500, None)):
        buckets = await storage.history(session_id, HistoryRange(), points=points, metrics=chosen, max_raw_rows=100)
        assert 1 <= len(buckets) <= points and sum(bucket["count"] for bucket in buckets) == 600
        times = [(bucket["timestamp"], bucket["end"]) for bucket in buckets]
        assert times == sorted(times)
        assert all(left[1] <= right[0] for left, right in pairwise(times))
        for bucket in buckets:
            inside = [values for at, values in numbers if bucket["timestamp"] <= str(at) < bucket["end"]]
            assert bucket["count"] == len(inside)
            names = {name for values in inside for name in values if chosen is None or name in chosen}
            assert bucket["metrics"].keys() == names
            for name in names:
                mine = [values[name] for values in inside if name in values]
                found = bucket["metrics"][name]
                assert (found["count"], found["min"], found["max"]) == (len(mine), min(mine), max(mine))
                assert found["mean"] == pytest.approx(sum(mine) / len(mine), abs=1e-9)


async def test_sums_of_huge_readings_stay_finite(storage: Storage) -> None:
    session_id = await external(storage)
    huge = [1.7e308 * (-1) ** number for number in range(64)]
    for part in (huge, huge[:3]):
        await storage.add_data(session_id, [reading(1, extra={"x": value}) for value in part])
    (bucket,) = await storage.history(session_id, HistoryRange(), points=1, max_raw_rows=0)
    found = bucket["metrics"]["x"]
    assert (found["count"], found["min"], found["max"]) == (67, -1.7e308, 1.7e308)
    assert math.isfinite(found["mean"])


async def test_readings_that_come_one_by_one_are_in_the_history_before_and_after_they_are_summed_up(
    storage: Storage, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    session_id = await external(storage)
    await storage.add_data(session_id, [reading(n, n, extra={"x": n / 2}) for n in range(100)])
    for number in range(100, 110):
        await storage.add_data(session_id, [reading(number, number, win_rate=50.0)])
    await storage.add_data(session_id, [reading(n, n) for n in range(110, 200)])

    async def history() -> list[dict[str, Any]]:
        return await storage.history(session_id, HistoryRange(), points=10, max_raw_rows=0)

    before = await history()
    left = await storage._database.write(partial(rollups.roll_up, session_id=session_id))
    assert left == 0
    assert await storage._database.write(partial(rollups.roll_up, session_id=session_id)) == 0
    assert await history() == before
    assert sum(bucket["count"] for bucket in before) == 200
    rewards = [bucket["metrics"]["current_reward"] for bucket in before]
    assert sum(value["mean"] * value["count"] for value in rewards) == sum(range(200))
    assert sum(bucket["metrics"].get("x", {"count": 0})["count"] for bucket in before) == 100
    assert sum(bucket["metrics"].get("win_rate", {"count": 0})["count"] for bucket in before) == 10
    assert "average_reward" not in before[0]["metrics"]
    # The storage sums them up on its own, also those that an earlier process left behind.
    monkeypatch.setattr(storage_module, "ROLL_SECONDS", 0.01)
    monkeypatch.setattr(storage_module, "_ROLL_PAUSE_S", 0.01)
    await storage.add_data(session_id, [reading(200, 200)])
    await storage.close()
    async with await Storage.open(database_url) as again:
        for _ in range(2000):
            if not await again._database.read(rollups.sessions_with_tails):
                break
            await asyncio.sleep(0.01)
        assert not await again._database.read(rollups.sessions_with_tails)
        buckets = await again.history(session_id, HistoryRange(), points=10, max_raw_rows=0)
        assert sum(bucket["count"] for bucket in buckets) == 201


async def test_time_before_1970_and_one_point(storage: Storage) -> None:
    session_id = await external(storage)
    old = [reading(1, timestamp="0001-01-01T00:00:00Z"), reading(2, timestamp="9999-12-31T23:59:59.999999Z")]
    await storage.add_data(session_id, old)
    for points in (1, 2, 3, 2000):
        buckets = await storage.history(session_id, HistoryRange(), points=points, max_raw_rows=100)
        assert sum(bucket["count"] for bucket in buckets) == 2
    assert len(WIDTHS_S) == 7


async def test_pages_of_readings_with_one_time_have_no_gaps(storage: Storage) -> None:
    session_id = await external(storage)
    await storage.add_data(session_id, [reading(number) for number in range(25)])
    seen: list[int] = []
    cursor = None
    while True:
        page = await storage.history_raw(session_id, HistoryRange(), limit=10, cursor=cursor)
        seen += [item["episode"] for item in page.items]
        cursor = page.next_cursor
        if cursor is None:
            break
    assert seen == list(range(25))


async def test_graphs_keep_their_newest_points(storage: Storage) -> None:
    from gymcast.training.events import PerformanceGraphData

    session_id = await external(storage)
    for start in (0, 5, 8):
        points = [
            {"timestamp": START + timedelta(seconds=n), "value": n + start / 100} for n in range(start, start + 6)
        ]
        graph = PerformanceGraphData.model_validate(
            {
                "graph_id": "g",
                "title": f"title {start}",
                "y_label": "y",
                "metrics": ["a"],
                "data_points": {"a": points},
                "max_points": 8,
            }
        )
        await storage.add_data(session_id, [graph])
    (kept,) = await storage.graphs(session_id)
    assert kept["title"] == "title 8"
    values = [point["value"] for point in kept["data_points"]["a"]]
    assert values == [6.05, 7.05, 8.08, 9.08, 10.08, 11.08, 12.08, 13.08]


async def test_idempotency_keys(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    assert await storage.claim_key("k", "f") is None
    with pytest.raises(IdempotencyError) as raised:
        await storage.claim_key("k", "f")
    assert raised.value.running
    monkeypatch.setattr(repeats, "STALE", timedelta(seconds=-1))
    assert await storage.claim_key("k", "f") is None, "a first request that died does not block its key for ever"
    await storage.settle_key("k", "s1")
    assert await storage.claim_key("k", "f") == "s1"
    with pytest.raises(IdempotencyError) as raised:
        await storage.claim_key("k", "other")
    assert not raised.value.running
    monkeypatch.setattr(repeats, "KEPT", timedelta(hours=-1))
    assert await storage.claim_key("k", "other") is None, "after a day the key is free again"


async def test_a_disk_that_is_full_is_told(sqlite_storage: Storage) -> None:
    storage = sqlite_storage
    session_id = await external(storage)
    pages = await _pragma(storage, "page_count")
    await _pragma(storage, f"max_page_count = {pages}")
    big = [reading(n, n, extra={f"{'x' * 100}{k}": 1.0 for k in range(32)}) for n in range(400)]
    with pytest.raises(StorageUnavailableError):
        await storage.add_data(session_id, big)
    await _pragma(storage, "max_page_count = 1000000")
    assert (await storage.add_data(session_id, big)).accepted == 400


async def _pragma(storage: Storage, text: str) -> Any:
    """Run a PRAGMA on the writer's connection: the only way to a full disk or a short lock without root."""
    return await storage._database.write(lambda connection: connection.exec_driver_sql(f"PRAGMA {text}").scalar())
