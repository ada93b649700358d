"""docs/rest.md has the addresses and problem types that the server has, and its examples run."""

from __future__ import annotations

import asyncio
import re
import runpy
from pathlib import Path

from gymcast.server import ServerConfig, running_server

from ..programs import need_program

GENERATOR = Path(__file__).with_name("rest_docs.py")


def test_the_tables_are_up_to_date() -> None:
    generator = runpy.run_path(str(GENERATOR))
    written = generator["PAGE"].read_text(encoding="utf-8")
    assert written == generator["page"](written), "docs/rest.md is not what the URL table says; run: make docs"


def found(part: str, said: str) -> int:
    """Where ``part`` stands in ``said``."""
    assert part in said, said
    return said.index(part)


async def test_the_examples_run(tmp_path: Path) -> None:
    need_program("curl")
    text = runpy.run_path(str(GENERATOR))["PAGE"].read_text(encoding="utf-8")
    script = "set -eu\n" + "\n".join(re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE))
    async with running_server(ServerConfig(port=0, data_storage_path=tmp_path)) as server:
        process = await asyncio.create_subprocess_exec(
            "bash",
            "-c",
            script,
            cwd=tmp_path,
            env={"GYMCAST": server.url, "PATH": "/usr/bin:/bin"},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        output, _ = await process.communicate()
    said = output.decode()
    assert process.returncode == 0, said
    places = [
        found(part, said)
        for part in (
            "201 Created",
            "304\n200\n",
            '"/problems/version-mismatch"',
            '{"accepted":1,"duplicates":0,"last_seq":1,"desired":"running"',
            '{"accepted":0,"duplicates":1,"last_seq":1,"desired":"running"',
            '"resolution":"buckets"',
            '"resolution":"raw"',
            '"/problems/invalid-values"',
        )
    ]
    assert places == sorted(places), said
