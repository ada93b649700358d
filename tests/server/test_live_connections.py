"""Connections of viewers: signs of life, frames that make no sense, batches, faults, nothing left behind."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
import struct
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import WSMsgType

from gymcast.server import RunningServer, running_server
from gymcast.server.channels import Client
from gymcast.server.viewer_socket import SocketSink

from .conftest import NewSession, external, metrics, server_config
from .viewing import SESSIONS, handshake, next_message, on_connect, post, read_to_end, until, until_closed


async def test_silent_viewer_is_pinged_and_closed_when_it_does_not_answer(tmp_path: Path) -> None:
    config = server_config(tmp_path, heartbeat_seconds=0.6)
    async with running_server(config) as server, aiohttp.ClientSession(server.url) as client:
        session_id = await _session(client)
        async with (
            client.ws_connect(f"/ws/{session_id}") as living,
            client.ws_connect(f"/ws/{session_id}", autoping=False) as dead,
        ):
            hello = await next_message(living)
            assert hello["data"]["limits"]["heartbeat_seconds"] == 0.6
            answering = asyncio.create_task(until_closed(living))
            found = []
            while not dead.closed:
                found.append((await dead.receive(timeout=5)).type)
            assert WSMsgType.PING in found
            assert dead.close_code == 4008
            await asyncio.sleep(1.2)
            assert not answering.done()
            assert server.hub.connections == 1
            answering.cancel()


async def test_pings_of_a_viewer_are_answered(client: aiohttp.ClientSession, new_session: NewSession) -> None:
    async with client.ws_connect(f"/ws/{await new_session()}", autoping=False) as ws:
        await on_connect(ws, 2)
        await ws.ping(b"are you there")
        while (message := await ws.receive(timeout=5)).type is not WSMsgType.PONG:
            pass
        assert message.data == b"are you there"


def _masked(first: int, payload: bytes, *, length: bytes | None = None) -> bytes:
    return bytes([first]) + (length or bytes([0x80 | len(payload)])) + bytes(4) + payload


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\xff" * 64, 1002),  # reserved bits and an opcode that does not exist
        (_masked(0x80, b"x"), 1002),  # the continuation of nothing
        (_masked(0x09, b"x"), 1002),  # half of a ping
        (_masked(0x81, b"\xc3\x28"), 1007),  # text that is not UTF-8
        (_masked(0x81, b"", length=b"\xff" + struct.pack("!Q", 2**40)), 1009),
        (_masked(0x88, struct.pack("!H", 999)), 1002),  # a close code that does not exist
    ],
    ids=["garbage", "continuation", "half-ping", "not-utf8", "huge", "close-code"],
)
async def test_frames_that_make_no_sense_end_only_their_own_connection(
    server: RunningServer, client: aiohttp.ClientSession, new_session: NewSession, data: bytes, code: int
) -> None:
    session_id = await new_session()
    async with client.ws_connect(f"/ws/{session_id}") as other:
        await on_connect(other, 2)
        raw = await handshake(server, session_id)
        try:
            await asyncio.get_running_loop().sock_sendall(raw, data)
            assert b"\x88" in (received := await read_to_end(raw))
            assert struct.pack("!H", code) in received[received.rindex(b"\x88") :]
        finally:
            raw.close()
        await post(client, session_id, "metrics", metrics(5))
        assert (await next_message(other, "training_metrics"))["data"]["episode"] == 5
        assert server.hub.connections == 1


async def test_messages_of_one_tick_come_as_a_batch_for_who_asks(
    server: RunningServer, client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    session_id = await new_session()
    async with client.ws_connect(f"/ws/{session_id}") as ws, client.ws_connect(f"/ws/{session_id}") as other:
        for one in (ws, other):
            await on_connect(one, 2)
        await ws.send_json({"type": "subscribe", "batch": True})
        assert (await next_message(ws, "connection_status"))["data"]["batch"] is True
        await post(client, session_id, "metrics", [metrics(number) for number in range(1, 51)])
        batch = await next_message(ws, "batch")
        assert batch["seq"] == 0
        inner = [message for message in batch["data"]["messages"] if message["type"] == "training_metrics"]
        assert [(message["seq"], message["data"]["episode"]) for message in inner] == [(n, n) for n in range(1, 51)]
        plain = [await next_message(other, "training_metrics") for _ in range(50)]
        assert plain == inner
        server.hub.publish(session_id, "frame", {"alone": True})
        assert (await next_message(ws))["type"] == "frame"
        # Large ones are spread over several batches.
        for number in range(5):
            server.hub.publish(session_id, "frame", {"number": number, "picture": "x" * 300_000})
        found: list[Any] = []
        while len(found) < 5:
            message = await next_message(ws, "batch", "frame")
            found += message["data"]["messages"] if message["type"] == "batch" else [message]
        assert [message["data"]["number"] for message in found] == list(range(5))


async def test_state_that_cannot_be_read_closes_1011(tmp_path: Path) -> None:
    async with running_server(server_config(tmp_path)) as server, aiohttp.ClientSession(server.url) as client:
        session_id = await _session(client)
        with sqlite3.connect(tmp_path / "server.db") as database:
            database.execute("ALTER TABLE graphs RENAME TO elsewhere")
        async with client.ws_connect(f"/ws/{session_id}") as ws:
            assert await until_closed(ws) == 1011
        assert server.hub.connections == 0


async def test_session_that_is_gone_after_the_upgrade_closes_4404(tmp_path: Path) -> None:
    async with running_server(server_config(tmp_path)) as server, aiohttp.ClientSession(server.url) as client:
        session_id = await _session(client)
        async with client.ws_connect(f"/ws/{session_id}?resume=1") as ws:
            await next_message(ws)
            with sqlite3.connect(tmp_path / "server.db") as database:  # as another server on this database does it
                database.execute("DELETE FROM sessions")
            await ws.send_json({"type": "resume", "epoch": "another", "seq": {}})
            assert await until_closed(ws) == 4404
        assert server.hub.connections == 0


def viewers_in_memory() -> list[object]:
    gc.collect()
    # By type: isinstance asks each thing for its class, which some modules answer with a warning.
    return [thing for thing in gc.get_objects() if type(thing) in (Client, SocketSink)]


async def test_a_thousand_viewers_come_and_go_and_leave_nothing_behind(
    server: RunningServer, client: aiohttp.ClientSession, new_session: NewSession
) -> None:
    session_id = await new_session()
    await post(client, session_id, "metrics", metrics(1))
    tasks = len(asyncio.all_tasks())
    # Timers hold some in the event loop that the browser's tests share, which does not run now.
    of_others = viewers_in_memory()

    async def come_and_go(count: int) -> None:
        for number in range(count):
            raw = await handshake(server, session_id)
            if number % 2:
                await asyncio.get_running_loop().sock_sendall(raw, _masked(0x88, struct.pack("!H", 1000)))
                await read_to_end(raw)
            raw.close()

    await asyncio.gather(*(come_and_go(50) for _ in range(20)))
    await until(lambda: not server.hub.connections and len(asyncio.all_tasks()) <= tasks)
    left = [thing for thing in viewers_in_memory() if not any(thing is other for other in of_others)]
    assert left == []
    channel = server.hub.channel(session_id)
    assert not channel.clients
    assert len(channel.ring) < 10


async def _session(client: aiohttp.ClientSession) -> str:
    async with client.post(SESSIONS, json=external()) as answer:
        return str((await answer.json())["session_id"])
