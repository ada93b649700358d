"""A manager in a process of its own, to be killed: ``python keeper.py FOLDER DATABASE_URL SESSIONS``.

Reads configurations and options of the manager as JSON, submits as many trainings as are missing to SESSIONS, prints
``ready`` and leaves when all have ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from gymcast.training.config import TrainingConfig
from gymcast.training.limits import ResourceLimits
from gymcast.training.sessions import SessionManager
from gymcast.training.storage import Storage


async def keep(folder: Path, url: str, wanted: int, given: dict[str, Any]) -> None:
    limits = ResourceLimits(max_concurrent_sessions=given["options"].pop("max_concurrent_sessions", 4))
    async with (
        await Storage.open(url) as storage,
        SessionManager(
            resource_limits=limits, storage=storage, runs_dir=folder, keep_sessions=True, **given["options"]
        ) as manager,
    ):
        known, _ = await storage.list_sessions(limit=1000)
        for number in range(len(known), wanted):
            config = TrainingConfig.parse(given["configs"][number % len(given["configs"])])
            await manager.create_session(config, run_dir=folder / str(number))
        print("ready", flush=True)
        known, _ = await storage.list_sessions(limit=1000)
        await asyncio.gather(*(manager.wait(record.session_id) for record in known))


if __name__ == "__main__":
    asyncio.run(keep(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), json.loads(sys.stdin.read())))
