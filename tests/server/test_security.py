"""Who may talk to the server: foreign pages, foreign names, listed origins; headers of the page."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
from pydantic import ValidationError

from gymcast.server import (
    DatabaseConfig,
    PerformanceConfig,
    RedisConfig,
    RunningServer,
    SecurityConfig,
    ServerConfig,
    ServerConfigError,
    ServerConfiguration,
    create_app,
    running_server,
)
from gymcast.server.auth import LOCAL, Authenticator
from gymcast.server.handlers import common

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
        assert answer.headers["Server"] == "gymcast"


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_addresses_need_secret_authentication_and_origins(host: str) -> None:
    with pytest.raises(ServerConfigError) as refused:
        create_app(ServerConfig(host=host))
    settings = [setting for setting, _text in refused.value.problems]
    assert settings == ["security.enable_auth", "security.jwt_secret_key", "security.cors_origins", "host"]
    text = str(refused.value)
    for remedy in ("GYMCAST_ENABLE_AUTH=true", "$(gymcast token secret)", "CORS_ORIGINS=https://", "127.0.0.1"):
        assert remedy in text
    good = {"enable_auth": True, "jwt_secret_key": "s" * 32, "cors_origins": ["https://yourdomain.com"]}
    create_app(ServerConfig(host=host, security=good))
    for name in good:
        with pytest.raises(ServerConfigError, match=name):
            create_app(ServerConfig(host=host, security={key: value for key, value in good.items() if key != name}))


def production(secret: str) -> ServerConfiguration:
    """The production configuration of the reference."""
    return ServerConfiguration(
        host="0.0.0.0",
        port=8000,
        debug=False,
        database=DatabaseConfig(enabled=True, url="postgresql://user:pass@db:5432/training_metrics"),
        redis=RedisConfig(enabled=True, host="redis", port=6379),
        security=SecurityConfig(enable_auth=True, jwt_secret_key=secret, cors_origins=["https://yourdomain.com"]),
        performance=PerformanceConfig(
            max_connections_per_session=100, max_total_connections=1000, enable_rate_limiting=True
        ),
    )


def test_the_production_configuration_works_with_a_secret_of_ones_own() -> None:
    create_app(production(secrets.token_urlsafe(48)))
    with pytest.raises(ValidationError, match="documentation's example"):
        production("production-secret-key")


def test_authentication_without_a_secret_is_refused_here_too() -> None:
    with pytest.raises(ServerConfigError, match="gymcast token secret"):
        create_app(ServerConfig(enable_auth=True))


@pytest.mark.parametrize(
    ("host", "fine"),
    [
        ("yourdomain.com", True),
        ("trainer:8000", True),
        ("localhost:8000", True),
        ("10.1.2.3:8000", True),
        ("[2001:db8::1]", True),
        ("evil.example", False),
        ("yourdomain.com.evil.example", False),
        ("", False),
    ],
)
async def test_names_of_a_server_that_others_can_reach(tmp_path: Path, host: str, fine: bool) -> None:
    async with (
        running_server(exposed(tmp_path)) as server,
        aiohttp.ClientSession() as client,
        client.get(f"http://127.0.0.1:{server.port}/health", headers={"Host": host}) as answer,
    ):
        if fine:
            assert answer.status == 200
        else:
            await expect_problem(answer, 403, "foreign-host")


async def test_a_server_that_others_can_reach_knows_its_page_by_the_list_only(tmp_path: Path) -> None:
    async with running_server(exposed(tmp_path)) as server, aiohttp.ClientSession() as client:
        for host, origin, fine in (
            ("yourdomain.com", "https://yourdomain.com", True),
            ("yourdomain.com", "http://yourdomain.com", False),
            ("10.1.2.3:8000", "http://10.1.2.3:8000", False),
            ("trainer", "http://trainer", False),
        ):
            headers = {"Host": host, "Origin": origin}
            async with client.post(f"http://127.0.0.1:{server.port}{SESSIONS}", headers=headers, json={}) as answer:
                await expect_problem(answer, *((401, "unauthorized") if fine else (403, "foreign-origin")))


async def test_browsers_of_a_server_with_tokens(tmp_path: Path) -> None:
    page = {"Origin": "https://yourdomain.com", "Host": "yourdomain.com"}
    foreign = {**page, "Origin": "https://evil.example"}
    async with running_server(exposed(tmp_path)) as server, aiohttp.ClientSession() as client:
        url = f"http://127.0.0.1:{server.port}"
        asks = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        async with client.options(f"{url}{SESSIONS}", headers={**page, **asks}) as answer:
            assert answer.status == 204
            assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
            assert "Access-Control-Allow-Credentials" not in answer.headers
        async with client.options(f"{url}{SESSIONS}", headers={**foreign, **asks}) as answer:
            await expect_problem(answer, 403, "foreign-origin")
        async with client.get(f"{url}{SESSIONS}", headers=page) as answer:
            await expect_problem(answer, 401, "unauthorized")
            assert answer.headers["Access-Control-Allow-Origin"] == "https://yourdomain.com"
        # A right ticket does not make a foreign page welcome, and is not used up by it.
        made = await server.storage.create_session(kind="external", **external())
        given = server.services.config.jwt_secret
        assert given is not None
        ticket = Authenticator(given).ticket(LOCAL)
        address = f"{url}/ws/{made.session_id}?ticket={ticket}"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await client.ws_connect(address, headers=foreign)
        assert refused.value.status == 403
        async with client.ws_connect(address, headers=page) as ws:
            await ws.receive_json(timeout=5)


def test_slow_senders_have_ten_seconds() -> None:
    assert common.BODY_SECONDS == PerformanceConfig().request_wait_seconds == 10


def exposed(tmp_path: Path) -> ServerConfig:
    """Settings of a server on every address of this machine."""
    security = {
        "enable_auth": True,
        "jwt_secret_key": "a-secret-of-these-tests-and-of-nothing-else",
        "cors_origins": ["https://yourdomain.com"],
        "allowed_hosts": ["trainer"],
    }
    return server_config(tmp_path, host="0.0.0.0", security=security)
