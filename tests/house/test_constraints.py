"""constraints.txt pins exactly what is needed, at the versions that are installed here."""

from __future__ import annotations

import importlib.metadata as metadata
import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
# Beside the dependencies: the build backend and what it needs for an editable install.
BUILD = ("hatchling", "editables")
# Needed only on platforms for which there are wheels.
WHEELS = ("box2d", "pygame-ce")


def pins() -> dict[str, str]:
    found = {}
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            match = re.fullmatch(r"([a-z0-9-]+)==([0-9][0-9a-z.]*)", line)
            assert match is not None, f"not an exact pin: {line!r}"
            found[match[1]] = match[2]
    return found


def closure() -> set[str]:
    """Names of everything that gymcast with the extras of `make setup` pulls in on this platform."""
    seen: dict[str, set[str]] = {}
    wanted = {"dev", "postgres", "redis", "video", "wandb"}
    waiting: list[tuple[str, set[str]]] = [("gymcast", wanted), *((name, set[str]()) for name in BUILD)]
    while waiting:
        name, extras = waiting.pop()
        key = canonicalize_name(name)
        if key in seen and extras <= seen[key]:
            continue
        seen.setdefault(key, set()).update(extras)
        try:
            needs = metadata.requires(name) or []
        except metadata.PackageNotFoundError:
            # Only the set-up of the Makefile installs the build backend.
            assert key in BUILD, f"{name} is needed but not installed"
            continue
        for text in needs:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                waiting.append((need.name, set(need.extras)))
    return set(seen) - {"gymcast"}


def test_everything_needed_is_pinned() -> None:
    assert sorted(closure() - set(pins())) == []


def test_pins_are_what_is_installed() -> None:
    wrong = {}
    for name, pinned in pins().items():
        try:
            installed = metadata.version(name).split("+")[0]
        except metadata.PackageNotFoundError:
            assert name in BUILD + WHEELS, f"{name} is pinned but not installed"
            continue
        if installed != pinned:
            wrong[name] = (pinned, installed)
    assert wrong == {}


def test_torch_is_pinned_without_a_local_version() -> None:
    assert pins()["torch"] == "2.13.0"


@pytest.mark.parametrize("target", ["setup", "run", "test", "check", "bench", "clean", "help"])
def test_the_makefile_has_every_promised_target(target: str) -> None:
    assert re.search(rf"^{target}:.*## \S", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
