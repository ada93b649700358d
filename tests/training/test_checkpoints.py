"""Checkpoints: whole or not there, whatever happens while they are written."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th

from gymcast.training.checkpoints import (
    ARRAYS_FILE,
    MANIFEST,
    MODEL_FILE,
    CheckpointError,
    CheckpointManager,
    load_arrays,
    load_state,
    load_tensors,
    tensors_sha256,
    verify,
)


def save(manager: CheckpointManager, timesteps: int, score: float | None = None, **more: Any) -> Any:
    tensors = {"weights": th.arange(10.0) + timesteps, "nested": {"step": 3, "list": [th.ones(2)]}}
    return manager.save(
        tensors, {"counter": timesteps}, timesteps=timesteps, episodes=1, reason="interval", score=score, **more
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    saved = save(manager, 5, write_files=lambda folder: (folder / "more.bin").write_bytes(b"abc"))
    found = manager.newest()
    assert found == saved
    tensors = load_tensors(saved)
    assert th.equal(tensors["weights"], th.arange(10.0) + 5) and th.equal(tensors["nested"]["list"][0], th.ones(2))
    assert load_state(saved) == {"counter": 5}
    assert (saved.path / "more.bin").read_bytes() == b"abc"
    assert saved.bytes == sum(path.stat().st_size for path in saved.path.iterdir())


@pytest.mark.parametrize("name", [MODEL_FILE, "state.json", MANIFEST])
@pytest.mark.parametrize("damage", ["flip", "cut", "delete"])
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    manager = CheckpointManager(tmp_path)
    good, bad = save(manager, 1), save(manager, 2)
    path = bad.path / name
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[len(content) // 2] ^= 0xFF
        path.write_bytes(content)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        path.unlink()
    with pytest.raises(CheckpointError):
        verify(bad.path)
    assert manager.newest() == good


def test_pruning_keeps_the_newest_and_the_best(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep=2)
    for timesteps, score in [(1, 5.0), (2, 50.0), (3, 7.0), (4, 9.0), (5, 8.0)]:
        save(manager, timesteps, score)
    assert [checkpoint.timesteps for checkpoint in manager.list()] == [2, 4, 5]
    best = manager.best()
    assert best is not None and best.timesteps == 2
    everything = CheckpointManager(tmp_path / "all", keep=None)
    for timesteps in range(6):
        save(everything, timesteps)
    assert len(everything.list()) == 6


def test_saving_twice_at_the_same_step_keeps_both_in_order(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    first, second = save(manager, 1), save(manager, 1)
    assert first.path != second.path and manager.newest() == second


def test_leftovers_of_a_killed_process_are_removed(tmp_path: Path) -> None:
    leftover = tmp_path / ".step-00000000000001.unfinished-99999999"
    leftover.mkdir()
    (leftover / MODEL_FILE).write_bytes(b"half")
    assert CheckpointManager(tmp_path).newest() is None
    assert not leftover.exists()


def test_a_pickle_in_place_of_tensors_is_not_executed(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    checkpoint = save(manager, 1)
    marker = tmp_path / "executed"

    class Payload:
        def __reduce__(self) -> Any:
            return (Path.touch, (marker,))

    th.save({"weights": Payload()}, checkpoint.path / MODEL_FILE)
    with pytest.raises(CheckpointError, match="tensors alone"):
        load_tensors(checkpoint)
    assert not marker.exists()


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    checkpoint = save(CheckpointManager(tmp_path), 1)
    manifest = json.loads((checkpoint.path / MANIFEST).read_text())
    manifest["files"]["../../etc/passwd"] = {"sha256": "0" * 64, "bytes": 1}
    (checkpoint.path / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="outside"):
        verify(checkpoint.path)


FULL_DISK = """
import resource, signal, sys
from pathlib import Path
import torch as th
from gymcast.training.checkpoints import CheckpointManager
folder = Path(sys.argv[1])
manager = CheckpointManager(folder)
def save(timesteps, size):
    return manager.save({"w": th.zeros(size)}, {}, timesteps=timesteps, episodes=0, reason="interval")
save(1, 10)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save(2, 1_000_000)
except OSError as error:
    print("refused", error.errno)
print(sorted(path.name for path in folder.iterdir()))
print(save(3, 10).timesteps, manager.newest().timesteps)
"""


def test_a_write_that_fails_leaves_no_trace_and_earlier_checkpoints_stay(tmp_path: Path) -> None:
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert result.stdout.splitlines() == ["refused 27", "['step-00000000000001']", "3 3"]


KILLED = """
import os, sys
import torch as th
from gymcast.training.checkpoints import CheckpointManager
manager = CheckpointManager(sys.argv[1])
manager.save({"w": th.zeros(5)}, {}, timesteps=1, episodes=0, reason="interval")
def die(folder):
    os.kill(os.getpid(), 9)
