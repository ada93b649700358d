"""A thousand WebSocket clients in one process, cheap enough that the server is what is measured.

    python benchmarks/_spectators.py HOST PORT PATH COUNT [--stalled]

Plain sockets under one ``epoll``; of a frame only its length and the time in ``"sent_at":`` (``time.monotonic`` of the
sender, the same clock on all of a machine) are looked at. It prints ``ready`` when all are connected. ``go`` on its
input begins a measurement, ``stop`` ends it and prints one line of JSON, the end of the input ends the process.
``--stalled`` is for one client more that reads nothing after the handshake.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any, Final

_PONG: Final = b"\x8a\x80\0\0\0\0"
_MARK: Final = b'"sent_at":'


def connect(host: str, port: int, path: str, receive_buffer: int | None = None) -> tuple[socket.socket, bytes]:
    """A socket after the WebSocket handshake, and what came behind it."""
    raw = socket.socket()
    if receive_buffer is not None:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    raw.settimeout(30)
    raw.connect((host, port))
    key = base64.b64encode(os.urandom(16)).decode()
    raw.sendall(
        f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
    )
    head = b""
    while b"\r\n\r\n" not in head:
        some = raw.recv(4096)
        if not some:
            raise ConnectionError(f"closed in the handshake: {head[:200]!r}")
        head += some
    if not head.startswith(b"HTTP/1.1 101"):
        raise ConnectionError(head.decode(errors="replace"))
    raw.setblocking(False)
    return raw, head.partition(b"\r\n\r\n")[2]


class Clients:
    """All connections, and what they received since the last ``go``."""

    def __init__(self, host: str, port: int, path: str, count: int, stalled: bool) -> None:
        self.poll = select.epoll()
        self.sockets: dict[int, socket.socket] = {}
        self.rests: dict[int, bytes] = {}
        self.buffer = bytearray(1 << 18)
        for _ in range(count):
            raw, rest = connect(host, port, path)
            self.sockets[raw.fileno()] = raw
            self.rests[raw.fileno()] = rest
            self.poll.register(raw.fileno(), select.EPOLLIN)
        self.stalled = connect(host, port, path, 4096)[0] if stalled else None
        self.reset()

    def reset(self) -> None:
        self.latencies: list[float] = []
        self.frames = self.bytes = self.closed = 0
        self.begun, self.cpu = time.monotonic(), time.process_time()

    def receive(self, fd: int) -> None:
        """Read what one connection has, and count its messages."""
        try:
            size = self.sockets[fd].recv_into(self.buffer)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        now = time.monotonic()
        if not size:
            self.closed += 1
            self.poll.unregister(fd)
            self.sockets.pop(fd).close()
            return
        self.bytes += size
        rest = self.rests.pop(fd, b"")
        data = rest + self.buffer[:size] if rest else self.buffer
        end = len(rest) + size
        at = 0
        while end - at >= 2:
            length, start = data[at + 1], at + 2
            if length == 126 and end - at >= 4:
                length, start = data[at + 2] << 8 | data[at + 3], at + 4
            elif length == 127 and end - at >= 10:
                length, start = struct.unpack_from("!Q", data, at + 2)[0], at + 10
            if start + length > end or (length in (126, 127) and start == at + 2):
                break
            if data[at] == 0x89:
                self.sockets[fd].send(_PONG)
            elif data[at] == 0x81:
                mark = data.find(_MARK, start, start + length)
                if mark >= 0:
                    first = mark + len(_MARK)
                    self.latencies.append(now - float(data[first : first + 14].partition(b",")[0].partition(b"}")[0]))
                self.frames += 1
            at = start + length
        if at < end:
            self.rests[fd] = bytes(data[at:end])

    def summary(self) -> dict[str, Any]:
        """What was received since ``go``; latencies in milliseconds."""
        found = sorted(self.latencies)

        def at(share: float) -> float | None:
            return round(found[min(int(share * len(found)), len(found) - 1)] * 1000, 2) if found else None

        return {
            "messages": len(found),
            "frames": self.frames,
            "bytes": self.bytes,
            "closed": self.closed,
            "seconds": time.monotonic() - self.begun,
            "cpu": time.process_time() - self.cpu,
            "p50": at(0.5),
            "p99": at(0.99),
            "max": at(1.0),
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("path")
    parser.add_argument("count", type=int)
    parser.add_argument("--stalled", action="store_true")
    options = parser.parse_args()
    clients = Clients(options.host, options.port, options.path, options.count, options.stalled)
    orders = sys.stdin.fileno()
    clients.poll.register(orders, select.EPOLLIN)
    print("ready", flush=True)
    while True:
        for fd, _ in clients.poll.poll():
            if fd != orders:
                clients.receive(fd)
                continue
            order = os.read(orders, 100).strip()
            if order == b"go":
                clients.reset()
            elif order == b"stop":
                print(json.dumps(clients.summary()), flush=True)
            else:
                return


if __name__ == "__main__":
    main()
