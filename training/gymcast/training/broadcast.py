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
from gymcast.training.http_client import SESSIONS, HttpClient, ServerAway, ServerRefused, retry_after
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


class EventSink:
    """Sends events of one session to a server from a background thread. See the module's text for the guarantees.

    ``server`` is its URL, or a function that tells URL and token: it is asked again while the server is away, since
    another one may have taken its place. ``session`` is the session's id, or a function that asks the server for one;
    it is called in the background thread, again and again while the server is away. ``spool_dir`` is where events wait
    while the server is away (``None``: in memory only, at most 10,000), or always until they have arrived
    (``write_ahead``), so that they outlive this process. ``gather_seconds`` is how long events wait for company.
    In the background thread ``on_desired`` is called whenever the server's wish changes, ``on_turn`` about twice a
    second, and ``on_end`` when it ends, with whether everything has arrived.
    """

    def __init__(
        self,
        server: str | Callable[[], Address],
        session: str | Callable[[HttpClient], str],
        *,
        producer: str | None = None,
        spool_dir: str | Path | None = None,
        spool_max_bytes: int = 64 << 20,
        write_ahead: bool = False,
        gather_seconds: float = GATHER_SECONDS,
        token: str | None = None,
        on_desired: Callable[[DesiredState], None] | None = None,
        on_turn: Callable[[], None] | None = None,
        on_end: Callable[[bool], None] | None = None,
    ) -> None:
        self.session_id = session if isinstance(session, str) else None
        self._announce = None if isinstance(session, str) else session
        self.producer = producer or f"worker-{os.getpid()}-{secrets.token_hex(4)}"
        self._locate = server if callable(server) else lambda: (server, token)
        self._address = self._locate()
        self._client = HttpClient(self._address[0], token=self._address[1])
        self._spool = None if spool_dir is None else Spool(Path(spool_dir), self.producer, spool_max_bytes)
        self._write_ahead = write_ahead and spool_dir is not None
        self._gather_seconds = gather_seconds
        self._on_desired, self._on_turn, self._on_end = on_desired, on_turn, on_end
        self.trouble: ServerAway | None = None
        """Why nothing arrives at present; ``None`` while all is well, and before the first try."""
        self.watchers = 0
        """How many watch the session, as far as the server has said."""
        self.quiet = False
        """Whether nothing has to be said when there is nothing to say: no heartbeats."""
        self._retiring = False
        self._hurry = False
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
        self.failures = 0
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

    def retire(self) -> None:
        """End the thread once everything has arrived; does not wait for it."""
        self.quiet = self._retiring = True
        self._wake.set()

    def flush(self, timeout: float) -> bool:
        """Wait until everything emitted so far has arrived, at most ``timeout`` seconds; returns whether it has.

        A server that is away is tried at once, whenever its turn would have been.
        """
        self._hurry = True
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
        while not self._closing:
            try:
                self._turn()
                self._send_pending()
            except ServerAway as error:
                self._note_trouble(error)
                self._store_lines()
                self._pause(error)
                continue
            if self.trouble is not None:
                log.info("the server answers again: %s", self._client.url)
                self.trouble = None
            if self._retiring:
                break
            self._wake.wait(None if self.quiet else HEARTBEAT_SECONDS)
            self._wake.clear()
            if not self._closing and not self._retiring:
                time.sleep(self._gather_seconds)
        self._encode_queue()
        self._store_lines()
        self._client.close()
        if self._on_end is not None:
            self._on_end(self._nothing_waits())

    def _turn(self) -> None:
        self._encode_queue()
        if self._write_ahead:
            self._store_lines()
        if self._on_turn is not None:
            self._on_turn()

    def _note_trouble(self, error: ServerAway) -> None:
        if type(self.trouble) is not type(error):
            where = "" if self._spool is None else f" in {self._spool.folder}"
            log.warning("server away, events wait%s: %s", where, error)
        self.trouble = error
        self.failures += 1
        self.watchers = 0
        self._connected = False

    def _pause(self, error: ServerAway) -> None:
        cap = min(BACKOFF_CAP_SECONDS, BACKOFF_FIRST_SECONDS * 2 ** min(self.failures, 10))
        deadline = time.monotonic() + max(error.retry_after, _JITTER.uniform(cap / 2, cap))
        look = time.monotonic() + LOOK_AGAIN_SECONDS
        while not self._closing and (left := deadline - time.monotonic()) > 0:
            time.sleep(min(left, 0.1))
            if self._hurry:
                self._hurry = False
                return
            if time.monotonic() >= look:
                look += LOOK_AGAIN_SECONDS
                self._turn()
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
        if self.session_id is None and self._announce is not None:
            self.session_id = self._register(self._announce)
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
        if not sent and not self.quiet:
            self._deliver(self.producer, [])
        with self._idle:
            self._idle.notify_all()

    def _register(self, announce: Callable[[HttpClient], str]) -> str:
        try:
            return announce(self._client)
        except ServerRefused as error:
            raise ServerAway(str(error), BACKOFF_CAP_SECONDS) from None

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
        status, headers, content = self._client.post(f"{SESSIONS}/{self.session_id}/events", body)
        if status in (413, 422, 400):
            raise ServerRefused(f"{status}: {content[:500]!r}")
        if status == 404:
            raise ServerAway(
                f"{self._client.url} knows no session {self.session_id}: deleted there, or another server or database"
            )
        if status not in (200, 201):
            raise ServerAway(f"answered {status}", retry_after(headers))
        try:
            receipt = EventReceipt.model_validate_json(content)
        except ValidationError as error:
            raise ServerAway(f"answered {status} with something that is no receipt: {error}") from error
        self._connected = True
        self.failures = 0
        self.watchers = receipt.watchers
        if receipt.desired != self._desired:
            self._desired = receipt.desired
            if self._on_desired is not None:
                self._on_desired(receipt.desired)
