"""Events that an earlier worker of a run could not send, because its server had gone first."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from gymcast.training.events import MAX_EVENTS_PER_POST, Event
from gymcast.training.storage import Storage, StorageBusyError, StorageError, StorageUnavailableError

log = logging.getLogger(__name__)

SPOOL_NAME: Final = "spool"


async def deliver_leftovers(storage: Storage, session_id: str, run_dir: Path) -> None:
    """Store the events in ``run_dir/spool`` and delete the files; the storage leaves out what had arrived.

    No worker of the run may be alive. Raises ``StorageBusyError`` and ``StorageUnavailableError``: what is left then
    waits for another call. Files that cannot be read, and what the storage refuses for good, are logged and stay.
    """
    for path in sorted((run_dir / SPOOL_NAME).glob("*.jsonl")):
        try:
            events = await asyncio.to_thread(_read, path)
            for start in range(0, len(events), MAX_EVENTS_PER_POST):
                await storage.add_events(session_id, path.stem, events[start : start + MAX_EVENTS_PER_POST])
            path.unlink()
        except (StorageBusyError, StorageUnavailableError):
            raise
        except (OSError, StorageError) as error:
            log.warning("session %s: what waits in %s could not be stored: %s", session_id, path, error)


def _read(path: Path) -> list[Event]:
    found = []
    with open(path, "rb") as file:
        for line in file:
            # A line without an end is a write that was cut off when its process was killed.
            if not line.endswith(b"\n"):
                break
            try:
                found.append(Event.model_validate_json(line))
            except ValidationError as error:
                log.warning("%s holds something that is no event: %s", path, error)
    return found
