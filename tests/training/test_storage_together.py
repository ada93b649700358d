"""Reports that are stored together: the same as one after the other, and nobody suffers for another's."""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from gymcast.training.events import Event, EventReceipt, Message, TrainingMetricsData, event_type_of
from gymcast.training.storage import Committed, DuplicateIdError, HistoryRange, NotFoundError, Storage, schema
from gymcast.training.storage.rollups import roll_up

from .test_storage import START, reading

# Columns that tell when something was stored, or name its row.
_OWN = frozenset(
    {"id", "session_id", "training_session_id", "created_us", "updated_us", "start_us", "end_us", "seen_us"}
)
_PRODUCERS = ("a", "b", None)


@pytest.fixture
async def storage(database_url: str) -> AsyncIterator[Storage]:
    async with await Storage.open(database_url) as opened:
        yield opened


def some_data(chance: random.Random, number: int) -> Message:
    """Data of any kind that is stored, with values that depend on ``number``."""
    at = START + timedelta(seconds=number)
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("bot_decision", {"timestamp": at, "action_probabilities": {"left": 0.25, "right": 0.75}}),
        (
            "graph_update",
            {
                "graph_id": f"g{number % 2}",
                "title": f"Graph {number}",
                "metrics": ["x"],
                "y_label": "y",
                "max_points": 5,
                "data_points": {"x": [{"timestamp": at, "value": number}]},
            },
        ),
        ("training_status", {"status": chance.choice(["running", "paused", "running", "completed"])}),
        ("error", {"code": "odd", "message": f"number {number}"}),
        (
            "checkpoint",
            {
                "path": f"{number}.zip",
                "timesteps": number,
                "episodes": 1,
                "bytes": 9,
                "sha256": "0" * 64,
                "reason": "t",
            },
        ),
        ("training_metrics", reading(number, number, extra={"timesteps": number}).to_json()),
    ]
    kind, data = chance.choice(kinds)
    return Event.model_validate({"seq": 1, "type": kind, "data": data}).data


def some_reports(seed: int) -> list[tuple[int, str | None, int, list[Message]]]:
    """``(session, producer, first number, data)`` with repeats, gaps that close later, heartbeats and bulk."""
    chance = random.Random(seed)
    highest = dict.fromkeys([(session, name) for session in range(3) for name in ("a", "b")], 0)
    found: list[tuple[int, str | None, int, list[Message]]] = []
    for number in range(60):
        session, producer = chance.randrange(3), chance.choice(_PRODUCERS)
        size = chance.choice([0, 1, 1, 2, 5, 60])
        if size == 60:
            data: list[Message] = [reading(number * 100 + place, number * 7 + place) for place in range(size)]
        else:
            data = [some_data(chance, number * 10 + place) for place in range(size)]
        first = 1
        if producer is None:
            data = [item for item in data if isinstance(item, TrainingMetricsData)] or [reading(number, number)]
        else:
            head = highest[session, producer]
            first = max(1, head + 1 + chance.choice([0, 0, -3, -9, 2]))
            highest[session, producer] = max(head, first + size - 1 if chance.random() < 0.8 else head)
        found.append((session, producer, first, data))
    return found


async def send(
    storage: Storage, session_id: str, producer: str | None, first: int, data: list[Message]
) -> EventReceipt:
    if producer is None:
        return await storage.add_data(session_id, data)
    return await storage.add_events(session_id, producer, numbered(first, data))


def numbered(first: int, data: list[Message]) -> list[Event]:
    return [
        Event.model_validate({"seq": first + place, "ts": START, "type": event_type_of(item), "data": item})
        for place, item in enumerate(data)
    ]


async def stored(storage: Storage, session_id: str) -> dict[str, list[dict[str, Any]]]:
    """Every row of a session, in the order of storing, without what tells when that was."""

    def read(connection: sa.Connection) -> dict[str, list[dict[str, Any]]]:
        found = {}
        for table in schema.metadata.sorted_tables:
            if "session_id" not in table.c or table.name == "idempotency":
                continue
            drop = _OWN | ({"ts_us"} if table.name in ("transitions", "events") else set())
            if table.name == "sessions":
                drop |= {"rolled_id"}
            rows = connection.execute(
                sa.select(table).where(table.c.session_id == session_id).order_by(*table.primary_key)
            ).mappings()
            found[table.name] = [{name: value for name, value in row.items() if name not in drop} for row in rows]
        return found

    return await storage._database.read(read)


@pytest.mark.parametrize("seed", range(3))
async def test_together_is_the_same_as_one_after_the_other(
    storage: Storage, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    transactions: list[object] = []
    write = storage._database.write

    def counted(job: Any) -> Any:
        transactions.append(job)
        return write(job)

    monkeypatch.setattr(storage._database, "write", counted)
    heard: dict[str, list[tuple[str, Any]]] = {}

    def listen(committed: Committed) -> None:
        told = heard.setdefault(committed.session_id, [])
        told += [(event.type, event.data) for event in committed.events]
        told.append(("heads", committed.heads))

    storage.listen(listen)
    reports = some_reports(seed)
    found = []
    for together in (False, True):
        ids = [(await storage.create_session(kind="external", algorithm="PPO")).session_id for _ in range(3)]
        calls = [send(storage, ids[session], producer, first, data) for session, producer, first, data in reports]
        transactions.clear()
        receipts = await asyncio.gather(*calls) if together else [await call for call in calls]
        assert len(transactions) < 10 if together else len(transactions) >= len(reports)
        for session_id in ids:
            while await storage._database.write(lambda c, session_id=session_id: roll_up(c, session_id)):  # type: ignore[misc]
                pass
        found.append((receipts, [await stored(storage, name) for name in ids], [heard[name] for name in ids]))
    assert sum(receipt.accepted for receipt in found[0][0]) > 200
    assert sum(receipt.duplicates for receipt in found[0][0]) > 5
    assert found[1] == found[0]


async def test_a_report_to_nobody_and_one_that_fails_keep_no_other_up(storage: Storage) -> None:
    names = [(await storage.create_session(kind="external", algorithm="PPO")).session_id for _ in range(4)]
    replay = {
        "replay_id": "taken",
        "env_id": "x",
        "episode": 1,
        "timesteps": 1,
        "summary": {},
        "bytes_base64": base64.b64encode(b"replay").decode(),
    }
    event = Event.model_validate({"seq": 1, "type": "replay", "data": replay})
    await storage.add_events(names[0], "a", [event])
    done = await asyncio.gather(
        storage.add_data(names[1], [reading(1)]),
        storage.add_data("nobody", [reading(1)]),
        storage.add_data(names[2], [reading(1)]),
        return_exceptions=True,
    )
    assert isinstance(done[1], NotFoundError)
    assert [one.accepted for one in done if isinstance(one, EventReceipt)] == [1, 1]
    done = await asyncio.gather(
        storage.add_data(names[1], [reading(2)]),
        storage.add_events(names[3], "a", [event]),
        storage.add_data(names[2], [reading(2)]),
        return_exceptions=True,
    )
    assert isinstance(done[1], DuplicateIdError)
    assert [one.last_seq for one in done if isinstance(one, EventReceipt)] == [2, 2]
    counts = [sum(b["count"] for b in await storage.history(name, HistoryRange(), points=1)) for name in names]
    assert counts == [0, 2, 2, 0]
