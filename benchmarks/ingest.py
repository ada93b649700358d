"""How fast the storage takes readings, and how fast it gives a long history back.

    python benchmarks/ingest.py                                       SQLite in a temporary folder
    python benchmarks/ingest.py --database postgresql://postgres@127.0.0.1/empty_database

    python benchmarks/ingest.py --only http                           a whole server, asked over kept-alive connections
    python benchmarks/ingest.py --only history                        a long history of a whole server

Every figure is the median of ``--repeats``. Over HTTP: the server is a process of its own, and its processor time is
what counts; a handler that does nothing is measured in turn with it. In process: readings are validated models already,
as they are when a request has been parsed. A reading has 14 numbers; "committed" means on disk. Bulk: ``--producers``
sessions, batches of 500, the writer never idle. One by one: each waits for its commit before the next. The history is
1,000 buckets over ``--rows`` readings of one session, one a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import tempfile
import time
from datetime import UTC, datetime, timedelta
from functools import partial
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from _common import interleave, machine, median, table
from _posts import measure
from _processes import Process
from gymcast.training.events import Event, TrainingMetricsData
from gymcast.training.storage import HistoryRange, Storage

START = datetime(2026, 1, 1, tzinfo=UTC)
BATCH = 500
NUMBERS = 14


def reading(number: int) -> TrainingMetricsData:
    return TrainingMetricsData(
        timestamp=START + timedelta(seconds=number),
        episode=number,
        total_episodes=1_000_000,
        current_reward=number % 17 - 3.25,
        average_reward=number % 31 / 7,
        best_reward=13.75,
        episode_length=200.0 + number % 90,
        win_rate=number % 100 / 1.01,
        learning_rate=3e-4,
        algorithm="PPO",
        training_time_elapsed=number * 1.0,
        loss_value=0.1 + number % 13 / 1000,
        actions_per_second=51_234.5,
        frames_per_second=102_469.0,
        memory_usage_mb=412.5,
    )


def numbered(first: int, count: int) -> list[Event]:
    return [Event(seq=n, type="training_metrics", data=reading(n)) for n in range(first, first + count)]


async def sessions(storage: Storage, count: int) -> list[str]:
    made = [await storage.create_session(kind="external", algorithm="PPO") for _ in range(count)]
    return [record.session_id for record in made]


async def rate(storage: Storage, producers: int, batches: int, size: int) -> float:
    """Readings per second, from producers that wait until each batch of ``size`` is stored."""
    work = [numbered(1 + place * size, size) for place in range(batches)]
    names = await sessions(storage, producers)

    async def produce(session_id: str) -> None:
        for events in work:
            await storage.add_events(session_id, "bench", events)

    begun = time.perf_counter()
    await asyncio.gather(*(produce(name) for name in names))
    return producers * batches * size / (time.perf_counter() - begun)


async def fill(storage: Storage, rows: int) -> str:
    """A session with so many readings, one a second; returns its id."""
    (name,) = await sessions(storage, 1)
    for first in range(1, rows + 1, BATCH):
        await storage.add_events(name, "bench", numbered(first, min(BATCH, rows + 1 - first)))
    return name


async def histories(storage: Storage, rows: int, repeats: int) -> list[float]:
    """Milliseconds for 1,000 buckets over everything."""
    name = await fill(storage, rows)
    took = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        buckets = await storage.history(name, HistoryRange(), points=1000)
        took.append((time.perf_counter() - begun) * 1000)
    assert 250 <= len(buckets) <= 1000, len(buckets)
    assert sum(bucket["count"] for bucket in buckets) == rows
    return took[1:]  # the first one fills the caches


async def in_process(url: str, arguments: argparse.Namespace) -> None:
    async with await Storage.open(url) as storage:
        fast = [await rate(storage, arguments.producers, arguments.batches, BATCH) for _ in range(arguments.repeats)]
        slow = {n: [await rate(storage, n, 200, 1) for _ in range(arguments.repeats)] for n in (1, 50)}
        rows = [["readings committed per second, batches of 500", f"{median(fast):,.0f}"]]
        rows += [[f"readings committed per second one by one, {n} producers", f"{median(slow[n]):,.0f}"] for n in slow]
        if arguments.rows:
            took = await histories(storage, arguments.rows, max(arguments.repeats, 5))
            rows.append([f"ms for 1,000 buckets over {arguments.rows:,} readings", f"{median(took):,.1f}"])
    print(table(["measure", "median"], rows))


def over_http(database: str, repeats: int) -> None:
    """What reports cost a whole server, beside a handler that does nothing."""
    one = reading(1).to_json()
    rows = []
    for connections, requests in ((1, 300), (50, 40)):
        kinds = ("empty", "health", "metrics")
        found = interleave({kind: partial(_cpu, kind, database, connections, requests, one) for kind in kinds}, repeats)
        for kind in kinds:
            ratios = [mine / alone for mine, alone in zip(found[kind], found["empty"], strict=True)]
            rows.append([_KINDS[kind], str(connections), f"{median(found[kind]):.0f}", f"{median(ratios):.1f}"])
    print(table(["request", "connections", "CPU µs each", "of an empty handler"], rows))
    bulk = [measure("metrics", database, 4, 15, [one] * BATCH) for _ in range(repeats)]
    rate, cpu = median([run[0] for run in bulk]) * BATCH, median([run[1] for run in bulk]) / BATCH
    print(
        f"POSTs of {BATCH} readings from 4 producers: {rate:,.0f} readings/s, {rate * NUMBERS:,.0f} metrics/s,"
        f" {cpu:.0f} CPU µs a reading"
    )


def history_over_http(database: str, rows: int, repeats: int) -> None:
    """What a long history takes from the request to its last byte."""

    async def prepare() -> str:
        async with await Storage.open(database) as storage:
            return await fill(storage, rows)

    name = asyncio.run(prepare())
    server = Process("_broadcasters.py", "gymcast", "--database", database)
    connection = HTTPConnection("127.0.0.1", json.loads(server.answer())["port"])
    took, cpu = [], []
    for _ in range(repeats + 1):
        before, begun = server.cpu(), time.perf_counter()
        connection.request("GET", f"/api/training/sessions/{name}/history?points=1000")
        response = connection.getresponse()
        body = response.read()
        took.append((time.perf_counter() - begun) * 1000)
        cpu.append((server.cpu() - before) * 1000)
        if response.status != 200:
            raise SystemExit(body.decode())
    server.end()
    buckets = json.loads(body)["metrics_data"]
    assert sum(bucket["count"] for bucket in buckets) == rows
    ms = sorted(took[1:])  # the first one fills the caches
    print(
        f"GET /history?points=1000 of {rows:,} readings, {len(ms)} times: {len(buckets)} buckets, {len(body):,} bytes,"
        f" median {median(ms):.0f} ms ({ms[0]:.0f} to {ms[-1]:.0f}), {sum(cpu[1:]) / len(ms):.0f} ms of processor"
    )


def _cpu(kind: str, database: str, connections: int, requests: int, body: dict[str, Any]) -> float:
    return measure(kind, database, connections, requests, body)[1]


_KINDS = {
    "empty": "POST to an empty aiohttp handler",
    "health": "GET /health/live of the server",
    "metrics": "POST of one reading, committed",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--database", help="URL of an empty database; default: a SQLite file in a temporary folder")
    parser.add_argument("--producers", type=int, default=4)
    parser.add_argument("--batches", type=int, default=50, help="of 500 readings, for each producer")
    parser.add_argument("--rows", type=int, default=1_000_000, help="readings of the long history; 0 leaves it out")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("storage", "http", "history"))
    arguments = parser.parse_args()
    print(machine())
    if arguments.only in (None, "http"):
        over_http(arguments.database or "", arguments.repeats)
    with tempfile.TemporaryDirectory(prefix="gymcast-bench-") as folder:
        database = arguments.database or f"sqlite:///{Path(folder) / 'bench.db'}"
        if arguments.only in (None, "storage"):
            asyncio.run(in_process(database, arguments))
        if arguments.only in (None, "history") and arguments.rows:
            history_over_http(database, arguments.rows, max(arguments.repeats, 15))


if __name__ == "__main__":
    main()
