"""Pictures of a game that is not gymcast's: played again with rgb_array, shown, changing, and a note without them."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.async_api import Page, expect

from gymcast.envs import Replay
from gymcast.server import RunningServer
from gymcast.training import TrainingConfig
from gymcast.training.events import Event, ReplayData

from .conftest import OpenPage

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]
LENGTH = 60


def balanced() -> Replay:
    """An episode of CartPole in which the pole is kept up for as long as it takes."""
    env = gym.make("CartPole-v1")
    seen, _ = env.reset(seed=3)
    actions = []
    for _ in range(LENGTH):
        actions.append(int(seen[2] + seen[3] > 0))
        seen, _, terminated, _, _ = env.step(actions[-1])
        assert not terminated
    env.close()
    column = np.array(actions, np.uint8).reshape(-1, 1, 1)
    return Replay("CartPole-v1", 1, {}, 3, 0, column, {"return": float(LENGTH), "length": LENGTH})


async def picture(page: Page) -> NDArray[np.int16]:
    return np.asarray(Image.open(io.BytesIO(await page.locator("#game").screenshot())).convert("RGB"), np.int16)


async def shown(server: RunningServer, run_dir: Path | None, open_page: OpenPage, expected: str | None = None) -> Page:
    replay = balanced()
    resources = None
    if run_dir is not None:
        (run_dir / "config.yaml").write_text(TrainingConfig.for_env("CartPole-v1").to_yaml())
        resources = {"run_dir": str(run_dir)}
    record = await server.storage.create_session(kind="managed", algorithm="ppo", env_id="CartPole-v1")
    await server.storage.update_session(record.session_id, status="starting", resources=resources)
    data = ReplayData(
        replay_id="pole",
        env_id=replay.env_id,
        episode=1,
        timesteps=1,
        summary=replay.summary,
        bytes_base64=base64.b64encode(replay.to_bytes()).decode(),
    )
    await server.storage.add_events(record.session_id, "test", [Event(seq=1, type="replay", data=data)])
    return await open_page(server.url, expected=expected)


async def test_a_foreign_game_is_seen_moving(server: RunningServer, open_page: OpenPage, tmp_path: Path) -> None:
    pytest.importorskip("pygame", reason="CartPole draws with it")
    page = await shown(server, tmp_path, open_page)
    await expect(page.locator("#game")).to_have_attribute("data-replay", "pole", timeout=30_000)
    await page.locator("#play").click()
    await page.locator("#scrub").fill("0")
    first = await picture(page)
    await page.locator("#scrub").fill("1.1")
    second = await picture(page)
    # The track, the cart and the pole are dark and brown on white; the cart has moved.
    assert (first.min(axis=2) > 240).mean() > 0.2 and (first.max(axis=2) < 40).mean() > 0.005
    assert (np.abs(first - second).max(axis=2) > 24).mean() > 0.001


async def test_a_run_of_someone_else_is_not_drawn(server: RunningServer, open_page: OpenPage) -> None:
    page = await shown(server, None, open_page, "409")
    await expect(page.locator("#notices")).to_contain_text("trainings that this server runs", timeout=30_000)
