"""The live game: real episodes on the canvas, the player's controls, and the decisions in step with the picture."""

from __future__ import annotations

import asyncio
import io
import json

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.async_api import Page, Route, expect

from gymcast.envs import Replay
from gymcast.server import RunningServer
from gymcast.training.events import BotDecisionData

from .conftest import NewProducer, OpenPage, decision, footage, reading

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

STEP_S = 0.08  # game seconds per decision


async def picture(page: Page) -> NDArray[np.int16]:
    """The canvas as it is on the screen, (height, width, 3)."""
    return np.asarray(Image.open(io.BytesIO(await page.locator("#game").screenshot())).convert("RGB"), np.int16)


def changed(before: NDArray[np.int16], after: NDArray[np.int16]) -> float:
    """Percentage of pixels that differ clearly."""
    return float(100 * (np.abs(before - after).max(axis=2) > 24).mean())


async def game_time(page: Page) -> float:
    return float(await page.locator("#game").get_attribute("data-t") or "nan")


async def watch(page: Page, replay_id: str) -> None:
    await expect(page.locator("#game")).to_have_attribute("data-replay", replay_id, timeout=20_000)


async def test_game_plays_pauses_and_scrubs(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage, episodes: list[Replay]
) -> None:
    producer = await new_producer(server)
    await producer.send(reading(1), footage(episodes[1], 1))
    page = await open_page(server.url)
    await watch(page, "replay-1")
    await expect(page.locator("#score-players .score-name")).to_have_text(["bot", "beginner"])
    start, first = await game_time(page), await picture(page)
    async with asyncio.timeout(60):
        while await game_time(page) <= start + 0.5:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert changed(first, await picture(page)) > 0.05

    await page.locator("#play").click()
    await expect(page.locator("#play")).to_have_attribute("aria-label", "Play")
    paused, still = await game_time(page), await picture(page)
    await asyncio.sleep(0.4)
    assert await game_time(page) == paused
    assert changed(still, await picture(page)) == 0

    await page.locator("#scrub").fill("4")
    assert await game_time(page) == pytest.approx(4, abs=0.01)
    fourth = await picture(page)
    assert changed(still, fourth) > 0.05
    await page.locator("#scrub").fill("1")
    assert changed(fourth, await picture(page)) > 0.05
    await page.locator("#scrub").fill("4")
    assert changed(fourth, await picture(page)) == 0, "the same moment has to look the same again"


async def test_decisions_follow_the_picture(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage, episodes: list[Replay]
) -> None:
    producer = await new_producer(server)
    await producer.send(footage(episodes[0], 1))
    page = await open_page(f"{server.url}/#/session/{producer.session_id}/replay/replay-1?t=0")
    await watch(page, "replay-1")
    length = len(episodes[0].actions)
    for step in (3, 40, 17):
        await page.locator("#scrub").fill(f"{(step + 0.5) * STEP_S:.3f}")
        expected = decision(step, length)
        await expect(page.locator("#mind-action")).to_have_text(str(expected.selected_action))
        assert expected.state_values is not None
        await expect(page.locator("#mind-value")).to_have_text(f"{expected.state_values:.2f}".replace("-", "−"))
        await expect(page.locator("#mind-confidence")).to_have_text("13 %")
        on = page.locator(".bar-row[data-on=true] .bar-label")
        await expect(on).to_have_text(str(expected.selected_action).split(" + ")[:3])
        petal = page.locator(".petal[data-on=true]")
        assert await petal.count() == 1
        aim = str(expected.selected_action).split(" + ")[3]
        await expect(page.locator(".rose svg")).to_have_attribute("aria-label", f"Aim: most likely {aim}, 60 %")


async def test_motion_between_frames_is_smooth(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage, episodes: list[Replay]
) -> None:
    """At 250 pictures per game second nobody moves faster than the game allows, edges of the arena included."""
    producer = await new_producer(server)
    await producer.send(footage(episodes[2], 1))
    page = await open_page(server.url)
    await watch(page, "replay-1")
    places = await page.evaluate(
        """async () => {
            const { Track } = await import("/static/js/views/archers/track.js");
            const track = new Track(await (await fetch("/api/replays/replay-1/frames")).json());
            const places = [];
            for (let t = 0; t < track.duration; t += 0.004) {
                places.push(track.at(t).players.map(({ x, y, alive }) => [x, y, Number(alive)]));
            }
            return places;
        }"""
    )
    track = np.array(places)  # (moments, players, 3)
    assert (track[..., :2] >= 0).all()
    assert (track[..., 0] < 800).all() and (track[..., 1] < 600).all()
    alive = (track[1:, :, 2] == 1) & (track[:-1, :, 2] == 1)
    size = np.array([800.0, 600.0])
    step = np.diff(track[..., :2], axis=0)
    step = np.abs((step + size / 2) % size - size / 2)[alive]
    assert len(step) > 500
    assert step.max() <= 600 * 0.004 * 1.7, "px per picture; a smooth path may briefly be faster than its mean speed"


