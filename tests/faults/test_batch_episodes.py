"""Batches of episodes whose workers die, hang or raise, whose parent is killed, and whose disk is full."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import psutil
import pytest
from gymnasium import spaces

from gymcast.training import BatchEpisodeManager, EpisodeResult
from gymcast.training.sessions.batch.play import seeds_of

cloudpickle.register_pickle_by_value(sys.modules[__name__])
BAD = seeds_of(0, "bad")[0]


class Walk(gym.Env[Any, Any]):
    """Ten steps; the episode "bad" does `trouble` in its fifth one, once when there is a `trigger` to remove."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, trouble: Callable[[], Any], trigger: Path | None = None, pause: float = 0.0) -> None:
        self._trouble, self._trigger, self._pause = trouble, trigger, pause

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._bad, self._steps = seed == BAD, 0
        return np.zeros(1, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(self._pause)
        self._steps += 1
        if self._bad and self._steps == 5:
            if self._trigger is None:
                self._trouble()
            elif self._trigger.exists():
                self._trigger.unlink()
                self._trouble()
        return np.zeros(1, np.float32), float(self.np_random.normal()), self._steps == 10, False, {}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def segfault() -> None:
    ctypes.string_at(0)


def leave() -> None:
    sys.exit(3)


def raise_error() -> None:
    raise ZeroDivisionError("the game fell over")


def hang() -> None:
    time.sleep(1000)


def stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def fork_and_hang() -> None:
    if os.fork() == 0:
        time.sleep(1000)
    time.sleep(1000)


IDS = ["bad", *(f"e{number}" for number in range(19))]


@pytest.fixture
async def manager() -> AsyncIterator[BatchEpisodeManager]:
    async with BatchEpisodeManager(2, max_retries=1, retry_delay=0.01) as one:
        yield one


@pytest.fixture
async def impatient() -> AsyncIterator[BatchEpisodeManager]:
    async with BatchEpisodeManager(2, max_retries=1, episode_timeout=1.0, retry_delay=0.01) as one:
        yield one


async def play(manager: BatchEpisodeManager, batch_id: str, ids: list[str], **more: Any) -> dict[str, EpisodeResult]:
    await manager.submit_batch(batch_id, ids, **more)
    await manager.wait_batch(batch_id)
    results = await manager.get_results(batch_id)
    assert sorted(result.episode_id for result in results) == sorted(ids)
    return {result.episode_id: result for result in results}


def children() -> list[psutil.Process]:
    """The workers that this process has; not the servers that Python itself forks them from."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            helper = "multiprocessing.resource_tracker" in " ".join(process.cmdline())
            server = "multiprocessing.forkserver" in " ".join(process.cmdline()) and process.ppid() == os.getpid()
            if not helper and not server and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


# ------------------------------------------------------------------------------------------------ one bad moment


@pytest.mark.parametrize("trouble", [die, segfault, leave, raise_error, hang, stop])
async def test_an_episode_that_fails_once_is_played_again(
    manager: BatchEpisodeManager, impatient: BatchEpisodeManager, tmp_path: Path, trouble: Callable[[], None]
) -> None:
    if trouble in (hang, stop):
        manager = impatient
    expected = await play(manager, "fine", IDS, env=lambda: Walk(lambda: None))
    trigger = tmp_path / "trigger"
    trigger.touch()
    results = await play(manager, "troubled", IDS, env=lambda: Walk(trouble, trigger))
    assert not trigger.exists()
    for name, result in results.items():
        assert result.status == "completed" and result.total_reward == expected[name].total_reward
        assert result.attempts == (2 if name == "bad" else 1)
    status = await manager.get_batch_status("troubled")
    assert (status.state, status.completed, status.retries) == ("completed", 20, 1)


# --------------------------------------------------------------------------------------------- one bad episode


@pytest.mark.parametrize(
    ("trouble", "reason", "where"),
    [
        (segfault, "its process was ended by SIGSEGV", "in segfault"),
        (raise_error, "ZeroDivisionError: the game fell over", "in raise_error"),
        (hang, r"hangs: the episode took longer than episode_timeout \(1 s\)", "in hang"),
    ],
)
async def test_an_episode_that_always_fails_costs_no_other(
    manager: BatchEpisodeManager,
    impatient: BatchEpisodeManager,
    trouble: Callable[[], None],
    reason: str,
    where: str,
) -> None:
    if trouble is hang:
        manager = impatient
    results = await play(manager, "b", IDS, env=lambda: Walk(trouble))
    bad = results.pop("bad")
    assert (bad.status, bad.attempts, bad.success, bad.total_reward) == ("failed", 2, False, None)
    assert bad.seed == BAD
    assert bad.error is not None and re.search(reason, bad.error)
    assert bad.traceback is not None and where in bad.traceback
    assert {(result.status, result.attempts) for result in results.values()} == {("completed", 1)}
    status = await manager.get_batch_status("b")
    assert (status.state, status.completed, status.failed, status.retries) == ("completed", 19, 1, 1)


async def test_an_episode_that_is_only_long_needs_no_new_process(impatient: BatchEpisodeManager) -> None:
    manager, pids = impatient, None
    for batch_id in ("short", "long"):
        pause = 0.0 if batch_id == "short" else 0.3
        results = await play(manager, batch_id, ["e"], env=lambda pause=pause: Walk(lambda: None, pause=pause))
        assert pids is None or pids.items() <= manager.worker_pids().items()
        pids = manager.worker_pids()
    assert results["e"].status == "failed" and results["e"].attempts == 2
    assert "took longer than episode_timeout (1 s) after" in (results["e"].error or "")


# ------------------------------------------------------------------------------------------------- killed workers


@pytest.mark.parametrize("lanes", [1, 16])
async def test_workers_that_are_killed_again_and_again_change_no_result(lanes: int) -> None:
    ids = [f"e{number}" for number in range(100)]
    more: dict[str, Any] = {"env_kwargs": {"max_duration_s": 20.0}, "policy": "expert", "lanes": lanes}
    async with BatchEpisodeManager(2, max_retries=50, retry_delay=0.01) as manager:
        expected = await play(manager, "fine", ids, **more)
        await manager.submit_batch("killed", ids, **more)
        kills = 0
        while kills < 4 and not (await manager.get_batch_status("killed")).done:
            for pid in list(manager.worker_pids().values())[:1]:
                if (await manager.get_batch_status("killed")).running:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                    kills += 1
            await asyncio.sleep(0.05)
        status = await manager.wait_batch("killed")
        results = {result.episode_id: result for result in await manager.get_results("killed")}
    assert kills and (status.completed, status.failed) == (100, 0)
    assert {n: r.total_reward for n, r in results.items()} == {n: r.total_reward for n, r in expected.items()}


async def test_two_managers_and_no_process_is_left(manager: BatchEpisodeManager) -> None:
    other = BatchEpisodeManager(3)
    await other.start()
    await manager.submit_batch("b", IDS[1:], env=lambda: Walk(hang, pause=0.01))
    await other.submit_batch("b", IDS, env=lambda: Walk(fork_and_hang))
    await asyncio.sleep(0.3)
    assert len(children()) >= 3
    began = time.monotonic()
    await other.stop()
    assert (await other.get_batch_status("b")).cancelled >= 1
    assert (await manager.wait_batch("b")).completed == 19
    await manager.stop()
    assert time.monotonic() - began < 30
    assert children() == []


# ------------------------------------------------------------------------------------------------- killed parent

PARENT = """
import asyncio, os, sys, time
import gymnasium as gym
from gymcast.training import BatchEpisodeManager

class Forks(gym.Env):
    observation_space = gym.spaces.Discrete(2)
    action_space = gym.spaces.Discrete(2)
    def reset(self, seed=None, options=None):
        if os.fork() == 0:
            time.sleep(1000)
        return 0, {}
    def step(self, action):
        time.sleep(1000)

async def main():
    manager = BatchEpisodeManager(2)
    await manager.start()
    await manager.submit_batch("b", ["a", "b", "c"], env=Forks)
    while (await manager.get_batch_status("b")).running < 2:
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.3)
    print(*manager.worker_pids().values(), flush=True)
    await manager.wait_batch("b")

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    (tmp_path / "parent.py").write_text(PARENT)
    process = subprocess.Popen([sys.executable, "parent.py"], cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def test_no_process_is_left_when_the_parent_is_killed(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    family = psutil.Process(parent.pid).children(recursive=True)
    assert len(pids) == 2 and len(family) >= 6  # two workers, what they forked, and Python's own helpers
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert [process for process in alive if process.status() != psutil.STATUS_ZOMBIE] == []


def test_a_program_without_the_main_guard_is_told(tmp_path: Path) -> None:
    lines = PARENT.replace('if __name__ == "__main__":\n    ', "")
    (tmp_path / "unguarded.py").write_text(lines)
    done = subprocess.run([sys.executable, "unguarded.py"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert 'belongs under `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


# ------------------------------------------------------------------------------------------------------- full disk


async def test_a_full_disk_costs_replays_but_no_episode(manager: BatchEpisodeManager, tmp_path: Path) -> None:
    ids = [f"e{number}" for number in range(10)]
    await play(manager, "before", ids, env="CartPole-v1", max_parallel=1, replays=tmp_path)
    for pid in manager.worker_pids().values():
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (0, hard))
    results = await play(manager, "after", ids, env="CartPole-v1", max_parallel=1, replays=tmp_path / "more")
    status = await manager.get_batch_status("after")
    assert (status.state, status.completed, status.replays, status.replays_failed) == ("completed", 10, 0, 10)
    for result in results.values():
        assert result.replay is None and result.total_reward
        assert "no replay: cannot write" in (result.error or "") and "File too large" in (result.error or "")
    assert os.listdir(tmp_path / "more") == []


async def test_results_that_cannot_be_written_end_the_batch(manager: BatchEpisodeManager) -> None:
    await manager.submit_batch("b", [f"e{n}" for n in range(5000)], env="CartPole-v1", results_file="/dev/full")
    status = await asyncio.wait_for(manager.wait_batch("b"), 30)
    assert status.state == "failed" and status.cancelled > 0
    assert status.error == "cannot write results to /dev/full: No space left on device"


# ----------------------------------------------------------------------------------------------------- the command


def test_ctrl_c_keeps_what_was_played(cli: Callable[..., Any], tmp_path: Path) -> None:
    command = cli("episodes", "CartPole-v1", "--count", "1000000", "--out", "results.jsonl", terminal=True)
    command.read_until(r"\d/min")
    command.type_ctrl_c()
    assert command.finish() == 130, command.text
    assert command.orphans() == []
    text = command.text.replace("\r", "")
    assert "completed" in text and "cancelled" in text and "Traceback" not in text
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    played = sum(line["status"] == "completed" for line in lines)
    assert played > 0 and f"{played:,} of 1,000,000 completed" in text
