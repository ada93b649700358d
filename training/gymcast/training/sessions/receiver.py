"""Where the workers of a manager report: one path over HTTP on loopback, the same as a server's.

A manager has a receiver of its own, whether it lives in a server or in somebody's script, so that a worker knows only
one way to report and finds whoever takes its session over by the address in ``session.json``.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import secrets
import threading
from concurrent.futures import TimeoutError as FutureTimeout
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

from pydantic import ValidationError

from gymcast.training.events import MAX_POST_BYTES, EventBatch, EventReceipt, ReplayData
from gymcast.training.storage import (
    NotFoundError,
    ReplayContentError,
    Storage,
    StorageBusyError,
    StorageError,
    decode_replay,
)

log = logging.getLogger(__name__)

_PATH: Final = re.compile(r"/api/training/sessions/([A-Za-z0-9_-]{1,64})/events")
_COMMIT_SECONDS: Final = 30.0
# A worker speaks once a second; a connection on which nothing is said for so long has lost its worker.
_IDLE_SECONDS: Final = 60.0


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        # A worker that is killed breaks its connection in the middle.
        log.debug("a worker's connection broke", exc_info=True)


class EventReceiver:
    """Takes ``POST /api/training/sessions/{id}/events`` from workers and stores it in ``storage``.

    ``url`` and ``token_of`` its session are what a worker needs. Requests are read and checked in threads of their own,
    the event loop only commits.
    """

    def __init__(self, storage: Storage) -> None:
        self._secret = secrets.token_bytes(32)
        self._storage = storage
        self._loop = asyncio.get_running_loop()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1
            disable_nagle_algorithm = True
            timeout = _IDLE_SECONDS

            def do_POST(self) -> None:
                status, headers, body = receiver._take(self)
                self.send_response(status)
                for name, value in {**headers, "Content-Length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: Any) -> None:
                log.debug(format, *arguments)

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="gymcast-receiver", daemon=True
        )
        self._thread.start()

    def token_of(self, session_id: str) -> str:
        """What the worker of a session proves itself with; it says nothing about the token of another."""
        return hmac.digest(self._secret, session_id.encode(), "sha256").hex()

    async def close(self) -> None:
        """Take no more; requests at work are answered."""
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
        await asyncio.to_thread(self._thread.join)

    def _take(self, request: BaseHTTPRequestHandler) -> tuple[int, dict[str, str], bytes]:
        try:
            size = int(request.headers.get("Content-Length", ""))
        except ValueError:
            size = -1
        if not 0 <= size <= MAX_POST_BYTES:
            request.close_connection = True
            return 413, {}, b""
        body = request.rfile.read(size)
        given = request.headers.get("Authorization", "")
        found = _PATH.fullmatch(request.path)
        if found is None or not hmac.compare_digest(given.encode(), f"Bearer {self.token_of(found[1])}".encode()):
            return 404, {}, b""
        try:
            batch = EventBatch.model_validate_json(body)
            for event in batch.events:
                if isinstance(event.data, ReplayData):
                    decode_replay(event.data)
            receipt = self._store(found[1], batch)
        except (ValidationError, ReplayContentError) as error:
            return 422, {}, str(error)[:2000].encode()
        except NotFoundError as error:
            return 404, {}, str(error).encode()
        except StorageBusyError as error:
            return 503, {"Retry-After": str(error.retry_after)}, b""
        except (StorageError, FutureTimeout, RuntimeError) as error:
            # RuntimeError: the event loop has ended before its receiver.
            log.warning("session %s: events could not be stored: %s", found[1], error)
            return 503, {"Retry-After": "1"}, b""
        return 201, {"Content-Type": "application/json"}, receipt.model_dump_json().encode()

    def _store(self, session_id: str, batch: EventBatch) -> EventReceipt:
        storing = self._storage.add_events(session_id, batch.producer, batch.events)
        try:
            future = asyncio.run_coroutine_threadsafe(storing, self._loop)
        except RuntimeError:
            storing.close()
            raise
        return future.result(_COMMIT_SECONDS)
