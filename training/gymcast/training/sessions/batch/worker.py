"""A worker process of ``BatchEpisodeManager``: both of its sides.

The parent sends setups and episodes and gets results; a small memory that both have says which episode runs on which
lane and since when, so that the parent knows what was played when a worker dies or hangs, without a message for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import mmap
import multiprocessing
import os
import pickle
import socket
import sys
import threading
import time
import traceback
from collections import OrderedDict, deque
from typing import Any, Final

from gymcast.envs.channel import Channel, ChannelClosed, ChannelTimeout
from gymcast.envs.subproc import Worker, WorkerDown
from gymcast.envs.subproc_lanes import Failure
from gymcast.envs.subproc_process import WorkerProcess
from gymcast.envs.subproc_worker import enter_worker
from gymcast.training.sessions.batch.find import Setup
from gymcast.training.sessions.batch.lanes import LanesPlayer, make_player
from gymcast.training.sessions.batch.play import EnvPlayer, Played
from gymcast.training.sessions.batch.policies import UnfitError
from gymcast.training.sessions.batch.types import MAX_LANES

_NOBODY: Final = -1
_WORDS: Final = 1 + 2 * MAX_LANES
_SETUPS: Final = 4  # kept ready in a worker, for batches that take turns
_SAY_EVERY: Final = 0.02  # seconds
# The fork server takes one request at a time; a start that fails ends its process.
_STARTING = threading.RLock()


class SharedBoard:
    """Which episode each lane plays, and since when (``time.monotonic_ns``); and the parent's wish to drop all."""

    def __init__(self, memory: int) -> None:
        self._words = memoryview(mmap.mmap(memory, 8 * _WORDS)).cast("q")
        self.generation = self._words[0]
        self.lanes = 1
        """How many lanes are in use."""

    @staticmethod
    def make() -> int:
        """The descriptor of a new memory on which no lane plays."""
        memory = os.memfd_create("gymcast-episodes")
        os.ftruncate(memory, 8 * _WORDS)
        SharedBoard(memory).clear()
        return memory

    def clear(self) -> None:
        """No lane plays."""
        for lane in range(MAX_LANES):
            self._words[1 + 2 * lane] = _NOBODY

    def begin(self, lane: int, number: int) -> None:
        """An episode begins."""
        self._words[2 + 2 * lane] = time.monotonic_ns()
        self._words[1 + 2 * lane] = number

    def end(self, lane: int) -> None:
        """It is over."""
        self._words[1 + 2 * lane] = _NOBODY

    def dropped(self) -> bool:
        """Whether the parent wants everything dropped."""
        return self._words[0] != self.generation

    def drop(self) -> int:
        """Have the worker drop everything; returns the number of the wish."""
        self.generation += 1
        self._words[0] = self.generation
        return self.generation

    def running(self) -> dict[int, float]:
        """The episodes that run, and for how many seconds."""
        now, words = time.monotonic_ns(), self._words
        return {
            words[place]: (now - words[place + 1]) / 1e9
            for place in range(1, 1 + 2 * self.lanes, 2)
            if words[place] != _NOBODY
        }


# ------------------------------------------------------------------------------------------------ the worker's side


class _Feed:
    """Episodes that the parent has sent; looks for more when there are none."""

    def __init__(self, channel: Channel, board: SharedBoard) -> None:
        self._channel, self._board = channel, board
        self._episodes: deque[tuple[int, str]] = deque()
        self.key = 0
        self.other: tuple[Any, ...] | None = None
        """A message that is no more episodes of this setup."""

    def __len__(self) -> int:
        return len(self._episodes)

    def take(self, generation: int, key: int, episodes: list[tuple[int, str]]) -> None:
        """Take episodes of the setup ``key``, unless they were dropped after they had been sent."""
        self.key = key
        if generation == self._board.generation and not self._board.dropped():
            self._episodes.extend(episodes)

    def next(self) -> tuple[int, str] | None:
        if self._board.dropped():
            self._episodes.clear()
            return None
        if not self._episodes and self.other is None:
            try:
                message = pickle.loads(self._channel.receive(0.0))  # noqa: S301 - from the parent
            except ChannelTimeout:
                return None
            if message[0] != "play" or message[2] != self.key:
                self.other = message
                return None
            self.take(*message[1:])
        return self._episodes.popleft() if self._episodes else None

    def clear(self) -> None:
        self._episodes.clear()


