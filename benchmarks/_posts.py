"""POSTs over kept-alive connections, each answered before the next: a client that costs the server nothing extra."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

from _processes import Process


async def _post(port: int, path: str, bodies: list[bytes]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for body in bodies:
        writer.write(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        answer = await reader.readexactly(length)
        if not head.startswith(b"HTTP/1.1 201"):
            raise SystemExit(f"{head.decode()}{answer.decode()}")
    writer.close()


async def _posts(port: int, path: str, work: list[list[bytes]]) -> None:
    await asyncio.gather(*(_post(port, path, bodies) for bodies in work))


def measure(kind: str, database: str, connections: int, requests: int, body: Any) -> tuple[float, float]:
    """``(requests per second, CPU microseconds of the server per request)`` of a server of its own.

    Each of the ``connections`` sends ``body`` ``requests`` times, after a tenth of that to warm up.
    """
    server = Process("_broadcasters.py", kind, "--database", database)
    found = json.loads(server.answer())
    path = "/" if kind == "empty" else f"/api/training/sessions/{found['session']}/metrics"
    data = json.dumps(body).encode()
    asyncio.run(_posts(found["port"], path, [[data] * (requests // 10 + 1)] * connections))
    cpu, begun = server.cpu(), time.perf_counter()
    asyncio.run(_posts(found["port"], path, [[data] * requests] * connections))
    used, took = server.cpu() - cpu, time.perf_counter() - begun
    server.end()
    return connections * requests / took, used / (connections * requests) * 1e6
