"""The WebSocket after a break: the whole rest of what was missed, or an honest no and the state; never a part."""

from __future__ import annotations

import asyncio
import random

import aiohttp
import pytest

from gymcast.server import RunningServer, channels
from gymcast.server.handlers import live

from ..reference_examples import DECISION, GRAPH
from .conftest import NewSession, metrics
from .viewing import next_message, on_connect, post


async def test_resume_sends_the_whole_rest_or_says_so(
    client: aiohttp.ClientSession, new_session: NewSession, server: RunningServer
) -> None:
    session_id = await new_session()
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        epoch = (await next_message(ws))["epoch"]
    for number in range(1, 11):
        await post(client, session_id, "metrics", metrics(number))
    heads = dict(server.hub.channel(session_id).heads)
    async with client.ws_connect(f"/ws/{session_id}?resume=1") as ws:
        assert (await next_message(ws))["data"]["status"] == "connected"
        await ws.send_json({"type": "resume", "epoch": epoch, "seq": {**heads, "training_metrics": 4}})
        assert (await next_message(ws))["data"]["recovered"] is True
        found = [await next_message(ws) for _ in range(6)]
        assert [(message["type"], message["seq"]) for message in found] == [
            ("training_metrics", number) for number in range(5, 11)
        ]
        await post(client, session_id, "metrics", metrics(11))
        assert (await next_message(ws, "training_metrics"))["seq"] == 11
        for seen in ({**heads, "training_metrics": 99}, heads | {"training_metrics": 0}):
            await ws.send_json({"type": "resume", "epoch": epoch, "seq": seen})
            answer = await next_message(ws, "connection_status")
            assert answer["data"]["recovered"] is (seen["training_metrics"] == 0)


async def test_resume_beyond_the_ring_is_not_recovered(
    client: aiohttp.ClientSession, new_session: NewSession, server: RunningServer
) -> None:
    session_id = await new_session()
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        epoch = (await next_message(ws))["epoch"]
        for start in range(0, channels.RING_MESSAGES + 1, 500):
            await post(client, session_id, "metrics", [metrics(start + number) for number in range(500)])
        assert len(server.hub.channel(session_id).ring) == channels.RING_MESSAGES
    async with client.ws_connect(f"/ws/{session_id}?resume=1") as ws:
        await next_message(ws)
        heads = dict(server.hub.channel(session_id).heads)
        await ws.send_json({"type": "resume", "epoch": epoch, "seq": {**heads, "training_metrics": 3}})
        assert (await next_message(ws))["data"]["recovered"] is False
        found = await on_connect(ws, 2)
        assert found["training_metrics"]["seq"] == heads["training_metrics"]


async def test_silent_client_that_announced_a_resume_gets_the_state(
    client: aiohttp.ClientSession, new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "_RESUME_WAIT_S", 0.1)
    session_id = await new_session()
    await post(client, session_id, "metrics", metrics(3))
    async with client.ws_connect(f"/ws/{session_id}?resume=1") as ws:
        found = await on_connect(ws, 3)
    assert found["training_metrics"]["data"]["episode"] == 3


async def test_viewer_that_breaks_off_again_and_again_gets_everything_once_and_in_order(
    client: aiohttp.ClientSession, new_session: NewSession, server: RunningServer
) -> None:
    session_id = await new_session()
    choice = random.Random(7)
    rounds = 120

    async def produce() -> None:
        for number in range(1, rounds + 1):
            await post(client, session_id, "metrics", metrics(number))
            await post(client, session_id, "bot_decision", DECISION)
            if number % 10 == 0:
                await post(client, session_id, "graph_update", GRAPH)

    seen = dict(server.hub.channel(session_id).heads)
    epoch = server.hub.channel(session_id).epoch
    episodes: list[int] = []
    breaks = 0
    producing = asyncio.create_task(produce())
    while len(episodes) < rounds:
        async with client.ws_connect(f"/ws/{session_id}?resume=1") as ws:
            assert (await next_message(ws))["data"]["status"] == "connected"
            await ws.send_json({"type": "resume", "epoch": epoch, "seq": seen})
            assert (await next_message(ws, "connection_status"))["data"]["recovered"] is True
            for _ in range(choice.randint(1, 40)):
                message = await next_message(ws)
                if message["type"] == "connection_status":
                    continue
                kind = message["type"]
                assert message["seq"] == seen.get(kind, 0) + 1, message
                seen[kind] = message["seq"]
                if kind == "training_metrics":
                    episodes.append(message["data"]["episode"])
                if len(episodes) == rounds:
                    break
        breaks += 1
    await producing
    assert episodes == list(range(1, rounds + 1))
    assert breaks > 3


