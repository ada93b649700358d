"""Train every preset of a well-known environment to its target and say how far it came, how fast.

    python benchmarks/presets.py                                  # all that are installed, at most two minutes each
    python benchmarks/presets.py --only CartPole Taxi --minutes 5 --seed 3

A preset ends its training when the mean return of the last 100 episodes reaches its ``target_reward``; the evaluation
afterwards is of 100 episodes or more that were not trained on. Prints the table of docs/presets.md.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import gymnasium as gym

from _common import machine, table
from gymcast.training import Trainer, TrainingConfig
from gymcast.training.algorithm_table import ALGORITHMS

NOT_WELL_KNOWN = ("archers", "default", "vault")
HEADER = ["environment", "algorithm", "target", "reached", "return, last 100", "evaluation", "decisions", "seconds"]


def presets(only: list[str]) -> list[TrainingConfig]:
    """The presets whose environment can be made here and whose id has a part of ``only`` in it."""
    found = []
    for name in TrainingConfig.preset_names():
        config = TrainingConfig.preset(name)
        if name in NOT_WELL_KNOWN or (only and not any(part.lower() in config.env_id.lower() for part in only)):
            continue
        try:
            gym.make(config.env_id).close()
        except gym.error.Error as error:
            print(f"{config.env_id} is left out: {str(error).splitlines()[0]}")
            continue
        found.append(config)
    return found


def measure(config: TrainingConfig, minutes: float, seed: int) -> list[str]:
    """Train ``config`` for at most ``minutes``; returns a row of the table."""
    changes = {"max_minutes": minutes, "seed": seed, "checkpoint_interval_minutes": None}
    with tempfile.TemporaryDirectory(prefix="gymcast-presets-") as folder:
        trainer = Trainer(config.model_copy(update=changes), run_dir=Path(folder))
        result = trainer.run_training_loop()
    mean = trainer.progress.stats.mean_of_last(100)
    return [
        config.env_id,
        ALGORITHMS[trainer.config.algorithm].title,
        "-" if config.target_reward is None else f"{config.target_reward:g}",
        "yes" if result.reason == "target_reward reached" else "no",
        "-" if mean is None else f"{mean:.2f}",
        f"{result.evaluations[0].mean_return:.2f}" if result.evaluations else "-",
        f"{result.timesteps:,}",
        f"{result.training_seconds:.0f}",
    ]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[], help="parts of environments' ids")
    parser.add_argument("--minutes", type=float, default=2.0, help="limit of each training")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(machine())
    rows = []
    for config in presets(options.only):
        rows.append(measure(config, options.minutes, options.seed))
        print(" | ".join(rows[-1]), flush=True)
    print(table(HEADER, rows))


if __name__ == "__main__":
    main()
