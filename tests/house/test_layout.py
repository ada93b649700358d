"""The layout the packaging, the type checkers and the import rules rely on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("envs", "training", "server")


def test_gymcast_is_a_namespace_package() -> None:
    found = [
        str(path.relative_to(ROOT)) for part in PACKAGES for path in (ROOT / part / "gymcast").glob("__init__.py*")
    ]
    assert found == []
    assert all((ROOT / part / "gymcast" / part / "__init__.py").is_file() for part in PACKAGES)


@pytest.mark.parametrize("part", PACKAGES)
def test_types_are_published(part: str) -> None:
    assert (ROOT / part / "gymcast" / part / "py.typed").is_file()


def test_every_folder_with_code_is_a_package() -> None:
    folders = {path.parent for part in PACKAGES for path in (ROOT / part / "gymcast" / part).rglob("*.py")}
    missing = [str(folder.relative_to(ROOT)) for folder in folders if not (folder / "__init__.py").is_file()]
    assert [name for name in missing if "migrations" not in name] == []


def test_imports_point_down() -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from importlinter.cli import lint_imports_command; lint_imports_command()",
            "--no-cache",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr


HEAVY = ("torch", "stable_baselines3", "numba", "aiohttp", "sqlalchemy", "gymnasium", "rich.console")


@pytest.mark.parametrize(
    ("statement", "absent"),
    [
        ("import gymcast.server.cli, gymcast.server.cli_app", HEAVY),
        ("import gymcast.server", ("torch", "stable_baselines3", "numba", "aiohttp")),
        ("import gymcast.training", ("torch", "stable_baselines3")),
        ("import gymcast.training.config, gymcast.training.events, gymcast.training.storage", ("torch", "numba")),
        (
            "import gymcast.server.app, gymcast.server.cli_run, gymcast.training.sessions",
            ("torch", "stable_baselines3"),
        ),
        ("import gymcast.envs", ("torch", "asyncio", "aiohttp", "sqlalchemy")),
    ],
)
def test_what_is_not_needed_is_not_imported(statement: str, absent: tuple[str, ...]) -> None:
    code = f"{statement}\nimport sys\nprint([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"
