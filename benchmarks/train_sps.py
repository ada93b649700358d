"""Samples/s of PPO on Archers: gymcast's path against SB3's PPO on SubprocVecEnv and DummyVecEnv.

    python benchmarks/train_sps.py [--repeats 3] [--rollouts 3]

Same game, network, batch size, epochs and samples per rollout (from the archers preset) in every case; the way of
stepping and the number of lanes differ, and where it is said the precision and the algorithm. Every case runs in a
process of its own, in turn, `--repeats` times; samples/s is collecting and training together, over whole rollouts after
one that is not counted. The table shows medians, the ratio to SB3's SubprocVecEnv, game-seconds simulated per
wall-second, and peak memory of the training process.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from typing import Any

import gymcast.envs  # noqa: F401 - registers the games, in the processes of SubprocVecEnv too
from _common import interleave, machine, median, table

CASES = {
    "gymcast, the archers preset as it is (MaskablePPO, 1,024 lanes)": ("preset", 1024),
    "gymcast PPO, 2,048 lanes": ("auto", 2048),
    "gymcast PPO, float32, 2,048 lanes": ("float32", 2048),
    "gymcast PPO, float32, 8 lanes": ("float32", 8),
    "SB3 PPO on SubprocVecEnv, 8 processes": ("subproc", 8),
    "SB3 PPO on DummyVecEnv, 8 lanes": ("dummy", 8),
}
SECONDS_PER_DECISION = 0.08


def measure(kind: str, lanes: int, rollouts: int) -> dict[str, float]:
    """Train for `rollouts` rollouts after a first one; samples/s and peak memory (MB) of this process."""
    import torch as th
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv

    from _rollouts import RolloutClock
    from gymcast.training.compute import keep_freed_memory
    from gymcast.training.config import TrainingConfig
    from gymcast.training.models import build_model, torch_threads
    from gymcast.training.policies import policy_kwargs
    from gymcast.training.schedules import resolve_schedules
    from gymcast.training.vec_env import make_training_vec_env

    config = TrainingConfig.preset("archers", **({} if kind == "preset" else {"algorithm": "ppo"}))
    settings: dict[str, Any] = resolve_schedules(dict(config.hyperparameters))
    samples = config.parallel_episodes * settings["n_steps"]
    settings["n_steps"] = samples // lanes
    if kind in ("preset", "auto", "float32"):
        keep_freed_memory()
        env = make_training_vec_env(config.env_id, lanes, 0, options=config.env_kwargs)
        precision = "float32" if kind == "float32" else config.precision
        config = config.model_copy(update={"hyperparameters": settings, "precision": precision})
        model = build_model(config, env, 0)
    else:
        vec_env_cls = SubprocVecEnv if kind == "subproc" else DummyVecEnv
        env = make_vec_env(config.env_id, lanes, seed=0, vec_env_cls=vec_env_cls, env_kwargs=dict(config.env_kwargs))
        network = policy_kwargs(config.network, config.algorithm)
        network.pop("optimizer_kwargs")
        model = PPO("MlpPolicy", env, seed=0, device="cpu", policy_kwargs=network, **settings)
    th.set_num_threads(torch_threads(config, model))

    clock = RolloutClock()
    model.learn(samples * (rollouts + 2), callback=clock)
    env.close()
    spent = clock.spent(rollouts)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rate": samples * rollouts / spent, "peak_mb": peak}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="measurements per case")
    parser.add_argument("--rollouts", type=int, default=3, help="rollouts per measurement, after one not counted")
    parser.add_argument("--one", nargs=2, metavar=("KIND", "LANES"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], int(arguments.one[1]), arguments.rollouts)))
        return
    print(machine())
    peaks: dict[str, float] = {}

    def run(name: str) -> float:
        kind, lanes = CASES[name]
        command = [sys.executable, __file__, "--one", kind, str(lanes), "--rollouts", str(arguments.rollouts)]
        answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        peaks[name] = max(peaks.get(name, 0.0), answer["peak_mb"])
        return float(answer["rate"])

    figures = interleave({name: lambda n=name: run(n) for name in CASES}, arguments.repeats)
    base = figures["SB3 PPO on SubprocVecEnv, 8 processes"]
    rows = []
    for name, rates in figures.items():
        ratio = median([rate / reference for rate, reference in zip(rates, base, strict=True)])
        spread = f"{min(rates):,.0f} to {max(rates):,.0f}"
        game_seconds = median(rates) * SECONDS_PER_DECISION
        rows.append(
            [name, f"{median(rates):,.0f}", spread, f"{ratio:.1f}x", f"{game_seconds:,.0f}", f"{peaks[name]:,.0f}"]
        )
    print(table(["case", "samples/s", "range", "ratio", "game-s per s", "peak MB"], rows))


if __name__ == "__main__":
    main()
