"""Budgets: how much one caller may ask of the server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import aiohttp
import pytest

from gymcast.server import PerformanceConfig, auth, rate_limits, running_server

from .conftest import expect_problem, external, metrics, server_config
from .test_auth import SECRET, SESSIONS, bearer, forged

BUDGETS = {
    "reads_per_minute": 5,
    "control_per_minute": 4,
    "ingest_per_minute": 6,
    "tickets_per_minute": 3,
    "failed_tokens_per_minute": 2,
}


def limited(tmp_path: Path, **more: Any) -> Any:
    return server_config(tmp_path, performance={"enable_rate_limiting": True, **BUDGETS}, **more)


def who(subject: str, *scopes: str) -> dict[str, str]:
    return bearer(auth.issue(SECRET, subject=subject, scopes=scopes or ("admin",), seconds=60))


async def spend(client: aiohttp.ClientSession, times: int, method: str, path: str, **more: Any) -> None:
    """Send ``times`` requests that are answered, and one that is too much.

    Where a minute of the clock begins in between, the count is off by one.
    """
    answered = 0
    while answered <= times + 1:
        async with client.request(method, path, **more) as answer:
            if answer.status < 400:
                answered += 1
                continue
            await expect_problem(answer, 429, "too-many-requests")
            assert 1 <= int(answer.headers["Retry-After"]) <= 120
            assert ";w=60" in answer.headers["RateLimit-Policy"]
            assert ";r=0;t=" in answer.headers["RateLimit"]
            break
    assert answered in (times, times + 1)


async def test_each_kind_and_each_caller_has_a_budget_of_its_own(tmp_path: Path) -> None:
    settings = limited(tmp_path, enable_auth=True, jwt_secret_key=SECRET)
    async with running_server(settings) as server, aiohttp.ClientSession(server.url) as client:
        ada = who("ada")
        async with client.post(SESSIONS, json=external(), headers=ada) as answer:
            one = f"{SESSIONS}/{(await answer.json())['session_id']}"
        await spend(client, 3, "POST", SESSIONS, json=external(), headers=ada)
        await spend(client, 5, "GET", one, headers=ada)
        await spend(client, 6, "POST", f"{one}/metrics", json=metrics(), headers=ada)
        await spend(client, 3, "POST", "/api/tickets", json={}, headers=ada)
        # Another token of the same holder changes nothing, another holder has all of it.
        async with client.get(one, headers=who("ada", "read")) as answer:
            assert answer.status == 429
        await spend(client, 5, "GET", one, headers=who("bob"))


async def test_wrong_tokens_are_few_and_right_ones_get_in_all_the_same(tmp_path: Path) -> None:
    settings = limited(tmp_path, enable_auth=True, jwt_secret_key=SECRET)
    async with running_server(settings) as server, aiohttp.ClientSession(server.url) as client:
        answers = []
        for number in range(6):
            async with client.get(SESSIONS, headers=bearer(forged(sub=f"x{number}", aud="x"))) as answer:
                answers.append(answer.status)
        assert answers[:2] == [401, 401] and answers[3:] == [429, 429, 429]
        async with client.get(SESSIONS, headers=who("ada")) as answer:
            assert answer.status == 200
        async with client.get(SESSIONS) as answer:
            await expect_problem(answer, 401)


async def test_without_tokens_the_address_counts_and_open_addresses_do_not(tmp_path: Path) -> None:
    async with running_server(limited(tmp_path)) as server, aiohttp.ClientSession(server.url) as client:
        await spend(client, 5, "GET", SESSIONS)
        for name in ("X-Forwarded-For", "X-Real-IP", "Forwarded"):
            async with client.get(SESSIONS, headers={name: "for=10.1.1.1"}) as answer:
                assert answer.status == 429
        for path in ("/health", "/", "/static/js/api.js") * 5:
            async with client.get(path) as answer:
                assert answer.status == 200


async def test_behind_trusted_proxies_the_address_is_the_one_they_tell(tmp_path: Path) -> None:
    security = {"trusted_proxies": ["127.0.0.0/8", "10.0.0.1"]}
    async with (
        running_server(limited(tmp_path, security=security)) as server,
        aiohttp.ClientSession(server.url) as client,
    ):
        await spend(client, 5, "GET", SESSIONS, headers={"X-Forwarded-For": "203.0.113.1"})
        for same in (
            "198.51.100.9, 203.0.113.1",
            "203.0.113.1, 10.0.0.1",
            "127.0.0.1,203.0.113.1 , 10.0.0.1,127.0.0.1",
        ):
            async with client.get(SESSIONS, headers={"X-Forwarded-For": same}) as answer:
                assert answer.status == 429, same
        # A name that is none, and no header, count as what they are.
        for other in ("203.0.113.1, 203.0.113.2", "unknown", ""):
            async with client.get(SESSIONS, headers={"X-Forwarded-For": other}) as answer:
                assert answer.status == 200, other


async def test_counters_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    limits = rate_limits.RateLimits(PerformanceConfig())
    now = 1_800_000_000.0
    monkeypatch.setattr("time.time", lambda: now)
    for number in range(1000):
        await limits.take("reads", f"address 10.0.{number // 256}.{number % 256}")
    now += 121
    await limits.take("reads", "address 10.9.9.9")
    assert len(limits._memory.storage.storage) == 1


@pytest.mark.parametrize(
    ("peer", "who"),
    [
        ("10.1.2.3", "10.1.2.3"),
        ("::ffff:10.1.2.3", "10.1.2.3"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
    ],
)
def test_one_network_is_one_address(peer: str, who: str) -> None:
    assert rate_limits.network_of(peer) == who
