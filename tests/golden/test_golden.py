"""The games behave as they did: trajectories kept as JSON files, written by `make_golden.py`."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

from gymcast.envs import game_spec

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*.json"))
MAKER = runpy.run_path(str(HERE / "make_golden.py"))
REMEDY = "see tests/golden/make_golden.py: a meant change of behaviour raises the version and is written anew"


def test_there_is_a_file_for_every_case() -> None:
    assert {path.stem for path in FILES} == set(MAKER["CASES"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_the_game_behaves_as_it_did(path: Path) -> None:
    golden = json.loads(path.read_text(encoding="utf-8"))
    assert golden["version"] == game_spec(golden["env_id"]).version, REMEDY
    found = MAKER["play"](golden["options"], golden["seed"], golden["actions"])
    assert len(found) == len(golden["actions"][0]) // golden["every"]
    for number, (now, then) in enumerate(zip(found, golden["hashes"], strict=True), start=1):
        last = number * golden["every"]
        assert now == then, f"differs within decisions {last - golden['every']} to {last}; {REMEDY}"


def test_golden_trajectories_are_full_of_events() -> None:
    """Hashes of matches in which nothing happens would show nothing."""
    for path in FILES:
        golden = json.loads(path.read_text(encoding="utf-8"))
        env = MAKER["GameVectorEnv"]("archers", len(golden["actions"]), threads=1, **golden["options"])
        env.reset(seed=golden["seed"])
        shots = deaths = ended = 0
        for row in zip(*golden["actions"], strict=True):
            before = env.batch.state["deaths"].copy()
            env.step(MAKER["np"].stack(MAKER["np"].unravel_index(row, (3, 3, 2, 16)), axis=1))
            shots = max(shots, int(env.batch.state["shots"].max()))
            deaths += int((env.batch.state["deaths"] > before).sum())
            ended += env.ended.size
        assert shots >= 3 and deaths + ended >= 1, path.stem
