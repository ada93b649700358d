"""What the two callbacks of a script cost: samples per second lost, by processor time, in one process.

``python benchmarks/callback_cost.py`` trains PPO on CartPole with 8 environments, and on one whose steps take a while,
in short parts with and without ``MetricsBroadcastCallback`` and ``SessionCallback``: without, with, with, without, and
so on, always the same model. The figure of such a round is the processor time of the whole process that a sample takes
more, as a share of what it takes without: processor time, and the time the game sleeps. A training with a core to
itself loses as large a share of its samples per second; what other programs do to the clock on the wall hardly counts.
The median of all rounds comes with the interval that it has in 95 % of resampled rounds.

Each part begins and ends a ``learn()``, which a training does once: a little more is counted than a training pays. The
server is another process, and a viewer can be put before it (``--watched``), who makes the callbacks send more.
"""

from __future__ import annotations

import argparse
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import CallbackList
from stable_baselines3.common.env_util import make_vec_env

from _common import machine, table
from gymcast.training import MetricsBroadcastCallback, SessionCallback

ROLLOUT = 128
RESAMPLES = 10_000
SERVE = """
import sys
from gymcast.server import ServerConfig, TrainingMetricsServer
TrainingMetricsServer(ServerConfig(port=int(sys.argv[1]), data_storage_path=sys.argv[2])).run()
"""
WATCH = """
import asyncio, sys, aiohttp
async def main():
    async with aiohttp.ClientSession() as http, http.ws_connect(sys.argv[1]) as ws:
        async for _ in ws:
            pass
asyncio.run(main())
"""


@dataclass
class Part:
    """Microseconds per sample: of the clock, of the process's processor time, and of that in the callbacks' methods and
    in their background thread."""

    wall: float
    cpu: float
    inside: float = 0.0
    behind: float = 0.0


class Timed(CallbackList):
    """Counts the processor time of the thread that trains within the callbacks."""

    spent = 0

    def on_step(self) -> bool:
        begun = time.thread_time_ns()
        goes_on = super().on_step()
        self.spent += time.thread_time_ns() - begun
        return goes_on

    def on_rollout_start(self) -> None:
        begun = time.thread_time_ns()
        super().on_rollout_start()
        self.spent += time.thread_time_ns() - begun


class Training:
    """PPO on CartPole that goes on in parts, with the callbacks or without."""

    def __init__(self, url: str, sleep: float) -> None:
        class Slow(gym.Wrapper):  # type: ignore[type-arg]
            def step(self, action):  # type: ignore[no-untyped-def]
                time.sleep(sleep)
                return self.env.step(action)

        lanes = 1 if sleep else 8
        env = make_vec_env("CartPole-v1", lanes, wrapper_class=Slow if sleep else None)
        self.asleep = 1e6 * sleep / lanes
        self.model = PPO("MlpPolicy", env, n_steps=ROLLOUT, seed=1, device="cpu")
        self.metrics = MetricsBroadcastCallback(url, verbose=0)
        self.callbacks = [self.metrics, SessionCallback(url, verbose=0)]
        self.samples = 4 * ROLLOUT * lanes

    def part(self, reported: bool) -> Part:
        """Train on for ``samples``."""
        callbacks = Timed(list(self.callbacks)) if reported else None
        each = 1e6 / self.samples
        wall, cpu, behind = time.perf_counter(), time.process_time(), background_seconds()
        self.model.learn(self.samples, callback=callbacks, reset_num_timesteps=False)
        wall = time.perf_counter() - wall
        if callbacks is None:
            return Part(each * wall, each * (time.process_time() - cpu))
        self.metrics.close()  # what the background thread still does belongs to this part
        cpu, behind = time.process_time() - cpu, background_seconds() - behind
        return Part(each * wall, each * cpu, each * callbacks.spent / 1e9, each * behind)


def background_seconds() -> float:
    """Processor time of the threads that send events."""
    own = [thread for thread in threading.enumerate() if thread.name == "gymcast-events"]
    return sum(time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0)) for thread in own)


def measure(url: str, sleep: float, options: argparse.Namespace) -> list[str]:
    """A row of the table."""
    training = Training(url, sleep)
    for reported in (True, False, True):  # what is loaded and compiled once
        first = training.part(reported)
    training.samples *= max(1, round(options.seconds * 1e6 / first.wall / training.samples))
    viewer = look_on(url, training.metrics.session_id) if options.watched else None
    cost, wall, inside, behind = [], [], [], []
    for _ in range(options.rounds):
        without, with_, again, last = (training.part(reported) for reported in (False, True, True, False))
        base = (without.cpu + last.cpu) / 2 + training.asleep
        cost.append(((with_.cpu + again.cpu) / 2 + training.asleep) / base - 1)
        wall.append((with_.wall + again.wall) / (without.wall + last.wall) - 1)
        inside.append((with_.inside + again.inside) / 2 / base)
        behind.append((with_.behind + again.behind) / 2 / base)
    if viewer is not None:
        viewer.terminate()
        viewer.wait()
    name = f"1 environment, steps of {1e3 * sleep:g} ms" if sleep else "8 environments"
    return [name, f"{training.samples:,}", *(with_interval(shares) for shares in (cost, wall, inside, behind))]


def with_interval(shares: Sequence[float]) -> str:
    """Median in percent, and where that of 95 % of resampled rounds lies."""
    values = 100 * np.asarray(shares)
    resampled = np.median(np.random.default_rng(1).choice(values, (RESAMPLES, len(values))), axis=1)
    low, high = np.percentile(resampled, (2.5, 97.5))
    return f"{np.median(values):.2f} % ({low:.2f} to {high:.2f})"


def look_on(url: str, session_id: str | None) -> subprocess.Popen[bytes]:
    """A viewer of the session."""
    return subprocess.Popen([sys.executable, "-c", WATCH, f"{url.replace('http', 'ws')}/ws/{session_id}"])


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/health", timeout=1).close()
    except OSError:
        return False
    return True


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=40, help="of four parts each")
    parser.add_argument("--seconds", type=float, default=1.0, help="of each part, about")
    parser.add_argument("--watched", action="store_true", help="one viewer looks on")
    parser.add_argument("--slow-ms", type=float, default=2.0, help="how long a step of the slow environment takes")
    parser.add_argument("--server", help="URL of one that runs; default: one of its own")
    options = parser.parse_args()
    if options.server is None:
        with_server_of_its_own()
        return
    torch.set_num_threads(1)
    rows = [measure(options.server, sleep, options) for sleep in (0.0, options.slow_ms / 1000)]
    watched = ", watched by one" if options.watched else ""
    print(f"{machine()}; {options.rounds} rounds of four parts of about {options.seconds:g} s{watched}")
    head = ["CartPole", "samples a part", "samples/s lost, by processor", "by the clock", "within", "in the background"]
    print(table(head, rows))


def with_server_of_its_own() -> None:
    """Run this again beside a server, which ends when the sessions of that process have."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, str(port), folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            while not answers(url):
                time.sleep(0.1)
            spool = {**os.environ, "GYMCAST_SPOOL": str(Path(folder) / "spool")}
            subprocess.run([sys.executable, *sys.argv, "--server", url], env=spool, check=True)
        finally:
            server.terminate()
            server.wait()


if __name__ == "__main__":
    main()
