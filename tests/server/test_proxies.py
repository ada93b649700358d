"""The proxies of docs/deployment.md with the files as they stand there: TLS, tokens, WebSockets, limits.

Beside the server each has an address where nothing listens, as when one of two processes is down.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import re
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gymcast.server import RunningServer, auth, running_server

from ..programs import need_program
from .conftest import event, expect_problem, external, metrics, server_config

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
NAME = "gymcast.example.org"
SECRET = "a-secret-of-these-tests-and-of-nothing-else"
SESSIONS = "/api/training/sessions"
NGINX = """
daemon off;
master_process off;
pid nginx.pid;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxied;
    {site}
}}
"""
CADDY = """
{{
    admin off
    auto_https disable_redirects
    default_bind 127.0.0.1
    https_port {port}
    storage file_system {folder}
}}
{site}
"""


def _block(kind: str) -> str:
    (found,) = re.findall(rf"^```{kind}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return str(found)


def _replaced(text: str, changes: dict[str, str]) -> str:
    """``text`` with every change, each of which it has to have room for."""
    for old, new in changes.items():
        assert old in text, old
        text = text.replace(old, new)
    return text


def _command(program: str, folder: Path, port: int, upstreams: dict[str, str]) -> list[str]:
    """Writes the page's file with addresses of this test, and says how the program is started with it."""
    found = need_program(program, package="nginx-light" if program == "nginx" else None)
    site = _replaced(_block("caddyfile" if program == "caddy" else program), upstreams)
    if program == "nginx":
        live = f"/etc/letsencrypt/live/{NAME}"
        changes = {
            "listen 443 ssl;": f"listen 127.0.0.1:{port} ssl;",
            "listen 80;": f"listen unix:{folder / 'plain'};",
            f"{live}/fullchain.pem": str(folder / "cert.pem"),
            f"{live}/privkey.pem": str(folder / "key.pem"),
        }
        (folder / "nginx.conf").write_text(NGINX.format(site=_replaced(site, changes)))
        return [found, "-e", "stderr", "-p", str(folder), "-c", "nginx.conf"]
    certificate = f"{NAME} {{\n    tls {folder / 'cert.pem'} {folder / 'key.pem'}\n"
    site = _replaced(site, {f"{NAME} {{\n": certificate})
    (folder / "Caddyfile").write_text(CADDY.format(port=port, folder=folder, site=site))
    return [found, "run", "--adapter", "caddyfile", "--config", str(folder / "Caddyfile")]


def _make_certificate(folder: Path) -> ssl.SSLContext:
    """A certificate for the name, in files; returns what trusts it."""
    need_program("openssl")
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc -days 2"
        f" -keyout key.pem -out cert.pem -subj /CN={NAME} -addext subjectAltName=DNS:{NAME}"
    )
    subprocess.run(command.split(), cwd=folder, check=True, capture_output=True)
    return ssl.create_default_context(cafile=str(folder / "cert.pem"))


class Proxied:
    """A client of a server behind a proxy, which speaks as a browser at https://gymcast.example.org does."""

    def __init__(self, session: aiohttp.ClientSession, tls: ssl.SSLContext) -> None:
        self._session = session
        self._more: dict[str, Any] = {"ssl": tls, "server_hostname": NAME}

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Any:
        headers = {"Host": NAME, "Content-Type": "application/json", **headers}
        data = None if body is None else io.BytesIO(json.dumps(body).encode())
        return self._session.request(method, path, data=data, headers=headers, **self._more)

    def watch(self, path: str, origin: str = f"https://{NAME}") -> Any:
        headers = {"Host": NAME, "Origin": origin}
        return self._session.ws_connect(path, headers=headers, **self._more)


