"""Scripts of somebody's own as processes, and a server as a process that can be killed."""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

SERVE = """
import sys
from gymcast.server import ServerConfig, TrainingMetricsServer
TrainingMetricsServer(ServerConfig.load(sys.argv[1])).run()
"""
HEAD = """
import copy, sys, time
import gymnasium as gym
import numpy as np
from stable_baselines3 import A2C, DQN, PPO, SAC, TD3
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env
from gymcast.training import MetricsBroadcastCallback, SessionCallback

url = sys.argv[1]

class Slow(BaseCallback):
    "Makes a training take a while, and tells how far it is."
    def _on_step(self):
        time.sleep(0.002)
        if self.n_calls % 50 == 0:
            print("step", self.n_calls, flush=True)
        return True

def ppo(env="CartPole-v1", **more):
    return PPO("MlpPolicy", env, n_steps=64, batch_size=64, n_epochs=1, device="cpu", **more)
"""


class KillableServer:
    """A server on a fixed port with a SQLite file, in a process of its own."""

    def __init__(self, folder: Path, port: int, **settings: Any) -> None:
        self.folder, self.port = folder, port
        self.url = f"http://127.0.0.1:{port}"
        self.database = folder / "server.db"
        self._config = folder / "server.json"
        self._config.write_text(
            json.dumps({"port": port, "database": {"url": f"sqlite:///{self.database}"}, **settings})
        )
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", SERVE, str(self._config)], text=True)
        wait_for(self._answers)

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=1) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def request(self, path: str, method: str = "GET", body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        asked = urllib.request.Request(f"{self.url}{path}", data, headers, method=method)
        with urllib.request.urlopen(asked, timeout=10) as answer:
            return json.loads(answer.read())

    def sessions(self) -> list[dict[str, Any]]:
        """Oldest first."""
        found: list[dict[str, Any]] = self.request("/api/training/sessions")["sessions"]
        return sorted(found, key=lambda session: str(session["session_id"]))

    def session(self) -> dict[str, Any]:
        """The only one there is."""
        (found,) = self.sessions()
        return found

    def ask(self, wish: str) -> None:
        self.request(f"/api/training/sessions/{self.session()['session_id']}/{wish}", "POST", {})

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        connection = sqlite3.connect(self.database)
        try:
            return connection.execute(query).fetchall()
        finally:
            connection.close()

    def check_once(self) -> int:
        """Every reading is there once and the numbers of every producer have no gap; returns how many readings."""
        ((count, different),) = self.rows("select count(*), count(distinct data) from metrics")
        assert count == different > 0
        assert self.rows("select 1 from events e join producers p using (session_id, producer) where seq > head") == []
        return int(count)


class Script:
    """A script that was started; its output is kept."""

    def __init__(self, folder: Path, text: str, url: str, *, prelude: str = HEAD, **environment: str) -> None:
        self.spool = folder / "spool"
        path = folder / "script.py"
        path.write_text(prelude + textwrap.dedent(text))
        own = {"GYMCAST_SPOOL": str(self.spool), "OMP_NUM_THREADS": "1", **environment}
        self.log = folder / "script.log"
        with open(self.log, "w") as out:
            command = [sys.executable, str(path), url]
            self.process = subprocess.Popen(
                command, stdout=out, stderr=subprocess.STDOUT, cwd=folder, env=os.environ | own
            )

    @property
    def text(self) -> str:
        return self.log.read_text()

    def says(self, what: str, seconds: float = 120.0) -> None:
        def said() -> bool:
            assert self.process.poll() is None or what in self.text, self.text
            return what in self.text

        wait_for(said, seconds)

    def finish(self, code: int = 0, seconds: float = 240.0) -> str:
        try:
            ended = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the script did not end: {self.text}") from None
        assert ended == code, self.text
        return self.text

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def folders(self) -> list[Path]:
        return sorted(self.spool.iterdir()) if self.spool.exists() else []


def wait_for(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.05)
