"""A page whose server is killed, and one that was away for longer than the server keeps: nothing is lost in silence.

``LiveLink`` is used as docs/client.md tells other pages to, beside the page's own.
"""

from __future__ import annotations

import asyncio
import socket
from itertools import pairwise
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from playwright.async_api import Page, expect

from gymcast.server import RunningServer

from ..server.own_scripts import KillableServer
from .conftest import NewProducer, OpenPage, Producer, reading
from .test_page_live import TALL, drawn_points

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

FOLLOW = """async (id) => {
  const { socketAddress } = await import("/static/js/api.js");
  const { LiveLink } = await import("/static/js/live.js");
  const seen = (window.seen = { episodes: [], gaps: 0, states: [] });
  new LiveLink((query) => socketAddress(id, query), {
    message: ({ type, data }) => type === "training_metrics" && seen.episodes.push(data.episode / 100),
    state: (state) => seen.states.push(state),
    gap: () => (seen.gaps += 1),
    spectators: () => {},
  });
}"""


async def wait_until_seen(page: Page, index: int) -> dict[str, Any]:
    async with asyncio.timeout(40.0):
        while True:  # the page's content security policy leaves no other way to wait for a value
            found: dict[str, Any] = await page.evaluate("window.seen")
            if found["episodes"][-1:] == [index]:
                return found
            await asyncio.sleep(0.05)


async def test_the_server_is_killed_and_the_page_goes_on(tmp_path: Path, open_page: OpenPage) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = KillableServer(tmp_path, port)
    await asyncio.to_thread(server.start)
    try:
        async with aiohttp.ClientSession() as client:
            body = {"training_session_id": "duel", "model_generation": 1, "algorithm": "PPO", "total_episodes": 5000}
            async with client.post(f"{server.url}/api/training/sessions", json=body) as answer:
                producer = Producer(server.url, (await answer.json())["session_id"], client)
            await producer.send(*(reading(index) for index in range(1, 6)))
            page = await open_page(server.url, height=TALL, expected="WebSocket|ERR_CONNECTION|Failed to load")
            await drawn_points(page, 5)
            await page.evaluate(FOLLOW, producer.session_id)
            await wait_until_seen(page, 5)
            await producer.send(*(reading(index) for index in range(6, 11)))
            await wait_until_seen(page, 10)
            server.kill()
            await expect(page.locator("#link-state")).to_have_attribute("data-state", "reconnecting")
            await asyncio.to_thread(server.start)
            for index in range(11, 21):
                await producer.send(reading(index))
            seen = await wait_until_seen(page, 20)
            assert seen["episodes"] == sorted(set(seen["episodes"]))
            assert seen["gaps"] or seen["episodes"] == list(range(5, 21))
            assert seen["states"][0] == "connecting" and "reconnecting" in seen["states"]
            await drawn_points(page, 20)  # whatever was lost to the connection is read from the history
            await page.close()
    finally:
        server.kill()


async def test_more_than_the_server_keeps(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage
) -> None:
    producer = await new_producer(server)
    await producer.send(*(reading(index) for index in range(1, 11)))
    page = await open_page(server.url, height=TALL, expected="WebSocket|503")
    await drawn_points(page, 10)
    await page.evaluate(FOLLOW, producer.session_id)
    await wait_until_seen(page, 10)

    room, server.hub.total = server.hub.total, 0
    server.hub.close_all(4008, "too slow")
    for first in range(11, 1211, 400):
        await producer.send(*(reading(index) for index in range(first, first + 400)))
    server.hub.total = room
    seen = await wait_until_seen(page, 1210)
    assert seen["gaps"] == 1 and seen["episodes"] == [10, 1210]

    await expect(page.locator("#link-state")).to_have_attribute("data-state", "live", timeout=30_000)
    await expect(page.locator(".tile[data-key=episodes] .tile-value")).to_have_text("121k", timeout=15_000)
    times: list[float] = []
    async with asyncio.timeout(20.0):
        while not times or times[-1] < 604:  # a bucket of the history stands where its middle is
            times = await page.evaluate("document.querySelector('#chart-win-rate').data[0].x")
            await asyncio.sleep(0.05)
    assert times == sorted(set(times)) and times[0] < 2
    assert max(after - before for before, after in pairwise(times)) < 5, "a hole in the chart"
    await producer.send(reading(1211))
    assert (await wait_until_seen(page, 1211))["episodes"] == [10, 1210, 1211]
