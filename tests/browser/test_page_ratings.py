"""The page of ratings: ladders with error bars, also on narrow screens, and what fills them."""

from __future__ import annotations

import pytest
from playwright.async_api import Page, expect

from gymcast.server import RunningServer
from gymcast.training.events import EvaluationData

from .conftest import ENV_ID, NewProducer, OpenPage

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

HOSTILE = '<img src=x onerror="window.pwned=1">'
OUTSIDE = """() => [...document.querySelectorAll("main *, header *")].filter((element) => {
    const box = element.getBoundingClientRect();
    const out = box.width && (box.right > innerWidth + 1 || box.left < -1);
    return out && !element.closest(".table-scroll, .visually-hidden");
}).map((element) => element.outerHTML.slice(0, 120))"""


def result(opponent: str, wins: int, losses: int) -> EvaluationData:
    games = wins + losses
    rate = 100 * wins / games
    return EvaluationData(
        opponent=opponent,
        games=games,
        wins=wins,
        losses=losses,
        draws=0,
        win_rate=rate,
        ci_low=rate,
        ci_high=rate,
        mean_return=0.0,
        mean_length=1.0,
    )


async def fill(server: RunningServer, new_producer: NewProducer) -> str:
    """Ladders of two games; returns the session of the best bot."""
    best = await new_producer(server, "best of all", env_id=ENV_ID)
    await best.send(result("beginner", 990, 10), result("intermediate", 930, 70), result("expert", 510, 490))
    weak = await new_producer(server, HOSTILE, env_id=ENV_ID)
    await weak.send(result("beginner", 40, 60), result("intermediate", 1, 99))
    alone = await new_producer(server, "alone", env_id=ENV_ID)
    await alone.send(result("nobody_else_met", 5, 5))
    other = await new_producer(server, "elsewhere", env_id="Maze-v0")
    await other.send(result("wall", 6, 4))
    return best.session_id


async def middles(page: Page) -> list[float]:
    """Where the dots of the larger ladder are, from the left, in the order of its rows."""
    dots = page.get_by_role("region", name=ENV_ID, exact=True).locator("circle")
    boxes = [await dots.nth(index).bounding_box() for index in range(await dots.count())]
    return [box["x"] + box["width"] / 2 for box in boxes if box is not None]


async def fits(page: Page) -> None:
    """Nothing sticks out of the screen."""
    assert await page.evaluate(OUTSIDE) == []
    assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


async def test_who_plays_how_well(server: RunningServer, new_producer: NewProducer, open_page: OpenPage) -> None:
    best = await fill(server, new_producer)
    page = await open_page(server.url)
    await expect(page.locator("#link-state")).to_have_attribute("data-state", "live")
    await page.get_by_role("link", name="Ratings").click()
    await expect(page.get_by_role("heading", name="Ratings")).to_be_visible()
    await expect(page.locator("#session")).to_be_hidden()
    await expect(page.locator("#link-state")).to_have_attribute("data-state", "idle")
    await expect(page.locator("#ratings-link")).to_have_attribute("aria-current", "page")
    ladder = page.get_by_role("region", name=ENV_ID, exact=True).get_by_role("table")
    rows = ladder.get_by_role("row")
    # The axis, a bot and the opponents it met, a weaker bot, and a bot with an opponent that nobody else has met.
    await expect(rows).to_have_count(8)
    await expect(rows.nth(1)).to_contain_text("best of all")
    await expect(rows.nth(1)).to_contain_text("3,000")
    await expect(ladder.get_by_role("row", name="beginner")).to_contain_text("1000")
    await expect(ladder.get_by_role("row", name="beginner")).to_contain_text("fixed")
    await expect(ladder.get_by_role("link", name=HOSTILE)).to_be_visible()
    assert await page.evaluate("window.pwned") is None
    await expect(page.locator(".ladder", has=ladder)).to_contain_text("no games connect this bot to beginner")
    places = await middles(page)
    assert len(places) == 5 and places == sorted(places, reverse=True)
    await expect(page.get_by_role("region", name="Maze-v0", exact=True).get_by_role("row")).to_have_count(3)

    await page.set_viewport_size({"width": 360, "height": 740})
    await page.reload()
    await expect(page.locator(".ladder")).to_have_count(2)
    await fits(page)
    assert len(await middles(page)) == 5
    await page.set_viewport_size({"width": 768, "height": 740})
    await fits(page)
    await ladder.get_by_role("link", name="best of all").click()
    await expect(page.locator("#session-title")).to_have_text("best of all")
    await expect(page.locator("#ratings")).to_be_hidden()
    assert page.url == f"{server.url}/#/session/{best}"
    await page.go_back()
    await expect(page.get_by_role("heading", name="Ratings")).to_be_visible()
    await expect(page.locator("#session")).to_be_hidden()


async def test_without_any(server: RunningServer, open_page: OpenPage) -> None:
    page = await open_page(f"{server.url}/#/ratings")
    await expect(page.get_by_role("heading", name="No ratings yet")).to_be_visible()
    await expect(page.locator("#empty-command code")).to_have_text("gymcast train archers")
    await expect(page.locator("#ratings")).to_be_hidden()
    await page.locator(".brand").click()
    await expect(page.get_by_role("heading", name="No training yet")).to_be_visible()
