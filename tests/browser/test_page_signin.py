"""Signing in: the page of a server that asks for tokens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest
import pytest_asyncio
from playwright.async_api import Page, expect

from gymcast.envs import Replay
from gymcast.server import RunningServer, ServerConfig, auth, running_server

from .conftest import OpenPage, Producer, footage, reading

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

SECRET = "a-secret-of-these-tests-and-of-nothing-else"
REFUSED = "40[13]"
TALL = 2600  # px: all charts are on the screen, as only those are redrawn


def token(*scopes: str, seconds: float = 600) -> str:
    return auth.issue(SECRET, subject="tester", scopes=scopes or ("read",), seconds=seconds)


@pytest_asyncio.fixture(loop_scope="session")
async def server(tmp_path: Path) -> AsyncIterator[RunningServer]:
    """A server that asks for tokens."""
    security = {"enable_auth": True, "jwt_secret_key": SECRET}
    async with running_server(ServerConfig(port=0, data_storage_path=tmp_path, security=security)) as running:
        yield running


@pytest_asyncio.fixture(loop_scope="session")
async def producer(server: RunningServer) -> AsyncIterator[Producer]:
    """A training that reports with a token of its own."""
    body = {"training_session_id": "duel", "model_generation": 1, "algorithm": "PPO", "total_episodes": 5000}
    async with aiohttp.ClientSession(headers={"Authorization": f"Bearer {token('ingest')}"}) as client:
        async with client.post(f"{server.url}/api/training/sessions", json=body) as answer:
            assert answer.status == 201
            session_id = (await answer.json())["session_id"]
        yield Producer(server.url, session_id, client)


async def sign_in(page: Page, given: str) -> None:
    await page.get_by_label("Token").fill(given)
    await page.get_by_role("button", name="Sign in").click()


async def test_the_page_asks_for_a_token_and_then_works(
    server: RunningServer, producer: Producer, open_page: OpenPage, episodes: list[Replay]
) -> None:
    await producer.send(*(reading(index) for index in range(1, 11)), footage(episodes[0], 1))
    page = await open_page(server.url, height=TALL, expected=REFUSED)
    sockets: list[str] = []
    page.on("websocket", lambda socket: sockets.append(socket.url))
    dialog = page.get_by_role("dialog", name="Sign in")
    await expect(dialog).to_be_visible()
    await page.keyboard.press("Escape")
    await sign_in(page, token(seconds=-60))
    await expect(page.locator("#sign-in-reason")).to_contain_text("it has ended")
    await sign_in(page, token("ingest"))
    await expect(page.locator("#sign-in-reason")).to_contain_text("the scope read")
    good = token()
    await sign_in(page, f" {good[:20]}\n{good[20:]} ")
    await expect(dialog).to_be_hidden()

    await expect(page.locator("#link-state")).to_have_attribute("data-state", "live")
    await expect(page.locator("#chart-reward")).to_have_attribute("data-points", "10", timeout=15_000)
    await expect(page.locator("#play")).to_be_enabled()
    await producer.send(reading(11))
    await expect(page.locator("#chart-reward")).to_have_attribute("data-points", "11", timeout=15_000)
    assert sockets and all("ticket=" in url and good not in url for url in sockets)
    assert good not in page.url and await page.evaluate("document.cookie") == ""

    await page.reload()
    await expect(page.locator("#link-state")).to_have_attribute("data-state", "live")
    await expect(dialog).to_be_hidden()
    other = await open_page(server.url, height=TALL, expected=REFUSED)
    await expect(other.get_by_role("dialog", name="Sign in")).to_be_visible()


async def test_a_token_that_ends_is_asked_for_again(
    server: RunningServer, producer: Producer, open_page: OpenPage
) -> None:
    await producer.send(reading(1))
    page = await open_page(server.url, height=TALL, expected=REFUSED)
    await sign_in(page, token(seconds=4))
    await expect(page.locator("#link-state")).to_have_attribute("data-state", "live")
    dialog = page.get_by_role("dialog", name="Sign in")
    await expect(dialog).to_be_visible(timeout=30_000)
    await producer.send(reading(2))
    await sign_in(page, token())
    await expect(page.locator("#link-state")).to_have_attribute("data-state", "live")
    await expect(page.locator("#chart-reward")).to_have_attribute("data-points", "2", timeout=15_000)
