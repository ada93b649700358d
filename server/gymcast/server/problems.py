"""Errors as ``application/problem+json`` (RFC 9457): the fixed list of types, and the one place that makes them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, Final

from aiohttp import web
from pydantic import ValidationError

from gymcast.training.storage import (
    BadCursorError,
    DuplicateIdError,
    IdempotencyError,
    NotFoundError,
    ReplayContentError,
    StateError,
    StorageBusyError,
    StorageError,
    TooManyRoomsError,
    VersionConflictError,
)

CONTENT_TYPE: Final = "application/problem+json"

# slug -> (status, title, meaning). The type of a problem is the URL /problems/<slug>, which shows the meaning.
PROBLEM_TYPES: Final[dict[str, tuple[int, str, str]]] = {
    "malformed-request": (
        400,
        "Malformed request",
        "The request cannot be read: not HTTP, not JSON, not UTF-8, or empty.",
    ),
    "bad-cursor": (400, "Unknown cursor", "The cursor was not handed out for this list. Start again without one."),
    "unauthorized": (
        401,
        "Unauthorized",
        "The request needs a token that this server signed; see docs/security.md.",
    ),
    "forbidden": (403, "Forbidden", "The token is good, but does not allow this; see docs/security.md for the scopes."),
    "foreign-origin": (403, "Foreign origin", "A page of another origin may not use this server unless it is listed."),
    "foreign-host": (403, "Foreign host name", "The Host header does not name this server."),
    "not-found": (404, "Not found", "There is nothing at this address."),
    "method-not-allowed": (405, "Method not allowed", "The address exists, but not for this method; see Allow."),
    "request-timeout": (408, "Request too slow", "The body did not arrive in time."),
    "conflict": (409, "Conflict", "The request does not fit the state the session is in."),
    "version-mismatch": (412, "Version mismatch", "The session changed since it was read. Read it again, then retry."),
    "body-too-large": (413, "Body too large", "Send less at once."),
    "unsupported-media-type": (415, "Unsupported media type", "Send the body as application/json."),
    "upgrade-required": (426, "Upgrade required", "This address speaks WebSocket only."),
    "invalid-values": (422, "Invalid values", "The body can be read, but values in it are wrong; see errors."),
    "idempotency-key-reused": (422, "Idempotency key reused", "The key belongs to a request with another body."),
    "too-many-requests": (429, "Too many requests", "Wait for the time given in Retry-After."),
    "internal-error": (500, "Internal error", "A fault of the server. The instance names its line in the log."),
    "busy": (503, "Busy", "The server cannot take this now. Nothing was stored; try again after Retry-After."),
    "no-capacity": (503, "No capacity", "The limit of live connections is reached."),
    "database-unavailable": (503, "Database unavailable", "The database cannot be used now."),
    "not-ready": (503, "Not ready", "The server cannot take work now: the database is away or cannot keep up."),
    "not-managed": (503, "No session manager", "This server does not run trainings itself."),
}


class Problem(Exception):
    """An error that is answered as it is. ``kind`` is a key of :data:`PROBLEM_TYPES`."""

    def __init__(
        self,
        kind: str,
        detail: str,
        *,
        errors: Sequence[Mapping[str, str]] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.kind = kind
        self.status = PROBLEM_TYPES[kind][0]
        self.detail = detail
        self.errors = errors
        self.headers = dict(headers or {})
        super().__init__(detail)

    def body(self, instance: str) -> bytes:
        """The JSON document; ``instance`` identifies the request."""
        document: dict[str, Any] = {
            "type": f"/problems/{self.kind}",
            "title": PROBLEM_TYPES[self.kind][1],
            "status": self.status,
            "detail": self.detail,
            "instance": instance,
        }
        if self.errors is not None:
            document["errors"] = list(self.errors)
        return json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")

    def response(self, instance: str) -> web.Response:
        """The answer."""
        return web.Response(
            status=self.status, body=self.body(instance), content_type=CONTENT_TYPE, headers=self.headers
        )


def invalid(pointer: str, code: str, message: str) -> Problem:
    """A 422 about one value; ``pointer`` is a JSON pointer (RFC 6901) or the name of a query parameter."""
    return Problem(
        "invalid-values",
        f"{pointer or 'body'}: {message}",
        errors=[{"pointer": pointer, "code": code, "message": message}],
    )


def from_validation(error: ValidationError, prefix: str = "") -> Problem:
    """A 422 with every problem pydantic found."""
    errors = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        pointer = prefix + "".join(f"/{_escape(str(part))}" for part in item["loc"])
        errors.append({"pointer": pointer, "code": item["type"], "message": item["msg"].removeprefix("Value error, ")})
    shown = "; ".join(f"{found['pointer'] or 'body'}: {found['message']}" for found in errors[:5])
    more = f"; and {len(errors) - 5} more" if len(errors) > 5 else ""
    return Problem("invalid-values", shown + more, errors=errors[:100])


def _escape(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")


def from_storage(error: StorageError) -> Problem:
    """The answer to an error of the storage."""
    match error:
        case NotFoundError():
            return Problem("not-found", f"There is no {error.what} {error.key!r}.")
        case VersionConflictError():
            return Problem("version-mismatch", str(error))
        case StateError() | DuplicateIdError() | TooManyRoomsError():
            return Problem("conflict", str(error))
        case IdempotencyError():
            return Problem("conflict" if error.running else "idempotency-key-reused", str(error))
        case BadCursorError():
            return Problem("bad-cursor", str(error))
        case StorageBusyError():
            return Problem("busy", str(error), headers={"Retry-After": str(error.retry_after)})
        case _:
            # The text may name files and hosts of this machine, so it goes to the log and not to the client.
            return Problem("database-unavailable", "The database cannot be used now.", headers={"Retry-After": "5"})


def from_http(error: web.HTTPException, path: str, method: str) -> Problem:
    """The answer to what aiohttp itself refuses."""
    if error.status == 404:
        return Problem("not-found", f"There is nothing at {path}.")
    if error.status == 405:
        allowed = error.headers.get("Allow", "")
        return Problem(
            "method-not-allowed", f"{method} is not allowed here; allowed: {allowed}.", headers={"Allow": allowed}
        )
    if error.status == 413:
        return Problem("body-too-large", "The body is too large.")
    if error.status < 500:
        return Problem("malformed-request", error.reason)
    return Problem("internal-error", "The server failed to answer.")


def from_replay(error: ReplayContentError, pointer: str) -> Problem:
    """A replay event whose content cannot be decoded."""
    return invalid(pointer, "replay_content", str(error))
