"""``gymcast verify-resume``, ``export`` and ``train --from``: what they print, and their exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from stable_baselines3 import PPO

from gymcast.training import Trainer, TrainingConfig

from ..commands import gymcast_here

QUICK = ("--set", 'hyperparameters={"n_steps": 16, "batch_size": 64, "n_epochs": 1}', "--set", "parallel_episodes=8")


def gymcast(*arguments: str, folder: Path, seconds: float = 280) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "gymcast.server.cli", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(folder), "COLUMNS": "120"}
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, timeout=seconds, env=environment)


def test_verify_resume_tells_every_kill_and_both_hashes(tmp_path: Path) -> None:
    done = gymcast_here(
        tmp_path, "verify-resume", "CartPole-v1", "--kills", "2", "--total-timesteps", "3000", "--normalize",
        "--algorithm", "dqn", "--set", "hyperparameters.buffer_size=2000", "--set", "parallel_episodes=4",
        "--keep", "both",
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    first, *lines, last = done.stdout.splitlines()
    assert first.startswith("CartPole-v1 with dqn, 4 lanes, 3,000 decisions, seed 1, normalised")
    for number, line in enumerate(lines[:2], start=1):
        assert line.split()[:3] == ["kill", str(number), "SIGKILL"] and "resumed from " in line
    assert "resumed from step-" in lines[1]
    hashes = [line.split()[-1] for line in lines[2:]]
    assert len(hashes) == 4 and hashes[0] == hashes[1] and hashes[2] == hashes[3] and len(hashes[0]) == 64
    assert last.startswith("Equal: 2 kills changed nothing (3,008 and 3,008 decisions")
    assert {path.name for path in (tmp_path / "both").iterdir()} == {"undisturbed", "killed"}
    again = gymcast_here(tmp_path, "verify-resume", "CartPole-v1", "--keep", "both")
    assert again.returncode == 2 and "both is not an empty folder" in again.stderr


CHANCE = """
import gymnasium as gym
import numpy as np

class Chance(gym.Env):
    '''A game nobody can continue exactly: it draws from the system's entropy.'''
    observation_space = gym.spaces.Box(0, 1, (2,), np.float32)
    action_space = gym.spaces.Discrete(2)
    def draw(self):
        return np.random.default_rng().random(2).astype(np.float32)
    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.draw(), {}
    def step(self, action):
        seen = self.draw()
        return seen, float(seen[0]), bool(seen[1] > 0.9), False, {}

gym.register("Chance-v0", Chance)
"""


def test_verify_resume_notices_a_difference(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text(CHANCE)  # every process of the check imports it when it starts
    done = gymcast(
        "verify-resume", "Chance-v0", "--kills", "1", "--total-timesteps", "4000", *QUICK, "--json",
        folder=tmp_path,
    )  # fmt: skip
    assert done.returncode == 1, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["equal"] is False and report["weights"][0] != report["weights"][1]
    assert [kill["number"] for kill in report["kills"]] == [1] and report["timesteps"] == [4096, 4096]


def test_verify_resume_refuses_settings_that_cannot_be_used(tmp_path: Path) -> None:
    done = gymcast_here(tmp_path, "verify-resume", "archers", "--algorithm", "pp", "--option", "map=moon")
    assert done.returncode == 2 and "map='moon' is not allowed" in done.stderr
    done = gymcast_here(tmp_path, "verify-resume", "CartPole-v1", "--set", "hyperparameters.gamma=7")
    assert done.returncode == 2 and "hyperparameters.gamma: got 7" in done.stderr


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one short run in ``runs/pole``."""
    folder = tmp_path_factory.mktemp("exported")
    config = TrainingConfig.for_env(
        "CartPole-v1", total_timesteps=256, parallel_episodes=2, evaluation_games=0, seed=1,
        network={"hidden": [24]}, hyperparameters={"n_steps": 64, "batch_size": 64, "n_epochs": 1},
    )  # fmt: skip
    Trainer(config, run_dir=folder / "runs" / "pole").run_training_loop()
    return folder


def test_a_run_is_exported_once_and_trained_on_from_there(runs: Path) -> None:
    done = gymcast_here(runs, "export", "latest", "-o", "pole.zip")
    assert done.returncode == 0 and "pole.zip" in done.stdout and "step-00000000000256" in done.stdout, done.stderr
    assert PPO.load(runs / "pole.zip", device="cpu").num_timesteps == 256
    again = gymcast_here(runs, "export", "latest", "-o", "pole.zip")
    assert again.returncode == 2 and "exists already" in again.stderr
    done = gymcast(
        "train", "CartPole-v1", "--from", "pole.zip", "--total-timesteps", "256", "--lanes", "2", "--port", "auto",
        "--set", "hyperparameters.n_steps=64", "--evaluation-games", "0", "--json", folder=runs,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    run_dir = runs / json.loads(done.stdout.splitlines()[-1])["run_dir"]
    assert TrainingConfig.from_yaml(run_dir / "config.yaml").network.hidden == (24,)
    assert (run_dir / "initial.zip").read_bytes() == (runs / "pole.zip").read_bytes()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("export", "latest", "-o", "pole.pt"), "has to end in .zip"),
        (("export", "nowhere", "-o", "x.zip"), "no run 'nowhere'"),
        (("export", "latest"), "missing option '--output'"),
        (("train", "CartPole-v1", "--from", "runs/pole/config.yaml"), "is no model of Stable-Baselines3"),
        (("train", "CartPole-v1", "--from", "missing.zip"), "No such file"),
        (("train", "--resume", "latest", "--from", "x.zip"), "give one of them"),
    ],
)
def test_what_cannot_be_done_is_said(runs: Path, arguments: tuple[str, ...], reason: str) -> None:
    done = gymcast_here(runs, *arguments)
    assert done.returncode == 2 and reason in done.stderr, done.stderr
