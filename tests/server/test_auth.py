"""Tokens and scopes: who may do what, and every way a token can be wrong."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gymcast.server import RunningServer, auth, running_server
from gymcast.server.routes import routes

from .conftest import event, expect_problem, external, metrics, server_config

SECRET = "a-secret-of-these-tests-and-of-nothing-else"
SESSIONS = "/api/training/sessions"


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def token(*scopes: str, seconds: float = 60, room: str | None = None) -> str:
    return auth.issue(SECRET, subject="tester", scopes=scopes, seconds=seconds, room=room)


def forged(*, secret: str = SECRET, header: dict[str, Any] | None = None, **changes: Any) -> str:
    """A token made by hand, with ``changes`` to its claims; ``None`` leaves a claim out."""
    now = int(time.time())
    claims = {"sub": "tester", "scope": "admin", "iss": "gymcast", "aud": "gymcast", "iat": now, "exp": now + 60}
    claims = {name: value for name, value in {**claims, **changes}.items() if value is not None}

    def part(value: dict[str, Any]) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    signed = part({"alg": "HS256", "typ": "JWT", **(header or {})}) + b"." + part(claims)
    digest = {"HS384": hashlib.sha384, "HS512": hashlib.sha512}.get((header or {}).get("alg", ""), hashlib.sha256)
    signature = base64.urlsafe_b64encode(hmac.new(secret.encode(), signed, digest).digest()).rstrip(b"=")
    return (signed + b"." + (b"" if (header or {}).get("alg") == "none" else signature)).decode()


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A server that asks for tokens."""
    async with running_server(server_config(tmp_path, enable_auth=True, jwt_secret_key=SECRET)) as running:
        yield running


def test_a_token_says_who_and_what() -> None:
    principal = auth.verify(SECRET, auth.issue(SECRET, subject="bob", scopes=["read", "ingest"], seconds=60))
    assert (principal.subject, principal.scopes, principal.room) == ("bob", {"read", "ingest"}, None)
    assert auth.verify(SECRET, token("control")).scopes == {"read", "ingest", "control"}
    assert auth.verify(SECRET, token("admin")).scopes == set(auth.SCOPES)
    guest = auth.verify(SECRET, token("read", room="K7WXQ2"))
    assert (guest.scopes, guest.room) == ({"read"}, "K7WXQ2")


@pytest.mark.parametrize(
    "make",
    [
        lambda: auth.issue(SECRET, subject="", scopes=["read"], seconds=1),
        lambda: auth.issue(SECRET, subject="a\nb", scopes=["read"], seconds=1),
        lambda: auth.issue(SECRET, subject="bob", scopes=[], seconds=1),
        lambda: auth.issue(SECRET, subject="bob", scopes=["root"], seconds=1),
        lambda: auth.issue(SECRET, subject="bob", scopes=["read", "control"], seconds=1, room="K7WXQ2"),
        lambda: auth.issue("x" * 31, subject="bob", scopes=["read"], seconds=1),
        lambda: auth.issue("production-secret-key" * 2, subject="bob", scopes=["read"], seconds=1),
        lambda: auth.issue("Your-Secret-Key".center(40, "-"), subject="bob", scopes=["read"], seconds=1),
    ],
)
def test_what_no_token_may_say(make: Callable[[], str]) -> None:
    with pytest.raises(ValueError):
        make()


