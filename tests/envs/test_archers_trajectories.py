"""One trajectory, however it is computed: lanes, threads, the single environment, episodes again, without the JIT."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from archers_stage import lively_actions

from gymcast.envs import GameVectorEnv, OptionValueError
from gymcast.envs.games import archers as kernels

LANES, DECISIONS = 12, 120
OPTIONS: dict[str, Any] = {"opponent": "mixed", "map": "random", "max_duration_s": 6, "players": 3}


def actions_of(lane: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """What a lane is told to do, decision by decision, whichever batch it is in."""
    random = np.random.default_rng([9, lane])
    return np.concatenate([lively_actions(random, 1) for _ in range(DECISIONS)])


def play(env: GameVectorEnv, seed: int, lanes: range) -> list[str]:
    """A hash per game of all it went through: states, observations, masks, rewards and ends."""
    digests = [hashlib.sha256() for _ in lanes]
    observations, infos = env.reset(seed=seed)
    told = np.stack([actions_of(lane) for lane in lanes], axis=1)
    for decision in range(DECISIONS):
        for row in range(len(lanes)):
            digests[row].update(env.batch.state[row].tobytes())
            digests[row].update(observations[row].tobytes() + infos["action_mask"][row].tobytes())
        observations, rewards, terminated, truncated, infos = env.step(told[decision])
        for row in range(len(lanes)):
            digests[row].update(np.array([rewards[row], terminated[row], truncated[row]]).tobytes())
            if row in env.ended:
                digests[row].update(infos["final_obs"][row].tobytes())
    return [digest.hexdigest() for digest in digests]


@pytest.fixture(scope="module")
def whole() -> list[str]:
    return play(GameVectorEnv("archers", LANES, threads=1, **OPTIONS), 100, range(LANES))


def test_the_lanes_differ(whole: list[str]) -> None:
    assert len(set(whole)) == LANES


@pytest.mark.parametrize("lane", [0, 5, 11])
def test_one_lane_plays_as_it_does_among_many(lane: int, whole: list[str]) -> None:
    env = GameVectorEnv("archers", 1, threads=1, **OPTIONS)
    assert play(env, 100 + lane, range(lane, lane + 1)) == [whole[lane]]


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads: int, whole: list[str]) -> None:
    env = GameVectorEnv("archers", LANES, threads=threads, **OPTIONS)
    assert play(env, 100, range(LANES)) == whole
    env.close()


def test_seeding_by_a_list_is_seeding_lane_by_lane(whole: list[str]) -> None:
    env = GameVectorEnv("archers", LANES, threads=1, **OPTIONS)
    env.reset(seed=1)
    assert play(env, [100 + lane for lane in range(LANES)], range(LANES)) == whole  # type: ignore[arg-type]


def test_the_single_environment_is_a_lane() -> None:
    vector = GameVectorEnv("archers", LANES, threads=1, **OPTIONS)
    observations, infos = vector.reset(seed=100)
    lane, told = 4, np.stack([actions_of(i) for i in range(LANES)], axis=1)
    single = gymnasium.make("gymcast/Archers-v0", disable_env_checker=True, **OPTIONS)
    observation, info = single.reset(seed=100 + lane)
    ended = 0
    for decision in range(DECISIONS):
        np.testing.assert_array_equal(observation, observations[lane])
        np.testing.assert_array_equal(info["action_mask"], infos["action_mask"][lane])
        observations, rewards, terminated, truncated, infos = vector.step(told[decision])
        observation, reward, single_terminated, single_truncated, info = single.step(told[decision, lane])
        assert (reward, single_terminated, single_truncated) == (rewards[lane], terminated[lane], truncated[lane])
        if single_terminated or single_truncated:
            ended += 1
            np.testing.assert_array_equal(observation, infos["final_obs"][lane])
            assert info["outcome"] == {1: "win", 0: "draw", -1: "loss"}[int(infos["final_info"]["outcome"][lane])]
            assert info["is_success"] is (info["outcome"] == "win")
            assert (info["kills"], info["deaths"]) == (
                infos["final_info"]["kills"][lane],
                infos["final_info"]["deaths"][lane],
            )
            observation, info = single.reset()
    assert ended >= 1


def test_seed_and_episode_determine_a_match() -> None:
    """The fourth match of a lane begins alike however the first three were played, down to the last bit of state."""
    starts = []
    for way in range(2):
        env = GameVectorEnv("archers", 2, threads=1, **OPTIONS | {"max_duration_s": 1})
        env.reset(seed=5)
        random = np.random.default_rng(way)
        while env.episode_index.min() < 3:
            chosen = lively_actions(random, 2)
            env.step(chosen)
            if env.ended.size and (env.episode_index == 3).any():
                lane = int(np.flatnonzero(env.episode_index == 3)[0])
                starts.append((lane, env.batch.state[lane].tobytes()))
                break
    fresh = GameVectorEnv("archers", 2, threads=1, **OPTIONS)
    fresh.reset(seed=5)
    fresh.batch.state["episode"] = 3
    fresh.batch.reset(np.ones(2, np.bool_))
    for lane, start in starts:
        assert fresh.batch.state[lane].tobytes() == start
    assert len(starts) == 2


def test_resets_go_on_to_the_next_match_and_a_seed_goes_back() -> None:
    env = GameVectorEnv("archers", 3, seed=40, threads=1)
    env.reset()
    assert (env.lane_seed.tolist(), env.episode_index.tolist()) == ([40, 41, 42], [0, 0, 0])
    env.reset()
    assert env.episode_index.tolist() == [1, 1, 1]
    env.reset(options={"reset_mask": np.array([True, False, True])})
    assert env.episode_index.tolist() == [2, 1, 2]
    env.reset(seed=[None, 7, None])
    assert (env.lane_seed.tolist(), env.episode_index.tolist()) == ([40, 7, 42], [3, 0, 3])
    env.reset(seed=9)
    assert (env.lane_seed.tolist(), env.episode_index.tolist()) == ([9, 10, 11], [0, 0, 0])


def test_a_first_reset_begins_every_game() -> None:
    env = GameVectorEnv("archers", 3, threads=1)
    env.reset(seed=[3, None, 5], options={"reset_mask": np.array([True, False, False])})
    assert (env.batch.state["quiver"][:, 0] == 4).all() and env.episode_index.tolist() == [0, 0, 0]
    assert env.lane_seed[[0, 2]].tolist() == [3, 5] and env.lane_seed[1] > 0


def test_seeds_and_masks_of_another_length_are_refused() -> None:
    env = GameVectorEnv("archers", 3, threads=1)
    env.reset(seed=0)
    before = env.batch.state.copy()
    for seeds in ([1], [1, 2, 3, 4]):
        with pytest.raises(OptionValueError, match="3 games"):
            env.reset(seed=seeds)
    with pytest.raises(OptionValueError, match="reset_mask"):
        env.reset(options={"reset_mask": np.array([True, False])})
    with pytest.raises(ValueError, match="non-negative"):
        env.reset(seed=-1)
    assert (env.batch.state == before).all()


def test_an_observation_stays_until_the_step_after_next() -> None:
    env = GameVectorEnv("archers", 2, threads=1)
    first, _ = env.reset(seed=0)
    kept = first.copy()
    actions = np.array([[2, 0, 1, 0]] * 2)
    second, *_ = env.step(actions)
    np.testing.assert_array_equal(first, kept)
    kept = second.copy()
    third, *_ = env.step(actions)
    np.testing.assert_array_equal(second, kept)
    assert np.shares_memory(third, first) and not np.shares_memory(third, second)


SLOW = """
import json, sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from test_archers_trajectories import short_plays
json.dump(short_plays(), sys.stdout)
"""


def short_plays() -> list[list[str]]:
    """Hashes of a few decisions of a few lanes, with all levels and all forms of action."""
    found = []
    for kind in ("multidiscrete", "box"):
        env = GameVectorEnv("archers", 5, threads=1, players=3, map="random", opponent="mixed", action=kind)
        env.reset(seed=21)
        env.batch.state["level"][:, 1] = np.arange(5)
        env.batch.state["tick"] = 2975  # the last ones are over and begin anew
        digests = [hashlib.sha256() for _ in range(5)]
        random = np.random.default_rng(3)
        for decision in range(30):
            if kind == "box":
                actions: Any = random.uniform(-1, 1, (5, 5)).astype(np.float32)
                actions[:, 2] = 1 if decision % 5 else -1
            else:
                actions = lively_actions(random, 5)
                actions[:, 2] = decision % 5 != 0
            seen, rewards, *_ = env.step(actions)
            for lane, digest in enumerate(digests):
                digest.update(env.batch.state[lane].tobytes() + seen[lane].tobytes() + rewards[lane].tobytes())
        found.append([digest.hexdigest() for digest in digests])
    return found


def test_the_same_without_the_jit() -> None:
    """Python executes the same source: integers do not overflow, floats round alike, no index is out of bounds."""
    here = str(Path(__file__).parent)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", SLOW, here],
        env={**os.environ, "NUMBA_DISABLE_JIT": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout) == short_plays()


def test_a_lane_needs_little_memory() -> None:
    env = GameVectorEnv("archers", 64, threads=1)
    assert env.bytes_per_lane <= 4096
    assert kernels.STATE.itemsize <= 3072
