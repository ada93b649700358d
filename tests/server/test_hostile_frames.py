"""Raw malformed WebSocket frames: the right close code, and nobody else notices."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import socket
import struct
from collections.abc import Iterator

import aiohttp
import pytest

from gymcast.server import RunningServer

from .conftest import NewSession

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA
HELLO = b'{"type":"ping"}'


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, bits: int = 0, masked: bool = True) -> bytes:
    """One frame; ``bits`` are the reserved ones."""
    head = bytes([(0x80 if fin else 0) | bits | opcode])
    mask_bit = 0x80 if masked else 0
    size = len(payload)
    if size < 126:
        head += bytes([mask_bit | size])
    elif size < 1 << 16:
        head += bytes([mask_bit | 126]) + struct.pack("!H", size)
    else:
        head += bytes([mask_bit | 127]) + struct.pack("!Q", size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[place % 4] for place, byte in enumerate(payload))


def claim(size: int) -> bytes:
    """A frame that says it has ``size`` bytes, and begins."""
    return bytes([0x81, 0x80 | 127]) + struct.pack("!Q", size) + b"mask" + b"x" * 100


def closing(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, struct.pack("!H", code) + reason)


# What is sent, and the codes that may close the connection.
BAD: dict[str, tuple[bytes, set[int]]] = {
    "reserved bit 1": (frame(TEXT, HELLO, bits=0x40), {1002}),
    "reserved bit 2": (frame(TEXT, HELLO, bits=0x20), {1002}),
    "reserved bit 3": (frame(TEXT, HELLO, bits=0x10), {1002}),
    "reserved bit on a ping": (frame(PING, b"", bits=0x40), {1002}),
    "unknown opcode 3": (frame(0x3, b"x"), {1002}),
    "unknown opcode 11": (frame(0xB, b"x"), {1002}),
    "ping in pieces": (frame(PING, b"x", fin=False), {1002}),
    "close in pieces": (frame(CLOSE, b"", fin=False), {1002}),
    "ping of 126 bytes": (frame(PING, b"x" * 126), {1002}),
    "end of a message that never began": (frame(0x0, b"x"), {1002}),
    "a message in the middle of another": (frame(TEXT, b"{", fin=False) + frame(TEXT, b"}"), {1002}),
    "65 KiB": (frame(TEXT, b" " * (65 << 10)), {1009}),
    "65 KiB in pieces": (frame(TEXT, b" " * 40_000, fin=False) + frame(0x0, b" " * 30_000), {1009}),
    "claims 2 GiB": (claim(2 << 30), {1009}),
    "claims 2^62 bytes": (claim(1 << 62), {1009}),
    "claims 2^63 bytes": (claim(1 << 63), {1002, 1009}),
    "not UTF-8": (frame(TEXT, b"\xff\xfe"), {1007}),
    "half a character": (frame(TEXT, b'{"a":"\xe2\x82'), {1007}),
    "a surrogate": (frame(TEXT, b"\xed\xa0\x80"), {1007}),
    "close code 0": (closing(0), {1002}),
    "close code 999": (closing(999), {1002}),
    "close code 1004": (closing(1004), {1002}),
    "close code 1005": (closing(1005), {1002}),
    # Who says goodbye with a number that nobody may use gets a goodbye all the same.
    "close code 1006": (closing(1006), {1000, 1002}),
    "close code 1015": (closing(1015), {1002}),
    "close code 2999": (closing(2999), {1002}),
    "close code 5000": (closing(5000), {1000, 1002}),
    "close with half a code": (frame(CLOSE, b"\x03"), {1002}),
    "close reason is not UTF-8": (closing(1000, b"\xff"), {1002, 1007}),
    "HTTP": (b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", {1002}),
    "zeros": (bytes(64), {1002}),
    "text without a mask": (frame(TEXT, HELLO, masked=False), {1002}),
    "300 bytes without a mask": (frame(TEXT, b" " * 300, masked=False), {1002}),
    "70 KiB without a mask": (frame(TEXT, b" " * (70 << 10), masked=False), {1002}),
    "a ping without a mask": (frame(PING, b"x", masked=False), {1002}),
    "a close without a mask": (frame(CLOSE, masked=False), {1002}),
    "a second piece without a mask": (frame(TEXT, b'{"type":', fin=False) + frame(0, b'"ping"}', masked=False), {1002}),
}


class Raw:
    """A WebSocket whose frames are written by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def open(cls, server: RunningServer, session_id: str, more: str = "") -> Raw:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(cls.request(session_id, more))
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 101 "), head
        assert b"permessage-deflate" not in head
        return cls(reader, writer)

    @staticmethod
    def request(session_id: str, more: str) -> bytes:
        """The upgrade, with ``more`` headers."""
        key = base64.b64encode(os.urandom(16)).decode()
        return (
            f"GET /ws/{session_id} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n{more}\r\n"
        ).encode()

    async def frames(self) -> list[tuple[int, bytes]]:
        """All frames until the server ends the connection."""
        data = b""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                while part := await self.reader.read(1 << 16):
                    data += part
        self.writer.close()
        return list(_frames(data))


