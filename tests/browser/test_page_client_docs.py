"""The JavaScript of docs/client.md as it is written there, on a page of somebody's own."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest
from playwright.async_api import Page

from gymcast.server import RunningServer, ServerConfig, auth, running_server

from .conftest import NewProducer, OpenPage, reading

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

PAGE = (Path(__file__).parents[2] / "docs" / "client.md").read_text(encoding="utf-8")
MODULES, TOKEN, PLAIN = re.findall(r"^```js\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
SECRET = "a-secret-of-these-tests-and-of-nothing-else"

REFUSED = (
    "exception: Unauthorized: This server asks for a token: Authorization: Bearer TOKEN."
    " Make one with: gymcast token create"
)


class OwnPage:
    """A page at the server's address that is not gymcast's: it holds nothing but a script.

    ``said`` is what the script has logged, and how it ended if it failed.
    """

    def __init__(self, page: Page) -> None:
        self.page = page
        self.said: list[str] = []
        self._more = asyncio.Event()
        page.on("console", lambda message: self._note(message.text))
        page.on("pageerror", lambda error: self._note(f"exception: {error}"))

    @classmethod
    async def open(cls, open_page: OpenPage, url: str, script: str, expected: str | None = None) -> OwnPage:
        own = cls(await open_page(f"{url}/health", expected=expected))
        await own.page.route(f"{url}/own.js", lambda route: route.fulfill(content_type="text/javascript", body=script))
        await own.page.add_script_tag(url="/own.js", type="module")
        return own

    def _note(self, text: str) -> None:
        self.said.append(text)
        self._more.set()

    async def says(self, *texts: str) -> None:
        """Wait until the script has logged all of these."""
        async with asyncio.timeout(30):
            while not set(texts) <= set(self.said):
                self._more.clear()
                await self._more.wait()


async def test_both_examples_follow_a_session(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage
) -> None:
    producer = await new_producer(server)
    script = MODULES + PLAIN.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}")
    own = await OwnPage.open(open_page, server.url, script)
    await own.says("connection: live live", "watching: 2")
    await producer.send(reading(1))
    reward = reading(1).current_reward
    await own.says(f"Episode: 100 Reward: {reward}", f"100 {reward}")
    assert own.said[0] == "connection: connecting connecting"
    await own.page.close()


async def test_a_server_that_asks_for_tokens(tmp_path: Path, open_page: OpenPage) -> None:
    security = {"enable_auth": True, "jwt_secret_key": SECRET}
    async with running_server(ServerConfig(port=0, data_storage_path=tmp_path, security=security)) as server:
        await server.storage.create_session(kind="external", algorithm="PPO", training_session_id="duel")
        without = await OwnPage.open(open_page, server.url, MODULES, expected="401|Unauthorized")
        await without.says(REFUSED)
        token = auth.issue(SECRET, subject="tester", scopes=["read"], seconds=600)
        script = TOKEN.replace('"TOKEN"', f'"{token}"') + MODULES
        own = await OwnPage.open(open_page, server.url, script)
        await own.says("connection: live live", "watching: 1")
        await own.page.close()
