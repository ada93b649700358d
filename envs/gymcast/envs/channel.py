"""Messages between two processes over a socket pair: a length of four bytes, then the message."""

from __future__ import annotations

import select
import socket
import struct
import time

_LENGTH = struct.Struct("=I")
_LONGEST = (1 << 32) - 1  # bytes of a message
_SMALL, _CHUNK = 1 << 12, 1 << 18  # a buffer of the larger size costs more than a step of a cheap game


class ChannelTimeout(Exception):
    """The other side did not answer, or did not take a message, in time."""


class ChannelClosed(Exception):
    """The other side is gone."""


def framed(message: bytes) -> bytes:
    """A message as it travels. Raises ValueError for one of 4 GiB or more."""
    if len(message) > _LONGEST:
        raise ValueError(f"a message of {len(message):,} bytes is too long: at most {_LONGEST:,} can be sent at once")
    return _LENGTH.pack(len(message)) + message


class Channel:
    """One end.

    With `process`, a pidfd of the other side, its death is noticed even while others hold its end open.
    """

    def __init__(self, sock: socket.socket, process: int | None = None) -> None:
        self._sock = sock
        self._buffer = bytearray()
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._process = process
        if process is not None:
            self._poll.register(process, select.POLLIN)

    def send(self, message: bytes, seconds: float | None = None) -> None:
        """Send a message. Raises ChannelTimeout and ChannelClosed; `seconds` None waits for ever."""
        self.send_frame(framed(message), seconds)

    def send_frame(self, frame: bytes, seconds: float | None = None) -> None:
        """`send` for what `framed` returned."""
        sent = self._send_some(frame)
        if sent == len(frame):
            return
        rest = memoryview(frame)[sent:]
        deadline = None if seconds is None else time.monotonic() + seconds
        while rest:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            watched = [] if self._process is None else [self._process]
            readable, writable, _ = select.select(watched, [self._sock], [], left)
            if readable:
                raise ChannelClosed("the process has ended")
            if not writable:
                raise ChannelTimeout
            rest = rest[self._send_some(rest) :]

    def receive(self, seconds: float | None = None) -> bytes:
        """The next message. Raises ChannelTimeout and ChannelClosed; `seconds` None waits for ever."""
        deadline = None if seconds is None else time.monotonic() + seconds
        size = _SMALL
        while (message := self._take()) is None:
            if self._process is not None or deadline is not None:
                self._wait(deadline)
            try:
                part = self._sock.recv(size)
            except OSError as error:
                raise ChannelClosed(str(error)) from None
            if not part:
                raise ChannelClosed("the other side has closed the connection")
            self._buffer += part
            size = _CHUNK
        return message

    def fileno(self) -> int:
        """Descriptor of this end, to wait for messages together with other things."""
        return self._sock.fileno()

    def is_open(self) -> bool:
        """Whether this end is still a socket: code of others may have closed its descriptor."""
        try:
            self._sock.getsockname()
        except OSError:
            return False
        return True

    def close(self) -> None:
        """Close this end."""
        self._sock.close()

    def _send_some(self, data: bytes | memoryview) -> int:
        try:
            return self._sock.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ChannelClosed(str(error)) from None

    def _take(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < _LENGTH.size:
            return None
        end = _LENGTH.size + _LENGTH.unpack_from(buffer)[0]
        if len(buffer) < end:
            return None
        message = bytes(memoryview(buffer)[_LENGTH.size : end])
        del buffer[:end]
        return message

    def _wait(self, deadline: float | None) -> None:
        """Until there is something to read."""
        wait = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = self._poll.poll(wait)
        if not ready:
            raise ChannelTimeout
        self._notice_end(ready)

    def _notice_end(self, ready: list[tuple[int, int]]) -> None:
        if all(fd == self._process for fd, _ in ready):
            raise ChannelClosed("the process has ended")
