"""Who may talk to the server: foreign pages, foreign names, listed origins; headers of the page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest

from gymcast.server import RunningServer, ServerConfig, ServerConfigError, create_app, running_server

from .conftest import NewSession, expect_problem, external, server_config

SESSIONS = "/api/training/sessions"
FRIEND = "http://localhost:3000"


@pytest.fixture
async def open_server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A server that lists one foreign origin."""
    async with running_server(server_config(tmp_path, cors_origins=[FRIEND])) as running:
        yield running


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "", "[", "10.0.0.1"])
async def test_foreign_host_names_are_refused(client: aiohttp.ClientSession, host: str) -> None:
    async with client.get("/api/training/sessions", headers={"Host": host}) as answer:
        await expect_problem(answer, 403, "foreign-host")


@pytest.mark.parametrize("host", ["localhost:9000", "LOCALHOST", "127.0.0.1", "[::1]:8000"])
async def test_names_of_this_machine_are_fine(client: aiohttp.ClientSession, host: str) -> None:
    async with client.get("/health", headers={"Host": host}) as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
)
async def test_foreign_pages_cannot_change_anything(
    client: aiohttp.ClientSession, new_session: NewSession, headers: dict[str, str]
) -> None:
    one = f"{SESSIONS}/{await new_session()}"
    for method, path in (("POST", SESSIONS), ("PUT", one), ("DELETE", one), ("POST", f"{one}/stop")):
        async with client.request(method, path, json=external(), headers=headers) as answer:
            await expect_problem(answer, 403, "foreign-origin")
    async with client.get(one) as answer:
        assert (await answer.json())["desired"] == "running"


async def test_own_page_may(server: RunningServer, client: aiohttp.ClientSession) -> None:
    headers = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    async with client.post(SESSIONS, json=external(), headers=headers) as answer:
        assert answer.status == 201
        session_id = (await answer.json())["session_id"]
    async with client.ws_connect(f"/ws/{session_id}", headers=headers) as ws:
        assert (await ws.receive_json(timeout=5))["type"] == "connection_status"


async def test_foreign_answers_cannot_be_read(client: aiohttp.ClientSession) -> None:
    async with client.get(SESSIONS, headers={"Origin": "http://evil.example"}) as answer:
        assert "Access-Control-Allow-Origin" not in answer.headers
    preflight = {"Origin": "http://evil.example", "Access-Control-Request-Method": "POST"}
    async with client.options(SESSIONS, headers=preflight) as answer:
        await expect_problem(answer, 403, "foreign-origin")


async def test_listed_origins_may(open_server: RunningServer) -> None:
    async with aiohttp.ClientSession(open_server.url) as client:
        preflight = {"Origin": FRIEND, "Access-Control-Request-Method": "POST"}
        async with client.options(SESSIONS, headers=preflight) as answer:
            assert answer.status == 204
            assert answer.headers["Access-Control-Allow-Origin"] == FRIEND
            assert "POST" in answer.headers["Access-Control-Allow-Methods"]
        async with client.post(SESSIONS, json=external(), headers={"Origin": FRIEND}) as answer:
            assert answer.status == 201
            assert answer.headers["Access-Control-Allow-Origin"] == FRIEND
            session_id = (await answer.json())["session_id"]
        async with client.get(f"{SESSIONS}/nobody", headers={"Origin": FRIEND}) as answer:
            await expect_problem(answer, 404)
            assert answer.headers["Access-Control-Allow-Origin"] == FRIEND
        async with client.ws_connect(f"/ws/{session_id}", headers={"Origin": FRIEND}) as ws:
            await ws.receive_json(timeout=5)


async def test_page_has_a_strict_policy_and_is_checked_each_time(client: aiohttp.ClientSession) -> None:
    for path in ("/", "/static/js/api.js", "/static/vendor/plotly.min.js", "/favicon.ico"):
        async with client.get(path) as answer:
            assert answer.status == 200
            tag = answer.headers["ETag"]
            assert answer.headers["Cache-Control"] == "no-cache"
            policy = dict(part.split(" ", 1) for part in answer.headers["Content-Security-Policy"].split("; "))
        assert policy["script-src"] == policy["style-src"] == "'self'"
        assert policy["default-src"] == "'none'"
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        async with client.get(path, headers={"If-None-Match": tag}) as answer:
            assert answer.status == 304
    async with client.get("/") as answer:
        page = await answer.text()
    assert "<script>" not in page and "onclick" not in page
    async with client.get("/health") as answer:
        assert answer.headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_addresses_are_refused(host: str) -> None:
    with pytest.raises(ServerConfigError, match=r"authentication.*127\.0\.0\.1"):
        create_app(ServerConfig(host=host))
