"""Somebody's own Stable-Baselines3 script in a process of its own: the page shows its game live, picture by picture."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.async_api import Page, expect

from gymcast.server import RunningServer

from ..server.own_scripts import Script
from .conftest import OpenPage

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SCRIPT = """
class Bar(gym.Env):
    "A red bar on black that moves to the right."
    metadata = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"
    observation_space = gym.spaces.Box(-1, 1, (2,))
    action_space = gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.at = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.at = (self.at + 1) % 100
        return np.zeros(2, np.float32), 1.0, False, self.at == 0, {}

    def render(self):
        picture = np.zeros((80, 120, 3), np.uint8)
        picture[:, self.at : self.at + 20, 0] = 255
        return picture

ppo(Bar()).learn(10**9, callback=[MetricsBroadcastCallback(url), Slow()])
"""


async def newer(page: Page, seen: str | None) -> str:
    """Decisions trained when the picture was made that is on the page, once it is another than ``seen``."""
    async with asyncio.timeout(60):
        while (found := await page.locator("#game").get_attribute("data-picture")) in (None, seen):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert found is not None
    return found


async def bar(page: Page) -> float:
    """Where the middle of the red bar is on the page, 0..1."""
    shot = Image.open(io.BytesIO(await page.locator("#game").screenshot())).convert("RGB")
    pixels: NDArray[np.int16] = np.asarray(shot, np.int16)
    red = (pixels[:, :, 0] > 200) & (pixels[:, :, 1:].max(axis=2) < 60)
    black = pixels.max(axis=2) < 60
    assert red.mean() > 0.05 and black.mean() > 0.3, "no bar on black is on the page"
    return float(np.nonzero(red)[1].mean() / red.shape[1])


async def test_the_game_of_a_script_is_seen_live(server: RunningServer, open_page: OpenPage, tmp_path: Path) -> None:
    script = Script(tmp_path, SCRIPT, server.url)
    try:
        page = await open_page(server.url)
        seen: str | None = None
        places: set[float] = set()
        while len(places) < 2:
            seen = await newer(page, seen)
            places.add(round(await bar(page), 1))
        await expect(page.locator("#link-state")).to_have_attribute("data-state", "live")
        await expect(page.locator("#curtain")).to_be_hidden()
        await expect(page.locator("#mind-value")).not_to_have_text("–")
        await page.close()
    finally:
        script.kill()
