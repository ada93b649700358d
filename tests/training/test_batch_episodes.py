"""Batches of episodes: results, determinism, limits, fairness, streams, handlers, bad input."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from gymcast.envs import OptionValueError, Replay, UnknownEnvError, UnknownOptionError, verify_replay
from gymcast.training import BatchEpisodeManager, BatchStatus, EpisodeResult
from gymcast.training.sessions.batch.types import (
    BatchInputError,
    BatchStateError,
    DuplicateBatchError,
    Moments,
    UnknownBatchError,
    UnknownEpisodeError,
)

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Nap(gym.Env[Any, Any]):
    """Two decisions of some seconds each; the reward is the action."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)
    metadata: dict[str, Any] = {"render_fps": 10}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, seconds: float = 0.0, info: dict[str, Any] | None = None) -> None:
        self._seconds, self._info = seconds, info or {}

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = 2
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(self._seconds)
        self._left -= 1
        return np.zeros(2, np.float32), float(action), self._left == 0, False, self._info


def ids(count: int, prefix: str = "e") -> list[str]:
    return [f"{prefix}{number}" for number in range(count)]


def facts(results: list[EpisodeResult]) -> dict[str, Any]:
    """What has to be the same whoever plays: all but times, workers and files."""
    names = ("status", "total_reward", "length", "outcome", "success", "truncated", "game_seconds", "seed")
    return {result.episode_id: [getattr(result, name) for name in names] for result in results}


