"""Bad input: every answer is a 4xx in problem+json, never a 500, and the server goes on."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from yarl import URL

from gymcast.server import RunningServer, running_server
from gymcast.server.handlers import common

from ..reference_examples import DECISION, GRAPH
from .conftest import NewSession, event, expect_problem, external, metrics, server_config

SESSIONS = "/api/training/sessions"
JSON = {"Content-Type": "application/json"}


def deep(levels: int) -> bytes:
    return b"[" * levels + b"]" * levels


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"nonsense", 400),
        (b"\xff\xfe", 400),
        (b'{"a":"\xc3\x28"}', 400),
        (b"\xef\xbb\xbf{}", 400),
        (b'{"config":{},"config":{}}', 400),
        (b'{"config":{"a":1,"a":2}}', 400),
        (deep(65), 400),
        (deep(100_000), 400),
        (b'{"a":' * 50_000 + b"1" + b"}" * 50_000, 400),
        (b'{"config":{"env_kwargs":' + deep(70) + b"}}", 400),
        (b"NaN", 422),
        (b'{"total_episodes":NaN}', 422),
        (b'{"total_episodes":Infinity}', 422),
        (b'{"total_episodes":1e999}', 422),
        (b'{"total_episodes":' + b"9" * 10_000 + b"}", 422),
        (b'{"total_episodes":-' + b"9" * 10_000 + b"}", 422),
        (b'{"total_episodes":9223372036854775808}', 422),
        (b'{"algorithm":"\\ud800"}', 422),
        (b'{"algorithm":"\\u0000"}', 422),
        (b'{"\\udfff":1}', 422),
        (b"[]", 422),
        (b"null", 422),
        (b'"text"', 422),
        (b"{}", 422),
        (b'{"config":[]}', 422),
        (b'{"config":{},"priority":1e3,"surprise":1}', 422),
    ],
)
async def test_bad_bodies(client: aiohttp.ClientSession, body: bytes, status: int) -> None:
    async with client.post(SESSIONS, data=body, headers=JSON) as answer:
        await expect_problem(answer, status)
    async with client.get("/health") as answer:
        assert answer.status == 200


@pytest.mark.parametrize(
    "changes",
    [
        {"training_session_id": ""},
        {"training_session_id": "x" * 129},
        {"training_session_id": 5},
        {"model_generation": -1},
        {"model_generation": 1.5},
        {"total_episodes": 2**60},
        {"algorithm": None},
        {"room_code": ""},
        {"enable_spectators": "maybe"},
        {"unknown": 1},
    ],
)
async def test_bad_values_name_their_pointer(client: aiohttp.ClientSession, changes: dict[str, Any]) -> None:
    async with client.post(SESSIONS, json=external(**changes)) as answer:
        document = await expect_problem(answer, 422)
    assert [error["pointer"] for error in document["errors"]] == [f"/{next(iter(changes))}"]


async def test_every_problem_is_reported_at_once(client: aiohttp.ClientSession) -> None:
    async with client.post(SESSIONS, json={"model_generation": -1, "surprise": 1}) as answer:
        document = await expect_problem(answer, 422)
    pointers = {error["pointer"] for error in document["errors"]}
    assert pointers == {"/training_session_id", "/model_generation", "/algorithm", "/total_episodes", "/surprise"}


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", ""])
async def test_other_media_types_are_415(client: aiohttp.ClientSession, content_type: str) -> None:
    async with client.post(SESSIONS, data=b"{}", headers={"Content-Type": content_type}) as answer:
        await expect_problem(answer, 415, "unsupported-media-type")


async def test_too_large_by_its_word_and_by_its_bytes(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    one = f"{SESSIONS}/{await new_session()}/events"
    body = b'{"producer":"' + b"x" * (1 << 20) + b'"}'
    async with client.post(one, data=io.BytesIO(body), headers=JSON) as answer:
        await expect_problem(answer, 413, "body-too-large")

    async def chunks() -> Any:
        for start in range(0, len(body), 1 << 16):
            yield body[start : start + (1 << 16)]

    async with client.post(one, data=chunks(), headers=JSON) as answer:
        await expect_problem(answer, 413, "body-too-large")


async def test_slow_body_is_cut_off(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "BODY_SECONDS", 0.3)
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    head = (
        f"POST {SESSIONS} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    )
    writer.write(head.encode() + b'{"a":')
    answer = await asyncio.wait_for(reader.read(), 5)
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b"application/problem+json" in answer
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(
    ("sent", "answers"),
    [
        (b"", 0),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n", 0),
        (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\nGET", 1),
    ],
    ids=["nothing", "endless headers", "a second request after the first"],
)
async def test_slow_headers_are_cut_off(tmp_path: Path, sent: bytes, answers: int) -> None:
    settings = server_config(tmp_path, performance={"request_wait_seconds": 0.4})
    async with running_server(settings) as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)

        async def trickle() -> None:
            # One byte of a header at a time, for ever.
            while sent:
                writer.write(b" /x" if answers else b"X-Slow: 1\r\n")
                await asyncio.sleep(0.05)

        slow = asyncio.create_task(trickle())
        found = await asyncio.wait_for(reader.read(), 5)
        slow.cancel()
        assert found.count(b"HTTP/1.1 200 ") == answers and found.count(b"HTTP/1.1") == answers
        writer.transport.abort()


async def test_client_that_leaves_in_its_body_harms_nobody(
    server: RunningServer, client: aiohttp.ClientSession
) -> None:
    for sent in (
        b"POST",
        b"POST /api",
        b"POST /api/training/sessions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: "
        b"application/json\r\nContent-Length: 100\r\n\r\n{",
    ):
        _reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(sent)
        await writer.drain()
        writer.transport.abort()
    async with client.get(SESSIONS) as answer:
        assert (await answer.json())["sessions"] == []


@pytest.mark.parametrize(
    ("method", "path", "status", "allow"),
    [
        ("GET", "/nope", 404, None),
        ("GET", "/api/training/sessions/a%2Fb", 404, None),
        ("GET", "/api/training/sessions/%00", 404, None),
        ("GET", "/api/training/sessions/" + "a" * 65, 404, None),
        ("GET", "/api/replays/nobody", 404, None),
        ("GET", "/api/replays/nobody/frames", 404, None),
        ("GET", "/api/envs/nothing", 404, None),
        ("GET", "/problems/nothing", 404, None),
        ("GET", "/static/nothing.js", 404, None),
        ("GET", "/static/%2e%2e/config.py", 404, None),
        ("GET", "/static/..%2fconfig.py", 404, None),
        ("GET", "/static/%00", 404, None),
        ("GET", "/static/" + "a" * 3000, 404, None),
        ("DELETE", SESSIONS, 405, "GET,HEAD,POST"),
        ("PATCH", f"{SESSIONS}/x", 405, "DELETE,GET,HEAD,PUT"),
        ("DELETE", f"{SESSIONS}/x/metrics", 405, "GET,HEAD,POST"),
        ("POST", "/health", 405, "GET,HEAD"),
        ("GET", "/ws/nobody", 426, None),
    ],
)
async def test_addresses_that_do_not_exist(
    server: RunningServer, method: str, path: str, status: int, allow: str | None
) -> None:
    async with (
        aiohttp.ClientSession() as client,
        client.request(method, URL(f"{server.url}{path}", encoded=True)) as answer,
    ):
        await expect_problem(answer, status)
        assert allow is None or answer.headers["Allow"] == allow


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("training_metrics", metrics(win_rate=101)),
        ("training_metrics", metrics(extra={f"m{number}": 1.0 for number in range(33)})),
        ("training_metrics", metrics(timestamp="0001-01-01T00:00:00+14:00")),
        ("training_metrics", metrics(timestamp=1e300)),
        ("bot_decision", {**DECISION, "action_probabilities": {f"a{number}": 1 / 257 for number in range(257)}}),
        ("graph_update", {**GRAPH, "data_points": {"other": []}}),
        ("replay", {"replay_id": "r", "env_id": "e", "episode": 1, "timesteps": 1, "summary": {}, "bytes_base64": "?"}),
        (
            "replay",
            {"replay_id": "../r", "env_id": "e", "episode": 1, "timesteps": 1, "summary": {}, "bytes_base64": ""},
        ),
        ("checkpoint", {"path": "p"}),
        ("unheard_of", {}),
    ],
)
async def test_bad_events_store_nothing(
    client: aiohttp.ClientSession, new_session: NewSession, kind: str, data: dict[str, Any]
) -> None:
    one = f"{SESSIONS}/{await new_session()}"
    events = [event(1, "training_metrics", metrics()), event(2, kind, data)]
    async with client.post(f"{one}/events", json={"producer": "w", "events": events}) as answer:
        await expect_problem(answer, 422)
    async with client.post(f"{one}/events", json={"producer": "w"}) as answer:
        assert (await answer.json())["last_seq"] == 0


@pytest.mark.parametrize("moment", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
async def test_a_time_outside_the_years_1_to_9999_names_its_field(
    client: aiohttp.ClientSession, new_session: NewSession, moment: str
) -> None:
    one = f"{SESSIONS}/{await new_session()}"
    async with client.post(f"{one}/metrics", json=[metrics(), metrics(timestamp=moment)]) as answer:
        document = await expect_problem(answer, 422)
    (error,) = document["errors"]
    assert error["pointer"] == "/1/timestamp" and "years 1 to 9999" in error["message"]


async def test_extreme_but_legal_values_come_back(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    one = f"{SESSIONS}/{await new_session()}"
    readings = [
        metrics(2**62, current_reward=1.7e308, timestamp="9999-12-31T23:59:59.999999Z", extra={"timesteps": 1e300}),
        metrics(0, current_reward=1.7e308, timestamp="0001-01-01T00:00:00Z"),
        metrics(1, current_reward=-1.7e308, timestamp="9999-12-31T23:59:59Z"),
        metrics(1, current_reward=1.7e308, timestamp="9999-12-31T23:59:59Z"),
    ]
    for reading in readings:
        async with client.post(f"{one}/metrics", json=reading) as answer:
            assert answer.status == 201, await answer.text()
    for query in ("", "?points=1", "?points=2000", "?points=3"):
        async with client.get(f"{one}/history{query}") as answer:
            assert answer.status == 200, await answer.text()
            json.loads(await answer.text(), parse_constant=lambda text: pytest.fail(text))
    async with client.put(one, json={"end_time": "9999-12-31T23:59:59-10:00"}) as answer:
        assert answer.status in (200, 422)
    async with client.get(one) as answer:
        assert answer.status == 200


async def test_no_internals_in_answers(server: RunningServer, client: aiohttp.ClientSession) -> None:
    async with client.get("/api/replays/'; DROP TABLE sessions; --/frames") as answer:
        text = await answer.text()
    assert answer.status == 404
    assert "Traceback" not in text and "sqlite" not in text.lower()
    async with client.get(SESSIONS, params={"cursor": "' OR 1=1 --"}) as answer:
        await expect_problem(answer, 400, "bad-cursor")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(max_size=12), children, max_size=4),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values, field=st.sampled_from(["training_session_id", "total_episodes", "config", "data", "events"]))
def test_any_json_is_answered_below_500(shared: Shared, value: Any, field: str) -> None:
    shared.send(value, field)


class Shared:
    """One loop, server and client for all examples."""

    def __init__(self, loop: asyncio.AbstractEventLoop, client: aiohttp.ClientSession, session_id: str) -> None:
        self.loop = loop
        self.client = client
        self.session_id = session_id

    def send(self, value: Any, field: str) -> None:
        self.loop.run_until_complete(self._send(value, field))

    async def _send(self, value: Any, field: str) -> None:
        one = f"{SESSIONS}/{self.session_id}"
        for path, body in (
            (SESSIONS, {**external(), field: value}),
            (f"{one}/metrics", value),
            (f"{one}/events", {"producer": "w", "events": value}),
            (f"{one}/events", {"producer": "w", "events": [event(1, "replay", value)]}),
        ):
            async with self.client.post(path, json=body) as answer:
                assert answer.status < 500, (path, body, await answer.text())


@pytest.fixture
def shared(tmp_path_factory: pytest.TempPathFactory) -> Any:
    loop = asyncio.new_event_loop()
    running = running_server(server_config(tmp_path_factory.mktemp("shared")))
    server = loop.run_until_complete(running.__aenter__())

    async def open_client() -> tuple[aiohttp.ClientSession, str]:
        client = aiohttp.ClientSession(server.url)
        async with client.post(SESSIONS, json=external()) as answer:
            return client, (await answer.json())["session_id"]

    client, session_id = loop.run_until_complete(open_client())
    yield Shared(loop, client, session_id)
    loop.run_until_complete(client.close())
    loop.run_until_complete(running.__aexit__(None, None, None))
    loop.close()
