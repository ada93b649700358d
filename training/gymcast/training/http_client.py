"""A keep-alive HTTP connection for posting JSON, standard library only."""

from __future__ import annotations

import contextlib
import http.client
import socket
from typing import Final
from urllib.parse import urlsplit

from gymcast.training.events import MAX_POST_BYTES

_TIMEOUT_SECONDS: Final = 10.0


class ServerRefused(Exception):
    """The server answered a batch with an error that sending it again unchanged cannot cure."""


class ServerAway(Exception):
    """The server cannot be reached, or asks to come back later (``retry_after`` seconds)."""

    def __init__(self, text: str, retry_after: float = 0.0) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class HttpClient:
    """One keep-alive connection to ``base_url``, with JSON in and out."""

    def __init__(self, base_url: str, *, token: str | None = None) -> None:
        self._connection: http.client.HTTPConnection | None = None
        self.move_to(base_url, token)

    def move_to(self, base_url: str, token: str | None) -> None:
        """Send what follows to another address. Raises ``ValueError`` for what is none."""
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(f"server URL has to look like http://host:port, got {base_url!r}")
        self.close()
        self._kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self._host, self._port, self._prefix = parts.hostname, parts.port, parts.path.rstrip("/")
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def post(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        """``(status, headers, body)`` of the answer. Raises :class:`ServerAway` when there is none."""
        reused = self._connection is not None
        try:
            return self._post(path, body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if not reused:
                raise ServerAway(f"{type(error).__name__}: {error}") from error
        try:
            # An idle keep-alive connection may have been closed meanwhile; that says nothing about the server.
            return self._post(path, body)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ServerAway(f"{type(error).__name__}: {error}") from error

    def _post(self, path: str, body: bytes) -> tuple[int, dict[str, str], bytes]:
        if self._connection is None:
            self._connection = self._kind(self._host, self._port, timeout=_TIMEOUT_SECONDS)
        self._connection.request("POST", self._prefix + path, body, self._headers)
        response = self._connection.getresponse()
        content = response.read(MAX_POST_BYTES)
        if response.will_close:
            self.close()
        return response.status, {name.lower(): value for name, value in response.getheaders()}, content

    def abort(self) -> None:
        """Make a request that another thread is waiting in fail at once."""
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):  # already closed by the other side
                connection.sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
