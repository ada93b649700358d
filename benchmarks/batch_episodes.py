"""Episodes per minute: ``BatchEpisodeManager`` against one loop that plays one episode after the other.

    python benchmarks/batch_episodes.py                 # about two minutes
    python benchmarks/batch_episodes.py --repeats 1 --workers 4

Cases run in turn, `--repeats` times; figures are medians. The loop is what one would write: `gymnasium.make`, `reset`,
`step`, in one process; scripted archers and random legal actions come from the same code in both. The manager's workers
are started and have played before; a manager of its own measures what the start costs. `lanes` is how many episodes a
worker plays side by side as one compiled batch.
"""

from __future__ import annotations

import argparse
import asyncio
import time
from typing import Any

import gymnasium as gym
import numpy as np

from _common import interleave, machine, median, table
from gymcast.envs import GAMES
from gymcast.training import BatchEpisodeManager

ARCHERS = "gymcast/Archers-v0"
# environment, policy, options; episodes for the loop, for the manager, and for the manager with lanes
CASES: dict[str, tuple[str, str, dict[str, Any], tuple[int, int, int]]] = {
    "archers, intermediate against expert": (ARCHERS, "intermediate", {"opponent": "expert"}, (200, 400, 4000)),
    "archers, intermediate against random": (ARCHERS, "intermediate", {"opponent": "random"}, (200, 400, 4000)),
    "CartPole-v1, random": ("CartPole-v1", "random", {}, (5000, 20000, 0)),
}


def sequential(env_id: str, policy: str, env_kwargs: dict[str, Any], episodes: int) -> float:
    """Episodes per minute of the loop."""
    env: Any = gym.make(env_id, **env_kwargs)
    script = GAMES[env_id].load_script()(policy, 1, env.unwrapped.options) if env_id in GAMES else None
    env.action_space.seed(0)
    began = time.perf_counter()
    for seed in range(episodes):
        observation, _ = env.reset(seed=seed)
        if script is not None:
            script.begin(0, seed)
        ended = False
        while not ended:
            action = env.action_space.sample() if script is None else script.act(observation[None])[0]
            observation, _, terminated, truncated, _ = env.step(action)
            ended = terminated or truncated
    seconds = time.perf_counter() - began
    env.close()
    return 60.0 * episodes / seconds


async def played(
    manager: BatchEpisodeManager, env: str, policy: str, env_kwargs: dict[str, Any], episodes: int, lanes: int
) -> float:
    """Episodes per minute of a batch, from its submission to its end."""
    began = time.perf_counter()
    batch_id = f"b{began}"
    ids = [f"e{n}" for n in range(episodes)]
    await manager.submit_batch(
        batch_id, ids, env=env, policy=policy, env_kwargs=env_kwargs, lanes=lanes, keep_results=0
    )
    status = await manager.wait_batch(batch_id)
    assert status.completed == episodes, status
    return 60.0 * episodes / (time.perf_counter() - began)


async def start_seconds(workers: int) -> float:
    """Seconds from nothing to the result of a first CartPole episode, with the fork server running."""
    began = time.perf_counter()
    async with BatchEpisodeManager(workers) as manager:
        await manager.submit_batch("b", ["e"], env="CartPole-v1")
        await manager.wait_batch("b")
        return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--lanes", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    print(machine())
    with asyncio.Runner() as runner:
        manager = BatchEpisodeManager(given.workers)
        began = time.perf_counter()
        runner.run(manager.start())
        print(f"first start, with the imports of the fork server: {time.perf_counter() - began:.2f} s")
        rows = []
        for name, (env, policy, env_kwargs, (slow, one, many)) in CASES.items():
            case = env, policy, env_kwargs
            ways = {
                "loop": lambda case=case, n=slow: sequential(*case, n),
                "manager": lambda case=case, n=one: runner.run(played(manager, *case, n, 1)),
            }
            if many:
                several = f"manager, {given.lanes} lanes"
                ways[several] = lambda case=case, n=many: runner.run(played(manager, *case, n, given.lanes))
            for way in ways.values():  # kernels compiled, environments made
                way()
            found = {way: median(figures) for way, figures in interleave(ways, given.repeats).items()}
            for way, figure in found.items():
                rows.append([name, way, f"{figure:,.0f}", f"{figure / found['loop']:.1f}"])
        print(table(["episodes", "played by", "per minute", "times the loop"], rows))
        starts = [runner.run(start_seconds(given.workers)) for _ in range(5)]
        print(f"a further manager, from nothing to the first result: {np.median(starts) * 1000:.0f} ms")
        runner.run(manager.stop())


if __name__ == "__main__":
    main()
