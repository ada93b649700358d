"""Sharing a session by a room, and watching through it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest
from playwright.async_api import Page, Route, expect

from gymcast.envs import Replay
from gymcast.server import RunningServer, ServerConfig, auth, running_server

from .conftest import NewProducer, OpenPage, footage, reading

pytestmark = [pytest.mark.browser, pytest.mark.asyncio(loop_scope="session")]

INSIDE = "() => document.documentElement.scrollWidth <= window.innerWidth"


async def share(page: Page, **choices: str) -> dict[str, str]:
    """Make a room on the page of a session; returns its code, link and password as they are shown."""
    await page.get_by_role("button", name="Share").click()
    dialog = page.get_by_role("dialog")
    await dialog.get_by_label(choices.get("protection", "Random"), exact=True).check()
    if "password" in choices:
        await dialog.get_by_label("Your own password").fill(choices["password"])
    if "viewers" in choices:
        await dialog.get_by_label("Viewer limit").fill(choices["viewers"])
    await dialog.get_by_role("button", name="Make a room").click()
    await expect(dialog.get_by_role("heading", name="The room is open")).to_be_visible()
    names, values = await dialog.locator("dt").all_inner_texts(), await dialog.locator("dd code").all_inner_texts()
    shown = dict(zip(names, values, strict=True))
    return {"code": await dialog.locator("#made-code").inner_text(), **shown}


async def test_a_session_is_shared_and_watched_by_a_guest(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage, episodes: list[Replay]
) -> None:
    producer, other = await new_producer(server), await new_producer(server, "not for guests")
    await producer.send(*(reading(index) for index in range(1, 6)), footage(episodes[0], 1))
    host = await open_page(f"{server.url}/#/session/{producer.session_id}")
    room = await share(host, viewers="3")
    assert room["Link"] == f"{server.url}/#/room/{room['code']}"
    stored = await server.storage.rooms.get(room["code"])
    assert (stored.session_id, stored.max_spectators) == (producer.session_id, 3)
    await host.get_by_role("button", name="Close").click()
    await expect(host.get_by_role("dialog")).to_be_hidden()

    guest = await open_page(room["Link"], expected="404")
    sockets: list[str] = []
    guest.on("websocket", lambda socket: sockets.append(socket.url))
    await expect(guest.get_by_role("heading", name=f"Room {room['code']}")).to_be_visible()
    await guest.get_by_label("Password", exact=True).fill("not the password")
    await guest.get_by_role("button", name="Watch").click()
    await expect(guest.locator("#join-error")).to_have_text("The password is wrong, or this room has ended.")
    await guest.get_by_label("Password", exact=True).fill(room["Password"])
    await guest.get_by_role("button", name="Watch").click()
    await expect(guest.locator("#session-title")).to_have_text("duel")
    await expect(guest.locator("#link-state")).to_have_attribute("data-state", "live")
    await expect(guest.locator("#game")).to_have_attribute("data-replay", "replay-1", timeout=20_000)
    await expect(guest.locator("#guest-room")).to_have_text(room["code"])
    await expect(guest.get_by_role("button", name="Share")).to_be_hidden()
    await expect(guest.locator("#sessions")).to_be_hidden()
    await expect(guest.locator("#ratings-link")).to_be_hidden()
    assert ["ticket=" in url for url in sockets] == [True]
    assert server.hub.guests(room["code"]) == 1
    await producer.send(reading(9))
    await expect(guest.locator(".tile[data-key=episodes] .tile-value")).to_have_text("900")

    await guest.reload()
    await expect(guest.locator("#link-state")).to_have_attribute("data-state", "live")
    await guest.goto(f"{server.url}/#/session/{other.session_id}")
    await expect(guest.locator("#empty-title")).to_have_text("This room has ended")
    ended, over = asyncio.Event(), asyncio.Event()

    async def hold(route: Route) -> None:
        await ended.wait()
        await route.continue_()

    await guest.route("**/history*", hold)  # what is being read while the room ends is no trouble of its own
    for event in ("requestfailed", "requestfinished"):
        guest.on(event, lambda request: over.set() if "/history" in request.url else None)
    await guest.goto(f"{server.url}/#/")
    await expect(guest.locator("#session-title")).to_be_visible()
    await expect(guest.locator("#link-state")).to_have_attribute("data-state", "live")

    async with aiohttp.ClientSession(server.url) as client, client.delete(f"/api/rooms/{room['code']}") as answer:
        assert answer.status == 204
    ended.set()
    await asyncio.wait_for(over.wait(), 30)
    await guest.evaluate("() => new Promise((drawn) => setTimeout(() => requestAnimationFrame(drawn), 100))")
    await expect(guest.locator(".notice p")).to_have_text("The session was deleted, or its room has ended.")
    await guest.get_by_role("button", name="Leave").click()
    await expect(guest.locator("#sessions")).to_be_visible()
    await expect(guest.locator(".session-card")).to_have_count(2)


async def test_a_room_without_a_password_opens_by_its_link(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage
) -> None:
    producer = await new_producer(server)
    await producer.send(reading(1))
    host = await open_page(server.url)
    room = await share(host, protection="None")
    assert "Password" not in room
    guest = await open_page(room["Link"], width=360, height=740)
    await expect(guest.locator("#session-title")).to_have_text("duel")
    await expect(guest.locator("#link-state")).to_have_attribute("data-state", "live")
    await expect(guest.locator("#guest-room")).to_have_text(room["code"])
    assert await guest.evaluate(INSIDE)


async def test_a_password_of_ones_own_and_a_room_that_is_gone(
    server: RunningServer, new_producer: NewProducer, open_page: OpenPage
) -> None:
    producer = await new_producer(server)
    await producer.send(reading(1))
    host = await open_page(server.url, width=360, height=740, expected="422")
    await host.get_by_role("button", name="Share").click()
    dialog = host.get_by_role("dialog")
    await dialog.get_by_label("Your own", exact=True).check()
    await dialog.get_by_label("Your own password").fill("short")
    await dialog.get_by_role("button", name="Make a room").click()
    await expect(dialog.get_by_role("heading", name="Share this session")).to_be_visible()  # the browser refuses
    await host.keyboard.press("Escape")
    room = await share(host, protection="Your own", password="open sesame")
    assert room["Password"] == "open sesame"
    assert await host.evaluate(INSIDE)
    await host.set_viewport_size({"width": 1280, "height": 740})
    assert await host.evaluate(INSIDE)
    assert (await server.storage.rooms.page()).items[0].code == room["code"]
    await server.storage.rooms.close(room["code"])
    guest = await open_page(f"{server.url}/#/room/{room['code'].lower()}", width=360, height=740, expected="404")
    await guest.get_by_label("Password", exact=True).fill("open sesame")
    await guest.keyboard.press("Enter")
    await expect(guest.locator("#join-error")).to_have_text("The password is wrong, or this room has ended.")
    assert await guest.evaluate(INSIDE)


async def test_a_guest_whose_token_has_ended_is_led_to_the_door(tmp_path: Path, open_page: OpenPage) -> None:
    secret = "a-secret-of-these-tests-and-of-nothing-else"
    security = {"enable_auth": True, "jwt_secret_key": secret}
    async with running_server(ServerConfig(port=0, data_storage_path=tmp_path, security=security)) as server:
        session = await server.storage.create_session(kind="external", algorithm="PPO", training_session_id="duel")
        room = await server.storage.rooms.create(session.session_id)
        page = await open_page(f"{server.url}/#/room/{room.code}?open", expected="401")
        await expect(page.locator("#session-title")).to_have_text("duel")
        old = auth.issue(secret, subject="guest", scopes=["read"], seconds=-60, room=room.code)
        await page.evaluate("(token) => sessionStorage.setItem('gymcast-token', token)", old)
        await page.reload()
        await expect(page.locator("#join-error")).to_have_text("Your time in this room is over; you may join it again.")
        await page.get_by_role("button", name="Watch").click()
        await expect(page.locator("#link-state")).to_have_attribute("data-state", "live")
