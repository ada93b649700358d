"""docs/cli.md says what the commands say."""

from __future__ import annotations

import runpy
from pathlib import Path

HERE = Path(__file__).parent


def test_the_page_is_up_to_date() -> None:
    generator = runpy.run_path(str(HERE / "cli_docs.py"))
    written = generator["PAGE"].read_text(encoding="utf-8")
    assert written == generator["page"](), "docs/cli.md is not what the commands say; run: make docs"


def test_the_page_names_every_command() -> None:
    generator = runpy.run_path(str(HERE / "cli_docs.py"))
    text = generator["PAGE"].read_text(encoding="utf-8")
    for command in (
        "train",
        "serve",
        "watch",
        "evaluate",
        "replay list",
        "replay verify",
        "sessions stop",
        "envs show",
    ):
        assert f"## gymcast {command}\n" in text
