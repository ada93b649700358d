"""The Python client against real servers that are killed, cut connections and refuse."""

from __future__ import annotations

import asyncio
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gymcast.server import RunningServer, async_client, running_server
from gymcast.server.auth import issue
from gymcast.server.client import AsyncClient, Client, LiveMessage, RequestRefused, ServerUnreachable, WatchEnded

from .conftest import metrics, server_config
from .own_scripts import KillableServer

DOCS = Path(__file__).parents[2] / "docs" / "client.md"


async def test_rest(server: RunningServer) -> None:
    async with AsyncClient(server.url) as client:
        made = await client.create_session("mine", "PPO", env_id="Chess-v0")
        session_id = made["session_id"]
        assert made["env_id"] == "Chess-v0" and (await client.session(session_id))["status"] == "running"
        receipt = await client.post_metrics(session_id, [metrics(1), metrics(2)], producer="p", seq=1)
        assert (receipt["accepted"], receipt["desired"], receipt["watchers"]) == (2, "running", 0)
        assert (await client.post_metrics(session_id, metrics(2), producer="p", seq=2))["duplicates"] == 1
        await client.post_decision(session_id, {"action_probabilities": {"left": 0.25, "right": 0.75}})
        graph = {"graph_id": "g", "title": "G", "y_label": "y", "metrics": ["a"], "data_points": {"a": []}}
        await client.post_graph(session_id, graph)
        assert (await client.history(session_id, resolution="raw"))["total_points"] == 2
        assert (await client.pause(session_id))["desired"] == "paused"
        assert (await client.resume(session_id))["desired"] == "running"
        assert (await client.stop(session_id))["desired"] == "stopping"
        assert [found["session_id"] for found in (await client.sessions())["sessions"]] == [session_id]
        await client.delete(session_id)
        with pytest.raises(RequestRefused, match="404") as refused:
            await client.session(session_id)
        assert refused.value.problem["type"] == "/problems/not-found"
        with pytest.raises(RequestRefused, match="/config/learning"):
            await client.submit({"env_id": "archers", "learning": 1})
    async with AsyncClient("http://127.0.0.1:9") as nobody:
        with pytest.raises(ServerUnreachable, match="no gymcast server answers"):
            await nobody.sessions()
        with pytest.raises(ServerUnreachable):
            async for _ in nobody.watch("x", patience=0.0):
                pass


async def collect(client: AsyncClient, session_id: str, last: int, joined: asyncio.Event) -> list[LiveMessage]:
    found = []
    async for message in client.watch(session_id, types=["training_metrics"]):
        found.append(message)
        joined.set()
        if message.type == "training_metrics" and message.data["episode"] == last:
            return found
    raise AssertionError("it has ended")


def episodes(found: list[LiveMessage]) -> list[int]:
    return [message.data["episode"] for message in found if message.type == "training_metrics"]


async def test_a_cut_connection_goes_on_without_a_gap(server: RunningServer) -> None:
    async with AsyncClient(server.url) as client:
        session_id = (await client.create_session("mine", "PPO"))["session_id"]
        joined = asyncio.Event()
        watching = asyncio.create_task(collect(client, session_id, 60, joined))
        await joined.wait()
        for number in range(1, 61):
            await client.post_metrics(session_id, metrics(number))
            if number % 20 == 0:
                server.hub.close_all(4008, "too slow")
        found = await asyncio.wait_for(watching, 30)
    assert episodes(found) == list(range(1, 61))
    assert not any(message.gap for message in found)
    assert sum(message.data.get("status") == "resumed" for message in found) >= 1


