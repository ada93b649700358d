"""A real server on a real socket with a real database, and a real client.

The database is a SQLite file. Tests that ask for ``database_url`` as well run on SQLite and on PostgreSQL, and with
GYMCAST_TEST_DATABASE=postgresql all run on PostgreSQL.
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gymcast.server import RunningServer, ServerConfig, running_server

from ..openapi_check import watched
from ..reference_examples import METRICS

NewSession = Callable[..., Awaitable[str]]


def server_config(tmp_path: Path, **more: Any) -> ServerConfig:
    """Settings of a server in a test's own folder, on any free port."""
    return ServerConfig(port=0, **{"database": {"url": f"sqlite:///{tmp_path / 'server.db'}"}, **more})


@pytest.fixture(autouse=True)
def as_documented(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every answer that a test sees is one that the OpenAPI document has."""
    with watched(monkeypatch) as faults:
        yield
    assert faults == []


@pytest.fixture
def server_database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of the server's database."""
    named = "postgres_url" if os.environ.get("GYMCAST_TEST_DATABASE") == "postgresql" else None
    if "database_url" in request.fixturenames:
        named = "database_url"
    url: str = request.getfixturevalue(named) if named else f"sqlite:///{tmp_path / 'server.db'}"
    return url


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on, for a server that is started again at the same address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        found: int = probe.getsockname()[1]
        return found


@pytest.fixture
async def server(tmp_path: Path, server_database: str) -> AsyncIterator[RunningServer]:
    async with running_server(server_config(tmp_path, database={"url": server_database})) as running:
        yield running


@pytest.fixture
async def client(server: RunningServer) -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(server.url) as session:
        yield session


@pytest.fixture
def new_session(client: aiohttp.ClientSession) -> NewSession:
    async def make(**changes: Any) -> str:
        async with client.post("/api/training/sessions", json=external(**changes)) as answer:
            assert answer.status == 201, await answer.text()
            return str((await answer.json())["session_id"])

    return make


def external(**changes: Any) -> dict[str, Any]:
    """The body that creates an external session."""
    body = {"training_session_id": "t1", "model_generation": 2, "algorithm": "DQN", "total_episodes": 1000}
    return {**body, **changes}


def metrics(episode: float = 100, **changes: Any) -> dict[str, Any]:
    """A training_metrics reading."""
    return {**METRICS, "episode": episode, **changes}


def event(seq: int, kind: str, data: dict[str, Any], ts: str = "2026-01-01T12:00:00Z") -> dict[str, Any]:
    """One numbered event."""
    return {"seq": seq, "ts": ts, "type": kind, "data": data}


async def expect_problem(answer: aiohttp.ClientResponse, status: int, kind: str | None = None) -> dict[str, Any]:
    """The problem document of ``answer``, checked for its form."""
    text = await answer.text()
    assert answer.status == status, f"{answer.status}: {text}"
    assert answer.headers["Content-Type"].startswith("application/problem+json"), answer.headers["Content-Type"]
    document: dict[str, Any] = await answer.json(content_type=None)
    assert {"type", "title", "status", "detail", "instance"} <= set(document)
    assert document["status"] == status
    assert document["instance"] == answer.headers["X-Request-Id"]
    if kind is not None:
        assert document["type"] == f"/problems/{kind}"
    if status == 422 and kind in (None, "invalid-values"):
        assert document["errors"] and all(set(error) == {"pointer", "code", "message"} for error in document["errors"])
    return document
