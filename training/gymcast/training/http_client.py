"""A keep-alive HTTP connection for posting JSON, standard library only."""

from __future__ import annotations

import contextlib
import http.client
import socket
from typing import Final
from urllib.parse import SplitResult, urlsplit

from gymcast.training.events import MAX_POST_BYTES

SESSIONS: Final = "/api/training/sessions"
_TIMEOUT_SECONDS: Final = 10.0


def check_url(text: str) -> SplitResult:
    """The parts of a server's address. Raises ``ValueError`` for what is none."""
    try:
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise ValueError(f"server URL has to look like http://host:port, got {text!r}")
    return parts


class ServerRefused(Exception):
    """The server answered a batch with an error that sending it again unchanged cannot cure."""


class ServerAway(Exception):
    """The server cannot be reached, or asks to come back later (``retry_after`` seconds)."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class ServerDenied(ServerAway):
    """The server answers, and wants another token."""


class HttpClient:
    """One keep-alive connection to ``base_url``, with JSON in and out."""

    def __init__(self, base_url: str, *, token: str | None = None) -> None:
        self._connection: http.client.HTTPConnection | None = None
        self._aborted = False
        self.move_to(base_url, token)

    def move_to(self, base_url: str, token: str | None) -> None:
        """Send what follows to another address. Raises ``ValueError`` for what is none."""
        parts = check_url(base_url)
        self.close()
        self.url = base_url.rstrip("/")
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._prefix = parts.hostname or "", parts.port, parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def post(self, path: str, body: bytes, **headers: str) -> tuple[int, dict[str, str], bytes]:
        """``(status, headers, body)`` of the answer; ``Idempotency_Key`` becomes the header with a dash.

        Raises :class:`ServerAway` when there is no answer, :class:`ServerDenied` for 401 and 403.
        """
        answer = self._post_again(path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        if answer[0] in (401, 403):
            raise ServerDenied(
                f"{self.url} answered {answer[0]}: the token is "
                + ("missing, wrong or too old" if answer[0] == 401 else "not allowed to report (scope ingest)")
                + "; set GYMCAST_TOKEN, or give token=..., to one the server takes"
            )
        return answer

    def _post_again(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        reused = self._connection is not None
        try:
            return self._post(path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not reused:
                raise ServerAway(f"{type(error).__name__}: {error}") from error
        try:
            # An idle keep-alive connection may have been closed meanwhile; that says nothing about the server.
            return self._post(path, body, headers)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ServerAway(f"{type(error).__name__}: {error}") from error

    def _post(self, path: str, body: bytes, headers: dict[str, str]) -> tuple[int, dict[str, str], bytes]:
        if self._aborted:
            raise ConnectionAbortedError("the client was told to give up")
        if self._connection is None:
            self._connection = self._kind(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        self._connection.request("POST", self._prefix + path, body, self._headers | headers)
        response = self._connection.getresponse()
        content = response.read(MAX_POST_BYTES)
        if response.will_close:
            self.close()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, content

    def abort(self) -> None:
        """Make a request that another thread is waiting in fail at once, and every one after it."""
        self._aborted = True
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):  # already closed by the other side
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def retry_after(headers: dict[str, str]) -> float:
    """Seconds that an answer asks to wait, at most 60."""
    value = headers.get("retry-after", "")
    return min(float(value), 60.0) if value.isdigit() else 0.0
