"""Kill trainings of every algorithm at random moments, many times, and compare their weights with undisturbed ones.

    python benchmarks/faults/resume_kills.py                  # 20 kills of each combination, about half an hour
    python benchmarks/faults/resume_kills.py --kills 5 --only recurrent_ppo

Each combination is trained twice with one seed, once left alone and once killed with SIGKILL and resumed again and
again (``gymcast.training.resume_check``, the same as ``gymcast verify-resume``). Prints one line per combination and
exits with 1 when the SHA-256 of the weights differs anywhere.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from pathlib import Path
from typing import Any

from gymcast.training.algorithm_table import ALGORITHMS
from gymcast.training.resume_check import ResumeCheckError, check_config, check_resume

# Where an algorithm is not to be compared with its own defaults; the others learn from rollouts in this way.
ON_POLICY = {"n_steps": 32, "batch_size": 128, "n_epochs": 2}
HYPERPARAMETERS: dict[str, dict[str, Any]] = {
    "a2c": {"n_steps": 16},
    "trpo": {"n_steps": 32, "batch_size": 128},
    "dqn": {"buffer_size": 5000},
    "qrdqn": {"buffer_size": 5000},
    "sac": {"buffer_size": 5000, "learning_starts": 500, "use_sde": True},
    "td3": {"buffer_size": 5000, "learning_starts": 500, "noise_type": "ornstein_uhlenbeck"},
    "ars": {"n_delta": 4},
}
ENVIRONMENTS = ("archers", "CartPole-v1", "Acrobot-v1", "Pendulum-v1", "LunarLander-v3")
ARCHERS = {"parallel_episodes": 64, "env_kwargs": {"opponent": "intermediate"}}
DISCRETE = {"env_kwargs": {"opponent": "intermediate", "action": "discrete"}}


def takes(algorithm: str, env_id: str) -> bool:
    """Whether ``algorithm`` is compared on ``env_id``: Archers has masks, and actions of several kinds."""
    spec = ALGORITHMS[algorithm]
    if env_id == "archers":
        return "MultiDiscrete" in spec.actions or algorithm == "dqn"
    return not spec.masked and ("Box" if env_id == "Pendulum-v1" else "Discrete") in spec.actions


def combinations() -> list[tuple[str, dict[str, Any]]]:
    """``(environment, settings)`` of everything that is compared."""
    found: list[tuple[str, dict[str, Any]]] = []
    for env_id in ENVIRONMENTS:
        if env_id == "LunarLander-v3" and importlib.util.find_spec("Box2D") is None:
            print("LunarLander-v3 is left out: pip install 'gymcast[box2d]'")
            continue
        shape = ARCHERS if env_id == "archers" else {"parallel_episodes": 8}
        for algorithm in ALGORITHMS:
            if not takes(algorithm, env_id):
                continue
            hyperparameters = HYPERPARAMETERS.get(algorithm, ON_POLICY)
            more = DISCRETE if (env_id, algorithm) == ("archers", "dqn") else {}
            for normalize in (None, {}):
                settings = {"algorithm": algorithm, "hyperparameters": hyperparameters, "normalize": normalize}
                found.append((env_id, {**shape, **more, **settings}))
    return found


def main() -> int:
    """Check every combination; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="part of a combination's name, such as dqn or CartPole")
    parser.add_argument("--rollouts", type=int, default=0, help="rollouts of each run; by default six per kill")
    options = parser.parse_args()
    unequal = 0
    print(f"{options.kills} kills each, seed {options.seed}")
    for env_id, settings in combinations():
        name = f"{env_id} {settings['algorithm']}{' normalised' if settings['normalize'] is not None else ''}"
        if options.only not in name:
            continue
        steps = settings["hyperparameters"].get("n_steps", 32)
        rollouts = options.rollouts or 6 * options.kills
        total = rollouts * steps * settings["parallel_episodes"]
        config = check_config(env_id, seed=options.seed, total_timesteps=total, **settings)
        with tempfile.TemporaryDirectory(prefix="gymcast-resume-kills-") as folder:
            try:
                report = check_resume(
                    config, options.kills, Path(folder), tell=lambda *_: None, on_kill=lambda _: None, seed=options.seed
                )
            except ResumeCheckError as error:
                print(f"{name:<40} FAILED: {error}", flush=True)
                unequal += 1
                continue
        unequal += not report.equal
        first, second = (sha[:12] for sha in report.weights)
        verdict = "equal" if report.equal else "NOT EQUAL"
        resumed = len({kill.resumed_from for kill in report.kills})
        print(
            f"{name:<40} {len(report.kills)} kills, {resumed} checkpoints resumed from,"
            f" {report.timesteps[0]:,} decisions, {report.seconds:.0f} s: {first} {second} {verdict}",
            flush=True,
        )
    return 1 if unequal else 0


if __name__ == "__main__":
    sys.exit(main())
