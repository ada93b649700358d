"""What tests of managed sessions share: small trainings, and waiting for what the database says of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from gymcast.training.config import TrainingConfig
from gymcast.training.sessions import SessionManager
from gymcast.training.storage import SessionRecord


def endless(lanes: int = 2, **more: object) -> TrainingConfig:
    """A training that starts fast and never reaches its goal."""
    given = {"total_timesteps": 10**12, "evaluation_games": 0, "parallel_episodes": lanes, **more}
    return TrainingConfig.for_env("CartPole-v1", **given)


def short(steps: int = 2048, lanes: int = 2, **more: object) -> TrainingConfig:
    """A training of a second, with a checkpoint every 256 decisions; its seed is fixed."""
    return endless(
        lanes,
        **{
            "total_timesteps": steps,
            "seed": 7,
            "checkpoint_interval_steps": 256,
            "hyperparameters": {"n_steps": 64, "batch_size": 64},
            "replays_kept": 0,
            **more,
        },
    )


async def settled(
    manager: SessionManager, session_id: str, wanted: Callable[[SessionRecord], bool], seconds: float = 60.0
) -> SessionRecord:
    """The session once it is as ``wanted``."""
    changed = asyncio.Event()
    unlisten = manager.storage.listen(lambda _committed: changed.set())
    try:
        async with asyncio.timeout(seconds):
            while not wanted(record := await manager.storage.get_session(session_id)):
                await changed.wait()
                changed.clear()
        return record
    finally:
        unlisten()


async def until(manager: SessionManager, session_id: str, *statuses: str, seconds: float = 60.0) -> SessionRecord:
    """The session once it is in one of ``statuses``."""
    return await settled(manager, session_id, lambda record: record.status in statuses, seconds)