manager.save({"w": th.zeros(5)}, {}, timesteps=2, episodes=0, reason="interval", write_files=die)
"""


def test_a_process_killed_while_saving_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60, check=False).returncode == -9
    newest = CheckpointManager(tmp_path).newest()
    assert newest is not None and newest.timesteps == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_pruning_keeps_to_a_size(tmp_path: Path) -> None:
    one = save(CheckpointManager(tmp_path / "one"), 1).bytes
    manager = CheckpointManager(tmp_path / "all", keep=None, max_bytes=3 * one + 100)
    for timesteps, score in [(1, 5.0), (2, 50.0), (3, 7.0), (4, 9.0), (5, 8.0)]:
        save(manager, timesteps, score)
    assert [checkpoint.timesteps for checkpoint in manager.list()] == [2, 4, 5]
    # The newest and the best one stay whatever they take.
    manager.max_bytes = 1
    manager.prune()
    assert [checkpoint.timesteps for checkpoint in manager.list()] == [2, 5]


def test_many_at_the_same_step_keep_their_order(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep=None)
    saved = [save(manager, 1) for _ in range(12)]
    assert manager.list() == saved and manager.newest() == saved[-1]


def test_it_tells_what_it_skipped_and_why(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path)
    good, cut_off, changed = save(manager, 1), save(manager, 2), save(manager, 3)
    (cut_off.path / MANIFEST).write_text("{")
    (changed.path / MODEL_FILE).write_bytes(b"other")
    found = manager.find_newest()
    assert found.checkpoint == good
    assert [name for name, _ in found.skipped] == [changed.path.name, cut_off.path.name]
    assert f"SHA-256 of {changed.path / MODEL_FILE} differs" in found.skipped[0][1]
    assert str(found).startswith(f"{good.path.name}; {changed.path.name} skipped: SHA-256")


WRITER = """
import sys, time
from pathlib import Path
import torch as th
from gymcast.training.checkpoints import CheckpointManager
folder, name, first = sys.argv[1:]
log = Path(folder, "..", "log.txt")
def note(what):
    with open(log, "a") as file:
        file.write(f"{what} {name}\\n")
def write(unfinished):
    note("begin")
    time.sleep(0.2)
    note("end")
manager = CheckpointManager(folder, keep=None)
for step in range(3):
    manager.save({"w": th.zeros(5)}, {}, timesteps=int(first) + step, episodes=0, reason="interval", write_files=write)
"""


def test_two_writers_never_write_at_once(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints"
    commands = [[sys.executable, "-c", WRITER, str(folder), name, first] for name, first in (("a", "10"), ("b", "20"))]
    writers = [subprocess.Popen(command) for command in commands]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    notes = [line.split() for line in (tmp_path / "log.txt").read_text().splitlines()]
    assert len(notes) == 12 and {name for _, name in notes} == {"a", "b"}
    for begin, end in zip(notes[::2], notes[1::2], strict=True):
        assert (begin[0], end[0]) == ("begin", "end") and begin[1] == end[1]
    assert len(CheckpointManager(folder, keep=None).list()) == 6


def test_a_second_writer_in_another_thread_waits(tmp_path: Path) -> None:
    manager = CheckpointManager(tmp_path, keep=None)
    writing, order = threading.Event(), []

    def slow(folder: Path) -> None:
        writing.set()
        time.sleep(0.2)
        order.append("first")

    thread = threading.Thread(target=lambda: save(manager, 1, write_files=slow))
    thread.start()
    assert writing.wait(10)
    save(manager, 2, write_files=lambda folder: order.append("second"))
    thread.join()
    assert order == ["first", "second"] and len(manager.list()) == 2


def test_the_hash_of_tensors_tells_values_types_and_names_apart() -> None:
    base = {"a": th.zeros(2), "b": [{"step": 1}]}
    assert tensors_sha256(base) == tensors_sha256({"b": [{"step": 1}], "a": th.zeros(2)})
    others: list[dict[str, Any]] = [
        {"a": th.tensor([0.0, -0.0]), "b": [{"step": 1}]},
        {"a": th.zeros(2, dtype=th.float64), "b": [{"step": 1}]},
        {"a": th.zeros(1, 2), "b": [{"step": 1}]},
        {"c": th.zeros(2), "b": [{"step": 1}]},
        {"a": th.zeros(2), "b": [{"step": 2}]},
    ]
    assert len({tensors_sha256(value) for value in [base, *others]}) == 6


def test_arrays_that_are_pickles_are_not_loaded(tmp_path: Path) -> None:
    checkpoint = save(CheckpointManager(tmp_path), 1, arrays={"x": np.arange(3)})
    assert load_arrays(checkpoint)["x"].tolist() == [0, 1, 2]
    np.savez(checkpoint.path / ARRAYS_FILE, x=np.array([{"an": "object"}], dtype=object))
    with pytest.raises(CheckpointError, match="arrays alone"):
        load_arrays(checkpoint)
