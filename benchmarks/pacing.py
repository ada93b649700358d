"""How exactly a game is held to its speed: the rate over ten seconds, its error, the lag of a machine that is too slow.

    python benchmarks/pacing.py [--seconds 10] [--lanes 16]

An Archers batch is stepped and held to 1, 10, 50 and 100 times real time by `gymcast.envs.Pacer`; the last two cases
are a batch that is too big for 100 times real time, and one whose steps stall for half a second five times. The rate is
taken from the wall clock, not from the pacer; lag is what the pacer reports. Target: an error of at most 1 %.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

import gymcast.envs
from _common import machine, table
from gymcast.envs import GameVectorEnv, Pacer


def paced(lanes: int, multiplier: float, seconds: float, stalls: int = 0) -> tuple[float, float, float]:
    """Play for `seconds`: (game seconds per second of each lane, lag in s, share of the time spent stepping)."""
    env = GameVectorEnv("archers", lanes, seed=0, opponent="random")
    env.reset()
    actions = np.zeros((lanes, 4), np.int64)
    for _ in range(20):
        env.step(actions)
    pacer = Pacer(env.decision_seconds, multiplier)
    pacer.wait()
    steps, stepping, stalled = 0, 0.0, 0
    start = time.perf_counter()
    while (now := time.perf_counter()) - start < seconds:
        if stalls and now - start > (stalled + 0.5) * seconds / stalls:
            stalled += 1
            time.sleep(0.5)
        env.step(actions)
        stepping += time.perf_counter() - now
        pacer.wait()
        steps += 1
    spent = time.perf_counter() - start
    env.close()
    return steps * env.decision_seconds / spent, pacer.lag, stepping / spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each case")
    parser.add_argument("--lanes", type=int, default=16, help="lanes of the batch")
    parser.add_argument("--too-many", type=int, default=16_384, help="lanes of the case that is too slow for 100 x")
    arguments = parser.parse_args()
    print(machine())
    gymcast.envs.warm_up("archers")
    cases = [(f"{speed:g} x", arguments.lanes, speed, 0) for speed in (1.0, 10.0, 50.0, 100.0)]
    cases += [
        ("100 x, too many lanes", arguments.too_many, 100.0, 0),
        ("10 x, five stalls of 0.5 s", arguments.lanes, 10.0, 5),
    ]
    rows = []
    for name, lanes, speed, stalls in cases:
        rate, lag, busy = paced(lanes, speed, arguments.seconds, stalls)
        error = 100 * (rate / speed - 1)
        rows.append([name, f"{lanes:,}", f"{rate:.3f}", f"{error:+.3f} %", f"{lag:.3f} s", f"{100 * busy:.0f} %"])
    print(table(["speed asked for", "lanes", "rate held", "error", "lag reported", "time stepping"], rows))


if __name__ == "__main__":
    main()