@contextlib.asynccontextmanager
async def _running(command: list[str], folder: Path, port: int) -> AsyncIterator[None]:
    process = await asyncio.create_subprocess_exec(*command, cwd=folder, stdin=subprocess.DEVNULL)
    try:
        async with asyncio.timeout(60):
            while True:
                assert process.returncode is None, f"{command[0]} did not start"
                with contextlib.suppress(OSError):
                    (await asyncio.open_connection("127.0.0.1", port))[1].close()
                    break
                await asyncio.sleep(0.05)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        await process.wait()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    security = {"enable_auth": True, "jwt_secret_key": SECRET, "cors_origins": [f"https://{NAME}"]}
    known = {"allowed_hosts": [NAME], "trusted_proxies": ["127.0.0.1"]}
    config = server_config(tmp_path, security={**security, **known})
    async with running_server(config) as running:
        yield running


@pytest.mark.parametrize("program", ["nginx", "caddy"])
async def test_a_server_behind_a_proxy(
    program: str, server: RunningServer, free_port: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gymcast.server.auth")
    tls = _make_certificate(tmp_path)
    upstreams = {"127.0.0.1:8001": f"127.0.0.1:{server.port}", "127.0.0.1:8002": "127.0.0.1:9"}
    command = _command(program, tmp_path, free_port, upstreams)
    bearer = {"Authorization": "Bearer " + auth.issue(SECRET, subject="ada", scopes=["control"], seconds=600)}
    origin = {"Origin": f"https://{NAME}"}
    async with (
        _running(command, tmp_path, free_port),
        aiohttp.ClientSession(
            f"https://127.0.0.1:{free_port}", connector=aiohttp.TCPConnector(local_addr=("127.0.0.2", 0))
        ) as session,
    ):
        proxied = Proxied(session, tls)
        for _ in range(4):  # at a process that is down the other one is asked
            async with proxied.ask("GET", "/") as answer:
                assert answer.status == 200 and "default-src 'none'" in answer.headers["Content-Security-Policy"]
        async with proxied.ask("GET", "/", Host="other.example.org") as answer:
            assert answer.status == 403 or await answer.text() == ""
        async with proxied.ask("POST", SESSIONS, external(), **origin) as answer:
            await expect_problem(answer, 401)
        invented = {"Authorization": "Bearer wrong", "X-Forwarded-For": "203.0.113.9"}
        async with proxied.ask("GET", SESSIONS, **invented) as answer:
            await expect_problem(answer, 401)
        assert "from 127.0.0.2 is not let in" in caplog.text
        async with proxied.ask("POST", SESSIONS, external(), **bearer, Origin="https://other.example.org") as answer:
            await expect_problem(answer, 403, "foreign-origin")
        async with proxied.ask("POST", SESSIONS, external(), **bearer, **origin) as answer:
            assert answer.status == 201
            session_id = (await answer.json())["session_id"]
        # The server's own limit is the one that counts, with its own answer.
        for size, status in ((2**20, 422), (2**20 + 1, 413)):
            async with proxied.ask("PUT", f"{SESSIONS}/{session_id}", "x" * (size - 2), **bearer) as answer:
                await expect_problem(answer, status)

        async with proxied.ask("POST", "/api/tickets", {"session_id": session_id}, **bearer, **origin) as answer:
            address = f"/ws/{session_id}?ticket={(await answer.json())['ticket']}"
        with pytest.raises(aiohttp.WSServerHandshakeError) as refused:
            await proxied.watch(address, "https://other.example.org")
        assert refused.value.status == 403
        async with proxied.watch(address) as viewer:
            assert (await viewer.receive_json(timeout=30))["type"] == "connection_status"
            reports = f"{SESSIONS}/{session_id}/events"
            body = {"producer": "p", "events": [event(1, "training_metrics", metrics())]}
            async with proxied.ask("POST", reports, body, **bearer, **origin) as answer:
                assert answer.status == 201, await answer.text()
            while (await viewer.receive_json(timeout=30))["type"] != "training_metrics":
                pass
            server.hub.close_all(1001, "the server stops")
            while (frame := await viewer.receive(timeout=30)).type is aiohttp.WSMsgType.TEXT:
                pass
            assert (frame.type, frame.data) == (aiohttp.WSMsgType.CLOSE, 1001)
