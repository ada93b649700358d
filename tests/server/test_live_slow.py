"""Viewers that read too slowly: what they get, when they are cut off, and that the others never notice."""

from __future__ import annotations

import asyncio
import gc
import socket

import aiohttp
import pytest

from gymcast.server import RunningServer, channels, hub

from ..reference_examples import DECISION
from .conftest import NewSession, metrics
from .viewing import next_message, on_connect, post, read_to_end, stalled_viewer, until, until_closed


async def test_stalled_viewer_is_cut_off_and_others_get_everything(
    server: RunningServer, client: aiohttp.ClientSession, new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "SLOW_SECONDS", 1.0)
    session_id = await new_session()
    big = metrics(extra={f"metric_{'x' * 100}_{number}": float(number) for number in range(32)})
    async with client.ws_connect(f"/ws/{session_id}") as healthy, stalled_viewer(server, session_id):
        await on_connect(healthy, 2)
        assert server.hub.spectators(session_id) == 2
        # The healthy viewer shares this event loop with the server, so each burst is read before the next one.
        for start in range(0, 400, 5):
            await post(client, session_id, "metrics", [{**big, "episode": start + n} for n in range(5)])
            received = [(await next_message(healthy, "training_metrics"))["seq"] for _ in range(5)]
            assert received == list(range(start + 1, start + 6))
        for _ in range(60):
            await healthy.send_json({"type": "ping"})
            pong = await next_message(healthy, "connection_status")
            if pong["data"]["spectator_count"] == 1:
                break
            await asyncio.sleep(0.1)
        assert server.hub.connections == 1


