"""Charts and figures: history, then live readings, with none lost and none twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from gymcast.server import RunningServer, ServerConfig, running_server
from gymcast.training.callbacks.collapse import ALARMS
from gymcast.training.events import CheckpointData, ErrorData, PerformanceGraphData, TrainingStatusData

from .conftest import NewProducer, OpenPage, evaluation, reading

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

TALL = 2600  # px: all charts are on the screen, as only those are redrawn

CHARTS = ("reward", "win-rate", "losses", "speed")


async def drawn_points(page: Page, count: int) -> None:
    """Wait until every chart was drawn from this many readings."""
    for name in CHARTS:
        await expect(page.locator(f"#chart-{name}")).to_have_attribute("data-points", str(count), timeout=15_000)


async def line_of(page: Page, chart: str) -> str:
    path = await page.locator(f"#chart-{chart} .scatterlayer .js-line").first.get_attribute("d")
    assert path
    return path


async def test_charts_show_the_history_and_move(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage
) -> None:
    producer = await new_producer(server)
    await producer.send(*(reading(index) for index in range(1, 31)))
    page = await open_page(server.url, height=TALL)
    await drawn_points(page, 30)
    before = [await line_of(page, name) for name in CHARTS]

    await producer.send(reading(31), reading(32))
    await drawn_points(page, 32)

    assert all([await line_of(page, name) != line for name, line in zip(CHARTS, before, strict=True)])
    await expect(page.locator(".tile[data-key=win_rate] .tile-value")).to_have_text("48.0 %")
    await expect(page.locator(".tile[data-key=episodes] .tile-value")).to_have_text("3.20k")
    await expect(page.locator(".tile[data-key=realtime] .tile-value")).to_have_text("12.0k×")
    await expect(page.locator("#link-state")).to_have_attribute("data-state", "live")
    assert await page.locator("style").count() == 0, "the page has to work without inline style sheets"


async def test_no_reading_is_lost_or_doubled_while_the_page_loads(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage
) -> None:
    producer = await new_producer(server)

    async def report() -> None:
        for index in range(1, 61):
            await producer.send(reading(index))
            await asyncio.sleep(0.05)

    reporting = asyncio.create_task(report())
    page = await open_page(server.url, height=TALL)
    await reporting
    await drawn_points(page, 60)
    shown = await page.evaluate("document.querySelector('#chart-win-rate').data[0].x")
    assert shown == [index / 2 for index in range(1, 61)]


async def test_reconnects_after_the_server_was_away(
    tmp_path: Path, new_producer: NewProducer, open_page: OpenPage
) -> None:
    async with running_server(ServerConfig(port=0, data_storage_path=tmp_path)) as first:
        port = first.port
        producer = await new_producer(first)
        await producer.send(*(reading(index) for index in range(1, 11)))
        page = await open_page(first.url, height=TALL, expected="WebSocket|ERR_CONNECTION|Failed to load")
        await drawn_points(page, 10)
    await expect(page.locator("#link-state")).to_have_attribute("data-state", "reconnecting")
    await expect(page.locator("#notices")).to_contain_text("connection to the server is lost")

    async with running_server(ServerConfig(port=port, data_storage_path=tmp_path)):
        await producer.send(*(reading(index) for index in range(11, 16)))
        await expect(page.locator("#link-state")).to_have_attribute("data-state", "live", timeout=20_000)
        await producer.send(reading(16))
        await drawn_points(page, 16)
        await expect(page.locator("#notices")).to_be_empty()
        await page.close()


async def test_status_tables_and_end(server: RunningServer, new_producer: NewProducer, open_page: OpenPage) -> None:
    producer = await new_producer(server)
    status = TrainingStatusData(
        status="running", phase="training", timesteps=8000, total_timesteps=32_000, progress=0.25, eta_seconds=90
    )
    await producer.send(reading(1), status)
    page = await open_page(server.url)
    await expect(page.locator("#progress-phase")).to_have_text("Training · 25 % · 8.00k of 32.0k samples")
    await expect(page.locator("#progress-eta")).to_have_text("1 min 30 s left")
    await expect(page.locator("#evaluations")).to_be_hidden()

    await producer.send(
        evaluation(),
        CheckpointData(
            path="checkpoints/step-8000",
            timesteps=8000,
            episodes=100,
            bytes=411_800,
            sha256="ab" * 32,
            reason="final",
        ),
        TrainingStatusData(status="completed", timesteps=32_000, total_timesteps=32_000, progress=1.0),
    )
    await expect(page.locator("#evaluations-body")).to_contain_text("91.4 – 94.5 %")
    await expect(page.locator("#evaluations-body")).to_contain_text("931 / 9 / 60")
    await expect(page.locator("#checkpoints-body")).to_contain_text("402.1 KiB")
    await expect(page.locator("#session-status")).to_have_text("completed")
    await expect(page.locator("#link-state")).to_have_text("ended")
    await page.reload()
    await expect(page.locator("#evaluations-body tbody tr")).to_have_count(1)
    await expect(page.locator("#checkpoints-body tbody tr")).to_have_count(1)


async def test_alarms_stay_on_the_page_until_they_are_closed(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage
) -> None:
    producer = await new_producer(server)
    await producer.send(reading(1))
    page = await open_page(server.url)
    await expect(page.locator("#link-state")).to_have_attribute("data-state", "live")
    for number, code in enumerate(("entropy_collapsed", "value_loss_exploded", "entropy_collapsed")):
        await producer.send(ErrorData(code=code, message=ALARMS[code], detail={"timesteps": 1000 * number}))
    alarms = page.locator("#notices .notice[data-kind=warning]")
    await expect(alarms).to_have_count(2)
    await expect(page.locator("#notices")).to_contain_text("the policy hardly explores any more")
    await expect(page.locator("#notices")).to_contain_text("the critic's error has jumped")
    await alarms.first.locator("button").click()
    await expect(alarms).to_have_count(1)
    listed = page.locator("#alarms-body tbody tr")
    await expect(listed).to_have_count(3)
    await new_producer(server, "another")
    await page.locator(".card-name", has_text="another").click()
    await expect(alarms).to_have_count(0)
    await expect(listed).to_have_count(0)
    await page.go_back()
    await expect(listed).to_have_count(3)
    await expect(listed.first).to_contain_text("2.00kthe policy hardly explores any more")


async def test_list_of_sessions(server: RunningServer, new_producer: NewProducer, open_page: OpenPage) -> None:
    page = await open_page(server.url)
    await expect(page.locator("#empty")).to_contain_text("gymcast train archers")

    older = await new_producer(server, "older")
    await expect(page.locator("#session-title")).to_have_text("older", timeout=10_000)
    await new_producer(server, "newer")
    names = page.locator(".card-name")
    await expect(names).to_have_text(["newer", "older"], timeout=10_000)
    assert page.url.endswith(f"#/session/{older.session_id}")
    await names.first.click()
    await expect(page.locator("#session-title")).to_have_text("newer")
    await page.go_back()
    await expect(page.locator("#session-title")).to_have_text("older")


async def test_graphs_of_other_trainers(server: RunningServer, new_producer: NewProducer, open_page: OpenPage) -> None:
    producer = await new_producer(server)
    points = [{"timestamp": reading(index).timestamp, "value": index / 10} for index in range(1, 6)]
    graph = {"graph_id": "kl", "title": "Divergence", "y_label": "nats", "metrics": ["kl"]}
    await producer.send(PerformanceGraphData(**graph, data_points={"kl": points[:3]}))
    page = await open_page(server.url, height=TALL)
    await expect(page.locator("#chart-graph-kl")).to_have_attribute("data-points", "3")
    await producer.send(PerformanceGraphData(**graph, data_points={"kl": points[3:]}))
    await expect(page.locator("#chart-graph-kl")).to_have_attribute("data-points", "5")
    await expect(page.locator(".chart-title").last).to_have_text("Divergence")
