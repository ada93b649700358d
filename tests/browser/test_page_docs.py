"""The page of the API: everything of the document is on it, and its forms send what they say."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from playwright.async_api import Page, expect

from gymcast.server import RunningServer, ServerConfig, auth, running_server
from gymcast.server.problems import PROBLEM_TYPES
from gymcast.server.routes import routes

from .conftest import OpenPage

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SECRET = "a-secret-of-these-tests-and-of-nothing-else"


async def ready(page: Page) -> None:
    await expect(page.locator("html")).to_have_attribute("data-ready", "true", timeout=15_000)


async def test_everything_of_the_document_is_there(server: RunningServer, open_page: OpenPage) -> None:
    page = await open_page(f"{server.url}/docs#report_metrics")
    await ready(page)
    documented = [route for route in routes() if route.id]
    assert await page.locator("#groups details").count() == len(documented)
    for route in documented:
        await expect(page.locator(f"#{route.id} summary .docs-path")).to_have_text(route.template)
    assert await page.locator("#problems p").count() == len(PROBLEM_TYPES)
    opened = page.locator("#report_metrics")
    await expect(opened).to_have_attribute("open", "")
    await expect(opened.locator(".docs-fields dt code").first).to_have_text("session_id")
    await opened.get_by_role("link", name="TrainingMetricsData").first.click()
    model = page.locator("#model-TrainingMetricsData")
    await expect(model.locator("dt").filter(has_text="win_rate")).to_contain_text("number or null")
    await page.locator("#filter").fill("replay file")
    assert await page.locator("#contents a:visible").all_inner_texts() == ["GET\nGet the replay file of an episode"]


async def test_forms_send_what_they_say(server: RunningServer, open_page: OpenPage) -> None:
    page = await open_page(f"{server.url}/docs#create_session", expected="422")
    await ready(page)
    create = page.locator("#create_session")
    await create.locator("label").filter(has_text="external").click()
    assert json.loads(await create.locator("textarea").input_value())["training_session_id"] == "my_training_001"
    await create.get_by_role("button", name="Send").click()
    await expect(create.locator(".docs-result .status-pill")).to_have_text("201 Created")
    made = json.loads(await create.locator(".docs-result pre").last.inner_text())
    await expect(create.locator(".docs-result pre").first).to_contain_text(f"sessions/{made['session_id']}")

    await page.goto(f"{server.url}/docs#get_history")
    history = page.locator("#get_history")
    await history.locator("label").filter(has_text="session_id").locator("input").fill(made["session_id"])
    await history.locator("label").filter(has_text="resolution").locator("select").select_option("raw")
    await history.get_by_role("button", name="Send").click()
    await expect(history.locator(".docs-result .status-pill")).to_have_text("200 OK")
    await expect(history.locator(".docs-result pre").last).to_contain_text('"resolution": "raw"')
    await history.locator("label").filter(has_text="limit").locator("input").fill("5000")
    await history.get_by_role("button", name="Send").click()
    await expect(history.locator(".docs-result .status-pill")).to_contain_text("422")
    await expect(history.locator(".docs-result pre").last).to_contain_text("limit")


async def test_the_token_is_sent_and_kept_nowhere(tmp_path: Path, open_page: OpenPage) -> None:
    config = ServerConfig(port=0, data_storage_path=tmp_path, enable_auth=True, jwt_secret_key=SECRET)
    async with running_server(config) as guarded:
        page = await open_page(f"{guarded.url}/docs#list_sessions", expected="401")
        await ready(page)
        sessions = page.locator("#list_sessions")
        await sessions.get_by_role("button", name="Send").click()
        await expect(sessions.locator(".docs-result .status-pill")).to_contain_text("401")
        token = auth.issue(SECRET, subject="reader", scopes=["read"], seconds=60)
        await page.locator("#token").fill(token)
        await sessions.get_by_role("button", name="Send").click()
        await expect(sessions.locator(".docs-result .status-pill")).to_have_text("200 OK")
        assert await page.evaluate("JSON.stringify([localStorage, sessionStorage, document.cookie])") == '[{},{},""]'
        await page.reload()
        await expect(page.locator("#token")).to_have_value("")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
async def test_fits_and_follows_the_theme(server: RunningServer, open_page: OpenPage, width: int, scheme: str) -> None:
    page = await open_page(f"{server.url}/docs#create_session", width=width, height=800, color_scheme=scheme)
    await ready(page)
    await page.locator("#create_session form").get_by_role("button", name="Send").wait_for()
    await page.locator("#model-TrainingConfig summary").click()
    assert await page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
    await expect(page.locator("html")).to_have_attribute("data-theme", scheme)
    if width < 900:
        await expect(page.locator("#contents")).to_be_hidden()
        await page.locator("#drawer-button").click()
        await page.locator("#contents").get_by_role("link", name="Get the queue").click()
        await expect(page.locator("#get_queue")).to_have_attribute("open", "")
        await expect(page.locator("#contents")).to_be_hidden()
