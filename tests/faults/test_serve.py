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
from gymcast.training.run_folder import worker_of

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
    with pytest.raises(UserError, match=r"'runing' is no status; did you mean 'running'\?; there are queued, "):
        gymcast("sessions", "list", "--status", "runing")
    with pytest.raises(UserError, match="no session 'zzz'"):
        gymcast("sessions", "stop", "zzz")

    deadline = time.monotonic() + 60
    while "status               running" not in gymcast("sessions", "show", running):
        assert time.monotonic() < deadline, server.text
        time.sleep(0.2)
    tail = cli("sessions", "tail", running, "--server", url, terminal=True)
    tail.read_until("-- running")
    tail.type_ctrl_c()
    assert tail.finish() == 130
    assert "Traceback" not in tail.text and "Aborted" not in tail.text
    server.remember_children()
    assert server.children_seen == 1
    server.process.send_signal(signal.SIGINT)
    assert server.finish() == 130, server.text
    assert server.orphans() == []
    assert "Traceback" not in server.text
    # The training was stopped in order: it has a checkpoint to go on from.
    assert sorted((tmp_path / "runs" / running / "checkpoints").glob("step-*/manifest.json"))


def test_a_training_outlives_its_server(
    cli: Callable[..., Any], free_port: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"http://127.0.0.1:{free_port}"

    def gymcast(*arguments: str) -> str:
        assert command_line.run([*arguments, "--server", url]) == 0
        return capsys.readouterr().out

    def wait_for(text: str) -> None:
        deadline = time.monotonic() + 60
        while text not in gymcast("sessions", "show", "latest"):
            assert time.monotonic() < deadline, gymcast("sessions", "show", "latest")
            time.sleep(0.1)

    def serve() -> Any:
        server = cli("serve", "--port", str(free_port))
        server.read_until(rf"Watch  {url}/\s")
        return server

    first = serve()
    endless = ("--total-timesteps", str(10**12), "--lanes", "2", "--set", "evaluation_games=0")
    said = gymcast("sessions", "submit", "CartPole-v1", *endless, "--priority", "4")
    session, status = said.split()[0], said.split()[2]
    assert status in ("queued:", "starting:") and f"{url}/#/session/{session}" in said
    with pytest.raises(UserError, match="max_epsodes: unknown field; did you mean 'max_episodes'"):
        gymcast("sessions", "submit", "CartPole-v1", "--set", "max_epsodes=5")
    wait_for("status               running")
    gymcast("sessions", "pause", session)
    wait_for("status               paused")
    worker = worker_of(tmp_path / "runs" / session)
    first.process.kill()
    first.process.wait()

    second = serve()
    wait_for("status               paused")
    gymcast("sessions", "resume", session)
    wait_for("status               running")
    info = json.loads(gymcast("sessions", "show", session, "--json"))
    assert (info["attempts"], info["priority"], worker_of(tmp_path / "runs" / session)) == (1, 4, worker)
    # Ended in order, it leaves the session to the next one, where it is as paused as it was.
    gymcast("sessions", "pause", session)
    wait_for("status               paused")
    second.process.send_signal(signal.SIGINT)
    assert second.finish() == 130
    assert worker_of(tmp_path / "runs" / session) is None

    third = serve()
    wait_for("wait_reason          paused on request; it starts when it is resumed")
    gymcast("sessions", "resume", session)
    wait_for("status               running")
    assert json.loads(gymcast("sessions", "show", session, "--json"))["attempts"] == 2
    assert gymcast("sessions", "cancel", session) == f"{session} is stopping\n"
    followed = gymcast("sessions", "tail", session)
    assert followed.endswith("-- cancelled: cancelled by request\n")
    assert "resumed from step-" in gymcast("sessions", "logs", session)
    assert "cancelled by request" in gymcast("sessions", "list")
    third.process.send_signal(signal.SIGINT)
    assert third.finish() == 130
    assert "Traceback" not in first.text + second.text + third.text
