"""How a training process reaches a server: numbered events over HTTP, spooled, retried, never blocking training.

``EventSink.emit`` only appends to a queue. A background thread posts what is there, at least once a second (a heartbeat
when there is nothing), and learns from each answer what the server wants next. While the server is away, events wait in
a spool file; they are sent in order when it is back, also by the next process that opens the same spool folder. The
server counts repeats by ``(session, producer, seq)``, so a retry is always safe.
"""

from __future__ import annotations

import json
import logging
import os
import random
import secrets
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from pydantic import ValidationError

from gymcast.training.events import (
    MAX_EVENTS_PER_POST,
    DesiredState,
    ErrorData,
    Event,
    EventReceipt,
    Message,
    event_type_of,
)
from gymcast.training.http_client import HttpClient, ServerAway, ServerRefused
from gymcast.training.spool import MAX_BATCH_BYTES, Spool

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS: Final = 1.0
GATHER_SECONDS: Final = 0.1
# Its own generator: drawing from Python's global one would change what a training draws after it.
_JITTER: Final = random.Random()
BACKOFF_FIRST_SECONDS: Final = 0.25
BACKOFF_CAP_SECONDS: Final = 10.0
LOOK_AGAIN_SECONDS: Final = 0.5
MAX_QUEUED_EVENTS: Final = 10_000

Address = tuple[str, str | None]
"""URL of a server and the token it wants, if any."""


class Sink(Protocol):
    """Where a trainer's events go."""

    @property
    def desired(self) -> DesiredState:
        """What the receiving side wants the trainer to do."""
        ...

    def emit(self, data: Message) -> None:
        """Take one event; never blocks, never raises for the receiver's troubles."""
        ...


def register_external_session(
    base_url: str,
    *,
    training_session_id: str,
    algorithm: str,
    total_episodes: int = 0,
    model_generation: int = 1,
    token: str | None = None,
) -> str:
    """Announce a training that runs in this process to a server; returns the session id to send events to.

    Raises :class:`ServerAway` when the server cannot be reached, :class:`ServerRefused` when it says no.
    """
    client = HttpClient(base_url, token=token)
    fields = {
        "training_session_id": training_session_id,
        "model_generation": model_generation,
        "algorithm": algorithm,
        "total_episodes": total_episodes,
    }
    try:
        status, _, content = client.post("/api/training/sessions", json.dumps(fields).encode())
    except ServerAway as error:
        raise ServerAway(f"no server answers at {base_url} ({error}); start one with: gymcast serve") from None
    finally:
        client.close()
    if status not in (200, 201):
        raise ServerRefused(f"POST {base_url}/api/training/sessions was answered {status}: {content[:500]!r}")
    answer = json.loads(content)
    return str(answer["session_id"])


