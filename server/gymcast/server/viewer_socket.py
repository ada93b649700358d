"""The end of a viewer's connection to which the hub writes."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from typing import Final

from aiohttp import WSCloseCode, web

_CLOSE_GRACE_S: Final = 1.0


class ViewerSocket(web.WebSocketResponse):
    """A WebSocket that tells its sink when it begins to close, whoever began it."""

    sink: SocketSink | None = None

    async def close(self, *, code: int = WSCloseCode.OK, message: bytes = b"", drain: bool = True) -> bool:
        if self.sink is not None:
            self.sink.is_open = False
        return await super().close(code=code, message=message, drain=drain)


class SocketSink:
    """Writes framed bytes to a WebSocket's transport, which keeps what the socket does not take."""

    __slots__ = ("_closing", "_transport", "_ws", "is_open")

    def __init__(self, ws: ViewerSocket, transport: asyncio.Transport) -> None:
        self._ws = ws
        self._transport = transport
        self._closing: asyncio.Task[bool] | None = None
        # Asked of the WebSocket, it would cost each message a look into memory that nothing else needs.
        self.is_open = True
        ws.sink = self

    def write(self, data: bytes) -> int:
        """Send without waiting; nothing happens on a connection that is going away. Returns the backlog."""
        transport = self._transport
        if self.is_open and not transport.is_closing():
            transport.write(data)
        return transport.get_write_buffer_size()

    def backlog(self) -> int:
        """Bytes that the socket has not taken yet."""
        return self._transport.get_write_buffer_size()

    def close(self, code: int, reason: str) -> None:
        """Send a close frame; a peer that does not answer it soon is cut off."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._ws.close(code=code, message=reason.encode(), drain=False))
            asyncio.get_running_loop().call_later(_CLOSE_GRACE_S, self._cut_off)

    def _cut_off(self) -> None:
        raw = self._transport.get_extra_info("socket")
        if raw is not None:
            # Reset, so that the kernel does not go on offering a peer that reads nothing what it holds for it.
            with contextlib.suppress(OSError):  # closed by now
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    async def closed(self) -> None:
        """Wait for a close that was begun here."""
        if self._closing is not None:
            with contextlib.suppress(ConnectionError):
                await self._closing
