"""A receiver of events over real HTTP, and a sink that keeps events in memory."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from gymcast.training.events import DesiredState, EventBatch, Message


class Receiver:
    """Takes batches as the server's contract says: unique by (producer, seq), 201 after keeping them."""

    def __init__(self, port: int = 0) -> None:
        self.events: dict[tuple[str, int], dict[str, Any]] = {}
        self.duplicates = 0
        self.posts = 0
        self.sessions: list[dict[str, Any]] = []
        self.desired: DesiredState = "running"
        self.connections: list[socket.socket] = []
        self.answers: list[int] = []
        """Statuses to answer the next posts with instead of taking them."""
        self.refuse: str | None = None
        """A text: batches that contain it are answered 422."""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                receiver.connections.append(self.connection)

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = receiver.take(self.path, body)
                content = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def take(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        with self._lock:
            self.posts += 1
            if path == "/api/training/sessions":
                self.sessions.append(json.loads(body))
                return 201, {"session_id": f"session-{len(self.sessions)}"}
            if self.answers:
                return self.answers.pop(0), {}
            if self.refuse is not None and self.refuse.encode() in body:
                return 422, {"title": "refused"}
            batch = EventBatch.model_validate_json(body)
            for event in batch.events:
                key = (batch.producer, event.seq)
                self.duplicates += key in self.events
                self.events[key] = event.to_json()
            last = max((seq for producer, seq in self.events if producer == batch.producer), default=0)
            return 201, {"accepted": len(batch.events), "duplicates": 0, "last_seq": last, "desired": self.desired}

    def of_type(self, kind: str) -> list[dict[str, Any]]:
        """Data of all events of one type, in the order of their numbers."""
        with self._lock:
            return [event["data"] for _, event in sorted(self.events.items()) if event["type"] == kind]

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        for connection in self.connections:
            with contextlib.suppress(OSError):  # the other side has closed it already
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join()


class MemorySink:
    """A sink that keeps the events; ``desired`` is what it asks the trainer for."""

    def __init__(self) -> None:
        self.events: list[Message] = []
        self.desired: DesiredState = "running"

    def emit(self, data: Message) -> None:
        self.events.append(data)

    def of(self, kind: type[Any]) -> list[Any]:
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture(autouse=True)
def own_spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scripts' events wait in the test's own folder."""
    monkeypatch.setenv("GYMCAST_SPOOL", str(tmp_path / "spool"))


@pytest.fixture(autouse=True, scope="session")
def one_torch_thread() -> None:
    """The networks of the tests are tiny, and tests run beside each other."""
    torch.set_num_threads(1)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.close()


@pytest.fixture
def make_receiver() -> Iterator[Any]:
    servers: list[Receiver] = []

    def make(port: int = 0) -> Receiver:
        servers.append(Receiver(port))
        return servers[-1]

    yield make
    for server in servers:
        server.close()


@pytest.fixture
def sink() -> MemorySink:
    return MemorySink()
