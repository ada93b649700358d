"""What a worker process of a subprocess vector environment does: steps its lanes into shared memory.

A step is one byte in each direction; observations, rewards, ends and masks are in `SharedArrays`. Only infos that say
something are pickled. An exception in `step` or `reset` of a lane is reported with its traceback, and the parent says
when to make that environment anew; what ends the process is the parent's to notice.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import importlib
import io
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from typing import Any

import cloudpickle

from gymcast.envs.bell import WorkerBell
from gymcast.envs.channel import Channel, ChannelClosed, ChannelTimeout, framed
from gymcast.envs.shared_arrays import ArraySpec, SharedArrays
from gymcast.envs.subproc_games import GameLanes, choose_lanes
from gymcast.envs.subproc_lanes import Lanes, WorkerStart, described

STEP, DONE, REPLY, RAISED, FAILED = b"s", b"d", b"r", b"e", b"f"
LOST_DESCRIPTORS = 70  # exit code of a worker whose environments closed its connection
STEP_FRAME, _DONE_FRAME = framed(STEP), framed(DONE)
_DOZE_SECONDS = 0.5  # how often a sleeping worker looks whether it was asked
_F_SETSIG = 10  # of Linux; Python has no name for it
_PR_SET_TIMERSLACK = 29


def main(sock: socket.socket, lifeline: socket.socket, parent: int) -> None:
    """Run a worker until its parent says so or is gone; nothing is ever sent over `lifeline`."""
    memory = enter_worker(sock, lifeline, parent)
    channel = Channel(sock)
    code = 0
    try:
        start = _take_start(channel)
        _work(channel, start, memory)
    except ChannelClosed:
        code = 0 if channel.is_open() else LOST_DESCRIPTORS
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # environments may have closed them
            stream.flush()
    os._exit(code)  # threads that environments left running do not keep the process


def enter_worker(sock: socket.socket, lifeline: socket.socket, parent: int) -> int:
    """What every worker process does first; returns the descriptor of the memory it shares with its parent."""
    os.setpgid(0, 0)  # what the environments start can be ended with the worker; Ctrl-C is for the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent(lifeline, parent)
    _, (memory, log, *output), _, _ = socket.recv_fds(sock, 1, 3)
    faulthandler.enable(log)
    faulthandler.register(signal.SIGUSR1, log)
    if output:
        _print_into(output[0])
    _wake_on_time()
    return memory


def _print_into(output: int) -> None:
    """Let everything this process and its children print go to the file `output`."""
    for fd in (1, 2):
        os.dup2(output, fd)
    sys.stdout, sys.stderr = (  # unbuffered: what was printed last says most about a crash
        io.TextIOWrapper(io.FileIO(fd, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
        for fd in (1, 2)
    )


def _wake_on_time() -> None:
    """Environments that wait with `sleep` are woken when they asked to be, not up to 50 microseconds later."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def _take_start(channel: Channel) -> WorkerStart:
    """What to do; until it comes, a process held in reserve imports what environments of others have imported."""
    while True:
        given: WorkerStart | list[str] = pickle.loads(channel.receive())  # noqa: S301 - from the starting process
        if isinstance(given, WorkerStart):
            return given
        for name in given:
            with contextlib.suppress(Exception):  # it is only ahead of time: who needs it will say so
                importlib.import_module(name)


def _work(channel: Channel, start: WorkerStart, memory: int) -> None:
    lanes: Lanes | GameLanes = Lanes(start)
    try:
        lanes.current = start.first_lane
        lanes = choose_lanes(start)
        os.register_at_fork(after_in_child=lambda: _leave(channel, lanes))
        known = set(sys.modules)
        lanes.make()
        _send(channel, REPLY, (lanes.describe(), [name for name in sys.modules if name not in known]))
        spec: ArraySpec = pickle.loads(channel.receive())  # noqa: S301 - from the process that started this one
        arrays = SharedArrays(spec, memory)
        lanes.attach(arrays)
        _serve(channel, lanes, WorkerBell(arrays.bells[start.number], start.spin))
    except ChannelClosed:
        raise
    except BaseException as error:  # noqa: BLE001 - environments may raise anything
        _send(channel, FAILED, described(error, lanes.current))


def _leave(channel: Channel, lanes: Lanes | GameLanes) -> None:
    """In a process that an environment forked: it must not speak for the worker, nor write to its lanes."""
    channel.close()
    lanes.is_fork = True


def _serve(channel: Channel, lanes: Lanes | GameLanes, bell: WorkerBell) -> None:
    while True:
        turn = bell.wait()
        message = b""
        if turn is None:
            try:
                message = channel.receive(_DOZE_SECONDS)
            except ChannelTimeout:
                continue
            if message == STEP and (turn := bell.asked()) is None:
                continue  # that step was seen, and done, before the message came
        if turn is not None:
            said = lanes.step(turn, None)
            if not channel.is_open():  # before the step counts: its answer may need no message
                raise ChannelClosed("an environment closed it")
            if said or lanes.failed:
                _send(channel, DONE, (said, lanes.failed))
                bell.answer(True)
            elif bell.answer(False):
                channel.send_frame(_DONE_FRAME)
            continue
        if message[:1] == STEP:  # with actions that are no array
            said = lanes.step(message[1] & 1, pickle.loads(message[2:]))  # noqa: S301 - from the starting process
            _send(channel, DONE, (said, lanes.failed))
            continue
        command, argument = pickle.loads(message)  # noqa: S301 - from the process that started this one
        if command == "reset":
            _send(channel, REPLY, (lanes.reset(*argument), lanes.failed))
        elif command == "remake":
            _send(channel, REPLY, (lanes.remake(*argument), lanes.failed))
        elif command == "close":
            lanes.close()
            return
        else:
            _answer(channel, lanes, command, argument)


def _answer(channel: Channel, lanes: Lanes | GameLanes, command: str, argument: Any) -> None:
    """Calls and attributes: what they raise belongs to the caller, the worker goes on."""
    try:
        values = [lanes.call(command, lane, *arguments) for lane, *arguments in argument]
        _send(channel, REPLY, values)
    except ChannelClosed:
        raise
    except BaseException as error:  # noqa: BLE001 - methods of environments may raise anything
        error.add_note(f"lane {lanes.current}, in its worker process:\n{traceback.format_exc()}")
        try:
            passed = pickle.loads(pickle.dumps(error))  # noqa: S301 - just made
        except Exception:  # noqa: BLE001 - whatever reduces or makes the exception; its text says enough
            passed = None
        if not isinstance(passed, Exception):  # SystemExit and its like must not end the parent
            error = RuntimeError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
        _send(channel, RAISED, error)


def _send(channel: Channel, kind: bytes, value: Any) -> None:
    try:
        data = pickle.dumps(value, protocol=5)
    except (pickle.PickleError, TypeError, AttributeError):
        data = cloudpickle.dumps(value, protocol=5)
    channel.send(kind + data)


def _end_with_parent(lifeline: socket.socket, parent: int) -> None:
    """End this process and what it started when the parent ends, whatever the environments are doing.

    The kernel sends SIGKILL to the process group when the other end of the lifeline closes, even while an environment
    keeps the interpreter's lock; the kernel's own "parent death signal" would follow the thread that started the
    process. A thread watches the parent too, in case something that it forked holds the other end open.
    """
    try:
        watched = os.pidfd_open(parent)
    except ProcessLookupError:
        os._exit(1)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
    fcntl.fcntl(lifeline, _F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)

    def watch() -> None:
        select.select([watched, lifeline.fileno()], [], [])
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, daemon=True, name="gymcast-parent-watch").start()
