"""The command line as a client of a running server. Standard library only, so that these commands start fast."""

from __future__ import annotations

import http.client
import json
import re
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import urlsplit

from gymcast.server.cli_errors import EXIT_FAILED, UserError

DEFAULT_SERVER: Final = "http://127.0.0.1:8000"
_TIMEOUT_SECONDS: Final = 10.0
_MAX_ANSWER: Final = 64 << 20


class ServerUnavailable(UserError):
    """Nothing answers, or the server says that it cannot now (503): later it may."""

    def __init__(self, message: str) -> None:
        super().__init__(message, EXIT_FAILED)


@dataclass(frozen=True)
class Server:
    """A server and the token it is asked with. Raises :class:`UserError` for an address that is none."""

    url: str
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise UserError(f"--server {self.url!r} is not an address; it looks like {DEFAULT_SERVER}")
        if self.token is not None and not re.fullmatch(r"[!-~]+", self.token):
            raise UserError("--token (or GYMCAST_TOKEN) is no token: it has spaces or other signs that none has")

    def request(self, method: str, path: str, body: Any = None) -> Any:
        """The JSON answer to one request; ``None`` for an empty one.

        Raises :class:`ServerUnavailable`, and :class:`UserError` with the server's own words when it says no.
        """
        parts = urlsplit(self.url)
        assert parts.hostname is not None
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        connection = kind(parts.hostname, parts.port, timeout=_TIMEOUT_SECONDS)
        try:
            content = None if body is None else json.dumps(body, allow_nan=False).encode()
        except ValueError:
            raise UserError("a value is NaN or infinite; give a number, or leave it out") from None
        headers = {"Accept": "application/json"}
        if content is not None:
            headers["Content-Type"] = "application/json"
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token}"
        try:
            connection.request(method, parts.path.rstrip("/") + path, content, headers)
            response = connection.getresponse()
            status, text = response.status, response.read(_MAX_ANSWER)
        except (OSError, http.client.HTTPException) as error:
            raise ServerUnavailable(
                f"no gymcast server answers at {self.url} ({error}). Start one with: gymcast serve   "
                "or name another one with --server"
            ) from None
        finally:
            connection.close()
        try:
            answer = json.loads(text) if text else None
        except ValueError:
            raise UserError(
                f"{self.url} answered something that is not JSON; is it a gymcast server?", EXIT_FAILED
            ) from None
        if status == 503:
            raise ServerUnavailable(_refusal(self.url, status, answer))
        if status >= 400:
            raise UserError(_refusal(self.url, status, answer), EXIT_FAILED)
        return answer


def _refusal(server: str, status: int, answer: Any) -> str:
    if not isinstance(answer, dict):
        return f"{server} answered {status}"
    if errors := answer.get("errors"):
        lines = ["the server refuses these values:", *(f"  {_named(item)}" for item in errors)]
    else:
        lines = [str(answer.get("detail") or answer.get("title") or f"{server} answered {status}")]
    if status == 401:
        lines.append("  Give it as GYMCAST_TOKEN (or --token).")
    return "\n".join(lines)


def _named(error: dict[str, Any]) -> str:
    name = str(error.get("pointer", "")).removeprefix("/").replace("/", ".")
    return f"{name}: {error.get('message', '')}" if name else str(error.get("message", ""))
