"""Twenty sessions, their manager killed fifty times: each has to end once, whole, with the weights of a calm run.

    python benchmarks/faults/session_kills.py --sessions 20 --kills 50

Prints one line per kill and a summary; exits with 1 when anything was lost, doubled or different. Two of the
configurations are trained undisturbed to compare with.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.faults.test_session_recovery import Keeper, check_rows, weights
from tests.managed import short

from gymcast.training.sessions import SessionManager
from gymcast.training.storage import TERMINAL, Storage


async def states(folder: Path) -> dict[str, int]:
    """How many sessions are in which state."""
    async with await Storage.open(f"sqlite:///{folder / 'gymcast.db'}") as storage:
        found, _ = await storage.list_sessions(limit=1000)
    return {status: sum(one.status == status for one in found) for status in sorted({one.status for one in found})}


async def run(sessions: int, kills: int, steps: int, folder: Path) -> int:
    configs = [short(steps, seed=seed) for seed in (1, 2)]
    begun = time.monotonic()
    kill = 0
    while kill < kills:
        keeper = await Keeper.start(folder, sessions, configs)
        await asyncio.sleep(random.uniform(0.0, 3.0))
        await keeper.kill()
        if keeper.process.returncode == 0:
            print(f"all sessions ended after {kill} kills; give them more --steps", flush=True)
            break
        kill += 1
        print(f"kill {kill}: {json.dumps(await states(folder))}", flush=True)
    keeper = await Keeper.start(folder, sessions, configs)
    await keeper.finish(3600)
    async with SessionManager(runs_dir=folder) as manager:
        found, _ = await manager.storage.list_sessions(limit=1000)
        reference = []
        for number, config in enumerate(configs):
            session_id = await manager.create_session(config, run_dir=folder / f"undisturbed-{number}")
            await manager.wait(session_id)
            reference.append(weights(folder / f"undisturbed-{number}"))
    wrong = [record.session_id for record in found if record.status != "completed" or record.status not in TERMINAL]
    for record in found:
        check_rows(folder, record)
        number = int(Path((record.resources or {})["run_dir"]).name)
        if weights(folder / str(number)) != reference[number % len(configs)]:
            wrong.append(f"{record.session_id}: other weights")
    more = sum(record.attempts > 1 for record in found)
    print(f"{len(found)} sessions, {kill} kills in {time.monotonic() - begun:.0f} s")
    print(f"{len(found) - len(wrong)} completed once with all rows and the weights of an undisturbed run")
    print(f"{more} had more than one worker")
    print("\n".join(wrong))
    return 1 if wrong or len(found) != sessions else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sessions", type=int, default=20)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=30_000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gymcast-kills-") as name:
        sys.exit(asyncio.run(run(given.sessions, given.kills, given.steps, Path(name))))
