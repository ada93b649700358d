"""The OpenAPI document: valid, complete, and served."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema_rs
import pytest
from schemathesis.specs.openapi.definitions import OPENAPI_31_VALIDATOR

from gymcast.server import ServerConfig, running_server
from gymcast.server.openapi import make_document
from gymcast.server.problems import PROBLEM_TYPES
from gymcast.server.routes import routes

from ..openapi_check import document, faults

DOCUMENTED = [route for route in routes() if route.id]


def references(value: Any) -> set[str]:
    """Every ``$ref`` in the document."""
    if isinstance(value, list):
        return set().union(*map(references, value))
    if isinstance(value, dict):
        own = {value["$ref"]} if isinstance(value.get("$ref"), str) else set()
        return own.union(*map(references, value.values()))
    return set()


@pytest.mark.parametrize("auth", [True, False])
def test_document_is_openapi_3_1(auth: bool) -> None:
    made = make_document(DOCUMENTED, auth=auth)
    assert [error.message for error in OPENAPI_31_VALIDATOR.iter_errors(made)] == []
    assert made["openapi"].startswith("3.1.")
    for name, schema in made["components"]["schemas"].items():
        assert jsonschema_rs.meta.is_valid({"$schema": made["jsonSchemaDialect"], **schema}), name


def test_every_reference_leads_somewhere() -> None:
    made = document()
    for reference in references(made):
        place: Any = made
        for part in reference.removeprefix("#/").split("/"):
            place = place[part]


def test_every_address_is_described() -> None:
    made = document()
    ids = [route.id for route in DOCUMENTED]
    assert len(set(ids)) == len(ids)
    for route in DOCUMENTED:
        operation = made["paths"][route.template][route.method.lower()]
        assert operation["summary"] and operation["tags"] == [route.group], route.id
        named = {given["name"] for given in operation["parameters"] if given["in"] == "path"}
        assert named == {part[1:-1] for part in route.template.split("/") if part.startswith("{")}
        for given in operation["parameters"]:
            assert given["in"] == "path" or given["description"], (route.id, given["name"])
        scopes = [] if route.scope is None else [{"bearer": [route.scope]}]
        assert operation["security"] == scopes
        assert all(kind in PROBLEM_TYPES for kind in route.problems)
    undocumented = {route.path for route in routes() if not route.id}
    assert all(not path.startswith(("/api", "/health", "/status")) for path in undocumented)


def test_examples_fit_their_schemas() -> None:
    made = document()
    for route in DOCUMENTED:
        if route.body is None:
            continue
        content = made["paths"][route.template][route.method.lower()]["requestBody"]["content"]["application/json"]
        schema = {**content["schema"], "components": made["components"]}
        for name, example in content["examples"].items():
            errors = [
                error.message for error in jsonschema_rs.Draft202012Validator(schema).iter_errors(example["value"])
            ]
            assert errors == [], (route.id, name)


def test_new_sessions_are_one_of_two() -> None:
    made = document()
    body = made["paths"]["/api/training/sessions"]["post"]["requestBody"]["content"]["application/json"]
    one_of = [choice["$ref"].rpartition("/")[2] for choice in body["schema"]["oneOf"]]
    assert one_of == ["ExternalSession", "ManagedSession"]
    config = made["components"]["schemas"]["TrainingConfig"]
    assert config["additionalProperties"] is False
    assert {"total_timesteps", "totalTimesteps", "speed_multiplier", "speedMultiplier"} <= set(config["properties"])


async def test_document_is_served_with_an_etag(tmp_path: Path) -> None:
    config = ServerConfig(port=0, data_storage_path=tmp_path)
    async with running_server(config) as server, aiohttp.ClientSession(server.url) as client:
        async with client.get("/openapi.json") as answer:
            assert answer.status == 200
            assert await answer.json() == make_document(DOCUMENTED, auth=False)
            tag = answer.headers["ETag"]
        async with client.get("/openapi.json", headers={"If-None-Match": tag}) as answer:
            assert (answer.status, await answer.read()) == (304, b"")


@pytest.mark.parametrize(
    ("status", "headers", "body", "fault"),
    [
        (200, "application/json", {"status": "healthy", "version": "1", "uptime_seconds": 1.0}, None),
        (200, "application/json", {"status": "healthy", "version": "1"}, "uptime_seconds"),
        (200, "application/json", {"status": "healthy", "version": "1", "uptime_seconds": 1.0, "new": 1}, "new"),
        (200, "text/html", {}, "content type"),
        (418, "application/json", {}, "status 418"),
    ],
)
def test_the_check_of_answers_finds_faults(status: int, headers: str, body: Any, fault: str | None) -> None:
    found = list(faults("GET", "/health", status, {"Content-Type": headers}, json.dumps(body).encode()))
    assert (found == []) if fault is None else (fault in found[0])
