"""The servers of the benchmarks of broadcasting and ingest, each in a process of its own.

    python benchmarks/_broadcasters.py gymcast --clients 1000   the whole server, with a SQLite file in a new folder
    python benchmarks/_broadcasters.py raw                      asyncio alone: ``transport.write`` to every connection
    python benchmarks/_broadcasters.py empty                    an aiohttp handler that reads a body and answers 201

Each prints one line of JSON with its port and path, and obeys lines on its input: ``publish HZ BYTES SECONDS`` sends
readings by itself (the raw one makes them ``BYTES`` long), ``connections`` prints how many viewers the server has,
``memory`` collects garbage and prints the resident memory in bytes, the end of the input ends the process.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from aiohttp import web

Publish = Callable[[int], object]
"""Sends one reading; takes its size in bytes."""


def reading(number: int) -> dict[str, Any]:
    """A ``training_metrics`` reading that says when it was made."""
    return {
        "timestamp": "2026-01-01T00:00:00Z",
        "episode": number,
        "total_episodes": 1_000_000,
        "current_reward": number % 17 - 3.25,
        "average_reward": number % 31 / 7,
        "best_reward": 13.75,
        "episode_length": 200.0 + number % 90,
        "win_rate": number % 100 / 1.01,
        "learning_rate": 3e-4,
        "algorithm": "PPO",
        "training_time_elapsed": number * 1.0,
        "loss_value": 0.1 + number % 13 / 1000,
        "actions_per_second": 51_234.5,
        "frames_per_second": 102_469.0,
        "memory_usage_mb": 412.5,
        "extra": {"sent_at": round(time.monotonic(), 6)},
    }


async def orders(publish: Publish, connections: Callable[[], int] = lambda: 0) -> None:
    """Do what the lines of the input say."""
    loop = asyncio.get_running_loop()
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    running: set[asyncio.Task[None]] = set()
    while line := (await lines.readline()).split():
        if line[0] == b"memory":
            gc.collect()
            print(json.dumps(psutil.Process().memory_info().rss), flush=True)
        elif line[0] == b"connections":
            print(connections(), flush=True)
        elif line[0] == b"publish":
            task = loop.create_task(steadily(publish, float(line[1]), int(line[2]), float(line[3])))
            running.add(task)
            task.add_done_callback(running.discard)


async def steadily(publish: Publish, hz: float, size: int, seconds: float) -> None:
    """Publish at a steady rate."""
    loop = asyncio.get_running_loop()
    begun = loop.time()
    for number in range(int(hz * seconds)):
        await asyncio.sleep(begun + number / hz - loop.time())
        publish(size)


async def gymcast(clients: int, sessions: int, database: str) -> None:
    """The server as it is, with room for the clients."""
    from gymcast.server import RunningServer, ServerConfig, run_server

    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
    work: set[asyncio.Task[None]] = set()

    async def serve(server: RunningServer) -> None:
        made = [await server.storage.create_session(kind="external", algorithm="PPO") for _ in range(sessions)]
        session, names = made[0], [record.session_id for record in made]
        print(json.dumps({"port": server.port, "path": f"/ws/{names[0]}", "sessions": names}), flush=True)
        numbers = iter(range(1, 1 << 60))
        try:
            await orders(
                lambda _: server.hub.publish(session.session_id, "training_metrics", reading(next(numbers))),
                lambda: server.hub.connections,
            )
        finally:
            ended.set_result(0)

    with tempfile.TemporaryDirectory(prefix="gymcast-bench-") as folder:
        config = ServerConfig(
            port=0,
            database={"url": database or f"sqlite:///{Path(folder) / 'bench.db'}"},
            max_connections_per_session=clients + 10,
            max_total_connections=clients + 10,
        )
        await run_server(config, started=lambda server: work.add(asyncio.create_task(serve(server))), ended=ended)


async def raw() -> None:
    """As little as asyncio can do: every connection is answered 101 and then written to."""
    transports: set[asyncio.Transport] = set()

    class Viewer(asyncio.Protocol):
        transport: asyncio.Transport

        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            self.transport = transport
            transports.add(transport)

        def data_received(self, data: bytes) -> None:
            if data.startswith(b"GET"):
                self.transport.write(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")

        def connection_lost(self, error: Exception | None) -> None:
            transports.discard(self.transport)

    def publish(size: int) -> None:
        text = b'{"sent_at":%.6f,"' % time.monotonic()
        text = text.ljust(size - 6, b"x") + b'":0}'
        frame = b"\x81\x7e" + len(text).to_bytes(2, "big") + text
        for transport in transports:
            transport.write(frame)

    server = await asyncio.get_running_loop().create_server(Viewer, "127.0.0.1", 0, backlog=1024)
    print(json.dumps({"port": server.sockets[0].getsockname()[1], "path": "/"}), flush=True)
    await orders(publish)


async def empty() -> None:
    """What every handler costs: aiohttp reads a request with its body, and answers."""

    async def handle(request: web.Request) -> web.Response:
        await request.read()
        return web.Response(status=201, body=b"{}", content_type="application/json")

    app = web.Application()
    app.router.add_post("/", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(json.dumps({"port": runner.addresses[0][1], "path": "/"}), flush=True)
    await orders(lambda _: None)
    await runner.cleanup()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("gymcast", "raw", "empty"))
    parser.add_argument("--clients", type=int, default=1000)
    parser.add_argument("--sessions", type=int, default=1, help="how many to make; the first is the one watched")
    parser.add_argument("--database", default="", help="URL; default: a SQLite file in a new folder")
    options = parser.parse_args()
    kinds = {
        "gymcast": lambda: gymcast(options.clients, options.sessions, options.database),
        "raw": raw,
        "empty": empty,
    }
    asyncio.run(kinds[options.kind]())


if __name__ == "__main__":
    main()
