"""Samples per second of a training whose page a thousand clients follow, beside the same training with nobody there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass
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
    """Train with ``gymcast train`` and its server in processes of their own, followed by ``clients``."""
    with tempfile.TemporaryDirectory(prefix="gymcast-bench-") as runs:
        command = [sys.executable, "-m", "gymcast.server.cli", "train", env, "--minutes", str(seconds / 60), "--json"]
        command += ["--no-stay", "--port", "auto", "--seed", "1", "--runs-dir", runs, "--set", "evaluation_games=0"]
        room = {"MAX_CONNECTIONS_PER_SESSION": str(clients + 10), "MAX_TOTAL_CONNECTIONS": str(clients + 10)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, **room})
        assert process.stdout is not None, "it is a pipe"
        begun = json.loads(process.stdout.readline())
        used = _ProcessorTime(process.pid)
        viewers = None
        if clients:
            address = urlsplit(begun["page"])
            where = (str(address.hostname), str(address.port), f"/ws/{begun['session_id']}")
            viewers = Process("_spectators.py", *where, str(clients))
            viewers.answer()
            viewers.say("go")
        lines = [json.loads(line) for line in process.stdout]
        found = {} if viewers is None else viewers.ask("stop")
        if viewers is not None:
            viewers.end()
        if process.wait() != 0:
            raise SystemExit(f"the training failed: {lines[-1:]}")
    samples = int(lines[-1]["timesteps"])
    return Watched(samples / seconds, samples / used.seconds(), int(found.get("frames", 0)))


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
