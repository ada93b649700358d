"""View frames of stored episodes: simulated again in a process of their own, kept as the bytes that are sent."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final

from gymcast.training.launch import worker_environment
from gymcast.training.storage import ReplayRecord

from .problems import Problem
from .replay_worker import ANSWER, REQUEST

log = logging.getLogger(__name__)

CACHE_BYTES: Final = 64 << 20
# The longest replay that is drawn takes a second or two, compiling its game 20 to 60 s on a busy machine.
_PATIENCE_S: Final = 180.0
_IDLE_S: Final = 300.0


class ReplayProcess:
    """The process that plays replays, started when it is first needed and ended after minutes without work."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._one_at_a_time = asyncio.Lock()
        self._idle: asyncio.TimerHandle | None = None

    async def prepare(self) -> None:
        """Start the process before there is work: it takes seconds to load, in which a viewer would see nothing."""
        async with self._one_at_a_time:
            try:
                await self._running()
            except OSError as error:
                log.warning("the process that plays replays cannot be started now: %s", error)
            else:
                self._wait_for_work()

    async def play(self, record: ReplayRecord, settings: dict[str, Any] | None = None) -> bytes:
        """JSON of the frames and decisions. Raises :class:`Problem`: 409 with the reason, or 503."""
        async with self._one_at_a_time:
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    good, body = await self._ask(record, settings)
            except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
                await self._end()
                log.warning("replay %s: the process that plays it failed: %r", record.replay_id, error)
                raise Problem(
                    "busy", f"Replay {record.replay_id} could not be played now.", headers={"Retry-After": "5"}
                ) from error
            self._wait_for_work()
        if not good:
            raise Problem("conflict", f"Replay {record.replay_id} cannot be played: {body.decode()[:1000]}")
        return body

    async def _ask(self, record: ReplayRecord, settings: dict[str, Any] | None) -> tuple[bool, bytes]:
        process = await self._running()
        assert process.stdin is not None and process.stdout is not None, "both are pipes"
        facts = {"replay_id": record.replay_id, "decisions": record.decisions, "settings": settings}
        about = json.dumps(facts).encode()
        process.stdin.write(REQUEST.pack(len(about), len(record.content)) + about + record.content)
        await process.stdin.drain()
        good, size = ANSWER.unpack(await process.stdout.readexactly(ANSWER.size))
        return bool(good), await process.stdout.readexactly(size)

    async def _running(self) -> asyncio.subprocess.Process:
        """The process, started when there is none."""
        if self._idle is not None:
            self._idle.cancel()
        if self._process is None or self._process.returncode is not None:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "gymcast.server.replay_worker",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                env=worker_environment(),
            )
        return self._process

    def _wait_for_work(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(_IDLE_S, self._kill)

    def _kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                self._process.kill()

    async def _end(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
            # Reads what is left as well, so that the pipes are closed.
            await process.communicate()

    async def close(self) -> None:
        """End the process, whatever it does."""
        self._kill()
        async with self._one_at_a_time:
            await self._end()


class FrameCache:
    """Frames by replay, least recently used out first; equal requests share one simulation.

    ``find`` is what knows the replays by their id, ``settings`` how the environment of another game is made.
    """

    def __init__(
        self,
        find: Callable[[str], Awaitable[ReplayRecord]],
        settings: Callable[[ReplayRecord], Awaitable[dict[str, Any] | None]],
    ) -> None:
        self._find = find
        self._settings = settings
        self._player = ReplayProcess()
        self._kept: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0
        self._running: dict[str, asyncio.Task[bytes]] = {}
        self._preparing: asyncio.Task[None] | None = None

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

    def prepare(self) -> None:
        """Somebody begins to watch: load what draws, if it is not loaded."""
        if self._preparing is None or self._preparing.done():
            self._preparing = asyncio.create_task(self._player.prepare())

    async def close(self) -> None:
        """End the simulations at work and the process behind them."""
        if self._preparing is not None:
            await self._preparing
        await self._player.close()
        await asyncio.gather(*self._running.values(), return_exceptions=True)
        await self._player.close()

    async def _make(self, replay_id: str) -> bytes:
        record = await self._find(replay_id)
        frames = await self._player.play(record, await self._settings(record))
        self._kept[replay_id] = frames
        self._bytes += len(frames)
        while self._bytes > CACHE_BYTES and len(self._kept) > 1:
            self._bytes -= len(self._kept.popitem(last=False)[1])
        return frames
