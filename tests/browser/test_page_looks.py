"""Themes, a phone's width, hostile text."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from gymcast.envs import Replay
from gymcast.server import RunningServer
from gymcast.training.events import BotDecisionData, ErrorData, TrainingStatusData

from .conftest import NewProducer, OpenPage, evaluation, footage, reading

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

HOSTILE = '<img src=x onerror="window.pwned=1"><script>window.pwned=1</script>'


async def lightness(page: Page) -> float:
    """Of the page's background, 0..1."""
    colour = await page.evaluate("getComputedStyle(document.body).backgroundColor.match(/[0-9.]+/g).map(Number)")
    return float(sum(colour[:3]) / 3 / 255)


async def test_light_and_dark(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage, episodes: list[Replay]
) -> None:
    producer = await new_producer(server)
    await producer.send(reading(1), reading(2), footage(episodes[0], 1))
    page = await open_page(server.url, color_scheme="dark")
    assert await lightness(page) < 0.2
    await page.locator("#theme-button").click()
    assert await lightness(page) > 0.8
    await expect(page.locator("#theme-button")).to_have_attribute("aria-label", "Switch to the dark theme")
    await page.reload()
    assert await lightness(page) > 0.8, "the choice has to outlast a reload"

    light = await open_page(server.url, color_scheme="light")
    assert await lightness(light) > 0.8
    await light.emulate_media(color_scheme="dark")
    await expect(light.locator("html")).to_have_attribute("data-theme", "dark")


async def test_fits_narrow_screens(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage, episodes: list[Replay]
) -> None:
    producer = await new_producer(server, "a-session-with-a-rather-long-name-without-any-place-to-break-it")
    await producer.send(
        *(reading(index) for index in range(1, 20)),
        footage(episodes[0], 1),
        evaluation(),
        TrainingStatusData(status="running", phase="evaluating", reason="x" * 300, progress=0.5),
    )
    page = await open_page(server.url, width=360, height=740, reduced_motion="reduce")
    await expect(page.locator("#game")).to_have_attribute("data-replay", "replay-1", timeout=20_000)
    await expect(page.locator("#chart-speed .scatterlayer .js-line")).to_have_count(1, timeout=15_000)
    await expect(page.locator("#evaluations")).to_be_visible()
    await page.locator("#drawer-button").click()
    await expect(page.locator(".session-card")).to_be_visible()
    await fits(page)
    await page.set_viewport_size({"width": 768, "height": 740})
    await fits(page)


async def fits(page: Page) -> None:
    """Nothing sticks out of the screen, once the charts have taken their new width."""
    outside = """() => [...document.querySelectorAll("main *")].filter((element) => {
        const box = element.getBoundingClientRect();
        return box.width && box.right > innerWidth + 1 && !element.closest(".table-scroll, svg, .visually-hidden");
    }).map((element) => element.outerHTML.slice(0, 120))"""
    for _ in range(100):
        if not (found := await page.evaluate(outside)):
            break
        await page.wait_for_timeout(100)
    assert found == []
    assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


async def test_hostile_text_is_only_text(server: RunningServer, new_producer: NewProducer, open_page: OpenPage) -> None:
    producer = await new_producer(server, HOSTILE, algorithm=HOSTILE)
    await producer.send(
        reading(1),
        BotDecisionData(action_probabilities={HOSTILE: 1.0}, selected_action=HOSTILE),
        evaluation(HOSTILE),
        TrainingStatusData(status="running", reason=HOSTILE),
    )
    page = await open_page(server.url)
    await expect(page.locator("#session-title")).to_have_text(HOSTILE)
    await expect(page.locator("#session-reason")).to_have_text(HOSTILE)
    await expect(page.locator(".card-name")).to_have_text(HOSTILE)
    await expect(page.locator("#evaluations-body")).to_contain_text(HOSTILE)
    await expect(page.locator(".bar-label")).to_have_text(HOSTILE)
    await producer.send(ErrorData(code="oops", message=HOSTILE))
    await expect(page.locator(".notice")).to_contain_text(HOSTILE)
    assert await page.evaluate("window.pwned") is None
    assert await page.locator("main img, nav img, .notices img").count() == 0


async def test_unknown_session_and_one_that_waits(server: RunningServer, open_page: OpenPage) -> None:
    page = await open_page(f"{server.url}/#/session/nobody", expected="404")
    await expect(page.locator("#empty-title")).to_have_text("No such session")
    await expect(page.locator("#session")).to_be_hidden()
    waiting = await server.storage.create_session(kind="managed", algorithm="PPO")
    await page.goto(f"{server.url}/#/session/{waiting.session_id}")
    await server.storage.update_session(waiting.session_id, wait_reason="no place is free")
    await expect(page.locator("#session-reason")).to_have_text("no place is free")
    await server.storage.update_session(waiting.session_id, status="starting")
    await expect(page.locator("#session-reason")).to_be_hidden()
