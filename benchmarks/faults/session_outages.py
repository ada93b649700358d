"""The faults of tests/faults/test_session_outages.py, long: SQLite locked for 10 s, PostgreSQL stopped for 30 s.

    python benchmarks/faults/session_outages.py     # about two minutes

Two sessions, one after the other; the database goes away while the first one trains, which ends in the meantime. Needs
PostgreSQL's programs (initdb, pg_ctl) and starts a server of its own with them. Ends with a traceback when a row is
missing or doubled, a session was started twice, or the weights are not those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults.test_session_outages import locked, outlive, stopped
from tests.managed import PACED, run_dir_of, weights
from tests.postgres_server import OwnServer

from gymcast.training.sessions import SessionManager


async def run(given: argparse.Namespace, folder: Path, server: OwnServer) -> None:
    async with SessionManager(runs_dir=folder / "undisturbed") as manager:
        wanted = weights(run_dir_of(await manager.wait(await manager.create_session(PACED))))
    (folder / "locked").mkdir()
    url = f"sqlite:///{folder / 'locked' / 'a.db'}"
    await outlive(folder / "locked", url, locked(url), wanted, given.lock_seconds)
    print(f"SQLite locked for {given.lock_seconds:g} s or more: both sessions whole, started once", flush=True)
    (folder / "stopped").mkdir()
    await outlive(folder / "stopped", server.url, stopped(server), wanted, given.away_seconds)
    print(f"PostgreSQL stopped for {given.away_seconds:g} s or more: both sessions whole, started once", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lock-seconds", type=float, default=10.0)
    parser.add_argument("--away-seconds", type=float, default=30.0)
    given = parser.parse_args()
    server = OwnServer()
    try:
        with tempfile.TemporaryDirectory(prefix="gymcast-outages-") as name:
            asyncio.run(run(given, Path(name), server))
    finally:
        server.close()


if __name__ == "__main__":
    main()