async def test_what_was_lost_is_told(server: RunningServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(async_client, "full_jitter", lambda _attempts: 0.1)
    async with AsyncClient(server.url) as client:
        session_id = (await client.create_session("mine", "PPO"))["session_id"]
        joined = asyncio.Event()
        watching = asyncio.create_task(collect(client, session_id, 2000, joined))
        await joined.wait()
        await client.post_metrics(session_id, metrics(1))
        room, server.hub.total = server.hub.total, 0  # nobody is let in again before all has been reported
        server.hub.close_all(4008, "too slow")
        for first in range(2, 1602, 400):  # more than the server keeps
            await client.post_metrics(session_id, [metrics(number) for number in range(first, first + 400)])
        await client.post_metrics(session_id, metrics(2000))
        server.hub.total = room
        found = await asyncio.wait_for(watching, 30)
    gap = next(place for place, message in enumerate(found) if message.gap)
    rest = episodes(found[gap:])
    assert episodes(found[:gap])[:1] == [1] and rest == sorted(set(rest)) and rest[0] > 2 and rest[-1] == 2000


async def test_a_killed_server_and_the_next_one(tmp_path: Path, free_port: int) -> None:
    server = KillableServer(tmp_path, free_port)
    server.start()
    try:
        async with AsyncClient(server.url) as client:
            session_id = (await client.create_session("mine", "PPO"))["session_id"]
            joined = asyncio.Event()
            watching = asyncio.create_task(collect(client, session_id, 20, joined))
            await joined.wait()
            for number in range(1, 11):
                await client.post_metrics(session_id, metrics(number))
            server.kill()
            await asyncio.to_thread(server.start)
            for number in range(11, 21):
                await client.post_metrics(session_id, metrics(number))
            found = await asyncio.wait_for(watching, 40)
    finally:
        server.kill()
    seen = episodes(found)
    assert seen == sorted(set(seen))
    assert seen == list(range(1, 21)) or any(message.gap for message in found)


async def test_terminal_codes(server: RunningServer) -> None:
    async with AsyncClient(server.url) as client:
        with pytest.raises(WatchEnded, match="no such session") as ended:
            async for _ in client.watch("nothing"):
                pass
        assert ended.value.code == 4404
        session_id = (await client.create_session("mine", "PPO"))["session_id"]
        for code in (4403, 4410):
            messages = client.watch(session_id)
            await anext(messages)
            server.hub.close_all(code, "the end")
            if code == 4410:
                assert [message async for message in messages if message.type == "connection_status"] == []
            else:
                with pytest.raises(WatchEnded, match="may not watch"):
                    async for _ in messages:
                        pass


async def test_the_reason_is_told_to_who_reads_it_late(server: RunningServer) -> None:
    """By then the connection is gone, as it is at once behind some proxies."""
    async with AsyncClient(server.url) as client:
        session_id = (await client.create_session("mine", "PPO"))["session_id"]
        messages = client.watch(session_id)
        await anext(messages)
        (viewer,) = server.hub.channel(session_id).clients
        viewer.sink.close(4403, "not for you")
        async with asyncio.timeout(30):
            while not viewer.sink._transport.is_closing():  # noqa: ASYNC110 - of the server
                await asyncio.sleep(0.05)
        with pytest.raises(WatchEnded, match="may not watch"):
            async for _ in messages:
                pass


async def test_tokens(tmp_path: Path) -> None:
    secret = "s" * 40
    security: dict[str, Any] = {"enable_auth": True, "jwt_secret_key": secret}
    async with running_server(server_config(tmp_path, security=security)) as server:
        token = issue(secret, subject="me", scopes=["read", "ingest"], seconds=60)
        async with AsyncClient(server.url, token=token) as client:
            session_id = (await client.create_session("mine", "PPO"))["session_id"]
            messages = client.watch(session_id)
            assert (await anext(messages)).data["status"] == "connected"
            await messages.aclose()
            with pytest.raises(RequestRefused, match="403"):
                await client.delete(session_id)
        async with AsyncClient(server.url, token="nonsense") as stranger:
            with pytest.raises(RequestRefused, match="401"):
                await stranger.sessions()
            with pytest.raises(WatchEnded, match="GYMCAST_TOKEN"):
                await anext(stranger.watch(session_id))


@pytest.fixture
def serving(tmp_path: Path, free_port: int) -> Iterator[KillableServer]:
    made = KillableServer(tmp_path, free_port)
    made.start()
    yield made
    made.kill()


def test_without_async(serving: KillableServer) -> None:
    with Client(serving.url) as client:
        session_id = client.create_session("mine", "PPO", total_episodes=10)["session_id"]
        for number in range(1, 6):
            client.post_metrics(session_id, metrics(number))
        messages = client.watch(session_id, types=["training_metrics"])
        first = next(message for message in messages if message.type == "training_metrics")
        client.post_metrics(session_id, metrics(6))
        second = next(itertools.islice(messages, 1))
        assert (first.data["episode"], second.data["episode"]) == (5, 6)
        assert client.session(session_id)["current_episode"] == 6
        messages.close()
        client.delete(session_id)
    with pytest.raises(RuntimeError, match="with Client"):
        client.sessions()


@pytest.mark.parametrize("number", [0, 1])
def test_the_examples_of_the_documentation(serving: KillableServer, number: int) -> None:
    text = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.DOTALL)[number]
    with Client(serving.url) as client:
        client.create_session("there", "PPO")
    written = text.replace("http://127.0.0.1:8000", serving.url)
    done = subprocess.run([sys.executable, "-c", written], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stdout, done.stderr) == (("3.5\n", ""), ("there running 0\n0\n", ""))[number]
