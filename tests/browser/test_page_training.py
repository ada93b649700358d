"""A real training, watched from its first reading to its end."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from gymcast.server import RunningServer
from gymcast.training.config import TrainingConfig
from gymcast.training.run_folder import Orders

from .conftest import NewProducer, OpenPage

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.asyncio(loop_scope="session")]

POINTS = "Number(document.getElementById('chart-win-rate').dataset.points ?? 0)"


async def until(page: Page, condition: str, seconds: float) -> None:
    """Wait for a condition in the page. (Playwright's own way needs eval, which the page's security policy forbids.)"""
    for _ in range(int(10 * seconds)):
        if await page.evaluate(condition):
            return
        await asyncio.sleep(0.1)
    pytest.fail(f"not within {seconds:g} s: {condition}")


async def test_watching_a_training(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage, tmp_path: Path
) -> None:
    session_id = (await new_producer(server, "archers-ppo", total_episodes=None)).session_id
    config = TrainingConfig.preset(
        "archers",
        # Short matches: the first are over, and can be watched, after a second.
        env_kwargs={"opponent": "beginner", "max_duration_s": 8.0},
        total_timesteps=400 * 64 * 8,  # long enough for readings to come while the page looks on
        parallel_episodes=64,
        hyperparameters={"n_steps": 64, "batch_size": 512},
        evaluation_games=8,
        evaluation_opponents=["random"],
        footage_seconds=1,
        metrics_hz=5,
    )
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "config.yaml").write_text(config.to_yaml())
    Orders(session_id, server.url).write(run_dir)
    page = await open_page(server.url, height=2600)
    worker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gymcast.training.worker", "--run-dir", str(run_dir)),
    )
    try:
        await until(page, f"{POINTS} >= 3", 90)
        seen = await page.evaluate(POINTS)
        await until(page, f"{POINTS} > {seen}", 30)
        await until(page, "Number(document.getElementById('game').dataset.t) > 0.3", 60)
        await expect(page.locator("#mind-action")).to_contain_text(" + ")
        await expect(page.locator("#score-players .score-name")).to_have_text(["bot", "beginner"])
        assert await asyncio.wait_for(worker.wait(), 120) == 0
    finally:
        if worker.returncode is None:
            worker.kill()
            await worker.wait()
    await expect(page.locator("#session-status")).to_have_text("completed")
    await expect(page.locator("#evaluations-body")).to_contain_text("random")
    await expect(page.locator("#checkpoints-body")).to_contain_text("final")
    assert (await server.storage.replays(session_id)).items
