"""One real training from the command line, and everything that can be done with its run afterwards."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from ..commands import gymcast_here

SMALL = ("--lanes", "2", "--evaluation-games", "4", "--set", "hyperparameters.n_steps=64", "--port", "auto")


def gymcast(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gymcast.server.cli", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=180,
    )


def events(done: subprocess.CompletedProcess[str]) -> list[dict[str, Any]]:
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """A folder with a finished run, and what the command printed as JSON."""
    folder = tmp_path_factory.mktemp("trained")
    done = gymcast(
        folder, "train", "CartPole-v1", "--total_timesteps", "512", "--seed", "3", "--json", *SMALL,
        "--learning_rate", "0.002", "--lr-schedule", "cosine", "--lr_warmup", "0.25", "--batch-size", "32",
    )  # fmt: skip
    return folder, events(done)


def test_the_address_comes_first_and_the_summary_last(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, printed = trained
    first, last = printed[0], printed[-1]
    assert first["event"] == "started"
    assert first["page"].startswith("http://127.0.0.1:")
    assert last["event"] == "summary"
    assert last["status"] == "completed"
    assert last["timesteps"] >= 512
    assert last["session_id"] in last["page"]
    (evaluation,) = last["evaluations"]
    assert evaluation["games"] == 4
    assert (folder / last["run_dir"] / last["checkpoint"]["path"] / "manifest.json").is_file()
    assert (folder / "runs" / "gymcast.db").is_file()
    assert (folder / last["run_dir"] / "config.yaml").is_file()


def test_options_become_settings_of_the_run(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, printed = trained
    settings = yaml.safe_load((folder / printed[-1]["run_dir"] / "config.yaml").read_text())
    assert settings["hyperparameters"]["learning_rate"] == {
        "schedule": "cosine", "start": 0.002, "end": 0.0, "warmup": 0.25
    }  # fmt: skip
    assert settings["hyperparameters"]["batch_size"] == 32
    assert settings["hyperparameters"]["n_epochs"] == 20  # of the preset


def test_a_finished_run_asks_how_much_more(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, printed = trained
    done = gymcast_here(folder, "train", "--resume", "latest", "--port", "auto")
    assert done.returncode == 2
    assert "has reached its goal" in done.stderr
    assert f"gymcast train --resume {printed[-1]['run_dir']} --total-timesteps" in done.stderr


def test_evaluate_measures_the_newest_checkpoint(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, _ = trained
    (result,) = events(gymcast_here(folder, "evaluate", "latest", "--games", "3", "--json"))
    assert result["games"] == 3
    assert result["mean_return"] == result["mean_length"]  # CartPole pays 1 for each decision
    assert gymcast_here(folder, "evaluate", "latest", "--opponent", "expert").returncode == 2


def test_resume_goes_on_in_the_same_session(trained: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, printed = trained
    last = events(
        gymcast(
            folder, "train", "--resume", "latest", "--total-timesteps", "256", "--evaluation-games", "0",
            "--port", "auto", "--json",
        )
    )[-1]  # fmt: skip
    before = printed[-1]
    assert last["session_id"] == before["session_id"]
    assert last["run_dir"] == before["run_dir"]
    assert last["status"] == "completed"
    assert last["timesteps"] >= before["timesteps"] + 256
    assert last["checkpoint"]["timesteps"] == last["timesteps"]


def test_settings_that_only_the_algorithm_can_check_are_bad_input_too(tmp_path: Path) -> None:
    done = gymcast(tmp_path, "train", "CartPole-v1", "--algorithm", "maskable_ppo", "--port", "auto", "--quiet")
    assert done.returncode == 2
    assert "algorithm: maskable_ppo needs action_masks(), which the environment does not have;" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


def test_checkpoints_go_where_they_are_wanted_and_by_episodes(tmp_path: Path) -> None:
    last = events(
        gymcast(
            tmp_path, "train", "CartPole-v1", "--num_episodes", "60", "--max_steps", "12",
            "--checkpoint_dir", "kept/here", "--checkpoint_freq", "20",
            "--autosave_interval", "7.5", "--force_cpu", "--gamma", "0.9", "--json", *SMALL,
            "--set", "hyperparameters.n_epochs=1",
        )
    )[-1]  # fmt: skip
    run_dir = tmp_path / last["run_dir"]
    settings = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert (settings["checkpoint_interval_episodes"], settings["checkpoint_interval_minutes"]) == (20, 7.5)
    assert (settings["max_episode_steps"], settings["device"], settings["max_episodes"]) == (12, "cpu", 60)
    saved = sorted(path.parent.name for path in (tmp_path / "kept" / "here").glob("step-*/manifest.json"))
    assert len(saved) >= 2 and last["checkpoint"]["path"] == f"checkpoints/{saved[-1]}"
    (result,) = events(gymcast_here(tmp_path, "evaluate", "latest", "--games", "2", "--json"))
    assert result["games"] == 2


def test_a_target_ends_the_training_which_is_watched_in_the_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser, opened = tmp_path / "browser", tmp_path / "opened"
    browser.write_text(f'#!/bin/sh\necho "$1" > {opened}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    last = events(
        gymcast(
            tmp_path, "train", "CartPole-v1", "--target-reward", "9", "--total-timesteps", "1000000", "--render",
            "--json", *SMALL, "--set", "hyperparameters.n_epochs=1",
        )
    )[-1]  # fmt: skip
    assert (last["status"], last["reason"]) == ("completed", "target_reward reached")
    assert 100 <= last["episodes"] < 400 and last["timesteps"] < 40_000
    assert opened.read_text().strip() == last["page"]


@pytest.mark.parametrize("output", [(), ("--json",)], ids=["text", "json"])
def test_a_reader_that_leaves_does_not_end_the_training(output: tuple[str, ...], tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gymcast.server.cli", "train", "CartPole-v1", "--total-timesteps", "512", *SMALL]
    with subprocess.Popen(
        [*command, "--no-stay", *output], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None and running.stderr is not None
        assert "127.0.0.1" in running.stdout.readline()
        running.stdout.close()
        errors = running.stderr.read()
        assert running.wait(120) == 0, errors
    assert errors == ""
    (summary,) = tmp_path.glob("runs/*/summary.json")
    assert json.loads(summary.read_text())["status"] == "completed"
    assert "nothing more is shown, the training goes on" in (tmp_path / "runs" / "server.log").read_text()


def test_closed_standard_streams_do_no_harm(tmp_path: Path) -> None:
    arguments = shlex.join(["train", "CartPole-v1", "--total-timesteps", "512", *SMALL])
    done = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -m gymcast.server.cli {arguments} <&- >&- 2>&-"], cwd=tmp_path, timeout=120
    )
    assert done.returncode == 0
    (summary,) = tmp_path.glob("runs/*/summary.json")
    assert json.loads(summary.read_text())["status"] == "completed"
    # Nothing was printed into the files that were opened first.
    assert (tmp_path / "runs" / "gymcast.db").read_bytes().startswith(b"SQLite format 3")
