"""The commands of docs/deployment.md: a backup of a server at work, and a server that starts on what was restored."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from gymcast.server import ServerConfig, running_server
from gymcast.server.client import AsyncClient

from ..programs import need_program
from .conftest import metrics

PAGE = (Path(__file__).parents[2] / "docs" / "deployment.md").read_text(encoding="utf-8")
SECTION = PAGE[PAGE.index("## Backup and restore") : PAGE.index("## Upgrading")]
KEEP_SQLITE, RESTORE_SQLITE, KEEP_POSTGRES, RESTORE_POSTGRES = re.findall(
    r"^```sh\n(.*?)^```$", SECTION, re.MULTILINE | re.DOTALL
)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A database without tables, for the test alone."""
    if request.param == "sqlite":
        need_program("sqlite3")
        return f"sqlite:///{tmp_path / 'runs' / 'gymcast.db'}"
    for program in ("pg_dump", "pg_restore", "psql"):
        need_program(program, package="postgresql-client")
    found: str = request.getfixturevalue("new_postgres_url")
    return found


async def _shell(commands: str, folder: Path, url: str) -> None:
    """Run commands of the page with the test's folders and database; the test is systemd itself."""
    text = re.sub(r"^sudo systemctl .*\n", "", commands, flags=re.MULTILINE).replace("sudo ", "")
    text = text.replace("/var/lib/gymcast/runs", str(folder / "runs")).replace("/backup", str(folder / "backup"))
    text = text.replace("-o gymcast -g gymcast ", "").replace("postgresql://gymcast@db/gymcast", url)
    text = text.replace("2026-01-31", "$(date +%F)")
    process = await asyncio.create_subprocess_exec("bash", "-euxc", text)
    assert await process.wait() == 0, text


async def _seen(client: AsyncClient) -> list[tuple[str, int]]:
    return [(one["training_session_id"], one["current_episode"]) for one in (await client.sessions())["sessions"]]


async def test_back_to_a_backup(url: str, tmp_path: Path) -> None:
    keep, restore = (KEEP_SQLITE, RESTORE_SQLITE) if "sqlite" in url else (KEEP_POSTGRES, RESTORE_POSTGRES)
    (tmp_path / "backup").mkdir()
    config = ServerConfig(port=0, database={"url": url})
    async with running_server(config) as server, AsyncClient(server.url) as client:
        session_id = (await client.create_session("kept", "PPO"))["session_id"]
        epoch = server.hub.channel(session_id).epoch
        await client.post_metrics(session_id, [metrics(number) for number in range(1, 6)])
        await _shell(keep, tmp_path, url)
        await client.post_metrics(session_id, metrics(6))
        await client.create_session("too late", "PPO")
        assert await _seen(client) == [("too late", 0), ("kept", 6)]
    await _shell(restore, tmp_path, url)
    async with running_server(config) as server, AsyncClient(server.url) as client:
        assert await _seen(client) == [("kept", 5)]
        # The numbers of before stand for other messages now.
        assert server.hub.channel(session_id).epoch != epoch
        await client.post_metrics(session_id, metrics(7))
        found = (await client.history(session_id, resolution="raw"))["metrics_data"]
        assert [reading["episode"] for reading in found] == [1, 2, 3, 4, 5, 7]
