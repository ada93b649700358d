"""Every snippet of the README runs."""

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
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
SNIPPETS = re.findall(r"^```(python|sh)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
GYMCAST = [sys.executable, "-m", "gymcast.server.cli"]


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


@pytest.mark.parametrize("text", [t for _, t in named("python")], ids=[n for n, _ in named("python")])
def test_python_snippet_runs(text: str, port: int, tmp_path: Path) -> None:
    if "listing" in text:  # the watcher needs a session to watch
        announce = next(t for _, t in named("python") if "my-run" in t and "call(" in t)
        subprocess.run([sys.executable, "-c", announce.replace("8000", str(port))], check=True, cwd=tmp_path)
    code = text.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("text", [t for _, t in named("sh")], ids=[n for n, _ in named("sh")])
def test_shell_snippet_runs(text: str, tmp_path: Path) -> None:
    for line in text.strip().splitlines():
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