NOW = int(time.time())
WRONG = {
    "no signature": forged(header={"alg": "none"}),
    "no signature, capitals": forged(header={"alg": "None"}),
    "HS512": forged(header={"alg": "HS512"}),
    "RS256 with the secret as its key": forged(header={"alg": "RS256"}),
    "another secret": forged(secret="another-secret-that-is-long-enough-to-count"),
    "key inside the token": forged(
        secret="sixteen byte key", header={"jwk": {"kty": "oct", "k": "c2l4dGVlbiBieXRlIGtleQ"}}
    ),
    "unknown critical header": forged(header={"crit": ["b64"], "b64": False}),
    "wrong audience": forged(aud="somebody-else"),
    "two audiences": forged(aud=["gymcast", "somebody-else"]),
    "a ticket's audience": forged(aud="gymcast-ticket"),
    "wrong issuer": forged(iss="somebody-else"),
    "ended": forged(exp=NOW - 3600),
    "begins later": forged(iat=NOW + 3600, exp=NOW + 7200),
    "not before": forged(nbf=NOW + 3600),
    "no scope in it": forged(scope=""),
    "unknown scope": forged(scope="root"),
    "scope is a list": forged(scope=["admin"]),
    "sub is a number": forged(sub=7),
    "sub is empty": forged(sub=""),
    "room is a number": forged(room=7),
    "exp is text": forged(exp="never"),
    "exp is huge": forged(exp=10**400),
    "too long": forged(sub="x" * 5000),
    "not a token": "x",
    "dots": "..",
    "not base64": "ä.ö.ü",
    **{f"without {name}": forged(**{name: None}) for name in ("exp", "iat", "sub", "aud", "iss", "scope")},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_wrong_tokens_prove_nothing(wrong: str) -> None:
    known = auth.Authenticator(SECRET)
    assert known.verify(forged()).scopes == set(auth.SCOPES)
    with pytest.raises(auth.TokenError) as refused:
        known.verify(wrong)
    assert wrong == "x" or wrong not in str(refused.value)


async def test_wrong_tokens_are_answered_alike(server: RunningServer, client: aiohttp.ClientSession) -> None:
    for name, wrong in WRONG.items():
        if not wrong.isascii():
            continue
        async with client.get(SESSIONS, headers=bearer(wrong)) as answer:
            document = await expect_problem(answer, 401, "unauthorized")
            assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"], name
            assert wrong not in document["detail"] or len(wrong) < 3
    for headers in ({}, {"Authorization": "Basic YTpi"}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "}):
        async with client.get(SESSIONS, headers=headers) as answer:
            await expect_problem(answer, 401, "unauthorized")
            assert answer.headers["WWW-Authenticate"].startswith('Bearer realm="gymcast"')


async def test_a_token_does_not_belong_in_the_address(client: aiohttp.ClientSession) -> None:
    for name in ("token", "access_token"):
        for headers in ({}, bearer(token("admin"))):
            async with client.get(SESSIONS, params={name: token("admin")}, headers=headers) as answer:
                document = await expect_problem(answer, 401, "unauthorized")
            assert "/api/tickets" in document["detail"]


async def test_a_token_ends_while_it_is_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_LEEWAY_S", 0)
    known = auth.Authenticator(SECRET)
    short = token("read", seconds=1.5)
    assert known.verify(short) is known.verify(short)
    await asyncio.sleep(1.6)
    with pytest.raises(auth.TokenError, match="ended"):
        known.verify(short)


async def test_remembered_tokens_are_few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_CACHED_TOKENS", 3)
    known = auth.Authenticator(SECRET)
    for number in range(10):
        known.verify(auth.issue(SECRET, subject=f"bob{number}", scopes=["read"], seconds=60))
    assert len(known._known) == 3


async def test_open_addresses_ask_for_nothing(client: aiohttp.ClientSession) -> None:
    for path in ("/", "/health", "/health/ready", "/problems", "/problems/unauthorized", "/static/js/api.js"):
        async with client.get(path) as answer:
            assert answer.status == 200, path
    async with client.get("/nothing-here") as answer:
        await expect_problem(answer, 404)
    async with client.patch(SESSIONS) as answer:
        await expect_problem(answer, 405)


async def test_each_scope_opens_its_own(client: aiohttp.ClientSession) -> None:
    def who(*scopes: str) -> dict[str, str]:
        return bearer(token(*scopes))

    async with client.post(SESSIONS, json=external(), headers=who("read")) as answer:
        await expect_problem(answer, 403, "forbidden")
        assert 'error="insufficient_scope", scope="ingest"' in answer.headers["WWW-Authenticate"]
    async with client.post(SESSIONS, json=external(), headers=who("ingest")) as answer:
        assert answer.status == 201
        one = f"{SESSIONS}/{(await answer.json())['session_id']}"
    # (method, path, body, the scope it takes)
    calls: list[tuple[str, str, Any, str]] = [
        ("GET", SESSIONS, None, "read"),
        ("HEAD", one, None, "read"),
        ("GET", f"{one}/history", None, "read"),
        ("POST", f"{one}/metrics", metrics(), "ingest"),
        ("POST", f"{one}/events", {"producer": "w", "events": [event(1, "training_metrics", metrics())]}, "ingest"),
        ("PUT", one, {"current_episode": 3, "status": "running"}, "ingest"),
        ("POST", f"{one}/pause", None, "control"),
        ("POST", f"{one}/resume", None, "control"),
        ("POST", f"{one}/stop", None, "control"),
        ("POST", SESSIONS, {"config": {"envId": "archers"}}, "control"),
        ("DELETE", one, None, "control"),
    ]
    for method, path, body, scope in calls:
        others = {"read": ["ingest"], "ingest": ["read"], "control": ["read", "ingest"]}[scope]
        async with client.request(method, path, json=body, headers=who(*others)) as answer:
            assert answer.status == 403, (method, path)
        async with client.request(method, path, json=body, headers=who(scope)) as answer:
            assert answer.status not in (401, 403), (method, path)


async def test_who_only_reports_cannot_report_for_the_servers_own_trainings(
    server: RunningServer, client: aiohttp.ClientSession
) -> None:
    managed = await server.storage.create_session(
        kind="managed", training_session_id="t", model_generation=1, algorithm="PPO", total_episodes=None
    )
    one = f"{SESSIONS}/{managed.session_id}"
    for method, path, body in (
        ("POST", f"{one}/metrics", metrics()),
        ("POST", f"{one}/events", {"producer": "w"}),
        ("PUT", one, {"status": "cancelled"}),
    ):
        async with client.request(method, path, json=body, headers=bearer(token("ingest", "read"))) as answer:
            await expect_problem(answer, 403, "forbidden")
    async with client.post(f"{SESSIONS}/nobody/metrics", json=metrics(), headers=bearer(token("ingest"))) as answer:
        await expect_problem(answer, 404)


async def test_a_guest_of_a_room_sees_that_room_only(client: aiohttp.ClientSession) -> None:
    sessions, codes = [], []
    for _ in range(2):
        async with client.post(SESSIONS, json=external(), headers=bearer(token("ingest"))) as answer:
            sessions.append((await answer.json())["session_id"])
        async with client.post(
            "/api/rooms", json={"session_id": sessions[-1]}, headers=bearer(token("control"))
        ) as made:
            codes.append((await made.json())["code"])
    guest = bearer(token("read", room=codes[0]))
    own, other = (f"{SESSIONS}/{session_id}" for session_id in sessions)
    for path in (own, f"{own}/history", f"{own}/replays", "/api/envs", f"/api/rooms/{codes[0]}"):
        async with client.get(path, headers=guest) as answer:
            assert answer.status == 200, path
    foreign = (other, f"{other}/history", SESSIONS, "/status", "/api/replays", "/api/replays/x", "/api/rooms")
    for path in (*foreign, f"/api/rooms/{codes[1]}"):
        async with client.get(path, headers=guest) as answer:
            await expect_problem(answer, 404, "not-found")
    async with client.post(f"{own}/metrics", json=metrics(), headers=guest) as answer:
        await expect_problem(answer, 403, "forbidden")


# Whoever adds an address that asks for no token adds it here, and thinks about it.
OPEN = {
    *("GET /", "GET /docs", "GET /openapi.json", "GET /favicon.ico", "GET /static/vendor/plotly.min.js"),
    *("GET /static/{path}", "GET /problems", "GET /problems/{slug}"),
    *("GET /health", "GET /health/live", "GET /health/ready", "POST /api/rooms/{code}/join"),
}


def test_addresses_that_ask_for_no_token_are_few() -> None:
    assert {f"{route.method} {route.template}" for route in routes() if route.scope is None} == OPEN


async def test_every_other_address_asks_for_a_token_with_its_scope(client: aiohttp.ClientSession) -> None:
    for route in routes():
        if route.scope is None:
            continue
        path = re.sub(r"\{\w+\}", "nobody", route.template)
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            async with client.request(method, path) as answer:
                assert answer.status == 401, (method, path)
            weaker = [scope for scope in auth.SCOPES if route.scope not in auth.verify(SECRET, token(scope)).scopes]
            for scope in weaker:
                async with client.request(method, path, headers=bearer(token(scope))) as answer:
                    assert answer.status == 403, (method, path, scope)
