"""Every episode of real trainings, out of the log and played again bit for bit."""

from __future__ import annotations

import errno
import json
import os
import random
import signal
import struct
import subprocess
import sys
import time
import zlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from stable_baselines3 import A2C, PPO

from gymcast.envs import EpisodeLog, Replay, ReplayError, verify_replay
from gymcast.envs.action_codec import ActionCodec
from gymcast.envs.episode_log import segment_paths
from gymcast.envs.segments import Block, SegmentHeader, episode_dtype
from gymcast.training import EpisodeLogCallback, Trainer, TrainingConfig
from gymcast.training.checkpoints import CheckpointManager, load_tensors
from gymcast.training.episode_writer import EpisodeWriter
from gymcast.training.events import ErrorData
from gymcast.training.vec_env import make_training_vec_env

SMALL: dict[str, Any] = {
    "env_id": "gymcast/Archers-v0",
    "env_kwargs": {"opponent": "beginner", "max_duration_s": 2.0, "reward": "shaped"},
    "parallel_episodes": 16,
    "evaluation_games": 0,
    "seed": 3,
    "hyperparameters": {"n_steps": 16, "batch_size": 64, "n_epochs": 1},
}


def train(run_dir: Path, sink: Any = None, resume: bool = False, **changes: Any) -> Any:
    config = TrainingConfig.parse({**SMALL, **changes})
    return Trainer(config, run_dir=run_dir, sink=sink, resume=resume).run_training_loop()


def verified(log: EpisodeLog, count: int) -> int:
    """Play `count` random episodes of a log again, through the bytes of a replay file; returns how many there were."""
    found = log.select()
    chosen = random.Random(1).sample(found, min(count, len(found)))
    for episode in chosen:
        replay = Replay.from_bytes(log.replay(episode).to_bytes())
        again = verify_replay(replay)
        assert again["returns"] == list(episode.returns) and again["check"] == episode.check
        assert again["length"] == episode.length == len(replay.actions)
    return len(chosen)


def test_a_hundred_past_episodes_play_again_bit_for_bit(tmp_path: Path) -> None:
    result = train(tmp_path, total_timesteps=16 * 16 * 16)
    log = EpisodeLog(tmp_path / "episodes")
    assert log.problems == [] and len(log) == result.episodes and log.decisions == result.timesteps
    assert verified(log, 100) == 100


@pytest.mark.parametrize(
    "changes",
    [
        {"env_kwargs": {"opponent": "self", "players": 2, "max_duration_s": 2.0}},
        {"env_kwargs": {"opponent": "mixed", "map": "random", "players": 4, "max_duration_s": 2.0, "action": "box"}},
        {"env_kwargs": {"max_duration_s": 2.0, "action": "discrete", "observation": "grid", "frame_skip": 2}},
        {"algorithm": "maskable_ppo"},
        {"algorithm": "a2c", "hyperparameters": {"n_steps": 5}},
        {"parallel_episodes": 300, "total_timesteps": 300 * 16 * 2},
    ],
    ids=["self-play", "box", "grid", "masked", "a2c", "threads"],
)
def test_every_way_of_playing_archers_is_logged(changes: dict[str, Any], tmp_path: Path) -> None:
    result = train(tmp_path, **{"total_timesteps": 16 * 16 * 4, **changes})
    log = EpisodeLog(tmp_path / "episodes")
    seats = 2 if changes.get("env_kwargs", {}).get("opponent") == "self" else 1
    assert len(log) * seats == result.episodes > 0
    assert verified(log, 15) >= 8
    if seats == 2:
        won = [episode for episode in log.select() if episode.outcomes[0] != "draw"]
        assert all({"win", "loss"} == set(episode.outcomes) for episode in won)


