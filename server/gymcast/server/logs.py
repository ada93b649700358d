"""What the server logs and how: text or one JSON object a line, with the id of the request it belongs to."""

from __future__ import annotations

import itertools
import json
import logging
import re
import secrets
import sys
import time
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Final, Literal

LogFormat = Literal["text", "json"]

# The id of the request at work in this task; empty outside of requests.
REQUEST_ID: Final[ContextVar[str]] = ContextVar("gymcast_request_id", default="")
ACCESS: Final = logging.getLogger("gymcast.access")
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
# Made ids: 8 characters of this process and the number of the request.
_PROCESS: Final = secrets.token_hex(4)
_REQUESTS: Final = itertools.count(1)
_GIVEN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def request_id(given: str | None) -> str:
    """The id that a proxy or client gave (``X-Request-Id``), or a new one when it gave none that is fit to log."""
    if given is not None and _GIVEN_ID.fullmatch(given):
        return given
    return f"{_PROCESS}{next(_REQUESTS):08x}"


class JsonLines(logging.Formatter):
    """A record as one line of JSON: ``ts``, ``level``, ``logger``, ``message``, and what else is known."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, Any] = {
            "ts": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if found := REQUEST_ID.get():
            line["request_id"] = found
        line |= record.__dict__.get("facts", {})
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def configure(level: str | int, log_format: LogFormat) -> None:
    """Log to standard error, unless the program has set up logging already."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if log_format == "json" else logging.Formatter(_TEXT))
    logging.basicConfig(level=level, handlers=[handler])
    if logging.getLogger().getEffectiveLevel() > logging.DEBUG:
        logging.getLogger("alembic").setLevel(logging.WARNING)  # it tells of each step of a new database


def log_access(method: str, path: str, status: int, milliseconds: float, principal: str) -> None:
    """One answered request. ``path`` is without its query, which may hold a ticket."""
    facts = {"method": method, "path": path, "status": status, "ms": round(milliseconds, 1), "principal": principal}
    ACCESS.info("%s %s %d %.1f ms %s", method, path, status, milliseconds, principal, extra={"facts": facts})


class Seldom:
    """Warnings that may come by the thousand, as while a database is away: one every ``seconds``, and their number."""

    def __init__(self, logger: logging.Logger, seconds: float = 5.0) -> None:
        self._log = logger
        self._seconds = seconds
        self._next = 0.0
        self._left_out = 0

    def warning(self, text: str, *arguments: object) -> None:
        """Log it, unless another one was logged just before."""
        now = time.monotonic()
        if now < self._next:
            self._left_out += 1
            return
        if self._left_out:
            text, arguments = f"{text}; %d more like this since the last one told", (*arguments, self._left_out)
        self._log.warning(text, *arguments)
        self._next, self._left_out = now + self._seconds, 0
