"""Every snippet of the README runs; what only makes it longer is smaller here."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```(python|sh)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
GYMCAST = [sys.executable, "-m", "gymcast.server.cli"]
SMALLER = {
    "--minutes 0.2 --evaluation-games 20": "--minutes 0.02 --evaluation-games 2",
    "--minutes 0.2 --evaluation-games 0": "--total-timesteps 20000 --lanes 64 -o max_duration_s=5 --evaluation-games 0",
    "--total-timesteps 5000": "--total-timesteps 1000",
    "max_minutes=0.1": "max_minutes=0.01",
    "model.learn(20_000": "model.learn(8_000",
    "--workers 2 --total-timesteps 20000": "--workers 2 --total-timesteps 1000",
    "verify-resume archers --kills 5": "verify-resume archers --kills 1 --total-timesteps 40000",
    "--episodes 200": "--episodes 20",
}


def named(language: str) -> list[tuple[str, str]]:
    return [(text.strip().splitlines()[0][:50], text) for kind, text in SNIPPETS if kind == language]


@pytest.fixture(scope="module")
def port(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """A `gymcast serve` of its own."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        free: int = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("served")
    server = subprocess.Popen([*GYMCAST, "serve", "--port", str(free)], cwd=folder, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{free}/health", timeout=2).close()
                break
            except (urllib.error.URLError, OSError):
                assert time.monotonic() < deadline and server.poll() is None, "gymcast serve did not start"
                time.sleep(0.2)
        yield free
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(30)


def test_there_are_snippets() -> None:
    assert len(named("python")) >= 5 and len(named("sh")) >= 4
    assert [text for text in SMALLER if text not in README] == []


def smaller(text: str) -> str:
    for written, run in SMALLER.items():
        text = text.replace(written, run)
    return text


@pytest.mark.parametrize("text", [t for _, t in named("python")], ids=[n for n, _ in named("python")])
def test_python_snippet_runs(text: str, port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GYMCAST_SPOOL", str(tmp_path / "spool"))
    snippets = [text]
    if "listing" in text:  # the watcher needs a session to watch
        snippets.insert(0, next(t for _, t in named("python") if "my-run" in t and "call(" in t))
    for snippet in snippets:
        code = smaller(snippet).replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as anybody runs it
            exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})


@pytest.mark.parametrize("text", [t for _, t in named("sh")], ids=[n for n, _ in named("sh")])
def test_shell_snippet_runs(text: str, tmp_path: Path) -> None:
    for line in smaller(text).strip().splitlines():
        words = shlex.split(line)
        if words[0] == "make":  # these run whole trainings and this very suite: here only that they are there
            done = subprocess.run(["make", "--dry-run", *words[1:]], cwd=ROOT, capture_output=True, text=True)
        else:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                free = str(probe.getsockname()[1])
            extra = ["--port", free] if words[1] == "train" else []
            done = subprocess.run(
                [*GYMCAST, *words[1:], *extra], cwd=tmp_path, capture_output=True, text=True, timeout=280
            )
        assert done.returncode == 0, done.stderr + done.stdout
