"""The wheel and the sdist are complete: installed into an empty environment, they work outside the checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TRY_OUT = """
import importlib.metadata, pathlib, sys
import gymnasium as gym
import gymcast.envs, gymcast.server.cli, gymcast.training.config
for module in (gymcast.envs, gymcast.server.cli, gymcast.training.config):
    assert pathlib.Path(module.__file__).is_relative_to(sys.prefix), module.__file__
env = gym.make("gymcast/Archers-v0")
observation, info = env.reset(seed=1)
for _ in range(20):
    observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
env.close()
gymcast.training.config.TrainingConfig.preset("archers")
page = pathlib.Path(gymcast.server.cli.__file__).parent / "static" / "index.html"
assert page.is_file(), page
from gymcast.training.storage import Storage
import asyncio
async def migrate():
    async with await Storage.open("sqlite:///fresh.db") as storage:
        assert await storage.list_sessions() == ([], None)
asyncio.run(migrate())
print("works", importlib.metadata.version("gymcast"))
"""


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the sdist of the checkout and the wheel made from that sdist."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_the_sdist_has_sources_tests_and_licence(built: Path) -> None:
    (sdist,) = built.glob("gymcast-*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {"LICENSE", "README.md", "CHANGELOG.md", "pyproject.toml", "constraints.txt", "Makefile"} <= names
    assert {"tests/house/test_wheel.py", "envs/gymcast/envs/registry.py"} <= names
    assert not [name for name in names if name.startswith((".venv", "runs/", ".git/"))]


def test_the_wheel_has_data_files_and_no_namespace_init(built: Path) -> None:
    (wheel,) = built.glob("gymcast-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    assert "gymcast/__init__.py" not in names
    for part in ("envs", "training", "server"):
        assert {f"gymcast/{part}/__init__.py", f"gymcast/{part}/py.typed"} <= names
    in_tree = {
        str(path.relative_to(ROOT / part))
        for part in ("envs", "training", "server")
        for path in (ROOT / part / "gymcast").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert sorted(in_tree - names) == []
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_wheel_works_in_an_empty_environment(built: Path, tmp_path: Path) -> None:
    (wheel,) = built.glob("gymcast-*.whl")
    home = tmp_path / "env"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    site = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    # The dependencies are borrowed from this environment instead of being downloaded again. Their folder comes behind
    # the new one, and as a plain path entry, so that the .pth file of the editable install is not read.
    borrowed = sysconfig.get_paths()["purelib"]
    # Without the compiler: what is compiled is the same code, and compiling takes as long as all other tests here.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"} | {
        "NUMBA_DISABLE_JIT": "1"
    }
    code = f"import sys\nassert sys.prefix == {str(home)!r}\nsys.path.append({borrowed!r})\n{TRY_OUT}"
    done = subprocess.run(
        [str(python), "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("works ")
    assert (site / "gymcast" / "server" / "cli.py").is_file()
    shown = subprocess.run(
        [str(home / "bin" / "gymcast"), "--version"],
        cwd=tmp_path,
        env={**environment, "PYTHONPATH": borrowed},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert shown.stdout.startswith("gymcast "), shown.stderr
