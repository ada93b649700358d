"""A training does not load torch's compiler, and comes to what it comes to with it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TRAINS = """
import sys
from pathlib import Path
from gymcast.training import Trainer, TrainingConfig
from gymcast.training.checkpoints import CheckpointManager, load_tensors, tensors_sha256

def weights(name):
    more = {"n_steps": 64, "batch_size": 64, "n_epochs": 2}
    config = TrainingConfig.for_env(
        "CartPole-v1", total_timesteps=256, evaluation_games=0, seed=1, parallel_episodes=2, hyperparameters=more
    )
    result = Trainer(config, run_dir=Path(sys.argv[1]) / name).run_training_loop()
    newest = CheckpointManager(result.run_dir / "checkpoints").newest()
    return tensors_sha256(load_tensors(newest)["model"]["policy"])

without = weights("without")
print("torch._dynamo" in sys.modules, "sympy" in sys.modules)
import torch._dynamo
print(without == weights("with"))
"""


def test_training_needs_no_compiler_and_is_the_same_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRAINS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["False", "False", "True"]
