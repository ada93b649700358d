"""``gymcast serve`` where other machines can reach it: tokens from the command line, and no secret anywhere."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from gymcast.server import cli as command_line
from gymcast.server.cli_errors import UserError

SECRET = "a-secret-of-these-tests-and-of-nothing-else"
ORIGIN = "https://yourdomain.com"


def test_a_server_for_others_trains_and_keeps_its_secrets(
    cli: Callable[..., Any],
    free_port: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in {
        "JWT_SECRET_KEY": SECRET,
        "GYMCAST_ENABLE_AUTH": "true",
        "GYMCAST_ENABLE_RATE_LIMITING": "true",
        "CORS_ORIGINS": ORIGIN,
    }.items():
        monkeypatch.setenv(name, value)
    server = cli("serve", "--host", "0.0.0.0", "--port", str(free_port), "--debug-log")
    server.read_until(rf"Watch  {ORIGIN}/\s")

    def gymcast(*arguments: str) -> str:
        assert command_line.run(list(arguments)) == 0
        return capsys.readouterr().out

    def ask(*arguments: str) -> str:
        return gymcast(*arguments, "--server", f"http://127.0.0.1:{free_port}")

    with pytest.raises(UserError, match=r"asks for a token(.|\n)*GYMCAST_TOKEN"):
        ask("sessions", "list")
    reader = gymcast("token", "create", "--subject", "eve").strip()
    with pytest.raises(UserError, match="scope ingest; yours has read"):
        ask("sessions", "submit", "CartPole-v1", "--total-timesteps", "64", "--token", reader)
    token = gymcast("token", "create", "--subject", "ada", "--scope", "control", "--days", "1").strip()
    monkeypatch.setenv("GYMCAST_TOKEN", token)
    small = ("--total-timesteps", "2000", "--lanes", "2", "--set", "evaluation_games=0")
    made = json.loads(ask("sessions", "submit", "CartPole-v1", *small, "--json"))["session_id"]
    assert ask("watch", "latest").endswith(f"/#/session/{made}\n")

    run = tmp_path / "runs" / made
    deadline = time.monotonic() + 90
    seen = ""
    while (status := json.loads(ask("sessions", "show", made, "--json"))["status"]) != "completed":
        assert status != "failed" and time.monotonic() < deadline, server.text
        seen += "\n".join(_command_lines(server.process.pid))
        if (run / "session.json").exists():
            assert stat.S_IMODE((run / "session.json").stat().st_mode) == 0o600
        time.sleep(0.2)
    workers = json.loads((run / "session.json").read_text())["token"]
    ask("sessions", "tail", made)
    server.process.send_signal(signal.SIGTERM)
    assert server.finish() == 143, server.text

    assert "gymcast.training" in seen and "Traceback" not in server.text
    logs = [server.text, seen]
    logs += [file.read_text("utf-8", "replace") for file in tmp_path.rglob("*") if file.suffix in (".log", ".jsonl")]
    logs += [file.read_bytes().decode("latin-1") for file in tmp_path.rglob("*.db*")]
    assert len(logs) > 3
    for secret in (SECRET, token, reader, workers):
        assert all(secret not in text and secret.split(".")[-1] not in text for text in logs)
    assert SECRET in os.environ["JWT_SECRET_KEY"]


def _command_lines(pid: int) -> list[str]:
    """What ``ps`` shows of a process and everything below it, and the environments of what is below."""
    server = psutil.Process(pid)
    found = [" ".join(server.cmdline())]
    for process in server.children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):
            found += [" ".join(process.cmdline()), str(process.environ())]
    return found


@pytest.mark.parametrize(
    ("arguments", "environment", "text"),
    [
        (("create",), {}, "--subject"),
        (("create", "--subject", "ada"), {}, "no secret to sign with(.|\n)*gymcast token secret"),
        (("create", "--subject", "ada"), {"JWT_SECRET_KEY": "your-secret-key"}, "the documentation's example"),
        (("create", "--subject", "ada", "--scope", "read,root"), {"JWT_SECRET_KEY": SECRET}, "got root; allowed: read"),
        (("create", "--subject", "ada", "--scope", ","), {"JWT_SECRET_KEY": SECRET}, "got none; allowed"),
        (("create", "--subject", "a\tb"), {"JWT_SECRET_KEY": SECRET}, "printable"),
        (("create", "--subject", "ada", "--days", "0"), {"JWT_SECRET_KEY": SECRET}, "more than 0"),
        (("create", "--subject", "ada", "--days", "nan"), {"JWT_SECRET_KEY": SECRET}, "more than 0"),
        (("create", "--subject", "ada", "--config", "nowhere.json"), {}, "cannot read nowhere.json"),
    ],
)
def test_bad_wishes_for_tokens_are_explained(
    arguments: tuple[str, ...], environment: dict[str, str], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("JWT_SECRET_KEY", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=text):
        command_line.run(["token", *arguments])
