"""The JavaScript example of the metrics server's reference, on a page of another origin as a frontend of its own is."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
from aiohttp import web

from gymcast.server import ServerConfig, TrainingEngineIntegration, running_server

from ..reference_examples import GRAPH
from .conftest import OpenPage

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

# As it is written there, but for the address, the session's id, and the three functions, which are left to the reader.
CLIENT = """
const shown = {};
const updateMetricsDisplay = (data) => { shown.metrics = data; };
const updateDecisionVisualization = (data) => { shown.decision = data; };
const updatePerformanceGraphs = (data) => { shown.graphs = data; };

// Frontend JavaScript example
const ws = new WebSocket('ws://localhost:8000/ws/my_session?user_name=Spectator1');

ws.onmessage = (event) => {
    const message = JSON.parse(event.data);

    switch (message.type) {
        case 'training_metrics':
            updateMetricsDisplay(message.data);
            break;
        case 'bot_decision':
            updateDecisionVisualization(message.data);
            break;
        case 'graph_update':
            updatePerformanceGraphs(message.data);
            break;
    }
};
"""


@pytest_asyncio.fixture(loop_scope="session")
async def frontend() -> AsyncIterator[tuple[str, dict[str, str]]]:
    """Origin of another web server, and the scripts it serves by name."""
    scripts: dict[str, str] = {}

    async def page(_request: web.Request) -> web.Response:
        text = '<!doctype html><link rel="icon" href="data:,"><script src="/client.js"></script>'
        return web.Response(text=text, content_type="text/html")

    async def script(_request: web.Request) -> web.Response:
        return web.Response(text=scripts["client.js"], content_type="text/javascript")

    app = web.Application()
    app.add_routes([web.get("/", page), web.get("/client.js", script)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", scripts
    await runner.cleanup()


async def test_the_reference_client_on_a_page_of_another_origin(
    frontend: tuple[str, dict[str, str]], tmp_path: Path, open_page: OpenPage
) -> None:
    origin, scripts = frontend
    async with running_server(ServerConfig(port=0, data_storage_path=tmp_path, cors_origins=(origin,))) as server:
        integration = TrainingEngineIntegration(server)
        session_id = await integration.register_training_session("t", 2, "DQN", 1000)
        address = CLIENT.replace("localhost:8000", f"127.0.0.1:{server.port}")
        scripts["client.js"] = address.replace("my_session", session_id)
        page = await open_page(origin)
        await page.wait_for_function("ws.readyState === WebSocket.OPEN")
        await integration.update_training_metrics("t", 7, 15.5, episode_length=200)
        await integration.update_bot_decision("t", {"jump": 0.25, "shoot": 0.75}, selected_action="shoot")
        await integration.update_performance_graph("t", **GRAPH)
        await page.wait_for_function("shown.metrics && shown.decision && shown.graphs")
        shown = await page.evaluate("shown")
        assert (shown["metrics"]["episode"], shown["metrics"]["current_reward"]) == (7, 15.5)
        assert shown["decision"]["selected_action"] == "shoot"
        assert shown["graphs"]["graph_id"] == "reward_progress"
        assert server.hub.spectators(session_id) == 1
