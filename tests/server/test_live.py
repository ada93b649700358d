"""The WebSocket: what arrives on connecting, live messages, subscriptions, refusals, how a connection ends."""

from __future__ import annotations

import asyncio
import base64
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSServerHandshakeError

from gymcast.server import RunningServer, running_server

from ..reference_examples import DECISION, GRAPH
from .conftest import NewSession, event, expect_problem, external, metrics, server_config
from .viewing import SESSIONS, next_message, on_connect, post, until_closed


async def test_posts_reach_every_viewer_in_order(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    session_id = await new_session()
    other = await new_session()
    async with (
        client.ws_connect(f"/ws/{session_id}?user_name=Spectator1") as one,
        client.ws_connect(f"/ws/{session_id}") as two,
    ):
        for ws, name in ((one, "Spectator1"), (two, None)):
            hello = await next_message(ws)
            assert hello["type"] == "connection_status"
            assert hello["data"]["status"] == "connected"
            assert hello["data"]["user_name"] == name
            status = await next_message(ws)
            assert (status["type"], status["data"]["status"]) == ("training_status", "running")
        await post(client, other, "metrics", metrics(999))
        for number in range(1, 6):
            await post(client, session_id, "metrics", metrics(number))
        await post(client, session_id, "bot_decision", DECISION)
        await post(client, session_id, "graph_update", GRAPH)
        for ws in (one, two):
            found = [await next_message(ws, "training_metrics") for _ in range(5)]
            assert [message["data"]["episode"] for message in found] == [1, 2, 3, 4, 5]
            assert [message["seq"] for message in found] == [1, 2, 3, 4, 5]
            assert (await next_message(ws, "bot_decision"))["data"]["selected_action"] == "shoot"
            assert (await next_message(ws, "graph_update"))["data"]["graph_id"] == "reward_progress"
        async with client.get(f"{SESSIONS}/{session_id}") as answer:
            assert (await answer.json())["spectator_count"] == 2
        async with client.get("/status") as answer:
            assert (await answer.json())["total_connections"] == 2
    async with client.get(f"{SESSIONS}/{session_id}") as answer:
        assert (await answer.json())["spectator_count"] == 0


async def test_state_on_connect(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    session_id = await new_session()
    for number in (1, 2):
        await post(client, session_id, "metrics", metrics(number))
    await post(client, session_id, "bot_decision", DECISION)
    for points in GRAPH["data_points"]["current_reward"]:
        await post(client, session_id, "graph_update", {**GRAPH, "data_points": {"current_reward": [points]}})
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        found = await on_connect(ws, 5)
    assert list(found) == ["connection_status", "training_status", "training_metrics", "graph_update", "bot_decision"]
    assert found["training_metrics"]["data"]["episode"] == 2
    assert found["training_status"]["data"]["current_episode"] == 2
    assert [point["value"] for point in found["graph_update"]["data"]["data_points"]["current_reward"]] == [10.0, 12.5]
    assert found["connection_status"]["data"]["heads"]["training_metrics"] == found["training_metrics"]["seq"] == 2


async def test_state_on_connect_comes_from_the_database_after_a_restart(tmp_path: Path) -> None:
    config = server_config(tmp_path)
    async with running_server(config) as server, aiohttp.ClientSession(server.url) as client:
        async with client.post(SESSIONS, json=external()) as answer:
            session_id = (await answer.json())["session_id"]
        await post(client, session_id, "metrics", metrics(41))
        await post(client, session_id, "bot_decision", DECISION)
        await post(client, session_id, "graph_update", GRAPH)
        async with client.ws_connect(f"/ws/{session_id}") as ws:
            hello = await next_message(ws)
    async with (
        running_server(config) as server,
        aiohttp.ClientSession(server.url) as client,
        client.ws_connect(f"/ws/{session_id}") as ws,
    ):
        found = await on_connect(ws, 5)
        assert found["training_metrics"]["data"]["episode"] == 41
        assert found["bot_decision"]["data"]["selected_action"] == "shoot"
        assert found["graph_update"]["data"]["title"] == "Reward Progress"
        # Numbers outlive the server, and readings and decisions are read back one by one. Graphs are kept merged only.
        heads = hello["data"]["heads"]
        assert heads == {"training_status": 1, "training_metrics": 1, "bot_decision": 1, "graph_update": 1}
        await ws.send_json({"type": "resume", "epoch": hello["epoch"], "seq": heads | {"training_metrics": 0}})
        assert (await next_message(ws, "connection_status"))["data"]["recovered"] is True
        again = await next_message(ws)
        assert (again["type"], again["seq"], again["data"]["episode"]) == ("training_metrics", 1, 41)
        for epoch, seen in ((hello["epoch"], heads | {"graph_update": 0}), ("another", heads)):
            await ws.send_json({"type": "resume", "epoch": epoch, "seq": seen})
            assert (await next_message(ws, "connection_status"))["data"]["recovered"] is False


async def test_nothing_is_lost_between_state_and_live(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    session_id = await new_session()

    async def produce() -> None:
        for number in range(1, 41):
            await post(client, session_id, "metrics", metrics(number))

    producing = asyncio.create_task(produce())
    for _ in range(5):
        async with client.ws_connect(f"/ws/{session_id}") as ws:
            seen = [(await next_message(ws, "training_metrics"))["seq"] for _ in range(4)]
        assert seen == list(range(seen[0], seen[0] + 4))
    await producing


async def test_subscriptions_and_rates(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    session_id = await new_session()
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        await on_connect(ws, 2)
        await ws.send_json({"type": "subscribe", "types": ["bot_decision", "training_metrics"]})
        assert (await next_message(ws))["data"]["types"] == ["bot_decision", "training_metrics"]
        await ws.send_json({"type": "unsubscribe", "data": {"types": ["training_metrics"]}})
        assert (await next_message(ws))["data"]["types"] == ["bot_decision"]
        await post(client, session_id, "metrics", metrics())
        await post(client, session_id, "bot_decision", DECISION)
        message = await next_message(ws, "training_metrics", "bot_decision")
        assert (message["type"], message["seq"]) == ("bot_decision", 1)
        await ws.send_json({"type": "subscribe", "types": None, "max_hz": 5})
        assert (await next_message(ws, "connection_status"))["data"]["max_hz"] == 5
        await post(client, session_id, "metrics", [metrics(number) for number in range(1, 51)])
        found = [await next_message(ws, "training_metrics") for _ in range(2)]
        assert [message["data"]["episode"] for message in found] == [1, 50]
        await ws.send_json({"type": "ping", "id": "p7"})
        pong = await next_message(ws, "connection_status")
        assert (pong["data"]["status"], pong["data"]["id"]) == ("pong", "p7")


async def test_replay_is_stored_announced_and_played(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    from gymcast.envs import GameVectorEnv, ReplayRecorder

    env = GameVectorEnv("archers", 1, seed=5, opponent="random", max_duration_s=5)
    recorder = ReplayRecorder(env)
    env.reset(seed=5)
    episodes: list[Any] = []
    while not episodes:
        actions = env.action_space.sample()
        env.step(actions)
        episodes = recorder.finish()
    env.close()
    content = episodes[0].to_bytes()
    decision = {"step": 0, "action_probabilities": {"jump": 1.0}, "state_values": 0.5, "selected_action": "jump"}
    replay = {
        "replay_id": "r1",
        "env_id": "gymcast/Archers-v0",
        "episode": 12,
        "timesteps": 345,
        "summary": episodes[0].summary,
        "bytes_base64": base64.b64encode(content).decode(),
        "decisions": [decision],
    }
    session_id = await new_session()
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        await post(client, session_id, "events", {"producer": "w", "events": [event(1, "replay", replay)]})
        announced = (await next_message(ws, "frame"))["data"]
    assert announced["frames_url"] == "/api/replays/r1/frames"
    assert "bytes_base64" not in announced
    async with client.get(announced["frames_url"]) as answer:
        assert answer.status == 200, await answer.text()
        view = await answer.json()
    assert view["view"] == "archers"
    assert len(view["frames"]) == len(episodes[0].actions) + 1
    assert view["decisions"] == [{**decision, "groups": None}]
    async with client.get("/api/replays/r1") as answer:
        assert await answer.read() == content
    async with client.get(f"{SESSIONS}/{session_id}/replays") as answer:
        (listed,) = (await answer.json())["replays"]
    assert (listed["replay_id"], listed["frames_url"]) == ("r1", announced["frames_url"])
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        assert (await next_message(ws, "frame"))["data"] == announced

    # The id belongs to the first session now, and rubbish is stored but cannot be played.
    other = await new_session()
    async with client.post(
        f"{SESSIONS}/{other}/events", json={"producer": "w", "events": [event(1, "replay", replay)]}
    ) as answer:
        await expect_problem(answer, 409, "conflict")
    rubbish = {**replay, "replay_id": "r2", "bytes_base64": base64.b64encode(b"rubbish").decode()}
    await post(client, other, "events", {"producer": "w", "events": [event(1, "replay", rubbish)]})
    async with client.get("/api/replays/r2/frames") as answer:
        await expect_problem(answer, 409, "conflict")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "[]",
        '{"type":"shout"}',
        '{"type":"subscribe","types":["shout"]}',
        '{"type":"subscribe","types":["frame"],"surprise":1}',
        '{"type":"subscribe","max_hz":0}',
        '{"type":"subscribe","max_hz":NaN}',
        '{"type":"resume","epoch":"x","seq":{"frame":-1}}',
        "[" * 1000,
        '{"type":"ping","id":"\\ud800"}',
        '{"type":"ping","type":"ping"}',
    ],
)
async def test_bad_messages_are_answered_and_the_connection_lives(
    client: aiohttp.ClientSession, new_session: NewSession, text: str
) -> None:
    async with client.ws_connect(f"/ws/{await new_session()}") as ws:
        await on_connect(ws, 2)
        await ws.send_str(text)
        error = await next_message(ws, "error")
        assert error["data"]["code"] in ("malformed", "invalid")
        await ws.send_bytes(b"\x00")
        assert (await next_message(ws, "error"))["data"]["code"] == "not_text"
        await ws.send_json({"type": "ping"})
        assert (await next_message(ws, "connection_status"))["data"]["status"] == "pong"


async def test_too_large_and_too_many_messages_close(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    session_id = await new_session()
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        await ws.send_str("x" * (64 * 1024 + 1))
        while not ws.closed:
            await ws.receive(timeout=5)
        assert ws.close_code == 1009
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        for _ in range(70):
            await ws.send_json({"type": "ping"})
        while not ws.closed:
            await ws.receive(timeout=5)
        assert ws.close_code == 1008


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/ws/nobody", {}, 404),
        ("/ws/{id}", {"Origin": "http://evil.example"}, 403),
        ("/ws/{id}", {"Origin": "null"}, 403),
        ("/ws/{id}", {"Host": "evil.example"}, 403),
        ("/ws/{id}?user_name=" + "x" * 65, {}, 422),
        ("/ws/{id}?user_name=%00", {}, 422),
    ],
)
async def test_refusals_come_before_the_upgrade(
    client: aiohttp.ClientSession, new_session: NewSession, path: str, headers: dict[str, str], status: int
) -> None:
    path = path.format(id=await new_session())
    with pytest.raises(WSServerHandshakeError) as refused:
        await client.ws_connect(path, headers=headers)
    assert refused.value.status == status


async def test_session_without_spectators_refuses_viewers(
    client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    with pytest.raises(WSServerHandshakeError) as refused:
        await client.ws_connect(f"/ws/{await new_session(enable_spectators=False)}")
    assert refused.value.status == 409


async def test_places_are_limited_and_given_back(tmp_path: Path) -> None:
    config = server_config(tmp_path, max_connections_per_session=2, max_total_connections=3)
    async with running_server(config) as server, aiohttp.ClientSession(server.url) as client:
        ids = []
        for _ in range(2):
            async with client.post(SESSIONS, json=external()) as answer:
                ids.append((await answer.json())["session_id"])
        viewers = [await client.ws_connect(f"/ws/{ids[0]}") for _ in range(2)]
        for session_id in (ids[0], ids[1]):
            if session_id == ids[1]:
                viewers.append(await client.ws_connect(f"/ws/{ids[1]}"))
            with pytest.raises(WSServerHandshakeError) as refused:
                await client.ws_connect(f"/ws/{session_id}")
            assert refused.value.status == 503
            assert refused.value.headers is not None
            assert int(refused.value.headers["Retry-After"]) > 0
        for ws in viewers:
            await ws.close()
        async with client.ws_connect(f"/ws/{ids[0]}"):
            assert server.hub.connections == 1


async def test_deleted_session_ends_its_viewers(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    session_id = await new_session()
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        await on_connect(ws, 2)
        async with client.delete(f"{SESSIONS}/{session_id}") as answer:
            assert answer.status == 204
        while not ws.closed:
            await ws.receive(timeout=5)
        assert ws.close_code == 4410


async def test_shutdown_tells_viewers(tmp_path: Path) -> None:
    async with aiohttp.ClientSession() as client:
        async with running_server(server_config(tmp_path)) as server:
            async with client.post(f"{server.url}{SESSIONS}", json=external()) as answer:
                session_id = (await answer.json())["session_id"]
            ws = await client.ws_connect(f"{server.url}/ws/{session_id}")
            await on_connect(ws, 2)
            closing = asyncio.create_task(until_closed(ws))
        assert await asyncio.wait_for(closing, 5) == 1001


async def test_subscribe_in_the_same_process(
    server: RunningServer, new_session: NewSession, client: aiohttp.ClientSession
) -> None:
    session_id = await new_session()
    seen: list[tuple[str, int]] = []

    async def follow() -> None:
        async for message in server.subscribe(session_id):
            if message["type"] == "training_metrics":
                seen.append((message["type"], message["data"]["episode"]))

    following = asyncio.create_task(follow())
    await asyncio.sleep(0)
    await post(client, session_id, "metrics", [metrics(1), metrics(2)])
    async with client.delete(f"{SESSIONS}/{session_id}") as answer:
        assert answer.status == 204
    await asyncio.wait_for(following, 5)
    assert seen == [("training_metrics", 1), ("training_metrics", 2)]
