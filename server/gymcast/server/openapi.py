"""The OpenAPI 3.1 document of the server, made from the URL table and the models in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cached_property
from http import HTTPStatus
from importlib.metadata import version
from typing import Any, Final, Literal, get_args

from aiohttp import hdrs, web
from pydantic import TypeAdapter
from pydantic.alias_generators import to_camel

from gymcast.training.config import TrainingConfig

from . import messages
from .auth import Scope
from .models import ProblemDocument
from .openapi_text import ABOUT, EXAMPLES, GROUPS, SCOPES, WEBSOCKET
from .problems import CONTENT_TYPE, PROBLEM_TYPES
from .route import Header, Media, Route

JsonObject = dict[str, Any]
_REF: Final = "#/components/schemas/{model}"
_SCHEMAS: Final = "#/components/schemas/"
_Mode = Literal["validation", "serialization"]
# A parameter of the query with such values is written with commas; arrays are what pydantic makes of tuples.
_COMMAS: Final = {"style": "form", "explode": False}


class OpenApi:
    """The document, made when it is first asked for; ``auth`` says whether this server asks for tokens."""

    def __init__(self, routes: Iterable[Route], *, auth: bool) -> None:
        self._routes = [route for route in routes if route.id]
        self._auth = auth

    @cached_property
    def document(self) -> JsonObject:
        """As JSON values."""
        return make_document(self._routes, auth=self._auth)

    @cached_property
    def body(self) -> bytes:
        """As it is sent."""
        return json.dumps(self.document, ensure_ascii=False, separators=(",", ":")).encode()

    @cached_property
    def etag(self) -> str:
        """Its entity tag."""
        return f'"{hashlib.sha256(self.body).hexdigest()[:16]}"'


OPENAPI: Final = web.AppKey("openapi", OpenApi)


async def document(request: web.Request) -> web.Response:
    """The OpenAPI document. 304 when `If-None-Match` has its ETag."""
    found = request.app[OPENAPI]
    headers = {hdrs.ETAG: found.etag, hdrs.CACHE_CONTROL: "no-cache"}
    given = [part.strip().removeprefix("W/") for part in request.headers.get(hdrs.IF_NONE_MATCH, "").split(",")]
    if found.etag in given or "*" in given:
        return web.Response(status=304, headers=headers)
    response = web.Response(body=found.body, content_type="application/json", headers=headers)
    response.enable_compression()
    return response


def make_document(routes: Sequence[Route], *, auth: bool) -> JsonObject:
    """The document of ``routes``."""
    schemas = _Schemas(routes)
    used_kinds: dict[str, tuple[str, ...]] = {}
    paths: JsonObject = {}
    for route in routes:
        paths.setdefault(route.template, {})[route.method.lower()] = _operation(
            route, routes, schemas, used_kinds, auth=auth
        )
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "gymcast",
            "version": version("gymcast"),
            "summary": "Game bots in training: sessions, what they report, and the games they play.",
            "description": ABOUT + "\n\n" + WEBSOCKET,
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "tags": [{"name": name, "description": text} for name, text in GROUPS.items()],
        "paths": paths,
        "components": {
            "schemas": dict(sorted(schemas.components.items())),
            "responses": {name: _problem_answer(kinds) for name, kinds in sorted(used_kinds.items())},
            "headers": {"X-Request-Id": {"description": "id of the request, found in the log", "schema": _TEXT}},
            "securitySchemes": {
                "bearer": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "A token made by `gymcast token`, with the scopes it needs:\n\n"
                    + "\n".join(f"- `{scope}`: {SCOPES[scope]}" for scope in get_args(Scope)),
                }
            },
        },
        "x-problem-types": {
            f"/problems/{kind}": {"status": status, "title": title, "description": meaning}
            for kind, (status, title, meaning) in PROBLEM_TYPES.items()
        },
    }


_TEXT: Final = {"type": "string"}
_REQUEST_ID: Final = {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}}


def _operation(
    route: Route, routes: Sequence[Route], schemas: _Schemas, used_kinds: dict[str, tuple[str, ...]], *, auth: bool
) -> JsonObject:
    made: JsonObject = {
        "operationId": route.id,
        "summary": route.summary.rstrip("."),
        "tags": [route.group],
        "parameters": [*_path_parameters(route), *schemas.query_parameters(route), *map(_header, route.takes)],
        "responses": _answers(route, routes, schemas, used_kinds),
        # Without authentication every caller has all scopes; a token does no harm.
        "security": [] if route.scope is None else [{"bearer": [route.scope]}] + ([] if auth else [{}]),
    }
    if route.description:
        made["description"] = route.description
    if route.body is not None:
        made["requestBody"] = {
            "required": True,
            "description": "JSON, at most 1 MiB.",
            "content": {"application/json": {"schema": schemas.body(route), "examples": EXAMPLES[route.id]}},
        }
    return made


def _path_parameters(route: Route) -> list[JsonObject]:
    return [
        {
            "name": name,
            "in": "path",
            "required": True,
            "schema": {"type": "string", "minLength": 1, "pattern": f"^(?:{pattern})$"},
        }
        for name, pattern in route.path_parameters.items()
    ]


def _header(header: Header) -> JsonObject:
    return {"name": header.name, "in": "header", "description": header.description, "schema": header.schema}


def _answers(
    route: Route, routes: Sequence[Route], schemas: _Schemas, used_kinds: dict[str, tuple[str, ...]]
) -> JsonObject:
    found: dict[int, JsonObject] = {}
    for status, model in route.answers.items():
        made: JsonObject = {"description": HTTPStatus(status).phrase, "headers": dict(_REQUEST_ID)}
        made["headers"] |= {
            header.name: {"description": header.description, "required": True, "schema": header.schema}
            for header in route.gives
            if status in header.statuses
        }
        if isinstance(model, Media):
            made["content"] = {model.content_type: {"schema": {} if model.binary else _TEXT}}
        elif model is not None:
            made["content"] = {"application/json": {"schema": schemas.answer(route, status)}}
            links = {
                other.id: {"operationId": other.id, "parameters": {name: where}}
                for name, where in route.links.items()
                for other in routes
                if name in other.path_parameters
            }
            if links:
                made["links"] = links
        found[status] = made
    for status in sorted({PROBLEM_TYPES[kind][0] for kind in route.problem_kinds}):
        kinds = tuple(kind for kind in route.problem_kinds if PROBLEM_TYPES[kind][0] == status)
        name = "-or-".join(kinds)
        used_kinds[name] = kinds
        if status not in found:
            found[status] = {"$ref": f"#/components/responses/{name}"}
        else:
            found[status]["content"] |= _problem_answer(kinds)["content"]
    return {str(status): found[status] for status in sorted(found)}


def _problem_answer(kinds: tuple[str, ...]) -> JsonObject:
    status = PROBLEM_TYPES[kinds[0]][0]
    headers: JsonObject = dict(_REQUEST_ID)
    if status in (429, 503):
        headers["Retry-After"] = {"description": "seconds to wait", "schema": {"type": "string", "pattern": "^[0-9]+$"}}
    if status == 401:
        headers["WWW-Authenticate"] = {"description": "what is asked for", "schema": _TEXT}
    facts = {"type": {"enum": [f"/problems/{kind}" for kind in kinds]}, "status": {"const": status}}
    return {
        "description": "\n\n".join(f"`/problems/{kind}`: {PROBLEM_TYPES[kind][2]}" for kind in kinds),
        "headers": headers,
        "content": {
            CONTENT_TYPE: {"schema": {"allOf": [{"$ref": _SCHEMAS + "ProblemDocument"}, {"properties": facts}]}}
        },
    }


class _Schemas:
    """Schemas of everything in the table, with what they share under ``components``."""

    def __init__(self, routes: Sequence[Route]) -> None:
        wanted: dict[Any, tuple[_Mode, TypeAdapter[Any]]] = {
            "problem": ("serialization", TypeAdapter(ProblemDocument)),
            **{f"message {model.__name__}": ("validation", TypeAdapter(model)) for model in get_args(messages.Inbound)},
        }
        for route in routes:
            if route.body is not None:
                wanted[route.id, "body"] = ("validation", TypeAdapter(route.body))
            for status, model in route.answers.items():
                if model is not None and not isinstance(model, Media):
                    wanted[route.id, status] = ("serialization", TypeAdapter(model))
        self._found, shared = TypeAdapter.json_schemas(
            [(key, mode, adapter) for key, (mode, adapter) in wanted.items()], ref_template=_REF
        )
        self.components: JsonObject = shared.get("$defs", {})
        self.components["TrainingConfig"], more = _training_config()
        self.components |= more
        if "ManagedSession" in self.components:
            config = self.components["ManagedSession"]["properties"]["config"]
            config |= {"$ref": _SCHEMAS + "TrainingConfig", "description": "any fields of TrainingConfig"}
            for name in ("additionalProperties", "type"):
                config.pop(name)

    def body(self, route: Route) -> JsonObject:
        """Of a request; where it may be one of several, exactly one of them fits."""
        schema = dict(self._one(route.id, "body", "validation"))
        if "anyOf" in schema:
            schema["oneOf"] = schema.pop("anyOf")
        return schema

    def answer(self, route: Route, status: int) -> JsonObject:
        """Of an answer."""
        return self._one(route.id, status, "serialization")

    def _one(self, name: str, what: str | int, mode: _Mode) -> JsonObject:
        found: JsonObject = self._found[(name, what), mode]
        return found

    def query_parameters(self, route: Route) -> list[JsonObject]:
        """From the model of the query."""
        if route.query is None:
            return []
        schema = route.query.model_json_schema(ref_template=_REF)
        self.components |= schema.get("$defs", {})
        return [_query_parameter(name, given) for name, given in schema["properties"].items()]


def _query_parameter(name: str, given: JsonObject) -> JsonObject:
    schema = {key: value for key, value in given.items() if key not in ("description", "title")}
    if "anyOf" in schema:  # a parameter that is left out is null for the handler, but nobody can send null
        (one,) = [choice for choice in schema.pop("anyOf") if choice.get("type") != "null"]
        schema = {**one, **{key: value for key, value in schema.items() if value is not None}}
    made = {"name": name, "in": "query", "description": given["description"], "schema": schema}
    return made | (_COMMAS if schema.get("type") == "array" else {})


def _training_config() -> tuple[JsonObject, JsonObject]:
    """The configuration of a training, each field in both spellings."""
    schema = TrainingConfig.model_json_schema(by_alias=False, ref_template=_REF)
    shared = schema.pop("$defs", {})
    for one in [schema, *shared.values()]:
        if one.get("additionalProperties") is False and "properties" in one:
            one["properties"] |= {
                to_camel(name): {"$ref": f"{_SCHEMAS}{one['title']}/properties/{name}"}
                for name in list(one["properties"])
                if to_camel(name) != name
            }
    return schema, shared
