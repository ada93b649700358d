"""POSTs over kept-alive connections, each answered before the next: a client that costs the server nothing extra."""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from typing import Any

from _processes import Process


async def _send(port: int, method: str, path: str, bodies: list[bytes]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    waiting = deque(bodies)
    while waiting:
        body = waiting[0]
        writer.write(
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0])
        answer = await reader.readexactly(length)
        if head.startswith(b"HTTP/1.1 503"):  # the disk cannot keep up: later again, as Retry-After says
            await asyncio.sleep(1)
            continue
        if head[:12] not in (b"HTTP/1.1 200", b"HTTP/1.1 201"):
            raise SystemExit(f"{head.decode()}{answer.decode()}")
        waiting.popleft()
    writer.close()


async def _all(port: int, calls: list[tuple[str, str]], bodies: list[bytes]) -> None:
    await asyncio.gather(*(_send(port, method, path, bodies) for method, path in calls))


def measure(kind: str, database: str, connections: int, requests: int, body: Any) -> tuple[float, float]:
    """``(requests per second, CPU microseconds of the server per request)`` of a server of its own.

    Each of the ``connections`` sends ``body`` ``requests`` times, after a tenth of that to warm up. ``kind`` is
    ``empty`` (an aiohttp handler), ``health`` (the server's own way to say that it is there) or ``metrics`` (readings,
    each connection to a session of its own).
    """
    server = Process(
        "_broadcasters.py",
        "empty" if kind == "empty" else "gymcast",
        *("--database", database, "--sessions", str(connections)),
    )
    found = json.loads(server.answer())
    calls = {
        "empty": [("POST", "/")] * connections,
        "health": [("GET", "/health/live")] * connections,
        "metrics": [("POST", f"/api/training/sessions/{name}/metrics") for name in found.get("sessions", ())],
    }[kind]
    data = b"" if kind == "health" else json.dumps(body).encode()
    asyncio.run(_all(found["port"], calls, [data] * (requests // 10 + 1)))
    cpu, begun = server.cpu(), time.perf_counter()
    asyncio.run(_all(found["port"], calls, [data] * requests))
    used, took = server.cpu() - cpu, time.perf_counter() - begun
    server.end()
    return connections * requests / took, used / (connections * requests) * 1e6