@pytest.mark.parametrize(
    ("env_id", "algorithm"),
    [("CartPole-v1", "ppo"), ("CartPole-v1", "dqn"), ("Acrobot-v1", "ppo"), ("Pendulum-v1", "a2c")],
)
def test_other_environments_play_again_too(env_id: str, algorithm: str, tmp_path: Path) -> None:
    steps = {"Acrobot-v1": 4 * 1024, "Pendulum-v1": 4 * 512}.get(env_id, 2048)
    hyperparameters = {"n_steps": 128} if algorithm != "dqn" else {"learning_starts": 100}
    result = train(
        tmp_path, env_id=env_id, env_kwargs={}, algorithm=algorithm, parallel_episodes=4, total_timesteps=steps,
        hyperparameters=hyperparameters,
    )  # fmt: skip
    log = EpisodeLog(tmp_path / "episodes")
    assert len(log) == result.episodes and log.decisions == result.timesteps
    assert verified(log, 20) >= 4
    episodes = log.select(lane=1, order="oldest")
    assert [episode.episode for episode in episodes] == list(range(len(episodes))) and episodes[0].seed == 3 + 1


def test_subprocesses_and_options(tmp_path: Path) -> None:
    env = make_training_vec_env("MountainCarContinuous-v0", 2, 5, subprocesses=True, options={"goal_velocity": 0.01})
    A2C("MlpPolicy", env, n_steps=50, device="cpu").learn(2 * 1100, callback=EpisodeLogCallback(tmp_path))
    env.close()
    log = EpisodeLog(tmp_path)
    assert len(log) == 2 and verified(log, 2) == 2
    assert log.select()[0].options == {"goal_velocity": 0.01}


def test_logging_changes_nothing(tmp_path: Path) -> None:
    weights = []
    for kept in (0, None):
        run = tmp_path / str(kept)
        result = train(run, total_timesteps=1024, replays_kept=kept, env_id="CartPole-v1", env_kwargs={})
        newest = CheckpointManager(result.checkpoint.parent).newest()
        assert newest is not None
        weights.append(load_tensors(newest)["model"]["policy"])
        assert (run / "episodes").exists() == (kept is None)
    assert all(th.equal(value, weights[1][name]) for name, value in weights[0].items())


def test_a_script_of_ones_own(tmp_path: Path) -> None:
    env = make_training_vec_env("archers", 4, 1, opponent="random", max_duration_s=0.8)
    model = PPO("MlpPolicy", env, n_steps=32, batch_size=64, n_epochs=1, device="cpu")
    model.learn(4 * 32, callback=EpisodeLogCallback(tmp_path))
    assert env.listeners == [] and verified(EpisodeLog(tmp_path), 5) == 5
    with pytest.raises(ValueError, match="make_training_vec_env"):
        PPO("MlpPolicy", "CartPole-v1", device="cpu").learn(10, callback=EpisodeLogCallback(tmp_path))


# ------------------------------------------------------------------------------------------------------------- versions


def test_an_episode_of_another_version_is_refused_with_the_reason(tmp_path: Path) -> None:
    train(tmp_path, total_timesteps=16 * 16 * 2)
    (path,) = segment_paths(tmp_path / "episodes")
    data = path.read_bytes()
    size = int.from_bytes(data[4:8], "little")
    header = json.loads(data[12 : 12 + size])
    text = json.dumps({**header, "version": 7}).encode()
    path.write_bytes(struct.pack("<4sII", b"GCEL", len(text), zlib.crc32(text)) + text + data[12 + size :])
    log = EpisodeLog(tmp_path / "episodes")
    episode = log.select(limit=1)[0]
    with pytest.raises(ReplayError, match="version 7, the game here is version 0: its rules changed"):
        verify_replay(log.replay(episode))


def test_actions_that_were_not_played_do_not_verify(tmp_path: Path) -> None:
    train(tmp_path, total_timesteps=16 * 16 * 2)
    log = EpisodeLog(tmp_path / "episodes")
    replay = log.replay(log.select(limit=1)[0])
    actions = replay.actions.copy()
    actions[:, 0, 0] = (actions[:, 0, 0] + 1) % 3
    with pytest.raises(ReplayError, match="plays to"):
        verify_replay(Replay(**{**vars(replay), "actions": actions}))


# ------------------------------------------------------------------------------------------------------------- resuming


