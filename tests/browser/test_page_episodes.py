"""Every logged episode on the page: the list, a link to each, the scrub bar, and a link to a moment."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from gymcast.envs import EpisodeLog
from gymcast.server import RunningServer
from gymcast.training import Trainer, TrainingConfig

from .conftest import NewProducer, OpenPage

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short training whose matches last up to 12 s."""
    folder = tmp_path_factory.mktemp("run")
    config = TrainingConfig.parse(
        {
            "env_id": "gymcast/Archers-v0", "env_kwargs": {"opponent": "intermediate", "max_duration_s": 12.0},
            "parallel_episodes": 32, "total_timesteps": 32 * 512, "evaluation_games": 0, "seed": 8,
            "hyperparameters": {"n_steps": 64, "batch_size": 512, "n_epochs": 1},
        }
    )  # fmt: skip
    Trainer(config, run_dir=folder).run_training_loop()
    return folder


async def new_session(server: RunningServer, run_dir: Path) -> str:
    record = await server.storage.create_session(
        kind="managed", algorithm="ppo", env_id="gymcast/Archers-v0", resources={"run_dir": str(run_dir)}
    )
    return record.session_id


async def game_time(page: Page) -> float:
    return float(await page.locator("#game").get_attribute("data-t") or "nan")


async def test_any_logged_episode_opens_and_can_be_scrubbed(
    server: RunningServer, open_page: OpenPage, run_dir: Path
) -> None:
    session = await new_session(server, run_dir)
    log = EpisodeLog(run_dir / "episodes")
    page = await open_page(f"{server.url}/#/session/{session}")
    rows = page.locator("#episodes-body tbody tr")
    await expect(rows).to_have_count(20)
    await page.locator("#episode-more").click()
    await expect(rows).to_have_count(min(40, len(log)))
    await page.locator("#episode-order").select_option("best")
    best = log.select(order="best", limit=1)[0]
    await expect(rows.first.locator("td").nth(2)).to_have_text(f"{best.returns[0]:.2f}".replace("-", "−"))
    await page.locator("#episode-outcome").select_option("loss")
    await expect(rows.first.locator("td").nth(1)).to_have_text("lost")
    worst_won = log.select(order="best", outcome="loss", limit=1)[0]

    await rows.first.locator("a").click()
    wanted = f"ep_{session}_{worst_won.lane}_{worst_won.start}"
    await expect(page.locator("#game")).to_have_attribute("data-replay", wanted, timeout=60_000)
    assert page.url.endswith(f"/replay/{wanted}")
    await expect(page.locator("#mind-empty")).to_contain_text("kept for footage only")
    await expect(page.locator("#play")).to_have_attribute("aria-label", "Pause")
    await page.locator("#play").click()
    for t in (0.5, 3.0, 1.2):
        await page.locator("#scrub").fill(str(t))
        assert await game_time(page) == pytest.approx(t, abs=0.01)
    await page.locator("#share").click()
    await expect(page).to_have_url(re.compile(rf"/replay/{wanted}\?t=1\.2$"))


async def test_a_link_to_a_moment_opens_there(server: RunningServer, open_page: OpenPage, run_dir: Path) -> None:
    session = await new_session(server, run_dir)
    episode = EpisodeLog(run_dir / "episodes").select(order="longest", limit=1)[0]
    replay = f"ep_{session}_{episode.lane}_{episode.start}"
    page = await open_page(f"{server.url}/#/session/{session}/replay/{replay}?t=7.4")
    await expect(page.locator("#game")).to_have_attribute("data-replay", replay, timeout=60_000)
    assert await game_time(page) == 7.4
    await expect(page.locator("#play")).to_have_attribute("aria-label", "Play")
    await expect(page.locator("#scrub")).to_have_value("7.4")
    assert float(await page.locator("#scrub").get_attribute("max") or 0) == episode.seconds


async def test_a_session_without_a_log_shows_no_list(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage
) -> None:
    producer = await new_producer(server)
    page = await open_page(f"{server.url}/#/session/{producer.session_id}")
    await expect(page.locator("#session-title")).to_be_visible()
    await expect(page.locator("#episodes")).to_be_hidden()
