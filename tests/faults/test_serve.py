"""``gymcast serve``: a training started over HTTP, looked after from the command line, and an orderly end."""

from __future__ import annotations

import json
import signal
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gymcast.server import cli as command_line
from gymcast.server.cli_errors import UserError

ENDLESS = {"envId": "CartPole-v1", "totalTimesteps": 10**12, "parallelEpisodes": 2, "evaluationGames": 0}


def post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 201
        return dict(json.load(answer))


def test_a_server_runs_trainings_and_ends_with_them(
    cli: Callable[..., Any], free_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port}"

    def gymcast(*arguments: str) -> str:
        assert command_line.run([*arguments, "--server", url]) == 0
        return capsys.readouterr().out

    server = cli("serve", "--port", str(free_port), "--max-concurrent-sessions", "1")
    server.read_until(rf"Watch  {url}/\s")
    assert gymcast("watch") == f"{url}/\n"
    assert "has no sessions yet" in gymcast("sessions", "list")
    running = str(post(f"{url}/api/training/sessions", {"config": ENDLESS})["session_id"])
    waiting = str(post(f"{url}/api/training/sessions", {"config": ENDLESS, "priority": 3})["session_id"])

    listed = {session["session_id"]: session["status"] for session in json.loads(gymcast("sessions", "list", "--json"))}
    assert listed[waiting] == "queued"
    assert gymcast("watch", "latest") == f"{url}/#/session/{waiting}\n"
    assert gymcast("sessions", "stop", waiting) == f"{waiting} is cancelled\n"
    with pytest.raises(UserError, match="no session 'zzz'"):
        gymcast("sessions", "stop", "zzz")

    deadline = time.monotonic() + 60
    while "status      running" not in gymcast("sessions", "show", running):
        assert time.monotonic() < deadline, server.text
        time.sleep(0.2)
    server.remember_children()
    assert server.children_seen == 1
    server.process.send_signal(signal.SIGINT)
    assert server.finish() == 130, server.text
    assert server.orphans() == []
    assert "Traceback" not in server.text
    # The training was stopped in order: it has a checkpoint to go on from.
    assert sorted((tmp_path / "runs" / running / "checkpoints").glob("step-*/manifest.json"))
