"""Ctrl-C and SIGTERM at every moment of ``gymcast train``: a checkpoint, no orphans, the right exit code."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Any]

# Small and endless: it trains until it is told to stop.
ENDLESS = ("train", "CartPole-v1", "--total-timesteps", "1000000000", "--lanes", "2", "--evaluation-games", "0")


def checkpoints(folder: Path) -> list[Path]:
    return sorted(folder.glob("runs/*/checkpoints/step-*/manifest.json"))


def can_bind(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        return probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.parametrize("delay", [0.1, 0.4, 1.0])
def test_ctrl_c_while_starting(cli: Start, free_port: int, delay: float) -> None:
    command = cli(*ENDLESS, "--port", str(free_port), terminal=True)
    time.sleep(delay)
    command.type_ctrl_c()
    code = command.finish()
    # In its first moments the interpreter itself has no handler yet and dies of the signal.
    assert code in ((130, -signal.SIGINT) if delay < 0.2 else (130,)), command.text
    assert command.orphans() == []
    if delay >= 0.2:
        assert "Traceback" not in command.text
    assert can_bind(free_port)


def test_ctrl_c_in_a_terminal_while_training(cli: Start, free_port: int, tmp_path: Path) -> None:
    command = cli(*ENDLESS, "--port", str(free_port), terminal=True)
    command.read_until(rf"http://127\.0\.0\.1:{free_port}/#/session/\w+")
    command.read_until(r"episodes/min")
    command.type_ctrl_c()
    assert command.finish() == 130, command.text
    assert command.children_seen >= 1
    assert command.orphans() == []
    assert checkpoints(tmp_path)
    assert re.search(r"gymcast train --resume runs/cartpole-\S+", command.text), command.text
    assert "stopped by Ctrl-C" in command.text
    assert "Traceback" not in command.text
    assert can_bind(free_port)


def test_sigterm_while_training(cli: Start, free_port: int, tmp_path: Path) -> None:
    command = cli(*ENDLESS, "--port", str(free_port))
    command.read_until(r"training 0%")
    command.process.send_signal(signal.SIGTERM)
    assert command.finish() == 143, command.text
    assert "stopped by SIGTERM" in command.text
    assert command.orphans() == []
    assert checkpoints(tmp_path)
    assert "gymcast train --resume" in command.text


def test_sigint_to_the_command_alone_while_evaluating(cli: Start, free_port: int, tmp_path: Path) -> None:
    command = cli(
        "train", "CartPole-v1", "--total-timesteps", "600", "--lanes", "2", "--evaluation-games", "1000000",
        "--set", "hyperparameters.n_steps=64", "--port", str(free_port),
    )  # fmt: skip
    command.read_until("playing evaluation games")
    time.sleep(0.3)
    command.process.send_signal(signal.SIGINT)
    assert command.finish() == 130, command.text
    assert command.orphans() == []
    assert checkpoints(tmp_path)
    assert "gymcast train --resume" in command.text


def test_a_second_ctrl_c_ends_at_once(cli: Start, free_port: int) -> None:
    command = cli(*ENDLESS, "--port", str(free_port), terminal=True)
    command.read_until("starting the training process")
    command.type_ctrl_c()
    command.read_until("Ctrl-C again ends it at once")
    command.type_ctrl_c()
    assert command.finish(20) == 130, command.text
    assert command.orphans() == []


def test_a_killed_command_leaves_no_worker_and_can_be_resumed(cli: Start, free_port: int, tmp_path: Path) -> None:
    command = cli(*ENDLESS, "--port", str(free_port))
    session = command.read_until(r"#/session/(\w+)")[1]
    command.read_until(r"training 0%")
    command.remember_children()
    command.process.kill()
    assert command.finish() == -signal.SIGKILL
    # The kernel tells the worker, which still writes its checkpoint.
    assert command.orphans(30) == []
    (before,) = checkpoints(tmp_path)
    # The next command learns from the run's folder how it ended, and goes on in the same session.
    resumed = cli(
        "train", "--resume", "latest", "--total-timesteps", "256", "--evaluation-games", "0", "--port", str(free_port),
        "--json",
    )  # fmt: skip
    assert resumed.finish() == 0, resumed.text
    last = json.loads(resumed.text.splitlines()[-1])
    assert (last["session_id"], last["status"]) == (session, "completed")
    assert last["timesteps"] >= json.loads(before.read_text())["timesteps"] + 256


def test_the_page_stays_up_until_ctrl_c_and_keeps_its_port(cli: Start, free_port: int) -> None:
    command = cli(
        "train", "CartPole-v1", "--total-timesteps", "256", "--lanes", "2", "--evaluation-games", "4",
        "--set", "hyperparameters.n_steps=64", "--port", str(free_port), terminal=True,
    )  # fmt: skip
    command.read_until("The page stays up until Ctrl-C")
    assert not can_bind(free_port)
    second = cli("train", "CartPole-v1", "--port", str(free_port))
    assert second.finish() == 2
    assert f"port {free_port} is taken. The next free one is" in second.text
    assert second.children_seen == 0
    command.type_ctrl_c()
    assert command.finish() == 0, command.text
    assert command.orphans() == []
    assert "Completed" in command.text
