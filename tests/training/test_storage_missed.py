"""Numbers of live messages, and reading back those that a server process missed."""

from __future__ import annotations

import asyncio
from typing import Any

from gymcast.training.events import Event
from gymcast.training.storage import Storage

READING = {
    "timestamp": "2026-01-01T12:00:00Z",
    "episode": 1,
    "total_episodes": 100,
    "current_reward": 1.5,
    "average_reward": 1.0,
    "best_reward": 2.0,
    "episode_length": 10,
    "win_rate": 50.0,
    "learning_rate": 0.001,
    "model_generation": 1,
    "algorithm": "PPO",
    "training_time_elapsed": 1.0,
}
CHECKPOINT = {"path": "c", "timesteps": 1, "episodes": 1, "bytes": 1, "sha256": "0" * 64, "reason": "interval"}


def event(seq: int, kind: str, **data: Any) -> Event:
    return Event.model_validate({"seq": seq, "type": kind, "data": data})


def reading(seq: int) -> Event:
    return event(seq, "training_metrics", **{**READING, "episode": seq})


async def external(storage: Storage) -> str:
    return (await storage.create_session(kind="external", algorithm="PPO")).session_id


async def test_every_type_counts_for_itself(database_url: str) -> None:
    async with await Storage.open(database_url) as storage:
        told: list[dict[str, int]] = []
        storage.listen(lambda committed: told.append(committed.session.heads) if committed.session else None)
        session_id = await external(storage)
        batch = [
            reading(1),
            event(2, "error", code="odd", message="odd"),
            event(3, "training_status", status="running", phase="training"),
            event(4, "checkpoint", **CHECKPOINT),
            reading(5),
        ]
        await storage.add_events(session_id, "w", batch)
        await storage.add_events(session_id, "w", batch)  # repeats count nothing
        await storage.update_session(session_id, current_episode=9)
        await storage.update_session(session_id, current_episode=9)  # no change, no message
        heads = {"training_status": 3, "training_metrics": 2, "error": 1, "checkpoint": 1}
        assert (await storage.get_session(session_id)).heads == heads
        assert await storage.heads([session_id, "unknown"]) == {session_id: heads}
        assert [one.get("training_status") for one in told] == [1, 2, 3]


async def test_leases_are_told_with_numbers(database_url: str) -> None:
    async with await Storage.open(database_url) as storage:
        session_id = (await storage.create_session(kind="managed", algorithm="PPO")).session_id
        told: list[int] = []
        storage.listen(lambda committed: told.append(committed.session.heads["training_status"]))  # type: ignore[union-attr]
        await storage.leases.claim("me", session_id=session_id)
        await storage.leases.renew("me")
        await storage.leases.release(session_id, "me", status="retrying")
        assert told == [2, 3]


async def test_messages_are_read_back_as_they_were_told(database_url: str) -> None:
    async with await Storage.open(database_url) as storage:
        session_id = await external(storage)
        events = [reading(number) for number in range(1, 8)]
        others = [
            event(8, "checkpoint", **CHECKPOINT),
            event(9, "error", code="a", message="first"),
            event(10, "training_status", status="running"),
            event(11, "error", code="b", message="second"),
        ]
        await storage.add_events(session_id, "w", events + others)
        found = await storage.read_back(session_id, "training_metrics", 4, 100)
        assert [(one.seq, one.data) for one in found] == [(n, events[n - 1].data.to_json()) for n in (5, 6, 7)]
        # The newest, when there is room for fewer.
        assert [one.seq for one in await storage.read_back(session_id, "training_metrics", 0, 2)] == [6, 7]
        assert await storage.read_back(session_id, "training_metrics", 7, 100) == []
        (checkpoint,) = await storage.read_back(session_id, "checkpoint", 0, 100)
        assert (checkpoint.seq, checkpoint.data) == (1, others[0].data.to_json())
        errors = await storage.read_back(session_id, "error", 0, 100)
        assert [(one.seq, one.data["message"]) for one in errors] == [(1, "first"), (2, "second")]
        assert await storage.read_back(session_id, "graph_update", 0, 100) == []
        assert await storage.read_back("unknown", "error", 0, 100) == []
        await storage.clean_up(1)
        assert [one.seq for one in await storage.read_back(session_id, "error", 0, 100)] == [2]


async def test_two_processes_never_give_one_number_twice(postgres_url: str) -> None:
    async with await Storage.open(postgres_url) as one, await Storage.open(postgres_url) as two:
        session_id = await external(one)
        given: list[int] = []
        for storage in (one, two):
            storage.listen(lambda committed: given.append(committed.session.heads["training_metrics"]))  # type: ignore[union-attr]
        await asyncio.gather(
            *(
                storage.add_events(session_id, name, [reading(n)])
                for storage, name in ((one, "a"), (two, "b"))
                for n in range(1, 21)
            )
        )
        assert sorted(given) == list(range(1, 41))
        found = await one.read_back(session_id, "training_metrics", 0, 100)
        assert [message.seq for message in found] == list(range(1, 41))
