"""One row of the URL table: an address, who may call it, and what the OpenAPI document says about it."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from aiohttp import web

from .auth import Scope
from .handlers.queries import PageQuery, Query
from .problems import PROBLEM_TYPES

Method = Literal["GET", "POST", "PUT", "DELETE"]

_PARAMETER: Final = re.compile(r"\{(\w+)(?::((?:[^{}]|\{[^{}]*\})+))?\}")


@dataclass(frozen=True, slots=True)
class Header:
    """A header of requests or answers; ``statuses`` are those of the answers that have it."""

    name: str
    description: str
    pattern: str | None = None
    statuses: tuple[int, ...] = (200, 201)

    @property
    def schema(self) -> dict[str, Any]:
        """Its values."""
        return {"type": "string"} | ({} if self.pattern is None else {"pattern": self.pattern})


@dataclass(frozen=True, slots=True)
class Media:
    """A body that is not JSON."""

    content_type: str
    binary: bool = False


ETAG: Final = Header("ETag", "version of the session", r'^"[0-9]+"$', (200, 201, 304))
LOCATION: Final = Header("Location", "address of what was made", statuses=(201,))
IF_MATCH: Final = Header("If-Match", 'change nothing unless the session has this ETag, such as "7"; or *')
IF_NONE_MATCH: Final = Header("If-None-Match", "answer 304 when the session has this ETag")
IDEMPOTENCY_KEY: Final = Header(
    "Idempotency-Key",
    "any text of your own, kept for 24 hours: the same request with the same key is done once",
    r"^[ -~]{1,255}$",
)


@dataclass(frozen=True, slots=True)
class Route:
    """One address; the fields are explained at the top of ``routes.py``.

    ``scope`` is what a caller has to be allowed: ``None`` is open to everyone. Without an ``id`` the address does not
    stand in the OpenAPI document.
    """

    method: Method
    path: str
    handler: Callable[..., Awaitable[web.StreamResponse]]
    scope: Scope | None
    id: str = ""
    answers: Mapping[int, Any] = field(default_factory=dict)
    query: type[Query] | None = None
    body: Any = None
    takes: tuple[Header, ...] = ()
    gives: tuple[Header, ...] = ()
    links: Mapping[str, str] = field(default_factory=dict)
    problems: tuple[str, ...] = ()
    group: str = ""

    @property
    def template(self) -> str:
        """The path as OpenAPI writes it: names in braces, without what they have to look like."""
        return _PARAMETER.sub(r"{\1}", self.path)

    @property
    def path_parameters(self) -> dict[str, str]:
        """Name -> regular expression of each parameter in the path."""
        return {name: pattern or "[^{}/]+" for name, pattern in _PARAMETER.findall(self.path)}

    @property
    def summary(self) -> str:
        """First paragraph of the handler's docstring."""
        return " ".join(self._text()[0].split())

    @property
    def description(self) -> str:
        """The rest of it."""
        return "\n\n".join(" ".join(part.split()) for part in self._text()[1:])

    def _text(self) -> list[str]:
        if not self.handler.__doc__:
            raise TypeError(f"{self.method} {self.path}: its handler needs a docstring")
        return self.handler.__doc__.strip().split("\n\n")

    @property
    def problem_kinds(self) -> tuple[str, ...]:
        """Every problem type that the address may answer with, by status."""
        kinds = {"foreign-host", *self.problems}
        if self.method != "GET":
            kinds |= {"foreign-origin", "busy"}
        if self.scope is not None:
            # Not found: for the guest of a room everything else is not there.
            kinds |= {"unauthorized", "forbidden", "not-found", "too-many-requests", "database-unavailable"}
        if self.body is not None:
            kinds |= {"malformed-request", "request-timeout", "body-too-large", "unsupported-media-type"}
        if self.body is not None or self.query is not None:
            kinds.add("invalid-values")
        if self.query is not None and issubclass(self.query, PageQuery):
            kinds.add("bad-cursor")
        if self.path_parameters:
            kinds.add("not-found")
        if IF_MATCH in self.takes:
            kinds.add("version-mismatch")
        return tuple(kind for kind in PROBLEM_TYPES if kind in kinds)


def in_group(name: str, *routes: Route) -> tuple[Route, ...]:
    """``routes`` under one heading of the document."""
    return tuple(replace(route, group=name) for route in routes)
