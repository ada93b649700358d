"""Samples per second of a training whose page a thousand clients follow, beside the same training with nobody there."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import psutil

from _processes import Process


@dataclass
class Watched:
    """One training. ``samples_cpu`` is samples per second of processor that the training's own process used."""

    samples: float
    samples_cpu: float
    delivered: int


def train(env: str, seconds: float, clients: int) -> Watched:
    """Train under ``gymcast serve``, the server and the training in processes of their own, followed by ``clients``."""
    with tempfile.TemporaryDirectory(prefix="gymcast-bench-") as runs:
        command = [sys.executable, "-m", "gymcast.server.cli", "serve", "--port", "auto", "--runs-dir", runs]
        room = {"MAX_CONNECTIONS_PER_SESSION": str(clients + 10), "MAX_TOTAL_CONNECTIONS": str(clients + 10)}
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env={**os.environ, **room}
        )
        assert server.stdout is not None, "it is a pipe"
        url = server.stdout.readline().split()[-1].rstrip("/")
        used = _ProcessorTime(server.pid)
        config = {"env_id": env, "max_minutes": seconds / 60, "seed": 1, "evaluation_games": 0}
        session = _call("POST", f"{url}/api/training/sessions", {"config": config})["session_id"]
        viewers = None
        if clients:
            address = urlsplit(url)
            where = (str(address.hostname), str(address.port), f"/ws/{session}")
            viewers = Process("_spectators.py", *where, str(clients))
            viewers.answer()
            viewers.say("go")
        while (info := _call("GET", f"{url}/api/training/sessions/{session}"))["end_time"] is None:
            time.sleep(0.5)
        found = {} if viewers is None else viewers.ask("stop")
        if viewers is not None:
            viewers.end()
        server.send_signal(signal.SIGINT)
        server.wait(30)
    if info["status"] == "failed":
        raise SystemExit(f"the training failed: {info['reason']}")
    return Watched(info["timesteps"] / seconds, info["timesteps"] / used.seconds(), int(found.get("frames", 0)))


def _call(method: str, url: str, body: Any = None) -> Any:
    request = urllib.request.Request(url, method=method, headers={"Content-Type": "application/json"})
    with urllib.request.urlopen(request, None if body is None else json.dumps(body).encode()) as answer:
        return json.load(answer)


class _ProcessorTime:
    """What the busiest process below ``pid`` has used: that is the one that trains."""

    def __init__(self, pid: int) -> None:
        self._used: dict[int, float] = {}
        self._thread = threading.Thread(target=self._look, args=(psutil.Process(pid),), daemon=True)
        self._thread.start()

    def _look(self, parent: psutil.Process) -> None:
        while parent.is_running() and parent.status() != psutil.STATUS_ZOMBIE:
            try:
                for child in parent.children(recursive=True):
                    times = child.cpu_times()
                    self._used[child.pid] = times.user + times.system
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.1)

    def seconds(self) -> float:
        return max(self._used.values())