async def until(true: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is true; the test's own time limit ends it."""
    while not await true():  # noqa: ASYNC110 - there is no event for what other processes do
        await asyncio.sleep(0.01)


def verified(path: Path) -> int:
    """The length of a replay that plays as it says."""
    return int(verify_replay(Replay.from_bytes(path.read_bytes()))["length"])


@pytest.fixture
async def manager() -> AsyncIterator[BatchEpisodeManager]:
    async with BatchEpisodeManager(max_parallel_episodes=2, max_retries=2, episode_timeout=30, retry_delay=0.01) as one:
        yield one


async def play(manager: BatchEpisodeManager, batch_id: str, count: int = 4, **more: Any) -> list[EpisodeResult]:
    await manager.submit_batch(batch_id, ids(count), **more)
    await manager.wait_batch(batch_id)
    return await manager.get_results(batch_id)


# -------------------------------------------------------------------------------------------------------- results


async def test_results_do_not_depend_on_who_plays(manager: BatchEpisodeManager, tmp_path: Path) -> None:
    more: dict[str, Any] = {"env_kwargs": {"max_duration_s": 6.0}, "policy": "expert"}
    alone = facts(await play(manager, "alone", 12, max_parallel=1, **more))
    lanes = facts(await play(manager, "lanes", 12, lanes=8, **more))
    assert alone == lanes
    backwards = await manager.submit_batch("backwards", ids(12)[::-1], replays=tmp_path, lanes=3, **more)
    assert backwards.state == "queued" and backwards.policy == "expert"
    await manager.wait_batch("backwards")
    assert facts(await manager.get_results("backwards")) == alone
    other = facts(await play(manager, "other", 12, seed=1, lanes=8, **more))
    assert [values[-1] for values in other.values()] != [values[-1] for values in alone.values()]
    names = os.listdir(tmp_path)
    assert len(names) == 12
    for name in names:
        assert verified(tmp_path / name) == alone[name.removesuffix(".replay")][2]


async def test_any_environment_and_its_replays(manager: BatchEpisodeManager, tmp_path: Path) -> None:
    results = await play(manager, "b", 20, env="CartPole-v1", replays=tmp_path / "new", room_code="ROOM1")
    status = await manager.get_batch_status("b")
    rewards = [result.total_reward or 0.0 for result in results]
    assert status.completed == status.total == 20 and status.queued == status.running == status.failed == 0
    assert status.average_reward == pytest.approx(np.mean(rewards))
    assert status.reward_error == pytest.approx(np.std(rewards, ddof=1) / np.sqrt(20))
    assert (status.best_reward, status.worst_reward) == (max(rewards), min(rewards))
    assert status.success_rate is None and status.replays == 20
    assert all(result.outcome is None and result.game_seconds == result.length / 50 for result in results)
    for result in results:
        assert result.replay is not None and result.total_reward == result.length
        assert verified(Path(result.replay)) == result.length
    again = await play(manager, "again", 20, env="CartPole-v1")
    assert facts(again) == facts(results)


async def test_environments_and_policies_that_are_functions(manager: BatchEpisodeManager) -> None:
    results = await play(manager, "won", env=lambda: Nap(info={"outcome": "win"}), policy=lambda observation: 1)
    assert [(r.total_reward, r.outcome, r.success, r.game_seconds) for r in results] == [(2.0, "win", True, 0.2)] * 4
    unknown = await play(manager, "unsuccessful", env=lambda: Nap(info={"is_success": False}))
    assert [(result.outcome, result.success) for result in unknown] == [(None, False)] * 4
    status = await manager.get_batch_status("unsuccessful")
    assert status.success_rate == 0.0 and status.wins == status.losses == 0


def test_running_moments_by_hand() -> None:
    moments = Moments()
    for value in (1.0, 2.0, 6.0):
        moments.add(value)
    assert (moments.mean, moments.low, moments.high) == (3.0, 1.0, 6.0)
    assert moments.standard_error == pytest.approx(np.sqrt(7.0 / 3.0))


# -------------------------------------------------------------------------------------------- limits and fairness


async def test_batches_share_the_workers(manager: BatchEpisodeManager) -> None:
    ended: list[str] = []
    manager.register_episode_handler(lambda result: ended.append(result.batch_id))
    most: dict[str, int] = {"first": 0, "second": 0}

    async def watch() -> None:
        while True:
            for batch_id in most:
                most[batch_id] = max(most[batch_id], (await manager.get_batch_status(batch_id)).running)
            await asyncio.sleep(0.005)

    await manager.submit_batch("first", ids(30), env=lambda: Nap(0.02))
    await manager.submit_batch("second", ids(4), env=lambda: Nap(0.02), max_parallel=1)
    watcher = asyncio.create_task(watch())
    await manager.wait_batch("second")
    assert not (await manager.get_batch_status("first")).done
    await manager.wait_batch("first")
    watcher.cancel()
    assert most["second"] == 1 and most["first"] >= 1  # a worker that starts late may miss the first batch
    await manager.stop()
    assert "second" in ended[:5]  # it does not wait for the first one to end


# ------------------------------------------------------------------------------------------------------ streaming


async def test_a_slow_reader_holds_a_batch_up_and_memory_stays_bounded(
    manager: BatchEpisodeManager, tmp_path: Path
) -> None:
    file = tmp_path / "results.jsonl"
    await manager.submit_batch("b", ids(6000), env="CartPole-v1", keep_results=5, results_file=file)
    stream = manager.stream_results("b")
    seen = [(await anext(stream)).episode_id for _ in range(3)]

    async def stalls() -> bool:
        before = (await manager.get_batch_status("b")).completed
        await asyncio.sleep(0.3)
        return 1000 <= before == (await manager.get_batch_status("b")).completed

    await until(stalls)
    status = await manager.get_batch_status("b")
    assert status.completed < 6000 and not status.done
    seen += [result.episode_id async for result in stream]
    assert sorted(seen) == sorted(ids(6000))
    assert len(await manager.get_results("b")) == 5
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    assert [line["episode_id"] for line in lines] == seen


async def test_a_reader_that_leaves_does_not_hold_a_batch_up(manager: BatchEpisodeManager) -> None:
    await manager.submit_batch("b", ids(3000), env="CartPole-v1")
    async for _ in manager.stream_results("b"):
        break
    assert (await manager.wait_batch("b")).completed == 3000


# ------------------------------------------------------------------------------------------------------- handlers


async def test_handlers_that_raise_or_block_disturb_nobody(caplog: pytest.LogCaptureFixture) -> None:
    manager = BatchEpisodeManager(max_parallel_episodes=2)
    seen: list[str] = []
    batches: list[BatchStatus] = []
    progress: list[float] = []
    gate = threading.Event()

    async def fine(result: EpisodeResult) -> None:
        await asyncio.sleep(0)
        seen.append(result.episode_id)

    async def raises(result: EpisodeResult) -> None:
        raise KeyError("mine")

    async def never_ends(result: EpisodeResult) -> None:
        await asyncio.Event().wait()

    def blocks(result: EpisodeResult) -> None:
        gate.wait()

    for handler in (raises, blocks, never_ends, fine):
        manager.register_episode_handler(handler)
    manager.register_batch_handler(batches.append)
    manager.register_progress_handler(lambda status: progress.append(status.progress))
    await manager.start()
    with caplog.at_level("ERROR"):
        await play(manager, "b", 30, env="CartPole-v1")

    async def all_told() -> bool:
        return len(seen) == 30 and len(batches) == 2 and 100.0 in progress

    await until(all_told)
    assert sorted(seen) == sorted(ids(30))
    counts = {counts.name.rsplit(".")[-1]: counts for counts in manager.handler_counts()}
    assert counts["raises"].failed == 30 and counts["blocks"].handled == counts["never_ends"].handled == 0
    assert [status.state for status in batches] == ["running", "completed"]
    assert "further ones are only counted" in caplog.text
    gate.set()
    manager.register_episode_handler(fine)
    asyncio.get_running_loop().call_later(0.1, gate.set)
    await asyncio.wait_for(manager.stop(), 20)


# ------------------------------------------------------------------------------------------------------ cancelling


async def test_cancelling(manager: BatchEpisodeManager) -> None:
    await manager.submit_batch("b", ids(200), env=lambda: Nap(0.05))

    async def has_begun() -> bool:
        return (await manager.get_batch_status("b")).completed > 0

    await until(has_begun)
    waiting = await manager.cancel_episode("b", "e199")
    assert waiting.status == "cancelled" and waiting.total_reward is None
    with pytest.raises(BatchStateError, match="'e199' of batch 'b' is over"):
        await manager.cancel_episode("b", "e199")
    with pytest.raises(UnknownEpisodeError, match="has no episode 'x'"):
        await manager.cancel_episode("b", "x")
    status = await manager.cancel_batch("b")
    assert status.state == "cancelled" and status.cancelled + status.completed == 200
    with pytest.raises(BatchStateError, match="is over"):
        await manager.cancel_batch("b")
    await manager.forget_batch("b")
    with pytest.raises(UnknownBatchError, match="no batch 'b'"):
        await manager.get_batch_status("b")
    # The workers are as good as new.
    assert len(await play(manager, "b", 4, env=Nap)) == 4


async def test_a_running_episode_is_cancelled_and_others_go_on(manager: BatchEpisodeManager) -> None:
    await manager.submit_batch("b", ["slow"], env=lambda: Nap(0.4))

    async def runs() -> bool:
        return (await manager.get_batch_status("b")).running > 0

    await until(runs)
    await asyncio.sleep(0.1)
    pids = manager.worker_pids()
    assert (await manager.cancel_episode("b", "slow")).status == "cancelled"
    assert (await manager.wait_batch("b")).cancelled == 1
    assert len(await play(manager, "next", 4, env=Nap)) == 4
    assert pids.items() <= manager.worker_pids().items()  # it stopped by itself, nothing had to be killed


# ------------------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"max_parallel_episodes": 0}, r"max_parallel_episodes=0 is not allowed: give a whole number, 1 to 1,024"),
        ({"max_parallel_episodes": True}, "max_parallel_episodes=True"),
        ({"max_parallel_episodes": "8"}, "max_parallel_episodes='8'"),
        ({"max_retries": -1}, "max_retries=-1"),
        ({"episode_timeout": 0}, "episode_timeout=0 is not allowed: give seconds, above 0"),
        ({"episode_timeout": float("nan")}, "episode_timeout=nan"),
        ({"episode_timeout": "5"}, "episode_timeout='5'"),
        ({"retry_delay": -1.0}, "retry_delay"),
    ],
)
def test_limits_that_are_none(given: dict[str, Any], message: str) -> None:
    with pytest.raises(BatchInputError, match=message):
        BatchEpisodeManager(**given)