async def test_viewer_that_catches_up_gets_the_newest(
    server: RunningServer, client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    session_id = await new_session()
    big = metrics(extra={f"metric_{'x' * 100}_{number}": float(number) for number in range(32)})
    loop = asyncio.get_running_loop()
    async with stalled_viewer(server, session_id) as raw:
        # Fill the sockets until the backlog shows, then go on: from there on only the newest reading is kept.
        (viewer,) = server.hub.channel(session_id).clients
        episode = 0
        async with asyncio.timeout(10):
            while viewer.slow_since is None:
                episode += 1
                await post(client, session_id, "metrics", {**big, "episode": episode})
        first_held = episode + 1
        for episode in range(first_held, first_held + 30):
            await post(client, session_id, "metrics", {**big, "episode": episode})
            await post(client, session_id, "bot_decision", DECISION)
        data = b""
        async with asyncio.timeout(5):
            while f'"episode":{episode},'.encode() not in data:
                data += await loop.sock_recv(raw, 1 << 16)
        assert f'"episode":{first_held},'.encode() not in data
        assert b'"type":"bot_decision"' not in data
        assert server.hub.spectators(session_id) == 1


async def test_backlog_beyond_the_limit_closes_at_once(
    server: RunningServer, client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    session_id = await new_session()
    # Status messages are never left out, so they are what fills a backlog.
    sent = 0
    async with client.ws_connect(f"/ws/{session_id}") as healthy, stalled_viewer(server, session_id) as raw:
        await on_connect(healthy, 2)
        async with asyncio.timeout(4):  # far less than what a slow client is given otherwise
            while server.hub.spectators(session_id) == 2:
                server.hub.publish(session_id, "training_status", {"status": "running", "note": "x" * 30_000})
                sent += 1
                assert (await next_message(healthy, "training_status"))["data"]["note"]
        # Whoever reads now gets what was sent to it, and the reason at its end.
        data = await read_to_end(raw)
        assert data.endswith(b"\x0f\xa8reading too slowly")  # 4008
        assert hub.HARD_BACKLOG < len(data) < sent * 30_100
        server.hub.publish(session_id, "training_status", {"status": "running"})
        assert "note" not in (await next_message(healthy, "training_status"))["data"]
    assert sent > 8


async def test_peer_that_never_reads_is_cut_off(
    server: RunningServer, client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    session_id = await new_session()
    async with stalled_viewer(server, session_id) as raw:
        (viewer,) = server.hub.channel(session_id).clients
        await until(lambda: viewer.joining is None)
        async with asyncio.timeout(4):
            while server.hub.connections:
                server.hub.publish(session_id, "training_status", {"status": "running", "note": "x" * 30_000})
                await asyncio.sleep(0)
        sink = viewer.sink
        assert sink is not None
        await until(lambda: not sink.backlog())
        # Its connection is gone although it has read nothing: what was kept for it, the reason included, went with it,
        # and the kernel was told to forget it, too.
        await until(lambda: raw.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 7)  # TCP_CLOSE
        assert b"reading too slowly" not in await read_to_end(raw)


async def test_rate_is_kept_for_each_graph_by_itself(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    session_id = await new_session()
    point = {"timestamp": "2026-01-01T00:00:00Z", "value": 1.0}

    def graph(name: str, value: float) -> dict[str, object]:
        points = {"a": [{**point, "value": value}]}
        return {"graph_id": name, "title": name, "y_label": "y", "metrics": ["a"], "data_points": points}

    async with client.ws_connect(f"/ws/{session_id}") as ws:
        await on_connect(ws, 2)
        await ws.send_json({"type": "subscribe", "types": ["graph_update", "bot_decision"], "max_hz": 3})
        await next_message(ws, "connection_status")
        for value in (1.0, 2.0, 3.0):
            await post(client, session_id, "graph_update", [graph("one", value), graph("two", value)])
        found = [(await next_message(ws, "graph_update"))["data"] for _ in range(4)]
        values = [(data["graph_id"], data["data_points"]["a"][0]["value"]) for data in found]
        assert values == [("one", 1.0), ("two", 1.0), ("one", 3.0), ("two", 3.0)]


async def test_nothing_is_kept_for_a_viewer_that_waits(
    server: RunningServer, client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    session_id = await new_session()
    channel = server.hub.channel(session_id)
    async with client.ws_connect(f"/ws/{session_id}?resume=1") as ws:
        hello = await next_message(ws)
        for number in range(1, channels.RING_MESSAGES + 101):
            server.hub.publish(session_id, "training_status", {"status": "running", "number": number})
        await ws.send_json({"type": "ping"})  # answered after all of them were handed out
        await next_message(ws, "connection_status")
        gc.collect()
        kept = [one for one in gc.get_objects() if type(one) is channels.LiveMessage and one.session_id == session_id]
        assert len(kept) <= channels.RING_MESSAGES
        # It asks for more than there is, and is told so; then it gets the state and what follows.
        await ws.send_json({"type": "resume", "epoch": hello["epoch"], "seq": hello["data"]["heads"]})
        assert (await next_message(ws, "connection_status"))["data"]["recovered"] is False
        assert (await next_message(ws, "training_status"))["seq"] == channel.heads["training_status"]
        server.hub.publish(session_id, "training_status", {"status": "running", "number": 0})
        assert (await next_message(ws, "training_status"))["data"]["number"] == 0


async def test_what_came_while_the_state_was_read_follows_it_from_the_ring() -> None:
    live = hub.Hub()
    picture = {"picture": "x" * 40_000}
    late = live.join("s")
    for _ in range(3):
        live.publish("s", "picture", picture)
        live.publish("s", "bot_decision", DECISION)
        live.publish("s", "checkpoint", {"path": "p"})
    assert live.start(late, [], {})
    # Of so much it gets what a slow viewer does: the newest picture, later, and no decisions.
    assert late.slow_since is not None
    assert [(message.type, message.seq) for message in late.held.values()] == [("picture", 3)]

    never = live.join("s")
    for _ in range(channels.RING_MESSAGES + 1):
        live.publish("s", "training_status", {"status": "running"})
    assert not live.start(never, [], {})  # some are gone: it needs a newer state
    live.hold(never)
    assert live.start(never, [], {})
    live.close_all(1001, "the end")


async def test_a_viewer_whose_state_is_always_too_old_is_told_to_come_again(
    server: RunningServer, client: aiohttp.ClientSession, new_session: NewSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channels, "RING_MESSAGES", 1)
    session_id = await new_session()

    async def flood() -> None:
        while True:
            for _ in range(3):
                server.hub.publish(session_id, "training_status", {"status": "running"})
            await asyncio.sleep(0)

    flooding = asyncio.create_task(flood())
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        code = await until_closed(ws)
    flooding.cancel()
    assert code == 4010
    async with client.ws_connect(f"/ws/{session_id}") as ws:
        assert (await on_connect(ws, 2))["training_status"]["data"]["status"] == "running"
