"""Frames of WebSocket clients have to be masked (RFC 6455, section 5.1). aiohttp reads others too: this looks first."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final, cast

from aiohttp import web

from .problems import Problem

# The head of a frame that nobody takes, with reserved bits and a reserved opcode: aiohttp answers it by closing (1002),
# after everything that came before it.
_REFUSED: Final = b"\xff\x80"


class MaskedFrames(asyncio.Protocol):
    """Between a WebSocket's transport and its protocol: hands on what comes until a frame has no mask.

    It walks from head to head of the frames and leaves everything else about them to the protocol behind it.
    """

    __slots__ = ("_ended", "_head", "_inner", "_left")

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        self._left = 0  # bytes of the present frame that are still to come
        self._head = b""  # the beginning of a frame's head
        self._ended = False

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        if self._head:
            data, self._head = self._head + data, b""
        place, size = self._left, len(data)
        while size - place >= 2:
            length = data[place + 1] - 0x80
            if length < 0:
                self._ended = True
                data = data[:place] + _REFUSED
                place = len(data)
                break
            wide = {126: 2, 127: 8}.get(length, 0)
            if size - place < 2 + wide:
                break
            if wide:
                length = int.from_bytes(data[place + 2 : place + 2 + wide], "big")
            place += 2 + wide + 4 + length
        self._left = max(0, place - size)
        if place < size:
            data, self._head = data[:place], data[place:]
        if data:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


@contextmanager
def masked_frames_only(request: web.Request, transport: asyncio.Transport) -> Iterator[None]:
    """Enter it to upgrade a request: from then on its connection takes masked frames only, unless the upgrade fails.

    Raises a 400 when frames came before the upgrade was answered, which a client has to wait for (section 4.1).
    """
    early: Any = getattr(request.protocol, "_message_tail", b"")
    if early:
        raise Problem("malformed-request", "Wait for the answer to the upgrade before you send frames.")
    protocol = cast(asyncio.Protocol, transport.get_protocol())
    transport.set_protocol(MaskedFrames(protocol))
    try:
        yield
    except BaseException:
        transport.set_protocol(protocol)
        raise
