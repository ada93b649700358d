"""What the two callbacks of a script cost: samples per second and processor time with them and without, in one process.

``python benchmarks/callback_cost.py`` trains PPO on CartPole with 8 environments, and on one whose steps take a while,
in turns with and without ``MetricsBroadcastCallback`` and ``SessionCallback``. The order changes from pair to
pair, and figures are of pairs, so that what else the machine does falls on both. The server is another process, and a
viewer can be put before it (``--watched``), who makes the callbacks send more.
"""

from __future__ import annotations

import argparse
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each half of a pair, about")
    parser.add_argument("--watched", action="store_true", help="one viewer looks on")
    parser.add_argument("--slow-ms", type=float, default=2.0, help="how long a step of the slow environment takes")
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        os.environ["GYMCAST_SPOOL"] = str(Path(folder) / "spool")
        server = subprocess.Popen([sys.executable, "-c", SERVE, str(port), folder], stdout=subprocess.DEVNULL)
        try:
            _wait(port)
            print(f"{options.pairs} pairs of about {options.seconds:g} s each way, watched: {options.watched}")
            _measure("CartPole, 8 environments", 0.0, port, options)
            _measure(f"steps of {options.slow_ms:g} ms, 1 environment", options.slow_ms / 1000, port, options)
        finally:
            server.terminate()
            server.wait()


def _wait(port: int) -> None:
    while True:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
            return
        except OSError:
            time.sleep(0.1)


def _measure(name: str, slow: float, port: int, options: argparse.Namespace) -> None:
    import gymnasium as gym
    from stable_baselines3 import PPO
    from stable_baselines3.common.callbacks import CallbackList
    from stable_baselines3.common.env_util import make_vec_env

    from gymcast.training import MetricsBroadcastCallback, SessionCallback

    class Slow(gym.Wrapper):  # type: ignore[type-arg]
        def step(self, action):  # type: ignore[no-untyped-def]
            time.sleep(slow)
            return self.env.step(action)

    url = f"http://127.0.0.1:{port}"
    count = 1 if slow else 8
    env = make_vec_env("CartPole-v1", count, wrapper_class=Slow if slow else None)
    viewers: list[subprocess.Popen[bytes]] = []

    shares: list[tuple[float, float, float]] = []

    class Timed(CallbackList):
        """Counts the processor time of the thread that trains within the callbacks."""

        spent = 0

        def on_step(self) -> bool:
            begun = time.thread_time_ns()
            goes_on = super().on_step()
            self.spent += time.thread_time_ns() - begun
            return goes_on

    def train(steps: int, reported: bool) -> tuple[float, float]:
        # A new model each time, with the same seed: the same work.
        model = PPO("MlpPolicy", env, n_steps=128, seed=1, device="cpu")
        metrics = MetricsBroadcastCallback(url, verbose=0)
        callbacks = Timed([metrics, SessionCallback(url, verbose=0)]) if reported else None
        if reported and options.watched:
            threading.Thread(target=_look_on, args=(url, metrics, viewers), daemon=True).start()
        known = set(threading.enumerate())
        wall, cpu = time.perf_counter(), time.process_time()
        model.learn(steps, callback=callbacks)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        if callbacks is not None:
            own = [thread for thread in set(threading.enumerate()) - known if thread.name == "gymcast-events"]
            behind = sum(time.clock_gettime(time.pthread_getcpuclockid(thread.ident or 0)) for thread in own)
            shares.append((callbacks.spent / 1e7 / cpu, 100 * behind / cpu, callbacks.spent / 1000 / steps))
        return wall, cpu

    seconds, _ = train(2048, False)
    steps = max(2048, int(2048 * options.seconds / seconds))
    walls, cpus, plain = [], [], []
    for pair in range(options.pairs):
        order = (False, True) if pair % 2 else (True, False)
        found = {reported: train(steps, reported) for reported in order}
        plain.append(steps / found[False][0])
        walls.append(100 * (1 - found[False][0] / found[True][0]))
        cpus.append(100 * (found[True][1] / found[False][1] - 1))
    for viewer in viewers:
        viewer.terminate()
        viewer.wait()
    middle = statistics.median
    print(f"{name}: {middle(plain):,.0f} samples/s without the callbacks")
    print(f"  lost, median of pairs: {middle(walls):.1f} % ({min(walls):.1f} to {max(walls):.1f})")
    print(f"  processor time more: {middle(cpus):.1f} % ({min(cpus):.1f} to {max(cpus):.1f})")
    inside, behind, each = (middle(column) for column in zip(*shares, strict=True))
    print(f"  of it in the callbacks {inside:.2f} % ({each:.1f} us a sample), in the background thread {behind:.2f} %")


def _look_on(url: str, callback, viewers: list) -> None:  # type: ignore[no-untyped-def, type-arg]
    while callback.session_id is None:
        time.sleep(0.05)
    address = f"{url.replace('http', 'ws')}/ws/{callback.session_id}"
    viewers.append(subprocess.Popen([sys.executable, "-c", WATCH, address]))


if __name__ == "__main__":
    main()
