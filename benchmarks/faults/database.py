"""The faults of tests/faults/test_database.py, long: kills by the hundred, a lock of 10 s, a server away for 30 s.

    python benchmarks/faults/database.py                 # about six minutes
    python benchmarks/faults/database.py --kills 10

Needs PostgreSQL's programs (initdb, pg_ctl) and starts a server of its own with them. Prints a line per fault, and ends
with a traceback when something acknowledged is missing or doubled.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults.test_database import get_status, kill_again_and_again, posting, reading_event, sqlite_locked
from tests.postgres_server import OwnServer, fresh_database

from gymcast.training.storage import HistoryRange, Storage, StorageError


async def kills(url: str, name: str, count: int) -> None:
    acknowledged = await kill_again_and_again(url, count)
    print(f"{name}: {count} SIGKILLs of the writer, {acknowledged:,} readings acknowledged, 0 lost, 0 doubled")


async def lock(path: Path, seconds: float) -> None:
    async with await Storage.open(f"sqlite:///{path}") as storage:
        session_id = (await storage.create_session(kind="external", algorithm="PPO")).session_id
        refused, longest, number, acknowledged = 0, 0.0, 0, 0
        with sqlite_locked(path):
            begun = time.monotonic()
            while time.monotonic() < begun + seconds:
                number += 1
                asked = time.monotonic()
                try:
                    await storage.add_events(session_id, "w", [reading_event(number)])
                    acknowledged += 1
                except StorageError:
                    refused += 1
                longest = max(longest, time.monotonic() - asked)
        begun = time.monotonic()
        await storage.add_events(session_id, "w", [reading_event(number + 1)])
        back = time.monotonic() - begun
        assert await storage.count_readings(session_id, HistoryRange()) == acknowledged + 1
    print(
        f"SQLite locked for {seconds:.0f} s: {refused} writes refused, each within {longest:.1f} s;"
        f" the first one after it took {back * 1000:.0f} ms"
    )


async def away(server: OwnServer, url: str, seconds: float) -> None:
    async with posting(url) as (address, session_id, acknowledged, refused):
        await asyncio.sleep(2)
        await asyncio.to_thread(server.stop)
        before, begun, slowest = len(acknowledged), time.monotonic(), 0.0
        while time.monotonic() < begun + seconds:
            status, took = await get_status(address, f"/api/training/sessions/{session_id}")
            assert status == 503, status
            slowest = max(slowest, took)
            await asyncio.sleep(0.5)
        during = len(acknowledged) - before
        await asyncio.to_thread(server.start)
        begun, before = time.monotonic(), len(acknowledged)
        while len(acknowledged) == before:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        back = time.monotonic() - begun
    print(
        f"PostgreSQL stopped for {seconds:.0f} s: reads answered 503 within {slowest * 1000:.0f} ms, {during} writes"
        f" went through, other answers to writes: {sorted(refused)}; the first write {back:.1f} s after it was back"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--lock-seconds", type=float, default=10)
    parser.add_argument("--away-seconds", type=float, default=30)
    arguments = parser.parse_args()
    server = OwnServer()
    try:
        with tempfile.TemporaryDirectory(prefix="gymcast-faults-") as folder, fresh_database(server.url) as url:
            asyncio.run(kills(f"sqlite:///{Path(folder) / 'kills.db'}", "SQLite", arguments.kills))
            asyncio.run(kills(url, "PostgreSQL", arguments.kills))
            asyncio.run(lock(Path(folder) / "lock.db", arguments.lock_seconds))
            asyncio.run(away(server, url, arguments.away_seconds))
    finally:
        server.close()


if __name__ == "__main__":
    main()
