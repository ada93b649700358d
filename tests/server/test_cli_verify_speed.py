"""``gymcast verify-speed``: says yes to games that speed does not change, and really finds those it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from gymcast.envs import OptionValueError, verify_speed
from gymcast.server import cli
from gymcast.server.cli_errors import UserError

# A ball that falls; how its time step is measured is what the tests are about.
FALLING = """
import time
import gymnasium as gym
import numpy as np

class Ball(gym.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 100}
    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode=None, clock="fixed"):
        self.render_mode, self.clock = render_mode, clock

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.height, self.speed, self.steps = 1.0 + self.np_random.random(), 0.0, 0
        self.then = time.perf_counter()
        return np.array([self.height, self.speed]), {}

    def step(self, action):
        now = time.perf_counter()
        dt = now - self.then if self.clock == "wall" else 0.01
        self.then = now
        self.steps += 1
        self.speed -= 9.81 * dt
        self.height += self.speed * dt
        return np.array([self.height, self.speed]), 0.0, self.steps == 20, False, {}

    def render(self):
        if self.clock == "shown":
            self.speed += 1e-9
        return np.zeros((4, 4, 3), np.uint8)

gym.register("Ball-v0", entry_point=Ball)
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    (folder / "falling.py").write_text(FALLING)
    command = [sys.executable, "-m", "gymcast.server.cli", "verify-speed", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={**os.environ, "COLUMNS": "40"})


QUICK = ("--episodes", "12", "--paced-seconds", "0.2")


def test_physics_by_the_wall_clock_is_found_out(tmp_path: Path) -> None:
    done = run(tmp_path, "falling:Ball-v0", *QUICK, "--option", "clock=wall")
    assert done.returncode == 1 and done.stderr == ""
    rows = {line.split()[0]: line.split()[-1] for line in done.stdout.splitlines()[1:7]}
    assert rows["headless"] == "yes"
    assert [rows[mode] for mode in ("repeated", "maximum", "realtime", "drawn")] == ["NO"] * 4
    assert "realtime: goes another way from decision 1 of its lanes on" in done.stdout
    assert "depends on wall-clock time" in done.stdout


def test_a_game_that_being_watched_changes_is_found_out(tmp_path: Path) -> None:
    done = run(tmp_path, "falling:Ball-v0", *QUICK, "--option", "clock=shown", "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert {r["mode"]: r["equal"] for r in found["runs"]} == {
        "headless": True,
        "repeated": True,
        "maximum": True,
        "realtime": True,
        "drawn": False,
        "spectated": True,
    }
    assert found["equal"] is False and found["runs"][4]["differs_at"] > 0


def test_a_fixed_time_step_is_the_same_at_every_speed(tmp_path: Path) -> None:
    done = run(tmp_path, "falling:Ball-v0", *QUICK)
    assert done.returncode == 0, done.stdout
    assert "the same 16 episodes on 8 lanes in all 5 modes, bit for bit" in done.stdout
    assert "spectators are shown built-in games only" in done.stdout


@pytest.mark.parametrize("options", [{}, {"opponent": "self", "players": 3, "observation": "grid", "map": "random"}])
def test_archers_is_the_same_at_every_speed(options: dict[str, Any]) -> None:
    progress: list[tuple[str, int]] = []
    runs = verify_speed(
        "archers",
        episodes=150,
        seed=3,
        paced_seconds=0.2,
        options={"max_duration_s": 2.0, **options},
        on_progress=lambda mode, over: progress.append((mode, over)),
    )
    assert [r.mode for r in runs] == ["headless", "repeated", "maximum", "realtime", "drawn", "spectated"]
    assert all(r.equal and r.sha256 == runs[0].sha256 and r.episodes >= 150 for r in runs)
    assert runs[3].paced < runs[3].decisions == runs[2].paced == runs[0].decisions
    assert runs[4].shown and runs[5].shown and not runs[0].shown
    assert {mode for mode, _ in progress} == {r.mode for r in runs} and progress[-1][1] == 150


def test_other_seeds_are_other_plays() -> None:
    hashes = {verify_speed("CartPole-v1", episodes=8, seed=n, paced_seconds=0.1)[0].sha256 for n in range(3)}
    assert len(hashes) == 3


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["arcers"], 'Did you mean "archers"?'),
        (["archers", "--option", "map=moon"], "choose one of"),
        (["archers", "--option", "mapp=pit"], 'Did you mean "map"?'),
        (["no_such_module:Ball-v0"], "cannot import 'no_such_module'"),
        (["CartPole-v1", "--option", "gravity=1"], "CartPole-v1 cannot be made with the options {'gravity': 1}"),
    ],
)
def test_bad_input_is_said(arguments: list[str], text: str) -> None:
    with pytest.raises(UserError) as caught:
        cli.run(["verify-speed", *arguments])
    assert caught.value.exit_code == 2 and text in str(caught.value)


def test_an_environment_that_cannot_be_made_is_an_option_error() -> None:
    with pytest.raises(OptionValueError, match="cannot be made"):
        verify_speed("CartPole-v1", options={"nonsense": 1})
