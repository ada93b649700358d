"""Holds answers to the server's OpenAPI document: status, content type, headers and body, unknown fields included."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any

import aiohttp
import jsonschema_rs
import pytest

from gymcast.server.openapi import make_document
from gymcast.server.route import Route
from gymcast.server.routes import routes

PROBLEM = "application/problem+json"


@cache
def document() -> dict[str, Any]:
    """The document of a server that asks for tokens."""
    return make_document([route for route in routes() if route.id], auth=True)


@cache
def _addresses() -> list[tuple[re.Pattern[str], Route]]:
    found = []
    for route in routes():
        pattern = re.escape(route.template)
        for name, form in route.path_parameters.items():
            pattern = pattern.replace(re.escape(f"{{{name}}}"), f"(?:{form})")
        found.append((re.compile(pattern), route))
    return found


def route_of(method: str, path: str) -> Route | None:
    """The row of the table for an address; ``None`` where there is none."""
    wanted = "GET" if method == "HEAD" else method
    return next((row for form, row in _addresses() if row.method == wanted and form.fullmatch(path)), None)


@cache
def _closed_components() -> dict[str, Any]:
    """The schemas, without room for fields that they do not name."""
    found = {}
    for name, schema in document()["components"]["schemas"].items():
        closed = "properties" in schema and "additionalProperties" not in schema
        found[name] = {**schema, "additionalProperties": False} if closed else schema
    return {"schemas": found}


@cache
def _validator(where: str) -> jsonschema_rs.Draft202012Validator:
    """Of the schema at ``where`` in the document."""
    schema = document()
    for part in json.loads(where):
        schema = schema[part]
    return jsonschema_rs.Draft202012Validator({**schema, "components": _closed_components()}, validate_formats=True)


def faults(method: str, path: str, status: int, headers: Mapping[str, str], body: bytes) -> Iterator[str]:
    """Everything about an answer that the document does not have."""
    media = headers.get("Content-Type", "").partition(";")[0]
    route = route_of(method, path)
    if route is None or not route.id:
        # A page, a file, or an address that is not there: errors look the same everywhere.
        if status >= 400:
            yield from _faults_of_body(["components", "schemas", "ProblemDocument"], PROBLEM, media, method, body)
        return
    operation = ["paths", route.template, route.method.lower(), "responses", str(status)]
    answers = document()["paths"][route.template][route.method.lower()]["responses"]
    if str(status) not in answers:
        yield f"status {status} is not one of {', '.join(answers)}"
        return
    found = answers[str(status)]
    if "$ref" in found:
        operation = found["$ref"].removeprefix("#/").split("/")
        found = document()["components"]["responses"][operation[-1]]
    for name, header in found.get("headers", {}).items():
        if name not in headers and (header.get("required") or name == "WWW-Authenticate"):
            yield f"header {name} is missing"
    content = found.get("content")
    if content is None:
        if body:
            yield f"there is a body: {body[:200]!r}"
    elif media not in content:
        yield f"content type {media} is not one of {', '.join(content)}"
    else:
        yield from _faults_of_body([*operation, "content", media, "schema"], media, media, method, body)


def _faults_of_body(where: list[str], expected: str, media: str, method: str, body: bytes) -> Iterator[str]:
    if media != expected:
        yield f"content type {media} is not {expected}"
    elif method != "HEAD" and expected in (PROBLEM, "application/json"):
        for error in _validator(json.dumps(where)).iter_errors(json.loads(body)):
            yield f"body{''.join(f'/{part}' for part in error.instance_path)}: {error.message[:400]}"


@contextmanager
def watched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Hold every answer that any ``aiohttp.ClientSession`` gets within to the document; faults are put into the list.

    Bodies are read as soon as an answer arrives; what reads them afterwards finds them as usual.
    """
    found: list[str] = []

    async def look(_session: Any, _context: SimpleNamespace, given: aiohttp.TraceRequestEndParams) -> None:
        answer = given.response
        if answer.status == 101:
            return
        body = await answer.read()
        path = given.url.raw_path
        for fault in faults(given.method, path, answer.status, answer.headers, body):
            found.append(f"{given.method} {path} answered {answer.status}: {fault}")

    trace = aiohttp.TraceConfig()
    trace.on_request_end.append(look)
    begin = aiohttp.ClientSession.__init__

    def begin_watched(self: aiohttp.ClientSession, *args: Any, **more: Any) -> None:
        begin(self, *args, **{**more, "trace_configs": [*(more.get("trace_configs") or ()), trace]})

    monkeypatch.setattr(aiohttp.ClientSession, "__init__", begin_watched)
    yield found