@pytest.mark.parametrize("kept", [True, False], ids=["rows", "states"])
async def test_resume_beyond_the_age_of_the_ring(
    client: aiohttp.ClientSession,
    new_session: NewSession,
    server: RunningServer,
    monkeypatch: pytest.MonkeyPatch,
    kept: bool,
) -> None:
    """Readings have a row each and are read back; of graphs only the newest state is kept."""
    monkeypatch.setattr(channels, "RING_SECONDS", 0.5)
    kind, address, body = (
        ("training_metrics", "metrics", metrics()) if kept else ("graph_update", "graph_update", GRAPH)
    )
    session_id = await new_session()
    for _ in range(2):
        await post(client, session_id, address, body)
    await asyncio.sleep(0.7)
    await post(client, session_id, address, body)
    monkeypatch.setattr(channels, "RING_SECONDS", 600.0)  # what follows may take its time
    channel = server.hub.channel(session_id)
    assert [message.type for message, _size in channel.ring].count(kind) == 1
    for missed, recovered in ((1, True), (2, kept)):
        async with client.ws_connect(f"/ws/{session_id}?resume=1") as ws:
            await next_message(ws)
            await ws.send_json({"type": "resume", "epoch": channel.epoch, "seq": {**channel.heads, kind: 3 - missed}})
            assert (await next_message(ws, "connection_status"))["data"]["recovered"] is recovered
            expected = [3] if missed == 1 or not recovered else [2, 3]
            assert [(await next_message(ws, kind))["seq"] for _ in expected] == expected
    assert [message.seq for message, _size in channel.ring if message.type == kind] == ([2, 3] if kept else [3])
    # What was read back is as old as it is, and goes with the next message.
    monkeypatch.setattr(channels, "RING_SECONDS", 0.5)
    await post(client, session_id, address, body)
    assert 2 not in [message.seq for message, _size in channel.ring if message.type == kind]


async def test_state_after_a_refused_resume_comes_before_what_follows_it(
    client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    session_id = await new_session()
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        await on_connect(ws, 2)
        posting = asyncio.create_task(_post_steadily(client, session_id, 60))
        seen = 0
        for _ in range(5):
            await ws.send_json({"type": "resume", "epoch": "another", "seq": {}})
            assert (await next_message(ws, "connection_status"))["data"]["recovered"] is False
            for _ in range(3):
                message = await next_message(ws, "training_metrics")
                assert message["seq"] >= seen, "older than what came before"
                seen = message["seq"]
        posting.cancel()
        await asyncio.wait([posting])


async def _post_steadily(client: aiohttp.ClientSession, session_id: str, count: int) -> None:
    for number in range(1, count + 1):
        await post(client, session_id, "metrics", metrics(number))


async def test_resume_of_a_viewer_that_has_messages_held_back_sends_none_of_them_twice(
    client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    session_id = await new_session()
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        epoch = (await next_message(ws))["epoch"]
        await ws.send_json({"type": "subscribe", "types": ["training_metrics"], "max_hz": 2})
        await next_message(ws, "connection_status")
        await post(client, session_id, "metrics", [metrics(number) for number in (1, 2, 3)])
        assert (await next_message(ws, "training_metrics"))["seq"] == 1
        await ws.send_json({"type": "resume", "epoch": epoch, "seq": {"training_metrics": 1}})
        assert [(await next_message(ws, "training_metrics"))["seq"] for _ in range(2)] == [2, 3]
        await asyncio.sleep(0.6)
        await post(client, session_id, "metrics", metrics(4))
        assert (await next_message(ws, "training_metrics"))["seq"] == 4


async def test_filters_make_no_gaps(
    client: aiohttp.ClientSession, new_session: NewSession, server: RunningServer
) -> None:
    session_id = await new_session()
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        await on_connect(ws, 2)
        await ws.send_json({"type": "subscribe", "types": ["bot_decision"]})
        await next_message(ws, "connection_status")
        for number in range(1, 6):
            await post(client, session_id, "metrics", metrics(number))
            await post(client, session_id, "bot_decision", DECISION)
        assert [(await next_message(ws))["seq"] for _ in range(5)] == [1, 2, 3, 4, 5]
        # Only what is subscribed to has to be there for a resume: the numbers of the rest may be left out.
        await ws.send_json(
            {"type": "resume", "epoch": server.hub.channel(session_id).epoch, "seq": {"bot_decision": 3}}
        )
        assert (await next_message(ws, "connection_status"))["data"]["recovered"] is True
        assert [(await next_message(ws))["seq"] for _ in range(2)] == [4, 5]


async def test_numbers_given_elsewhere(
    client: aiohttp.ClientSession, new_session: NewSession, server: RunningServer
) -> None:
    hub, session_id = server.hub, await new_session()
    channel = hub.channel(session_id)
    channel.know_heads({"training_metrics": 4})
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        hello = await next_message(ws)
        assert hello["data"]["heads"]["training_metrics"] == 4
        told = (await next_message(ws, "training_status"))["seq"]
        sent = [hub.publish(session_id, "training_metrics", metrics(seq), seq=seq) for seq in (5, 6, 6, 5, 9)]
        assert sent == [True, True, False, False, True]
        found = [await next_message(ws, "training_metrics") for _ in range(3)]
        assert [message["seq"] for message in found] == [5, 6, 9]
        # 7 and 8 never came here, so nobody is told that he has everything.
        for seen, recovered in ((9, True), (8, True), (6, False), (5, False)):
            numbers = {"training_metrics": seen, "training_status": told}
            await ws.send_json({"type": "resume", "epoch": channel.epoch, "seq": numbers})
            assert (await next_message(ws, "connection_status"))["data"]["recovered"] is recovered, seen
