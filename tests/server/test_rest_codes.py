"""The status codes of the contract that other tests do not show, and the edges of keys, ETags and bodies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import sqlite3
from contextlib import closing
from typing import Any

import aiohttp
import pytest

from gymcast.server import RunningServer

from ..reference_examples import DECISION, GRAPH
from .conftest import NewSession, event, expect_problem, external, metrics

SESSIONS = "/api/training/sessions"
JSON = {"Content-Type": "application/json"}


async def test_key_of_a_request_that_is_still_at_work_is_409(
    server: RunningServer, client: aiohttp.ClientSession
) -> None:
    body = json.dumps(external()).encode()
    key = hashlib.sha256(b"local\nk").hexdigest()
    await server.storage.claim_key(key, hashlib.sha256(body).hexdigest())  # a first request that has not ended
    headers = {**JSON, "Idempotency-Key": "k"}
    async with client.post(SESSIONS, data=body, headers=headers) as answer:
        await expect_problem(answer, 409, "conflict")
    await server.storage.settle_key(key, None)  # it has failed
    async with client.post(SESSIONS, data=body, headers=headers) as answer:
        assert answer.status == 201


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_bad_keys_are_422(client: aiohttp.ClientSession, key: str) -> None:
    async with client.post(SESSIONS, json=external(), headers={"Idempotency-Key": key}) as answer:
        document = await expect_problem(answer, 422, "invalid-values")
    assert document["errors"][0]["pointer"] == "Idempotency-Key"


async def test_many_at_once_with_one_key_make_one_session(client: aiohttp.ClientSession) -> None:
    async def post() -> int:
        async with client.post(SESSIONS, json=external(), headers={"Idempotency-Key": "same"}) as answer:
            return answer.status

    statuses = await asyncio.gather(*(post() for _ in range(12)))
    assert 201 in statuses and set(statuses) <= {201, 409}
    async with client.get(SESSIONS) as answer:
        assert len((await answer.json())["sessions"]) == 1


async def test_if_match_with_several_tags(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    one = f"{SESSIONS}/{await new_session()}"
    for tags, status in (('"7", "8"', 412), ('W/"1"', 412), ("", 412), ('"7", "1"', 200), ("*", 200)):
        async with client.put(one, json={"current_episode": 1}, headers={"If-Match": tags}) as answer:
            assert answer.status == status, (tags, await answer.text())
    for tags, status in (('W/"2"', 304), ('"1", "2"', 304), ("*", 304), ('"1"', 200), ("nonsense", 200)):
        async with client.get(one, headers={"If-None-Match": tags}) as answer:
            assert answer.status == status, tags


async def test_full_writer_is_503_and_stores_nothing_of_the_request(
    client: aiohttp.ClientSession, new_session: NewSession, server_database: str
) -> None:
    if not server_database.startswith("sqlite"):
        pytest.skip("another connection holds up the writer of a SQLite file")
    one = f"{SESSIONS}/{await new_session()}"
    readings = [metrics(number) for number in range(500)]

    async def post() -> tuple[int, int]:
        async with client.post(f"{one}/metrics", json=readings) as answer:
            if answer.status == 503:
                await expect_problem(answer, 503, "busy")
                assert int(answer.headers["Retry-After"]) >= 1
                return 503, 0
            return answer.status, (await answer.json())["accepted"]

    with closing(sqlite3.connect(server_database.removeprefix("sqlite:///"), isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        posts = [asyncio.create_task(post()) for _ in range(30)]
        done, _ = await asyncio.wait(posts, return_when=asyncio.FIRST_COMPLETED, timeout=30)
        assert done, "with 15,000 rows waiting some have to be refused at once"
        holder.execute("COMMIT")
    answers = await asyncio.gather(*posts)
    assert {status for status, _ in answers} == {201, 503}
    async with client.get(f"{one}/history?points=1") as answer:
        assert (await answer.json())["total_points"] == sum(accepted for _, accepted in answers)


async def test_server_whose_writer_is_held_up_is_not_ready(
    client: aiohttp.ClientSession, new_session: NewSession, server_database: str
) -> None:
    if not server_database.startswith("sqlite"):
        pytest.skip("another connection holds up the writer of a SQLite file")
    one = f"{SESSIONS}/{await new_session()}"

    async def post() -> int:
        async with client.post(f"{one}/metrics", json=metrics()) as answer:
            return answer.status

    async with client.get("/health/ready") as answer:
        assert answer.status == 200
    with closing(sqlite3.connect(server_database.removeprefix("sqlite:///"), isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        posts = [asyncio.create_task(post())]
        await asyncio.sleep(0.2)
        posts.append(asyncio.create_task(post()))  # the first is at work, so this one waits for the writer
        async with asyncio.timeout(10):
            while True:
                await asyncio.sleep(0.2)
                async with client.get("/health/ready") as answer:
                    if answer.status == 503:
                        await expect_problem(answer, 503, "not-ready")
                        assert answer.headers["Retry-After"] == "5"
                        break
        holder.execute("COMMIT")
    assert await asyncio.gather(*posts) == [201, 201]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("", external(enable_spectators=1)),
        ("", external(model_generation="2")),
        ("", external(total_episodes=True)),
        ("/{id}/metrics", metrics(episode="5")),
        ("/{id}/metrics", metrics(current_reward="1.5")),
        ("/{id}/metrics", metrics(win_rate=True)),
        ("/{id}/metrics", metrics(timestamp=1_700_000_000)),
        ("/{id}/bot_decision", {**DECISION, "confidence_score": "1"}),
        ("/{id}/graph_update", {**GRAPH, "max_points": "10"}),
        ("/{id}/events", {"producer": "w", "events": [event(True, "training_metrics", metrics())]}),
    ],
)
async def test_values_of_another_type_are_422(
    client: aiohttp.ClientSession, new_session: NewSession, path: str, body: dict[str, Any]
) -> None:
    async with client.post(SESSIONS + path.format(id=await new_session()), json=body) as answer:
        await expect_problem(answer, 422, "invalid-values")


async def test_whole_numbers_may_be_written_with_a_point(client: aiohttp.ClientSession) -> None:
    text = json.dumps(external()).replace("1000", "1000.0")
    async with client.post(SESSIONS, data=text, headers=JSON) as answer:
        assert answer.status == 201
        made = await answer.json()
        assert made["total_episodes"] == 1000
    one = f"{SESSIONS}/{made['session_id']}"
    async with client.put(one, json={"current_episode": 5.0}) as answer:
        assert (await answer.json())["current_episode"] == 5
    async with client.post(f"{one}/metrics", json=[metrics(6.0), metrics(7.0, extra={"entropy": 2.0})]) as answer:
        assert answer.status == 201, await answer.text()
    async with client.post(f"{one}/metrics", json=metrics(6.5)) as answer:
        await expect_problem(answer, 422, "invalid-values")


async def test_raw_history_of_chosen_metrics(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    one = f"{SESSIONS}/{await new_session()}"
    async with client.post(f"{one}/metrics", json=metrics(7, extra={"entropy": 0.5})) as answer:
        assert answer.status == 201
    async with client.get(f"{one}/history?metrics=win_rate,entropy,nothing") as answer:
        (reading,) = (await answer.json())["metrics_data"]
    assert (reading["episode"], reading["metrics"]) == (7, {"win_rate": 75.5, "entropy": 0.5, "nothing": None})


@pytest.mark.parametrize(
    "query", ["points=5&max_points=5", "points=5&resolution=raw", "frm=1", "limit=1_0", "metrics="]
)
async def test_contradictions_and_unknown_parameters_are_422(
    client: aiohttp.ClientSession, new_session: NewSession, query: str
) -> None:
    async with client.get(f"{SESSIONS}/{await new_session()}/history?{query}") as answer:
        await expect_problem(answer, 422, "invalid-values")


async def test_games_have_their_spaces(client: aiohttp.ClientSession) -> None:
    async with client.get("/api/envs") as answer:
        games = {game["name"]: game for game in (await answer.json())["envs"]}
    assert set(games) == {"archers", "vault"}
    spaces = games["archers"]["spaces"]
    assert spaces["observations"]["vector"] == {
        "kind": "Box",
        "shape": [93],
        "low": -1.0,
        "high": 1.0,
        "dtype": "float32",
    }
    assert spaces["actions"]["discrete"] == {"kind": "Discrete", "shape": [], "n": 288}
    assert games["vault"]["spaces"]["actions"]["default"]["n"] == 4
    async with client.get("/api/envs/gymcast%2FVault-v0") as answer:
        assert await answer.json() == games["vault"]
