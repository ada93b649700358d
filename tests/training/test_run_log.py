"""The logs of a run: what they hold, and that none of them can end a training."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from stable_baselines3.common.logger import KVWriter

from gymcast.training import Trainer, run_log
from gymcast.training.callbacks.metric_names import EXTRA_METRICS, METRICS_OF_SOME
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.events import ErrorData
from gymcast.training.run_log import Guarded, describe, scalars

SMALL: dict[str, Any] = {
    "env_id": "archers",
    "env_kwargs": {"opponent": "random", "max_duration_s": 1.0, "kills_to_win": 1},
    "network": {"hidden": [16]},
    "hyperparameters": {"n_steps": 16, "batch_size": 128, "n_epochs": 1},
    "parallel_episodes": 16,
    "total_timesteps": 2560,
    "evaluation_games": 8,
    "evaluation_opponents": ["beginner"],
    "metrics_hz": 50,
    "seed": 1,
}


def train(run_dir: Path, sink: Any = None, **changes: Any) -> Any:
    return Trainer(TrainingConfig.parse({**SMALL, **changes}), run_dir=run_dir, sink=sink).run_training_loop()


def json_lines(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]


def test_a_run_is_logged_for_people_and_for_programs(tmp_path: Path) -> None:
    result = train(tmp_path)
    lines = json_lines(tmp_path)
    assert all(line["time"].endswith("Z") and line["kind"] in ("log", "update") for line in lines)
    first, *_, last = [line for line in lines if line["kind"] == "update"]
    assert (first["timesteps"], first["gymcast/epoch"]) == (256, 1)
    assert {"gymcast/wins", "gymcast/losses", "gymcast/draws", "gymcast/win_rate"} <= set(first)
    assert (
        last["timesteps"] == result.timesteps and last["evaluation/beginner/win_rate"] == result.evaluations[0].win_rate
    )
    messages = [line["message"] for line in lines if line["kind"] == "log"]
    text = (tmp_path / "log.txt").read_text()
    assert len(text.splitlines()) == len(messages) and all(message in text for message in messages)
    assert "256 decisions, epoch 1, " in text and " won, " in text and " drawn, " in text


def test_every_metric_of_a_reading_is_in_the_log_under_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_log, "JSON_SECONDS", 0.0)
    train(tmp_path, total_timesteps=30_000, evaluation_games=0)
    found = {name for line in json_lines(tmp_path) for name in line}
    only_sometimes = {"pace", "pace_lag", "worker_restarts", "episodes_failed"}
    assert {f"gymcast/{name}" for name in set(EXTRA_METRICS) - only_sometimes - set(METRICS_OF_SOME)} <= found


def test_a_failure_is_in_both_logs_with_its_traceback(tmp_path: Path) -> None:
    with pytest.raises((RuntimeError, ValueError)):
        train(tmp_path, hyperparameters={**SMALL["hyperparameters"], "learning_rate": 1e30})
    assert any("Traceback" in line.get("traceback", "") for line in json_lines(tmp_path))
    assert "Traceback" in (tmp_path / "log.txt").read_text()


def test_numbers_that_are_not_finite_do_not_break_the_log() -> None:
    assert scalars({"a": float("nan"), "b": 1, "c": "text", "d": True}) == {"a": None, "b": 1}
    assert describe(5000, {"gymcast/win_rate": None, "gymcast/epoch": 3}) == "5,000 decisions, epoch 3"


def test_a_full_disk_costs_the_logs_and_not_the_training(tmp_path: Path, sink: Any) -> None:
    for name in ("log.txt", "log.jsonl"):
        (tmp_path / name).symlink_to("/dev/full")  # every write is refused with ENOSPC
    (tmp_path / "tb").write_text("a file where TensorBoard wants a folder")
    result = train(tmp_path, sink)
    assert result.status == "completed" and result.timesteps == 2560
    (told,) = [error for error in sink.of(ErrorData) if error.code == "log_failed"]
    assert told.detail == {"what": "TensorBoard"}


class Fragile(KVWriter):
    """Takes two sets of values and breaks."""

    def __init__(self) -> None:
        self.taken: list[int] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        if len(self.taken) == 2:
            raise ConnectionError("gone")
        self.taken.append(step)

    def close(self) -> None:
        raise AssertionError("given up, so not closed again")


def test_a_destination_that_breaks_is_given_up_and_told_once() -> None:
    told: list[tuple[str, ...]] = []
    fragile = Fragile()
    guarded = Guarded("W&B", lambda: fragile, lambda *what: told.append(what))
    for step in range(5):
        guarded.write({}, {}, step)
    guarded.close()
    assert fragile.taken == [0, 1]
    assert told == [("log_failed", "W&B", "ConnectionError: gone")]


# Weights & Biases, the real package


def records(path: Path) -> Iterator[Any]:
    """What is in a ``.wandb`` file: protobuf records in LevelDB's log format, after a header of seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = 32_768 - place % 32_768
        if left < 7:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # a whole record, or the last part of one
            record = Record()
            record.ParseFromString(parts)
            yield record
            parts = b""