async def test_batches_that_cannot_be(manager: BatchEpisodeManager, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    await manager.submit_batch("twice", ["a"])
    cases: list[tuple[type[Exception], str, dict[str, Any]]] = [
        (DuplicateBatchError, "a batch 'twice' already", {"batch_id": "twice"}),
        (BatchInputError, "batch_id='' is not allowed", {"batch_id": ""}),
        (BatchInputError, "batch_id=7", {"batch_id": 7}),
        (BatchInputError, "0 entries", {"episode_ids": []}),
        (BatchInputError, "give a list of ids", {"episode_ids": "ep_001"}),
        (BatchInputError, r"episode_ids\[1\]=None", {"episode_ids": ["a", None]}),
        (BatchInputError, "'a' more than once", {"episode_ids": ["a", "b", "a"]}),
        (BatchInputError, r"episode_ids\[0\]='a\\nb'", {"episode_ids": ["a\nb"]}),
        (BatchInputError, "no room code: give 4 to 16 capital letters", {"room_code": "tr 1"}),
        (BatchInputError, "room_code=12 is no room code", {"room_code": 12}),
        (BatchInputError, "max_parallel=0", {"max_parallel": 0}),
        (BatchInputError, "seed=-1", {"seed": -1}),
        (BatchInputError, "lanes=1000", {"lanes": 1000}),
        (BatchInputError, "lanes=4 is for built-in games", {"lanes": 4, "env": "CartPole-v1"}),
        (BatchInputError, "keep_results=-1", {"keep_results": -1}),
        (UnknownEnvError, 'Did you mean "CartPole-v1"', {"env": "CartPol-v1"}),
        (BatchInputError, "there is no module 'no_such_module'", {"env": "no_such_module:Game-v0"}),
        (UnknownOptionError, 'no option .oponent.*Did you mean "opponent"', {"env_kwargs": {"oponent": "expert"}}),
        (OptionValueError, "nobody to play the other seats", {"env_kwargs": {"opponent": "self"}}),
        (BatchInputError, 'no policy .expertt.*Did you mean "expert"', {"policy": "expertt"}),
        (BatchInputError, "no run and no checkpoint", {"policy": tmp_path}),
        (BatchInputError, "is a file, but no .zip", {"policy": tmp_path / "file"}),
        (BatchInputError, "is a file: give a folder", {"replays": tmp_path / "file"}),
        (BatchInputError, "cannot be sent to a worker", {"env_kwargs": {"x": threading.Lock()}, "env": "CartPole-v1"}),
        (OSError, "No such file", {"results_file": tmp_path / "none" / "r.jsonl"}),
    ]
    for kind, message, given in cases:
        with pytest.raises(kind, match=message):
            await manager.submit_batch(**{"batch_id": "b", "episode_ids": ["a"], **given})
    with pytest.raises(BatchInputError, match="handler is None, not a function"):
        manager.register_episode_handler(None)  # type: ignore[arg-type]
    assert [status.batch_id for status in await manager.list_batches()] == ["twice"]


async def test_what_only_a_worker_finds_out_is_not_tried_again(manager: BatchEpisodeManager, tmp_path: Path) -> None:
    (tmp_path / "policy.npz").write_text("nothing")
    gym.register("OnlyHere-v0", Nap)
    cases: list[tuple[str, dict[str, Any]]] = [
        ("unexpected keyword argument 'gravvity'", {"env": "CartPole-v1", "env_kwargs": {"gravvity": 1}}),
        ("give MODULE:ID, or a function", {"env": "OnlyHere-v0"}),
        ("made int, no Gymnasium Env", {"env": lambda: 7}),
        ("not a policy file", {"policy": tmp_path / "policy.npz"}),
        ("there can be no replays of", {"env": Nap, "replays": tmp_path}),
    ]
    for number, (message, given) in enumerate(cases):
        assert await play(manager, f"b{number}", 3, **given) == []
        status = await manager.get_batch_status(f"b{number}")
        assert status.state == "failed" and status.failed == 3 and message in (status.error or "")
        assert status.retries == 0 and status.running == 0


async def test_a_manager_is_used_between_its_start_and_its_stop() -> None:
    manager = BatchEpisodeManager()
    with pytest.raises(BatchStateError, match="this manager is new"):
        await manager.submit_batch("b", ["a"])
    await manager.stop()  # of one that never began
    await manager.start()
    with pytest.raises(BatchStateError, match="this manager is running"):
        await manager.start()
    await manager.submit_batch("b", ids(500), env=lambda: Nap(0.2))
    waiting = asyncio.create_task(manager.wait_batch("b"))
    await asyncio.sleep(0.1)
    await manager.stop()
    status = await waiting
    assert status.state == "cancelled" and status.cancelled + status.completed == 500
    assert manager.worker_pids() == {}
    with pytest.raises(BatchStateError, match="this manager is stopped"):
        await manager.submit_batch("c", ["a"])
    await manager.stop()


async def test_a_manager_that_is_stopped_while_its_workers_start() -> None:
    for seconds in (0.0, 0.02):
        manager = BatchEpisodeManager(max_parallel_episodes=8)
        await manager.start()
        await manager.submit_batch("b", ids(64), env=lambda: Nap(0.2))
        await asyncio.sleep(seconds)
        await manager.stop()
        assert manager.worker_pids() == {}
