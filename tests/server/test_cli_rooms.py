"""``gymcast rooms`` and ``gymcast ratings`` against a server that runs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable

import aiohttp
import pytest

from gymcast.server import RunningServer, cli
from gymcast.server.cli_errors import UserError

from .conftest import NewSession
from .test_ratings import evaluation, report

Gymcast = Callable[..., Awaitable[str]]


@pytest.fixture
def gymcast(server: RunningServer, capsys: pytest.CaptureFixture[str]) -> Gymcast:
    """Runs a command against the server; returns what it printed."""

    async def run(*arguments: str) -> str:
        assert await asyncio.to_thread(cli.run, [*arguments, "--server", server.url]) == 0
        return capsys.readouterr().out

    return run


def facts(text: str) -> dict[str, str]:
    return dict(line.split(maxsplit=1) for line in text.splitlines())


async def test_rooms_from_the_command_line(
    server: RunningServer, client: aiohttp.ClientSession, new_session: NewSession, gymcast: Gymcast
) -> None:
    assert "no open rooms" in await gymcast("rooms", "list")
    session_id = await new_session()
    made = facts(await gymcast("rooms", "create", "latest", "--viewers", "5", "--hours", "2"))
    assert (made["session"], made["viewers"]) == (session_id, "5 at a time")
    assert made["link"] == f"{server.url}/#/room/{made['code']}"
    async with client.post(f"/api/rooms/{made['code']}/join", json={"password": made["password"]}) as answer:
        assert answer.status == 200
    room = await server.storage.rooms.get(made["code"])
    assert room.expires is not None and (room.expires - room.created).total_seconds() == 7200
    wanted = ("rooms", "create", session_id[:20], "--password", "none", "--hours", "0", "--json")
    open_to_all = json.loads(await gymcast(*wanted))
    assert (open_to_all["password"], open_to_all["expires_at"]) == (None, None)
    shown = facts(await gymcast("rooms", "show", open_to_all["code"].lower()))
    assert (shown["password"], shown["ends"]) == ("no", "when it is closed")
    assert shown["link"].endswith(f"/#/room/{open_to_all['code']}?open")
    listed = (await gymcast("rooms", "list")).splitlines()
    assert [line.split()[0] for line in listed] == ["code", open_to_all["code"], made["code"]]
    assert "0 of 5" in listed[2]
    assert "is closed" in await gymcast("rooms", "close", made["code"])
    with pytest.raises(UserError, match=f"no room '{made['code']}'"):
        await gymcast("rooms", "show", made["code"])
    with pytest.raises(UserError, match="not the code of a room"):
        await gymcast("rooms", "close", "../x")


async def test_ratings_from_the_command_line(
    server: RunningServer, client: aiohttp.ClientSession, gymcast: Gymcast
) -> None:
    assert "no evaluations" in await gymcast("ratings")
    made = await server.storage.create_session(
        kind="external", algorithm="PPO", training_session_id="my-bot", env_id="duel"
    )
    await report(client, made.session_id, evaluation("easy", 75, 25))
    title, _, best, anchor = (await gymcast("ratings", "--env", "duel")).splitlines()
    assert title == "duel, easy fixed at 1000"
    assert best.split() == ["1189", "1111", "to", "1267", "my-bot", "100", "75", "0", "25", made.session_id]
    assert anchor.split()[:5] == ["1000", "1000", "to", "1000", "easy"]
    assert json.loads(await gymcast("ratings", "--env", "maze", "--json")) == []