async def test_speed_slider_and_keys(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage, episodes: list[Replay]
) -> None:
    producer = await new_producer(server)
    await producer.send(footage(episodes[0], 1))
    page = await open_page(f"{server.url}/#/session/{producer.session_id}/replay/replay-1?t=2.5")
    await watch(page, "replay-1")
    assert await game_time(page) == 2.5
    await expect(page.locator("#follow")).not_to_be_checked()

    async def advance(slider: str) -> float:
        await page.locator("#scrub").fill("0")
        await page.locator("#speed").fill(slider)
        # The page's own pictures are counted, so that a busy machine does not decide the result.
        return float(
            await page.evaluate(
                """async () => {
                    const game = document.getElementById("game");
                    const frame = () => new Promise(requestAnimationFrame);
                    await frame(); await frame();
                    const start = Number(game.dataset.t);
                    for (let i = 0; i < 8; i += 1) await frame();
                    return Number(game.dataset.t) - start;
                }"""
            )
        )

    await page.locator("#session-title").click()
    await page.keyboard.press("Space")
    await expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")
    slow, fast = await advance("-2"), await advance("3")
    assert fast > 6 * slow > 0
    await expect(page.locator("#speed-text")).to_have_text("8×")
    await page.locator("#session-title").click()
    await page.keyboard.press("Space")
    await page.locator("#scrub").fill("3")
    await page.locator("#session-title").click()
    await page.keyboard.press("ArrowRight")
    assert await game_time(page) == pytest.approx(4)
    await page.keyboard.press("Shift+ArrowLeft")
    assert await game_time(page) == 0


async def test_episodes_follow_each_other(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage, episodes: list[Replay]
) -> None:
    producer = await new_producer(server)
    await producer.send(footage(episodes[0], 1), footage(episodes[1], 2))
    page = await open_page(server.url)
    await watch(page, "replay-2")
    await expect(page.locator("#stage-episode")).to_contain_text("episode 2.00k · after 200k samples")
    await expect(page.locator("#next")).to_be_disabled()

    await producer.send(footage(episodes[2], 3))
    await expect(page.locator("#next")).to_be_enabled()
    end = await page.locator("#scrub").get_attribute("max")
    await page.locator("#scrub").fill(str(end))
    await watch(page, "replay-3")

    await page.locator("#previous").click()
    await watch(page, "replay-2")
    await expect(page.locator("#follow")).not_to_be_checked()
    await page.locator("#previous").click()
    await watch(page, "replay-1")
    await expect(page.locator("#previous")).to_be_disabled()
    await page.locator(".switch").click()
    await watch(page, "replay-3")

    await page.locator("#play").click()
    await page.locator("#scrub").fill("1.5")
    await page.locator("#share").click()
    assert page.url.endswith(f"#/session/{producer.session_id}/replay/replay-3?t=1.5")


async def test_live_decision_while_there_is_no_footage(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage
) -> None:
    producer = await new_producer(server)
    page = await open_page(server.url)
    await expect(page.locator("#curtain-text")).to_contain_text("Waiting for the first episode")
    await producer.send(
        BotDecisionData(
            action_probabilities={"push_left": 0.25, "push_right": 0.75},
            state_values=0.5,
            selected_action="push_right",
            confidence_score=0.75,
        )
    )
    await expect(page.locator(".bar-label")).to_have_text(["push left", "push right"])
    await expect(page.locator(".bar-value")).to_have_text(["25 %", "75 %"])
    await expect(page.locator(".bar-row[data-on=true]")).to_have_count(1)
    await expect(page.locator("#mind-confidence")).to_have_text("75 %")


async def test_footage_of_an_unknown_view_says_so(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage, episodes: list[Replay]
) -> None:
    producer = await new_producer(server)
    page = await open_page(server.url)

    async def from_a_newer_server(route: Route) -> None:
        answer = await route.fetch()
        await route.fulfill(response=answer, json={**json.loads(await answer.text()), "view": "hoverball"})

    await page.route("**/frames", from_a_newer_server)
    await producer.send(footage(episodes[0], 1))
    await expect(page.locator("#curtain-text")).to_contain_text("no drawing for the view “hoverball”")
    await page.unroute("**/frames")
    await producer.send(footage(episodes[1], 2))
    await watch(page, "replay-2")
