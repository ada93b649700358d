"""What a worker process of a subprocess vector environment does: steps its lanes into shared memory.

A step is one byte in each direction; observations, rewards, ends and masks are in `SharedArrays`. Only infos that say
something are pickled. An exception in `step` or `reset` is reported with its traceback, then the process ends.
"""

from __future__ import annotations

import faulthandler
import fcntl
import os
import pickle
import select
import signal
import socket
import sys
import threading
import traceback
from dataclasses import dataclass
from typing import Any

import cloudpickle

from gymcast.envs.channel import Channel, ChannelClosed
from gymcast.envs.shared_arrays import ArraySpec, SharedArrays
from gymcast.envs.subproc_games import GameLanes, choose_lanes
from gymcast.envs.subproc_lanes import EnvFault, Lanes, WorkerStart

STEP, DONE, REPLY, RAISED, FAILED = b"s", b"d", b"r", b"e", b"f"
_F_SETSIG = 10  # of Linux; Python has no name for it


@dataclass(frozen=True)
class Failure:
    """What a worker says before it gives up."""

    lane: int | None
    reason: str
    traceback: str
    is_fault: bool
    """Whether the environment breaks its own contract, which starting it again would not mend."""


def main(sock: socket.socket, lifeline: socket.socket, start: WorkerStart) -> None:
    """Run a worker until its parent says so or is gone; nothing is ever sent over `lifeline`."""
    os.setpgid(0, 0)  # what the environments start can be ended with the worker; Ctrl-C is for the parent
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _end_with_parent(lifeline, start.parent)
    _, (memory, log), _, _ = socket.recv_fds(sock, 1, 2)
    faulthandler.enable(log)
    faulthandler.register(signal.SIGUSR1, log)
    channel = Channel(sock, spin=start.spin)
    lanes: Lanes | GameLanes = Lanes(start)
    try:
        lanes.current = start.first_lane
        lanes = choose_lanes(start)
        lanes.make()
        _send(channel, REPLY, lanes.describe())
        spec: ArraySpec = pickle.loads(channel.receive())  # noqa: S301 - from the process that started this one
        lanes.attach(SharedArrays(spec, memory))
        _serve(channel, lanes)
    except ChannelClosed:
        pass
    except (Exception, SystemExit, KeyboardInterrupt) as error:  # noqa: BLE001 - environments may raise anything
        reason = str(error) if isinstance(error, EnvFault) else f"{type(error).__name__}: {error}"
        _send(channel, FAILED, Failure(lanes.current, reason, traceback.format_exc(), isinstance(error, EnvFault)))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads that environments left running do not keep the process


def _serve(channel: Channel, lanes: Lanes | GameLanes) -> None:
    while True:
        message = channel.receive()
        if message[:1] == STEP:
            said = lanes.step(message[1] & 1, pickle.loads(message[2:]) if len(message) > 2 else None)  # noqa: S301
            if said:
                _send(channel, DONE, said)
            else:
                channel.send(DONE)
            continue
        command, argument = pickle.loads(message)  # noqa: S301 - from the process that started this one
        if command == "reset":
            _send(channel, REPLY, lanes.reset(*argument))
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
    except Exception as error:  # noqa: BLE001 - methods of environments may raise anything
        error.add_note(f"lane {lanes.current}, in its worker process:\n{traceback.format_exc()}")
        try:
            pickle.loads(pickle.dumps(error))  # noqa: S301 - just made
        except Exception:  # noqa: BLE001 - whatever reduces or makes the exception; its text says enough
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
