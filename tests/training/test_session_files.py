"""What sessions keep in files: logs read from their ends, output within bounds, locks that only the living hold."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gymcast.training.run_folder import FileLock, Orders, Outcome, RunTakenError, holder
from gymcast.training.sessions import logs
from gymcast.training.sessions.output import KEPT_BYTES, MAX_BYTES, bound_output
from gymcast.training.storage import BadCursorError


def test_a_log_is_read_from_its_end_in_pages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_BLOCK", 100)  # so that lines cross the ends of blocks, and one is longer than a block
    messages = [f"line {number} {'ä' * (number % 7 * 20)}" for number in range(40)]
    with open(tmp_path / logs.JSON_LOG, "w", encoding="utf-8") as file:
        for number, text in enumerate(messages):
            kind = "log" if number % 2 else "update"  # values of updates stand between the lines
            file.write(
                json.dumps({"time": "t", "kind": kind, "level": "INFO", "message": text}, ensure_ascii=False) + "\n"
            )
        file.write('{"time": "t", "kind": "log", "message": "not comp')
    found: list[str] = []
    cursor = None
    while True:
        page = logs.read_log(tmp_path, "run", cursor, 6)
        found += [item["message"] for item in page.items]
        offsets = [item["offset"] for item in page.items]
        assert offsets == sorted(offsets, reverse=True)
        cursor = page.next_cursor
        if cursor is None:
            break
    assert found == messages[1::2][::-1]
    for wrong in ("x", "-1", "99999999"):
        with pytest.raises(BadCursorError):
            logs.read_log(tmp_path, "run", wrong, 6)
    assert logs.read_log(tmp_path, "worker", None, 6).items == []


def test_output_without_end_is_kept_within_bounds(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    with open(path, "ab") as output:
        flood = subprocess.Popen([sys.executable, "-c", "while True: print('x' * 9999)"], stdout=output)
    largest = 0
    try:
        deadline = time.monotonic() + 60
        for _ in range(3):
            while path.stat().st_size <= MAX_BYTES:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            largest = max(largest, path.stat().st_size)
            bound_output(path)
    finally:
        flood.kill()
        flood.wait()
    bound_output(path)
    text = path.read_bytes()
    assert len(text) <= MAX_BYTES < largest and b"bytes of output were dropped" in text
    path.write_bytes(b"first\n" + b"y" * MAX_BYTES + b"\nlast\n")
    bound_output(path)
    assert path.stat().st_size <= KEPT_BYTES + 100 and path.read_bytes().endswith(b"\nlast\n")


def test_a_lock_is_held_by_the_living_only(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder(path) is None
    code = (
        "import sys, time; from pathlib import Path; from gymcast.training.run_folder import FileLock;"
        "FileLock(Path(sys.argv[1])).take(); print('taken', flush=True); time.sleep(600)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE)
    assert other.stdout is not None and other.stdout.readline() == b"taken\n"
    assert holder(path) == other.pid
    with pytest.raises(RunTakenError, match=f"process {other.pid}"):
        FileLock(path).take()
    other.kill()
    other.wait()
    other.stdout.close()
    assert holder(path) is None
    lock = FileLock(path)
    lock.take()
    lock.give_back()
    assert not path.exists()


def test_orders_and_outcomes_are_for_this_user_and_attempt(tmp_path: Path) -> None:
    orders = Orders("s1", "http://127.0.0.1:1", "secret", report_episodes=True)
    orders.write(tmp_path)
    assert Orders.read(tmp_path) == orders
    assert (tmp_path / "session.json").stat().st_mode & 0o777 == 0o600
    Outcome(2, "failed", "why", retry=True, events=7).write(tmp_path)
    assert Outcome.read(tmp_path, 2) == Outcome(2, "failed", "why", retry=True, events=7)
    assert Outcome.read(tmp_path, 3) is None