def test_a_resumed_run_logs_no_episode_twice(tmp_path: Path) -> None:
    train(tmp_path, total_timesteps=1024)
    log = EpisodeLog(tmp_path / "episodes")
    before = len(log)
    result = train(tmp_path, total_timesteps=2048, resume=True)
    log.refresh()
    assert log.decisions == 2048 and before <= len(log) <= result.episodes
    places = [(episode.lane, episode.start) for episode in log.select()]
    assert len(places) == len(set(places))
    spans = sorted((episode.lane, episode.start, episode.end) for episode in log.select())
    assert all(a[2] <= b[1] for a, b in pairwise(spans) if a[0] == b[0])
    assert verified(log, 40) == 40


@pytest.mark.parametrize(
    "changes",
    [{}, {"env_id": "CartPole-v1", "env_kwargs": {}}, {"env_id": "CartPole-v1", "env_kwargs": {}, "algorithm": "dqn"}],
    ids=["archers", "cartpole", "dqn"],
)
def test_an_interrupted_run_logs_what_an_uninterrupted_one_logs(changes: dict[str, Any], tmp_path: Path) -> None:
    if changes.get("algorithm") == "dqn":
        steady = {"exploration_initial_eps": 0.1, "exploration_final_eps": 0.1}  # does not follow the goal
        changes = {**changes, "hyperparameters": {"learning_starts": 100, **steady}}
    stories = []
    for name, parts in (("one", (2048,)), ("two", (768, 2048))):
        for number, steps in enumerate(parts):
            train(tmp_path / name, resume=number > 0, **{**changes, "total_timesteps": steps})
        log = EpisodeLog(tmp_path / name / "episodes")
        stories.append([(one, log.replay(one).actions.tobytes()) for one in log.select()])
        assert verified(log, 25) >= 15
    assert stories[0] == stories[1]


def test_a_new_run_in_an_old_folder_begins_anew(tmp_path: Path) -> None:
    train(tmp_path, total_timesteps=1024)
    result = train(tmp_path, total_timesteps=512)
    log = EpisodeLog(tmp_path / "episodes")
    assert log.decisions == 512 and len(log) == result.episodes


KILLED = """
import sys
from gymcast.training import Trainer, TrainingConfig
config = TrainingConfig.parse(dict(
    env_id="gymcast/Archers-v0", env_kwargs={"opponent": "random", "max_duration_s": 0.8}, parallel_episodes=64,
    evaluation_games=0, seed=4, total_timesteps=10**9, checkpoint_interval_steps=20_000,
    hyperparameters={"n_steps": 64, "batch_size": 512, "n_epochs": 1}))
Trainer(config, run_dir=sys.argv[1], resume=True).run_training_loop()
"""


def test_killed_while_writing(tmp_path: Path) -> None:
    """Killed twice at random moments and resumed each time: all that is listed plays again."""
    for number in range(2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 200  # kernels may have to be compiled first
            while len(list(tmp_path.glob("checkpoints/step-*/manifest.json"))) < 2 + number:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.02)
            time.sleep(random.Random(number).uniform(0.2, 1.0))
        finally:
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        log = EpisodeLog(tmp_path / "episodes")
        places = [(episode.lane, episode.start) for episode in log.select()]
        assert log.problems == [] and len(places) == len(set(places)) > 100
        assert verified(log, 30) == 30


# --------------------------------------------------------------------------------------------------- disk and retention

FULL_DISK = """
import resource, sys
from itertools import pairwise
from pathlib import Path
from gymcast.training import Trainer, TrainingConfig
from gymcast.training.events import ErrorData
class Sink:
    desired = "running"
    codes = []
    def emit(self, data):
        if isinstance(data, ErrorData):
            self.codes.append(data.code)
resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, resource.RLIM_INFINITY))
config = TrainingConfig.parse(dict(
    env_id="gymcast/Archers-v0", env_kwargs={"opponent": "random", "max_duration_s": 4}, parallel_episodes=64,
    evaluation_games=0, seed=4, total_timesteps=64 * 64 * 64, network={"hidden": [4]}, spectator_enabled=False,
    checkpoint_interval_minutes=None, hyperparameters={"n_steps": 64, "batch_size": 512, "n_epochs": 1}))
sink = Sink()
result = Trainer(config, run_dir=sys.argv[1], sink=sink).run_training_loop()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(result.status, result.timesteps, sorted(sink.codes))
"""