SCRIPT = """
import json, sys
from gymcast.training import Trainer, TrainingConfig
result = Trainer(TrainingConfig.parse(json.loads(sys.argv[1])), run_dir=sys.argv[2]).run_training_loop()
print(result.status)
"""


def train_apart(folder: Path, *, script: str = SCRIPT, config: dict[str, Any], **environment: str) -> None:
    """Train in a process of its own, since W&B leaves threads and hooks behind; the run folder is ``folder/run-1``."""
    places = {f"WANDB_{place}_DIR": str(folder / place) for place in ("CONFIG", "CACHE", "DATA")}
    done = subprocess.run(
        [sys.executable, "-c", script, json.dumps(config), str(folder / "run-1")],
        env={**os.environ, **places, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "completed" in done.stdout, done.stderr


def test_wandb_offline_writes_a_run_with_our_metrics(tmp_path: Path) -> None:
    config = {**SMALL, "use_wandb": True, "wandb_project": "arena", "wandb_name": "first", "wandb_tags": ["a", "b"]}
    train_apart(tmp_path, config=config, WANDB_MODE="offline")
    (path,) = tmp_path.glob("run-1/wandb/offline-run-*/run-run-1.wandb")
    values: dict[str, float] = {}
    for record in records(path):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            run = record.run
            assert (run.project, run.display_name, list(run.tags), run.run_id) == (
                "arena",
                "first",
                ["a", "b"],
                "run-1",
            )
        elif kind == "history":
            for item in record.history.item:
                values[item.key or "/".join(item.nested_key)] = json.loads(item.value_json)
    assert {"gymcast/win_rate", "gymcast/epoch", "train/value_loss", "evaluation/beginner/win_rate"} <= set(values)
    assert values["_step"] == 2560


def test_a_wandb_that_cannot_be_reached_does_not_stop_training(tmp_path: Path) -> None:
    environment = {"WANDB_BASE_URL": "http://127.0.0.1:1", "WANDB_API_KEY": "a" * 40, "WANDB_MODE": "online"}
    hurry = "from gymcast.training import wandb_log; wandb_log._INIT_SECONDS = 1.0\n"
    train_apart(tmp_path, script=hurry + SCRIPT, config={**SMALL, "use_wandb": True}, **environment)
    assert "W&B is given up, training goes on" in (tmp_path / "run-1" / "log.txt").read_text()


@pytest.mark.parametrize(("level", "told"), [("debug", True), ("WARNING", False)])
def test_the_level_of_the_logs(level: str, told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GYMCAST_LOG_LEVEL", level)
    train(tmp_path, total_timesteps=256, evaluation_games=0)
    assert ("completed" in (tmp_path / "log.txt").read_text()) is told
    assert any(line["kind"] == "update" for line in json_lines(tmp_path))


def test_a_level_that_does_not_exist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GYMCAST_LOG_LEVEL", "loud")
    with pytest.raises(ConfigError, match="GYMCAST_LOG_LEVEL: 'LOUD'; use DEBUG, INFO, WARNING, ERROR"):
        train(tmp_path)


def test_a_missing_wandb_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"use_wandb: .*pip install 'gymcast\[wandb\]'"):
        train(tmp_path, use_wandb=True)
