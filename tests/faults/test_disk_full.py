"""A disk that is full while a checkpoint is saved: the run goes on, warns, and keeps the last good checkpoint."""

from __future__ import annotations

import json
import resource
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from gymcast.training.checkpoints import verify


def good_checkpoints(folder: Path) -> list[Path]:
    return sorted(path.parent for path in folder.glob("runs/*/checkpoints/step-*/manifest.json"))


def decisions(port: int, session: str) -> int:
    """How far a session is, as its server tells."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/training/sessions/{session}", timeout=10) as answer:
        return int(json.load(answer)["timesteps"])


def test_a_full_disk_costs_no_run_and_no_checkpoint(cli: Callable[..., Any], free_port: int, tmp_path: Path) -> None:
    command = cli(
        "train", "CartPole-v1", "--total-timesteps", "1000000000", "--lanes", "2", "--port", str(free_port),
        "--set", "checkpoint_interval_steps=500", "--set", "hyperparameters.n_steps=64", "--evaluation-games", "0",
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while not good_checkpoints(tmp_path):
        assert time.monotonic() < deadline, command.text
        time.sleep(0.05)
    (worker,) = [
        child.pid for child in psutil.Process(command.process.pid).children() if "--run-dir" in child.cmdline()
    ]
    # What a full disk does to a writer: its files stay below this size, writing more is refused.
    _, hard = resource.prlimit(worker, resource.RLIMIT_FSIZE)
    resource.prlimit(worker, resource.RLIMIT_FSIZE, (16_384, hard))
    command.read_until("warning: checkpoint not written")
    session = command.read_until(r"#/session/(\w+)")[1]
    reached = decisions(free_port, session)
    while decisions(free_port, session) <= reached + 1000:
        assert time.monotonic() < deadline, command.text
        time.sleep(0.1)
    assert psutil.pid_exists(worker)
    command.process.send_signal(signal.SIGTERM)
    assert command.finish() == 143, command.text
    assert command.orphans() == []
    kept = good_checkpoints(tmp_path)
    assert kept
    assert verify(kept[-1]).bytes > 16_384
    assert "Traceback" not in command.text
