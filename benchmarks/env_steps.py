"""How fast Archers is stepped: decisions/s, ticks/s, game-seconds/s and episodes per minute, observation included.

    python benchmarks/env_steps.py [--lanes 2048] [--seconds 2] [--repeats 5]

Cases run in turn, `--repeats` times; the table shows medians. Actions are drawn beforehand and are the same for all.
A decision is one learner's action; with opponent="self" a game step takes two. Native batches step in one process;
SB3's DummyVecEnv and SubprocVecEnv hold single environments (`gym.make`), SubprocVecEnv one process each.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable
from typing import Any

import gymnasium as gym
import numpy as np
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

import gymcast.envs
from _common import interleave, machine, median, table
from gymcast.envs import GameVectorEnv

ENV_ID = "gymcast/Archers-v0"
DECISION_TICKS = 4


class Case:
    """One way to step: `run` plays for about `seconds` and returns steps per second."""

    def __init__(self, step: Callable[[int], int], decisions: int, games: int) -> None:
        self.step, self.decisions, self.games = step, decisions, games
        self.episodes: list[float] = []
        self.turn = 0

    def run(self, seconds: float) -> float:
        for _ in range(3):
            self._next()
        steps = ended = 0
        start = time.perf_counter()
        while (spent := time.perf_counter() - start) < seconds:
            ended += self._next()
            steps += 1
        self.episodes.append(ended / spent * 60)
        return steps / spent

    def _next(self) -> int:
        self.turn += 1
        return self.step(self.turn)


def native(lanes: int, threads: int, **options: Any) -> Case:
    env = GameVectorEnv(ENV_ID, lanes, seed=0, threads=threads, **options)
    env.reset()
    env.action_space.seed(0)
    pool = [env.action_space.sample() for _ in range(64)]

    def step(turn: int) -> int:
        env.step(pool[turn % 64])
        return len(env.ended) // env.seats

    for turn in range(400):  # past the first wave, in which no match ends
        step(turn)
    return Case(step, lanes, env.num_games)


def single() -> Case:
    env = gym.make(ENV_ID, opponent="random")
    env.reset(seed=0)
    env.action_space.seed(0)
    pool = [env.action_space.sample() for _ in range(64)]

    def step(turn: int) -> int:
        _, _, terminated, truncated, _ = env.step(pool[turn % 64])
        if terminated or truncated:
            env.reset()
        return int(terminated or truncated)

    return Case(step, 1, 1)


def sb3(kind: type[DummyVecEnv] | type[SubprocVecEnv], lanes: int) -> tuple[Case, Any]:
    env = make_vec_env(ENV_ID, lanes, seed=0, vec_env_cls=kind, env_kwargs={"opponent": "random"})
    env.reset()
    env.action_space.seed(0)
    pool = [np.stack([env.action_space.sample() for _ in range(lanes)]) for _ in range(64)]
    return Case(lambda turn: int(env.step(pool[turn % 64])[2].sum()), lanes, lanes), env


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lanes", type=int, default=2048, help="lanes of the native batches")
    parser.add_argument("--seconds", type=float, default=2.0, help="length of one measurement")
    parser.add_argument("--repeats", type=int, default=5, help="measurements per case")
    arguments = parser.parse_args()
    print(machine())
    gymcast.envs.warm_up(ENV_ID)
    lanes = arguments.lanes
    cases: dict[str, Case] = {}
    for threads in (1, 2):
        word = "1 thread" if threads == 1 else f"{threads} threads"
        cases[f"native batch, self-play, {word}"] = native(lanes, threads, opponent="self")
        cases[f"native batch, opponent random, {word}"] = native(lanes, threads, opponent="random")
        cases[f"native batch, opponent intermediate, {word}"] = native(lanes, threads, opponent="intermediate")
        cases[f"native batch, opponent expert, {word}"] = native(lanes, threads, opponent="expert")
    cases["gym.make, one environment, opponent random"] = single()
    cases["SB3 DummyVecEnv, 8 lanes, opponent random"], dummy = sb3(DummyVecEnv, 8)
    cases["SB3 SubprocVecEnv, 8 lanes, opponent random"], subproc = sb3(SubprocVecEnv, 8)
    figures = interleave(
        {name: lambda c=case: c.run(arguments.seconds) for name, case in cases.items()}, arguments.repeats
    )
    rows = []
    for name, rates in figures.items():
        case, rate = cases[name], median(rates)
        ticks = rate * case.games * DECISION_TICKS
        rows.append(
            [
                name,
                f"{rate * case.decisions:,.0f}",
                f"{ticks:,.0f}",
                f"{ticks / 50:,.0f}",
                f"{median(case.episodes):,.0f}",
                f"{min(rates) * case.decisions:,.0f} to {max(rates) * case.decisions:,.0f}",
            ]
        )
    print(table(["case", "decisions/s", "ticks/s", "game-s/s", "episodes/min", "decisions/s, range"], rows))
    for opponent in ("intermediate", "self"):
        env = GameVectorEnv(ENV_ID, lanes, opponent=opponent)
        print(f"memory per lane, opponent {opponent}: {env.bytes_per_lane:,.0f} bytes (states and both sets of arrays)")
    print(f"peak memory of this process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")
    dummy.close()
    subproc.close()


if __name__ == "__main__":
    main()
