"""Twenty sessions, their manager killed fifty times: each has to end once, whole, with the weights of a calm run.

    python benchmarks/faults/session_kills.py
    python benchmarks/faults/session_kills.py --database postgresql://postgres@127.0.0.1/postgres
    python benchmarks/faults/session_kills.py --sessions 4 --kills 10

With ``--database`` it makes a database of its own on that server, and drops it. Prints one line per kill and a summary;
exits with 1 when anything was lost, doubled or different. Two of the configurations are trained undisturbed to compare
with. The moments of the kills are random; ``--seed`` repeats them.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.managed import Keeper, check_rows, records, run_dir_of, short, weights
from tests.postgres_server import fresh_database

from gymcast.training.sessions import SessionManager


async def run(given: argparse.Namespace, folder: Path, url: str) -> int:
    configs = [short(given.steps, seed=seed) for seed in (1, 2)]
    dice = random.Random(given.seed)
    begun = time.monotonic()
    kill = 0
    while kill < given.kills:
        keeper = await Keeper.start(folder, url, given.sessions, configs)
        await asyncio.sleep(dice.uniform(0.0, 3.0))
        await keeper.kill()
        if keeper.process.returncode == 0:
            print(f"all sessions ended after {kill} kills; give them more --steps", flush=True)
            break
        kill += 1
        states = Counter(record.status for record in await records(url))
        print(f"kill {kill}: {json.dumps(dict(sorted(states.items())))}", flush=True)
    keeper = await Keeper.start(folder, url, given.sessions, configs)
    await keeper.finish(3600)
    seconds = time.monotonic() - begun
    reference = []
    async with SessionManager(runs_dir=folder / "undisturbed") as manager:
        for config in configs:
            reference.append(weights(run_dir_of(await manager.wait(await manager.create_session(config)))))
    found = await records(url)
    wrong = []
    for record in found:
        if record.status != "completed":
            wrong.append(f"{record.session_id}: {record.status}: {record.reason}")
            continue
        check_rows(url, record)
        if weights(run_dir_of(record)) != reference[int(run_dir_of(record).name) % len(configs)]:
            wrong.append(f"{record.session_id}: other weights")
    print(f"{len(found)} sessions of {given.steps:,} decisions, {kill} kills in {seconds:.0f} s")
    print(f"{len(found) - len(wrong)} completed once with all rows and the weights of an undisturbed run")
    print(f"{sum(record.attempts > 1 for record in found)} had more than one worker")
    print("\n".join(wrong))
    return 1 if wrong or len(found) != given.sessions else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=40_000, help="decisions of each session")
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--database", help="URL of a PostgreSQL server; without it SQLite")
    given = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="gymcast-kills-")))
        url = f"sqlite:///{folder / 'gymcast.db'}"
        if given.database is not None:
            url = stack.enter_context(fresh_database(given.database))
        return asyncio.run(run(given, folder, url))


if __name__ == "__main__":
    sys.exit(main())
