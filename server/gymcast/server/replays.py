"""View frames of stored episodes: simulated again in a thread, kept as the bytes that are sent."""

from __future__ import annotations

import asyncio
import json
from collections import OrderedDict
from typing import Any, Final

from gymcast.training.storage import ReplayRecord, Storage

from .problems import Problem

CACHE_BYTES: Final = 64 << 20
# Ten times the longest episode of a built-in game; a made-up replay must not keep a thread busy for minutes.
MAX_DECISIONS: Final = 20_000


class FrameCache:
    """Frames by replay, least recently used out first; equal requests share one simulation."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._running: dict[str, asyncio.Task[bytes]] = {}
        # The simulation holds the interpreter's lock for much of its time: one at a time leaves room for live messages.
        self._one_at_a_time = asyncio.Lock()

    async def get(self, replay_id: str) -> bytes:
        """JSON of the frames. Raises :class:`Problem` or ``NotFoundError``."""
        kept = self._kept.get(replay_id)
        if kept is not None:
            self._kept.move_to_end(replay_id)
            return kept
        task = self._running.get(replay_id)
        if task is None:
            task = self._running[replay_id] = asyncio.create_task(self._make(replay_id))
            task.add_done_callback(lambda _task: self._running.pop(replay_id, None))
        # One viewer that leaves must not end the simulation others wait for.
        return await asyncio.shield(task)

    async def close(self) -> None:
        """Wait for simulations at work; a thread cannot be cancelled."""
        await asyncio.gather(*self._running.values(), return_exceptions=True)

    async def _make(self, replay_id: str) -> bytes:
        record = await self._storage.replay(replay_id)
        async with self._one_at_a_time:
            frames = await asyncio.to_thread(simulate, record)
        self._kept[replay_id] = frames
        self._bytes += len(frames)
        while self._bytes > CACHE_BYTES and len(self._kept) > 1:
            self._bytes -= len(self._kept.popitem(last=False)[1])
        return frames


def simulate(record: ReplayRecord) -> bytes:
    """Play a stored episode again and return its frames, with the bot's decisions, as JSON."""
    # Loaded on first use: the kernels behind it take a while to load, and a server may never need them.
    from gymcast.envs import Replay, replay_frames

    unusable = Problem("conflict", f"Replay {record.replay_id} cannot be played by this version of gymcast.")
    try:
        replay = Replay.from_bytes(record.content)
        if len(replay.actions) > MAX_DECISIONS:
            raise unusable
        view: dict[str, Any] = replay_frames(replay)
    except (ValueError, TypeError) as error:  # ReplayError, or options this version does not have
        raise unusable from error
    view["decisions"] = record.decisions
    view["replay_id"] = record.replay_id
    return json.dumps(view, allow_nan=False, separators=(",", ":")).encode()