class _Mouth:
    """Says results, several at a time."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._waiting: list[Played] = []
        self._said_at = 0.0

    def say(self, played: Played) -> None:
        self._waiting.append(played)
        if time.monotonic() - self._said_at > _SAY_EVERY:
            self.flush()

    def flush(self) -> None:
        if self._waiting:
            self._channel.send(pickle.dumps(("played", self._waiting), protocol=5))
            self._waiting = []
        self._said_at = time.monotonic()


def main(sock: socket.socket, lifeline: socket.socket, parent: int) -> None:
    """Run a worker until its parent says so or is gone."""
    board = SharedBoard(enter_worker(sock, lifeline, parent))
    os.dup2(2, 1)  # what environments print must not get into what the parent prints
    with contextlib.suppress(ChannelClosed):
        _serve(Channel(sock), board)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads that environments left running do not keep the process


def _serve(channel: Channel, board: SharedBoard) -> None:
    players: OrderedDict[int, EnvPlayer | LanesPlayer] = OrderedDict()
    feed, mouth = _Feed(channel, board), _Mouth(channel)
    channel.send(pickle.dumps(("here",)))
    while True:
        message = feed.other or pickle.loads(channel.receive())  # noqa: S301 - from the process that started this one
        feed.other = None
        kind = message[0]
        if kind == "setup":
            channel.send(pickle.dumps(_set_up(players, message[1])))
        elif kind == "play":
            _, generation, key, episodes = message
            feed.take(generation, key, episodes)
            players.move_to_end(key)
            players[key].play(feed, board, mouth.say)
            mouth.flush()
        elif kind == "drop":
            feed.clear()
            board.generation = message[1]
            channel.send(pickle.dumps(("dropped", message[1])))
        else:
            for player in players.values():
                player.close()
            return


def _set_up(players: OrderedDict[int, EnvPlayer | LanesPlayer], pickled: bytes) -> tuple[Any, ...]:
    setup: Setup = pickle.loads(pickled)  # noqa: S301 - from the process that started this one
    if setup.key in players:
        return "ready", players[setup.key].lanes
    try:
        players[setup.key] = make_player(setup)
    except UnfitError as error:
        return "unfit", str(error), "" if error.__cause__ is None else traceback.format_exc()
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - environments may raise anything
        return "unfit", f"{setup.env_id} cannot be played: {type(error).__name__}: {error}", traceback.format_exc()
    while len(players) > _SETUPS:
        players.popitem(last=False)[1].close()
    return "ready", players[setup.key].lanes


# ------------------------------------------------------------------------------------------------ the parent's side


class EpisodeWorker(Worker):
    """The parent's handle of a worker process that plays episodes; its messages are awaited."""

    def __init__(self, number: int) -> None:
        self._memory_fd = SharedBoard.make()
        super().__init__(number, range(number, number + 1), (), None)
        multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])
        self.board = SharedBoard(self._memory_fd)
        self.setups: OrderedDict[int, None] = OrderedDict()
        """The setups it has, the least recently used first."""
        self.woken = asyncio.Event()
        """Set to have `message` return."""

    @property
    def alive(self) -> bool:
        """Whether it was started and has not been ended."""
        return self.own is not None

    @property
    def pid(self) -> int | None:
        """Process id, once there is one."""
        return None if (own := self.own) is None else own.pid

    def start(self) -> None:
        """Start the process; blocks until it is there. Raises WorkerDown, and OSError when it was discarded."""
        with _STARTING:
            if self._memory_fd < 0:
                raise OSError("the worker was discarded before it had begun")
            self.board.clear()
            self.setups.clear()
            try:
                self.own = WorkerProcess("forkserver", self._memory_fd, capture=False, target=main)
            except OSError as error:
                raise self._down(f"its process ended at once ({error})") from None

    def end(self, seconds: float = 0.0) -> None:
        """End the process and what it started. Does not raise."""
        with _STARTING:
            super().end(seconds)

    def put(self, *message: Any) -> None:
        """Send it a message; it takes messages whenever it is between episodes. Raises WorkerDown."""
        self.send(pickle.dumps(message, protocol=5), 5.0)

    def note_setup(self, key: int) -> None:
        """It has this setup now, and maybe an older one no more."""
        self.setups[key] = None
        self.setups.move_to_end(key)
        while len(self.setups) > _SETUPS:
            self.setups.popitem(last=False)

    async def message(self, seconds: float | None) -> tuple[Any, ...] | None:
        """Its next message; ``None`` after ``seconds``, or when `woken` is set. Raises ChannelClosed."""
        loop = asyncio.get_running_loop()
        if self.own is None:
            raise ChannelClosed("it is not running")
        channel = self.own.channel
        try:
            return pickle.loads(channel.receive(0.0))  # type: ignore[no-any-return]  # noqa: S301 - our own worker
        except ChannelTimeout:
            pass
        fds = (channel.fileno(), self.own.pidfd)
        self.woken.clear()
        for fd in fds:
            loop.add_reader(fd, self.woken.set)
        try:
            async with asyncio.timeout(seconds):
                await self.woken.wait()
        except TimeoutError:
            return None
        finally:
            for fd in fds:
                loop.remove_reader(fd)
        try:
            return pickle.loads(channel.receive(0.0))  # type: ignore[no-any-return]  # noqa: S301 - our own worker
        except ChannelTimeout:
            return None

    def ended(self) -> Failure:
        """Why its process ended; ends it for good. Blocks for a moment."""
        return self._down("it is not running" if self.own is None else self.own.how_it_ended()).failure

    def hangs(self, doing: str) -> Failure:
        """End it because it hangs, and say where. Blocks for a moment."""
        if self.own is not None:
            self.own.ask_for_traceback()
        return self._down(doing).failure

    def discard(self) -> None:
        """End it and give back its memory."""
        with _STARTING:
            self.end()
            if self._memory_fd >= 0:
                os.close(self._memory_fd)
                self._memory_fd = -1


__all__ = ["EpisodeWorker", "SharedBoard", "WorkerDown", "main"]