def _frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    while len(data) >= 2:
        opcode, size = data[0] & 0xF, data[1]
        assert size < 128, "a server masks nothing"
        start = 2
        if size == 126:
            size, start = struct.unpack_from("!H", data, 2)[0], 4
        elif size == 127:
            size, start = struct.unpack_from("!Q", data, 2)[0], 10
        yield opcode, data[start : start + size]
        data = data[start + size :]


async def test_every_bad_frame_ends_its_own_connection_with_the_right_code(
    server: RunningServer, client: aiohttp.ClientSession, new_session: NewSession, caplog: pytest.LogCaptureFixture
) -> None:
    session_id = await new_session()
    async with client.ws_connect(f"/ws/{session_id}") as neighbour:
        wrong = {}
        for name, (sent, codes) in BAD.items():
            raw = await Raw.open(server, session_id)
            raw.writer.write(sent)
            closes = [payload for opcode, payload in await raw.frames() if opcode == CLOSE]
            found = struct.unpack("!H", closes[0][:2])[0] if closes else None
            if len(closes) != 1 or found not in codes:
                wrong[name] = found
        assert wrong == {}
        while (await neighbour.receive(timeout=5)).type is not aiohttp.WSMsgType.TEXT:
            pass
        await neighbour.send_json({"type": "ping", "id": "still here"})
        while "still here" not in (await neighbour.receive_str(timeout=5)):
            pass
    async with client.get("/status") as answer:
        assert answer.status == 200
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []
    async with asyncio.timeout(30):
        while server.hub.spectators(session_id):  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def test_good_frames_in_odd_shapes_are_fine(server: RunningServer, new_session: NewSession) -> None:
    raw = await Raw.open(server, await new_session(), "Sec-WebSocket-Extensions: permessage-deflate\r\n")
    pieces = b"".join(frame(TEXT if not place else 0, HELLO[place : place + 1], fin=False) for place in range(15))
    for part in (
        pieces[:7],
        pieces[7:],
        frame(PING, b"between"),
        frame(0x0),
        frame(PONG, b"unasked"),
        closing(1000),
    ):
        raw.writer.write(part)
        await raw.writer.drain()
    found = await raw.frames()
    assert (PONG, b"between") in found
    assert any(b'"pong"' in payload for opcode, payload in found if opcode == TEXT)
    assert found[-1] == (CLOSE, struct.pack("!H", 1000))


async def test_frames_are_masked_to_the_last_however_they_arrive(
    server: RunningServer, new_session: NewSession
) -> None:
    session_id = await new_session()
    long = frame(TEXT, b" " * 70_000, masked=False)[:10]
    for good, bad in (
        # Masked frames with heads of all three sizes, then one without a mask.
        (
            frame(PING, b"one") + frame(TEXT, HELLO.ljust(300)),
            frame(PING, b"two", masked=False) + frame(PING, b"three"),
        ),
        (frame(PING, b"one") + frame(TEXT, HELLO), long),
    ):
        raw = await Raw.open(server, session_id)
        raw.writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for place in range(len(good)):
            raw.writer.write(good[place : place + 1])
            await raw.writer.drain()
            await asyncio.sleep(0)
        # At once: the server closes as soon as it sees it, and a byte sent later would reset the connection.
        raw.writer.write(bad)
        found = await raw.frames()
        # What came before it is answered.
        assert [payload for opcode, payload in found if opcode == PONG] == [b"one"]
        assert any(b'"pong"' in payload for opcode, payload in found if opcode == TEXT)
        assert found[-1][0] == CLOSE and found[-1][1][:2] == struct.pack("!H", 1002)


async def test_frames_before_the_upgrade_is_answered_are_refused(
    server: RunningServer, new_session: NewSession
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(Raw.request(await new_session(), "") + frame(TEXT, HELLO))
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert head.startswith(b"HTTP/1.1 400 "), head
    writer.close()


async def test_a_connection_lives_on_after_an_upgrade_that_failed(
    server: RunningServer, new_session: NewSession
) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    wrong = Raw.request(await new_session(), "").replace(b"Version: 13", b"Version: 9")
    for sent, status in ((wrong, b"400"), (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", b"200")):
        writer.write(sent)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        assert head.startswith(b"HTTP/1.1 " + status), head
        size = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
        await reader.readexactly(int(size.split(b":")[1]))
    writer.close()
