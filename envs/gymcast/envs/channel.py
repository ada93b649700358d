"""Messages between two processes over a socket pair: a length of four bytes, then the message."""

from __future__ import annotations

import select
import socket
import struct
import time

_LENGTH = struct.Struct("=I")
_CHUNK = 1 << 18


class ChannelTimeout(Exception):
    """The other side did not answer, or did not take a message, in time."""


class ChannelClosed(Exception):
    """The other side is gone."""


class Channel:
    """One end.

    With `process`, a pidfd of the other side, its death is noticed even while others hold its end open. `spin` is how
    many seconds to look for a message before sleeping for it: being woken takes longer than a step of a cheap game.
    """

    def __init__(self, sock: socket.socket, process: int | None = None, spin: float = 0.0) -> None:
        self._spin = spin
        self._sock = sock
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._process = process
        if process is not None:
            self._poll.register(process, select.POLLIN)

    def send(self, message: bytes, seconds: float | None = None) -> None:
        """Send a message. Raises ChannelTimeout and ChannelClosed; `seconds` None waits for ever."""
        rest = memoryview(_LENGTH.pack(len(message)) + message)
        deadline = None if seconds is None else time.monotonic() + seconds
        while True:
            try:
                rest = rest[self._sock.send(rest, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL) :]
            except BlockingIOError:
                pass
            except OSError as error:
                raise ChannelClosed(str(error)) from None
            if not rest:
                return
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            watched = [] if self._process is None else [self._process]
            readable, writable, _ = select.select(watched, [self._sock], [], left)
            if readable:
                raise ChannelClosed("the process has ended")
            if not writable:
                raise ChannelTimeout

    def receive(self, seconds: float | None = None) -> bytes:
        """The next message. Raises ChannelTimeout and ChannelClosed; `seconds` None waits for ever."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while (message := self._take()) is None:
            if self._process is not None or deadline is not None:
                self._wait(deadline)
            elif self._spin:
                until = time.perf_counter() + self._spin
                while not self._poll.poll(0) and time.perf_counter() < until:
                    pass
            try:
                part = self._sock.recv(_CHUNK)
            except OSError as error:
                raise ChannelClosed(str(error)) from None
            if not part:
                raise ChannelClosed("the other side has closed the connection")
            self._buffer += part
        return message

    def close(self) -> None:
        """Close this end."""
        self._sock.close()

    def _take(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
        if len(buffer) < end:
            return None
        message = bytes(buffer[_LENGTH.size : end])
        del buffer[:end]
        return message

    def _wait(self, deadline: float | None) -> None:
        """Until there is something to read."""
        wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = self._poll.poll(wait)
        if not ready:
            raise ChannelTimeout
        if all(fd == self._process for fd, _ in ready):
            raise ChannelClosed("the process has ended")