def test_a_full_disk_costs_episodes_and_a_warning_but_no_training(tmp_path: Path) -> None:
    """What a full disk does to a writer: files stay below a size, writing more is refused."""
    command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    status, timesteps, codes = result.stdout.strip().split("\n")[-1].split(" ", 2)
    assert (status, timesteps) == ("completed", str(64 * 64 * 64)), result.stdout + result.stderr
    assert codes.count("replay_log_failed") == 1, result.stdout + result.stderr
    log = EpisodeLog(tmp_path / "episodes")
    assert all(path.stat().st_size <= 150_000 for path in segment_paths(tmp_path / "episodes"))
    assert verified(log, 20) >= 5


def test_a_disk_that_refuses_everything_is_reported_once(tmp_path: Path, sink: Any) -> None:
    (tmp_path / "episodes").write_text("a file where the folder should be")
    assert train(tmp_path, sink, total_timesteps=512).status == "completed"
    errors = sink.of(ErrorData)
    assert [error.code for error in errors] == ["replay_log_failed"] and os.strerror(errno.EEXIST) in errors[0].message


def block(first: int, steps: int) -> Block:
    table = np.zeros(steps, episode_dtype(1))
    table["end"], table["length"] = first + 1 + np.arange(steps), 1
    actions = np.random.default_rng(first).integers(0, 250, (steps, 1, 1)).astype(np.uint8)
    return Block(first, actions, table)


HEADER = SegmentHeader("CartPole-v1", 1, {}, 1, 1, 1, ActionCodec.for_groups((250,)), None, 0)


def test_a_log_stays_within_its_size(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, max_bytes=512 << 10, kept=None)
    for number in range(400):
        while not writer.put(HEADER, block(number * 2000, 2000)):
            writer.flush(10)
    assert writer.close(10) and writer.problem is None
    size = sum(path.stat().st_size for path in segment_paths(tmp_path))
    assert (512 << 10) * 0.8 < size <= (512 << 10) * 1.15
    log = EpisodeLog(tmp_path)
    assert log.select(limit=1)[0].end == 400 * 2000, "the newest are kept"
    oldest = log.select(order="oldest", limit=1)[0]
    assert len(log) == 400 * 2000 - oldest.start, "all that is newer than the oldest"


def test_a_log_keeps_about_as_many_episodes_as_asked_for(tmp_path: Path) -> None:
    writer = EpisodeWriter(tmp_path, max_bytes=None, kept=800)
    for number in range(60):
        while not writer.put(HEADER, block(number * 100, 100)):
            writer.flush(10)
    assert writer.close(10)
    assert 800 <= len(EpisodeLog(tmp_path)) <= 1000


def test_a_disk_that_cannot_keep_up_costs_blocks_but_no_time(tmp_path: Path) -> None:
    """The writer's thread hangs in a file that nobody reads (a pipe); training hands on over."""
    writer = EpisodeWriter(tmp_path, max_bytes=None, kept=None)
    writer.put(HEADER, block(0, 10))
    assert writer.flush(10)
    assert writer._file is not None
    reader, stuck = os.pipe()
    regular = os.dup(writer._file._file.fileno())
    os.dup2(stuck, writer._file._file.fileno())
    accepted = [writer.put(HEADER, block(10 + number * 5000, 5000)) for number in range(60)]
    assert not all(accepted) and writer.dropped == accepted.count(False)
    assert not writer.flush(0.1), "and a checkpoint does not wait for ever either"
    os.dup2(regular, writer._file._file.fileno())
    while len(os.read(reader, 1 << 20)) == 1 << 16:
        pass
    for number in (reader, stuck, regular):
        os.close(number)
