"""Subprocess vector environments: ours, Stable-Baselines3's, Gymnasium's, and everything in one process.

    python benchmarks/subproc.py                       # about five minutes
    python benchmarks/subproc.py --only cheap --seconds 1 --repeats 3
    python benchmarks/subproc.py --faults 60           # SIGKILL of a worker every 10 s and one SIGSTOP, for 60 s
    python benchmarks/subproc.py --overlap             # rollouts with and without two halves in flight

Cases run in turn, `--repeats` times, each for `--seconds`; figures are medians of steps per second (one step of one
lane counts as one) and their ratio to SB3's SubprocVecEnv. Actions are drawn beforehand and are the same for all.
`ideal` of the slow environment is what its workers reach when nothing but its 5 ms is spent.

cheap    CartPole-v1, 8 lanes                           pixel    84 x 84 x 4 images, uint8, 8 lanes
With `--overlap`, 8 lanes of images are stepped by BatchPPO with a CnnPolicy on one thread, and the environments wait or
compute as long as the network takes for all lanes.

slow     5 ms of waiting a step, 8 lanes, 8 workers     uneven   0 to 2 ms of computing a step, 8 lanes
"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

from _common import interleave, machine, median, table
from gymcast.training import GymcastSubprocVecEnv
from gymcast.training.algorithms import BatchPPO

LANES = 8
SLOW_SECONDS = 0.005


class Pixels(gym.Env[Any, Any]):
    """Stacked images as Atari's, made with little work."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(0, 255, (84, 84, 4), np.uint8)
        self.action_space = spaces.Discrete(4)
        self.image = np.zeros((84, 84, 4), np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.image.copy(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.image[self.steps % 84] = action
        return self.image.copy(), 1.0, self.steps == 500, False, {}


class Slow(Pixels):
    """Waits 5 ms a step, as a game that runs elsewhere does."""

    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 1, (4,), np.float32)
        self.image = np.zeros((84, 4), np.float32)

    def reset(self, **more: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**more)
        return np.zeros(4, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(SLOW_SECONDS)
        _, reward, terminated, truncated, info = super().step(action)
        return np.zeros(4, np.float32), reward, terminated, truncated, info


class Uneven(Slow):
    """Computes for 0 to 2 ms a step, mostly little."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        until = time.perf_counter() + 0.002 * self.np_random.random() ** 4
        while time.perf_counter() < until:
            pass
        return np.zeros(4, np.float32), 1.0, self.np_random.random() < 0.002, False, {}


class Takes(Pixels):
    """Waits, or computes, for as many seconds a step as it is told."""

    def __init__(self, seconds: float, waits: bool) -> None:
        super().__init__()
        self.observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)  # as the network takes it, unwrapped
        self.seconds, self.waits = seconds, waits

    def reset(self, **more: Any) -> tuple[Any, dict[str, Any]]:
        super().reset(**more)
        return np.zeros((4, 84, 84), np.uint8), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        until = time.perf_counter() + self.seconds
        if self.waits:
            time.sleep(self.seconds)
        while time.perf_counter() < until:
            pass
        self.steps += 1
        return np.full((4, 84, 84), self.steps % 256, np.uint8), 1.0, self.steps == 500, False, {}


def cartpole() -> gym.Env[Any, Any]:
    return gym.make("CartPole-v1")


KINDS: dict[str, tuple[Callable[[], gym.Env[Any, Any]], int | None]] = {
    "cheap": (cartpole, None),
    "pixel": (Pixels, None),
    "slow": (Slow, LANES),
    "uneven": (Uneven, None),
}
"""Name: what makes a lane, and how many workers ours gets (None: its default)."""


def runner(env: Any, seconds: float) -> Callable[[], float]:
    """Steps for about `seconds` and returns steps of lanes per second."""
    env.reset()
    space = env.action_space if not isinstance(env, AsyncVectorEnv) else env.single_action_space
    space.seed(0)
    pool = [np.array([space.sample() for _ in range(LANES)]) for _ in range(64)]

    def run() -> float:
        for actions in pool[:3]:
            env.step(actions)
        steps, start = 0, time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            env.step(pool[steps % 64])
            steps += 1
        return steps * LANES / spent

    return run


def compare(kind: str, seconds: float, repeats: int) -> None:
    factory, workers = KINDS[kind]
    functions = [factory] * LANES
    envs: dict[str, Any] = {
        "gymcast, GymcastSubprocVecEnv": GymcastSubprocVecEnv(functions, n_workers=workers),
        "SB3, SubprocVecEnv": SubprocVecEnv(functions),
        "SB3, DummyVecEnv": DummyVecEnv(functions),
        "Gymnasium, AsyncVectorEnv": AsyncVectorEnv(functions, autoreset_mode=AutoresetMode.SAME_STEP),
    }
    figures = interleave({name: runner(env, seconds) for name, env in envs.items()}, repeats)
    base = figures["SB3, SubprocVecEnv"]
    rows = []
    for name, rates in figures.items():
        ratios = [rate / other for rate, other in zip(rates, base, strict=True)]
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        rows.append([kind, name, f"{median(rates):,.0f}", spread, f"{median(ratios):.2f}"])
    if kind == "slow":
        rows.append([kind, "ideal", f"{LANES / SLOW_SECONDS:,.0f}", "", ""])
    print(table(["environment", "vector environment", "steps/s", "range", "x SB3 SubprocVecEnv"], rows), flush=True)
    for env in envs.values():
        env.close()


def disturb(seconds: float) -> None:
    """Step CartPole while workers are killed and stopped; the same undisturbed right before and after."""

    def play(trouble: bool) -> tuple[int, float, int]:
        env = GymcastSubprocVecEnv([cartpole] * LANES, step_timeout=1.0)
        env.reset()
        actions = np.zeros(LANES, np.int64)
        steps, start = 0, time.perf_counter()
        kill_at, stop_at = (10.0, seconds / 2 + 3) if trouble else (np.inf, np.inf)
        while (spent := time.perf_counter() - start) < seconds:
            if spent > kill_at:
                os.kill(env.processes[steps % len(env.processes)].pid, signal.SIGKILL)
                kill_at += 10.0
            if spent > stop_at:
                os.kill(env.processes[0].pid, signal.SIGSTOP)
                stop_at = np.inf
            obs, rewards, dones, infos = env.step(actions)
            assert len(obs) == len(rewards) == len(dones) == len(infos) == LANES
            steps += LANES
        restarts = env.n_restarts
        env.close()
        return steps, steps / spent, restarts

    before, shaken, after = play(False), play(True), play(False)
    calm = (before[1] + after[1]) / 2
    print(
        table(
            ["run", "steps", "steps/s", "restarts"],
            [
                [name, f"{steps:,}", f"{rate:,.0f}", str(restarts)]
                for name, (steps, rate, restarts) in {"calm": before, "disturbed": shaken, "calm again": after}.items()
            ],
        )
    )
    print(f"throughput lost: {1 - shaken[1] / calm:.1%}")


def compare_overlap(repeats: int) -> None:
    """Steps per second of `collect_rollouts`, which acts and steps in turn."""
    torch.set_num_threads(1)
    rows = []
    for waits in (True, False):
        cases: dict[str, Callable[[], float]] = {}
        envs = []
        forward = 0.0
        for on in (False, True):
            env = GymcastSubprocVecEnv([partial(Takes, 0.0, False)] * LANES, n_workers=2)
            model = BatchPPO("CnnPolicy", env, n_steps=64, batch_size=64, device="cpu")
            if not forward:
                obs = model.policy.obs_to_tensor(env.reset())[0]
                forward = median([seconds_of(lambda seen=obs, net=model.policy: net(seen)) for _ in range(30)])
            env.close()
            # Lanes that wait do so at once; lanes that compute share a worker, and a core, with half of the others.
            each, workers = (forward, LANES) if waits else (forward / (LANES / 2), 2)
            env = GymcastSubprocVecEnv([partial(Takes, each, waits)] * LANES, n_workers=workers, overlap=on)
            envs.append(env)
            model.set_env(env)
            cases["overlapped" if on else "in turn"] = collector(model)
        figures = interleave(cases, repeats)
        for name, rates in figures.items():
            ratio = median([rate / plain for rate, plain in zip(rates, figures["in turn"], strict=True)])
            what = f"{'waits' if waits else 'computes'} as long as the network ({1000 * forward:.1f} ms)"
            rows.append([what, name, f"{median(rates):,.0f}", f"{ratio:.2f}"])
        for env in envs:
            env.close()
    print(table(["environment", "rollouts", "steps/s", "x in turn"], rows))


def seconds_of(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        call()
    return time.perf_counter() - start


def collector(model: BatchPPO) -> Callable[[], float]:
    _, callback = model._setup_learn(10**9, None)
    return lambda: (
        64 * LANES / seconds_of(lambda: model.collect_rollouts(model.get_env(), callback, model.rollout_buffer, 64))
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per case")
    parser.add_argument("--only", choices=sorted(KINDS), help="one kind of environment")
    parser.add_argument(
        "--faults", type=float, metavar="SECONDS", help="measure with killed and stopped workers instead"
    )
    parser.add_argument("--overlap", action="store_true", help="measure rollouts with two halves in flight instead")
    arguments = parser.parse_args()
    print(machine())
    if arguments.overlap:
        compare_overlap(arguments.repeats)
        return
    if arguments.faults:
        disturb(arguments.faults)
        return
    for kind in [arguments.only] if arguments.only else KINDS:
        compare(kind, arguments.seconds, arguments.repeats)


if __name__ == "__main__":
    main()
