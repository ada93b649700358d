"""``gymcast sessions tail`` over a restart of the server."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from gymcast.server import cli, cli_sessions, running_server

from .conftest import external, server_config

SESSIONS = "/api/training/sessions"


async def test_tail_goes_on_after_a_restart_of_the_server(
    tmp_path: Path, free_port: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_sessions, "_TAIL_SECONDS", 0.05)
    config = server_config(tmp_path).model_copy(update={"port": free_port})
    printed = {"out": "", "err": ""}

    async def until_it_says(where: str, text: str) -> None:
        async with asyncio.timeout(30):
            while True:
                out, err = capsys.readouterr()
                printed["out"] += out
                printed["err"] += err
                if text in printed[where]:
                    return
                await asyncio.sleep(0.02)

    async with running_server(config) as server, aiohttp.ClientSession(server.url) as client:
        async with client.post(SESSIONS, json=external()) as answer:
            session_id = (await answer.json())["session_id"]
        arguments = ["sessions", "tail", session_id, "--server", server.url]
        tailing = asyncio.create_task(asyncio.to_thread(cli.run, arguments))
        await until_it_says("out", "-- running")
    await until_it_says("err", "waiting for it")
    async with running_server(config) as server, aiohttp.ClientSession(server.url) as client:
        async with client.put(f"{SESSIONS}/{session_id}", json={"status": "completed"}) as answer:
            assert answer.status == 200
        assert await tailing == 0
        await until_it_says("out", "-- completed")
    assert printed["out"] == "-- running\n-- completed\n"
    assert printed["err"].count("waiting for it") == 1
