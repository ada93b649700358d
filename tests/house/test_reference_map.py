"""docs/reference-map.md names files and tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference-map.md"


def named() -> list[str]:
    """Everything in backticks that is a path, with or without a test's name."""
    text = PAGE.read_text(encoding="utf-8")
    return sorted(set(re.findall(r"`((?:tests|training|server|envs)/[^`]+)`", text)))


def test_there_is_something_to_check() -> None:
    assert len(named()) > 40


@pytest.mark.parametrize("name", named())
def test_what_is_named_exists(name: str) -> None:
    path, _, test = name.partition("::")
    assert (ROOT / path).is_file(), f"{PAGE.name} names {path}, which does not exist"
    if test:
        source = (ROOT / path).read_text(encoding="utf-8")
        assert re.search(rf"^(async )?def {test}\(", source, re.MULTILINE), f"{path} has no test {test}"


def test_every_promise_has_a_place_and_a_test() -> None:
    done, _, missing = PAGE.read_text(encoding="utf-8").partition("## Not there yet")
    rows = [line for line in done.splitlines() if line.startswith("| ") and not line.startswith("| promised")]
    assert len(rows) > 40 and len(missing.splitlines()) > 5
    assert [row for row in rows if "tests/" not in row] == []
