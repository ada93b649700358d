"""A manager in a process of its own, to be killed: ``python keeper.py FOLDER SESSIONS``.

Submits as many short trainings as are missing to SESSIONS, prints ``ready`` and leaves when all have ended.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from gymcast.training.config import ResourceLimits, TrainingConfig
from gymcast.training.sessions import SessionManager


async def keep(folder: Path, wanted: int, configs: list[dict[str, Any]]) -> None:
    limits = ResourceLimits(max_concurrent_sessions=4)
    async with SessionManager(resource_limits=limits, runs_dir=folder, keep_sessions=True) as manager:
        known, _ = await manager.storage.list_sessions(limit=1000)
        for number in range(len(known), wanted):
            await manager.create_session(
                TrainingConfig.parse(configs[number % len(configs)]), run_dir=folder / str(number)
            )
        print("ready", flush=True)
        known, _ = await manager.storage.list_sessions(limit=1000)
        await asyncio.gather(*(manager.wait(record.session_id) for record in known))


if __name__ == "__main__":
    asyncio.run(keep(Path(sys.argv[1]), int(sys.argv[2]), json.loads(sys.stdin.read())))