class EventSink:
    """Sends events of one session to a server from a background thread. See the module's text for the guarantees.

    ``server`` is its URL, or a function that tells URL and token: it is asked again while the server is away, since
    another one may have taken its place. ``spool_dir`` is where events wait while the server is away (``None``: in
    memory only, at most 10,000); ``on_desired`` is called in the background thread whenever the server's wish changes.
    """

    def __init__(
        self,
        server: str | Callable[[], Address],
        session_id: str,
        *,
        producer: str | None = None,
        spool_dir: str | Path | None = None,
        spool_max_bytes: int = 64 << 20,
        token: str | None = None,
        on_desired: Callable[[DesiredState], None] | None = None,
    ) -> None:
        self.session_id = session_id
        self.producer = producer or f"worker-{os.getpid()}-{secrets.token_hex(4)}"
        self._path = f"/api/training/sessions/{session_id}/events"
        self._locate = server if callable(server) else lambda: (server, token)
        self._address = self._locate()
        self._client = HttpClient(self._address[0], token=self._address[1])
        self._spool = None if spool_dir is None else Spool(Path(spool_dir), self.producer, spool_max_bytes)
        self._on_desired = on_desired
        self._desired: DesiredState = "running"
        self._seq = 0
        self._queue: deque[Event] = deque()
        self._lines: deque[bytes] = deque()
        self._dropped = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._idle = threading.Condition(self._lock)
        self._closing = False
        self._connected = False
        self._thread = threading.Thread(target=self._run, name="gymcast-events", daemon=True)
        self._thread.start()

    @property
    def desired(self) -> DesiredState:
        """What the server last asked for."""
        return self._desired

    @property
    def connected(self) -> bool:
        """Whether the newest POST was answered."""
        return self._connected

    @property
    def emitted(self) -> int:
        """The number of the newest event."""
        return self._seq

    @property
    def dropped(self) -> int:
        """Events that found no room since the last report of dropped events."""
        return self._dropped

    def emit(self, data: Message) -> None:
        """Queue one event. Never blocks; when the queue is full the event is dropped and counted."""
        kind = event_type_of(data)
        with self._lock:
            if len(self._queue) >= MAX_QUEUED_EVENTS:
                self._dropped += 1
                return
            self._seq += 1
            self._queue.append(Event(seq=self._seq, type=kind, data=data))  # type: ignore[arg-type]
        self._wake.set()

    def flush(self, timeout: float) -> bool:
        """Wait until everything emitted so far has arrived, at most ``timeout`` seconds; returns whether it has."""
        self._wake.set()
        with self._idle:
            return self._idle.wait_for(self._nothing_waits, timeout)

    def _nothing_waits(self) -> bool:
        return not self._queue and not self._lines and (self._spool is None or not self._spool.pending)

    def close(self, timeout: float = 5.0) -> bool:
        """Flush for at most ``timeout`` seconds and end the thread; what is left stays in the spool file.

        Returns whether everything has arrived.
        """
        deadline = time.monotonic() + timeout
        arrived = self.flush(timeout)
        self._closing = True
        self._wake.set()
        self._thread.join(max(0.1, deadline - time.monotonic()))
        if self._thread.is_alive():
            # Waiting for a server that does not answer; without it the thread spools what is left and ends.
            self._client.abort()
            self._thread.join(1.0)
        return arrived

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _run(self) -> None:
        failures = 0
        while not self._closing:
            try:
                self._encode_queue()
                self._send_pending()
                failures = 0
            except ServerAway as error:
                if failures == 0:
                    log.warning("server away, events wait: %s", error)
                failures += 1
                self._connected = False
                self._store_lines()
                cap = min(BACKOFF_CAP_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(failures, 10))
                self._pause(max(error.retry_after, _JITTER.uniform(cap / 2, cap)))
                continue
            self._wake.wait(HEARTBEAT_SECONDS)
            self._wake.clear()
            if not self._closing:
                time.sleep(GATHER_SECONDS)
        self._encode_queue()
        self._store_lines()
        self._client.close()

    def _pause(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        look = time.monotonic() + LOOK_AGAIN_SECONDS
        while not self._closing and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
            if time.monotonic() >= look:
                look += LOOK_AGAIN_SECONDS
                if self._moved():
                    return

    def _moved(self) -> bool:
        """Whether the server is to be found at another address now; what follows goes there."""
        try:
            address = self._locate()
            if address == self._address:
                return False
            self._client.move_to(*address)
        except (OSError, ValueError) as error:
            log.warning("the address of the server cannot be read: %s", error)
            return False
        self._address = address
        return True

    def _encode_queue(self) -> None:
        with self._lock:
            events = list(self._queue)
            dropped, self._dropped = self._dropped, 0
            if dropped:
                self._seq += 1
                facts = ErrorData(
                    code="events_dropped",
                    message=f"{dropped} events found no room while the server was away",
                    detail={"dropped": dropped},
                )
                events.append(Event(seq=self._seq, type="error", data=facts))
        lines = [event.model_dump_json().encode() for event in events]
        with self._lock:
            for _ in range(len(lines) - bool(dropped)):
                self._queue.popleft()
            self._lines.extend(line for line in lines if self._fits(line))

    def _fits(self, line: bytes) -> bool:
        if len(line) <= MAX_BATCH_BYTES:
            return True
        log.warning("an event of %d bytes exceeds the limit of %d and is dropped", len(line), MAX_BATCH_BYTES)
        return False

    def _store_lines(self) -> None:
        """Move what waits in memory to the spool file, as far as there is room for it."""
        if not self._lines:
            return
        if self._spool is None:
            excess = len(self._lines) - MAX_QUEUED_EVENTS
            for _ in range(excess):
                self._lines.popleft()
            self._dropped += max(0, excess)
            return
        try:
            stored = self._spool.append(list(self._lines))
        except OSError as error:
            log.warning("cannot spool events: %s", error)
            stored = 0
            if len(self._lines) <= MAX_QUEUED_EVENTS:
                return
        with self._lock:
            self._dropped += len(self._lines) - stored
            self._lines.clear()

    def _send_pending(self) -> None:
        """Send spooled events, then those in memory; with nothing to send, a heartbeat. Raises ``ServerAway``."""
        sent = False
        while self._spool is not None and (batch := self._spool.peek()) is not None:
            producer, lines, path, offset = batch
            self._deliver(producer, lines)
            self._spool.advance(path, offset)
            sent = True
        while self._lines:
            lines, size = [], 0
            for line in self._lines:
                if len(lines) == MAX_EVENTS_PER_POST or size + len(line) + 1 > MAX_BATCH_BYTES:
                    break
                lines.append(line)
                size += len(line) + 1
            self._deliver(self.producer, lines)
            with self._idle:
                for _ in lines:
                    self._lines.popleft()
            sent = True
        if not sent:
            self._deliver(self.producer, [])
        with self._idle:
            self._idle.notify_all()

    def _deliver(self, producer: str, lines: list[bytes]) -> None:
        """Send ``lines``; those the server refuses are logged and left out, the others still arrive."""
        try:
            self._post(producer, lines)
        except ServerRefused as error:
            if len(lines) <= 1:
                log.error("the server refuses an event, it is dropped: %s", error)
                return
            middle = len(lines) // 2
            self._deliver(producer, lines[:middle])
            self._deliver(producer, lines[middle:])

    def _post(self, producer: str, lines: list[bytes]) -> None:
        body = b'{"producer":' + json.dumps(producer).encode() + b',"events":[' + b",".join(lines) + b"]}"
        status, headers, content = self._client.post(self._path, body)
        if status in (413, 422, 400):
            raise ServerRefused(f"{status}: {content[:500]!r}")
        if status not in (200, 201):
            raise ServerAway(f"answered {status}", _retry_after(headers))
        try:
            receipt = EventReceipt.model_validate_json(content)
        except ValidationError as error:
            raise ServerAway(f"answered {status} with something that is no receipt: {error}") from error
        self._connected = True
        if receipt.desired != self._desired:
            self._desired = receipt.desired
            if self._on_desired is not None:
                self._on_desired(receipt.desired)


def _retry_after(headers: dict[str, str]) -> float:
    value = headers.get("retry-after", "")
    return min(float(value), 60.0) if value.isdigit() else 0.0
