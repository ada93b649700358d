"""Trained policies play batches as they play elsewhere."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import pytest
from sb3_contrib import ARS, QRDQN, TRPO, MaskablePPO
from stable_baselines3 import DQN, PPO, SAC, TD3

from gymcast.envs import Replay, verify_replay
from gymcast.training import BatchEpisodeManager, MaskableRecurrentPPO, Trainer, TrainingConfig
from gymcast.training.sessions.batch.find import find_policy
from gymcast.training.sessions.batch.play import seeds_of
from gymcast.training.sessions.batch.types import BatchInputError

IDS = ["a", "b", "c", "d"]


@pytest.fixture(scope="module", autouse=True)
def games() -> Iterator[None]:
    """``odd_envs`` can be imported by name, as a package of a game's author."""
    sys.path.insert(0, str(Path(__file__).parent))
    yield
    sys.path.remove(str(Path(__file__).parent))


def lengths(model: Any) -> dict[str, int]:
    """How long the episodes are when one plays them by hand, with the likeliest actions."""
    env: Any = gym.make("CartPole-v1")
    found = {}
    for name in IDS:
        observation, _ = env.reset(seed=seeds_of(0, name)[0])
        found[name], ended = 0, False
        while not ended:
            action, _ = model.predict(observation, deterministic=True)
            observation, _, terminated, truncated, _ = env.step(action)
            found[name] += 1
            ended = terminated or truncated
    env.close()
    return found


async def played(manager: BatchEpisodeManager, path: Path, **more: Any) -> dict[str, int | None]:
    """How long they are when a batch plays them."""
    batch_id = str(path)
    await manager.submit_batch(batch_id, IDS, **{"env": "CartPole-v1", "policy": path, **more})
    status = await manager.wait_batch(batch_id)
    assert status.completed == 4, status.error
    return {result.episode_id: result.length for result in await manager.get_results(batch_id)}


async def test_models_of_stable_baselines3(tmp_path: Path) -> None:
    ppo = PPO("MlpPolicy", "CartPole-v1", seed=1, device="cpu")
    dqn = DQN("MlpPolicy", "CartPole-v1", seed=3, device="cpu", buffer_size=10)
    other = PPO("MlpPolicy", "Acrobot-v1", device="cpu", n_steps=64)
    for name, model in {"ppo": ppo, "dqn": dqn, "acrobot": other}.items():
        model.save(tmp_path / f"{name}.zip")
    with zipfile.ZipFile(tmp_path / "strange.zip", "w") as archive:
        archive.writestr("hello", "there")
    async with BatchEpisodeManager(1) as manager:  # one worker: torch is imported once
        assert await played(manager, tmp_path / "ppo.zip", deterministic=True) == lengths(ppo)
        assert await played(manager, tmp_path / "dqn.zip") == lengths(dqn)
        for name, message in {"acrobot": "do not fit this game", "strange": "no model of Stable-Baselines3"}.items():
            await manager.submit_batch(name, IDS, env="CartPole-v1", policy=tmp_path / f"{name}.zip")
            status = await manager.wait_batch(name)
            assert status.state == "failed" and message in (status.error or "")


async def test_zips_of_every_kind_of_policy(tmp_path: Path) -> None:
    turns: Any = gym.make("odd_envs:Turns-v0")

    def small() -> dict[str, Any]:  # each its own: some models write into it
        return {"policy_kwargs": {"net_arch": [4]}, "device": "cpu"}

    models = {
        "qrdqn": QRDQN("MlpPolicy", "CartPole-v1", buffer_size=10, **small()),
        "trpo": TRPO("MlpPolicy", "CartPole-v1", **small()),
        "ars": ARS("LinearPolicy", "CartPole-v1", device="cpu"),
        "sac": SAC("MlpPolicy", "Pendulum-v1", buffer_size=10, **small()),
        "td3": TD3("MlpPolicy", "Pendulum-v1", buffer_size=10, **small()),
        "maskable_ppo": MaskablePPO("MlpPolicy", turns, **small()),
        "maskable_recurrent_ppo": MaskableRecurrentPPO("MlpLstmPolicy", turns, **small()),
    }
    async with BatchEpisodeManager(1, max_retries=0) as manager:
        for name, model in models.items():
            model.save(tmp_path / f"{name}.zip")
            of_env = {"env": "CartPole-v1"}
            if isinstance(model.action_space, gym.spaces.Box):
                of_env = {"env": "Pendulum-v1", "wrappers": [{"TimeLimit": {"max_episode_steps": 5}}]}
            elif "maskable" in name:
                of_env = {"env": "Turns-v0", "gym_packages": ["odd_envs"]}
            found = await played(manager, tmp_path / f"{name}.zip", deterministic=True, **of_env)
            if of_env["env"] == "CartPole-v1":
                assert found == lengths(model)
            else:
                assert set(found.values()) == {5 if "wrappers" in of_env else 12}


async def test_a_run_is_played_with_its_packages_and_wrappers(tmp_path: Path) -> None:
    config = TrainingConfig.parse(
        {
            "env_id": "odd_envs:Odd-v0",
            "env_kwargs": {"kind": "tuple"},
            "wrappers": [{"odd_envs:Halved": {}}],
            "frame_stack": 2,
            "algorithm": "ppo",
            "parallel_episodes": 1,
            "workers": 0,
            "evaluation_games": 0,
            "total_timesteps": 16,
            "hyperparameters": {"n_steps": 16, "batch_size": 16, "n_epochs": 1},
        }
    )
    Trainer(config, run_dir=tmp_path / "run").run_training_loop()
    async with BatchEpisodeManager(1, max_retries=0) as manager:
        given: dict[str, Any] = {"env": "Odd-v0", "policy": tmp_path / "run"}
        await manager.submit_batch("as trained", IDS, replays=tmp_path, **given)
        status = await manager.wait_batch("as trained")
        assert status.completed == 4, status.error
        for result in await manager.get_results("as trained"):
            assert result.total_reward is not None and result.total_reward <= 6  # halved
            assert (
                verify_replay(Replay.from_bytes((tmp_path / f"{result.episode_id}.replay").read_bytes()))["length"]
                == 12
            )
        await manager.submit_batch("otherwise", IDS, frame_stack=3, **given)
        status = await manager.wait_batch("otherwise")
        assert status.state == "failed" and "options and wrappers it was trained with" in (status.error or "")


async def test_runs_and_checkpoints(tmp_path: Path) -> None:
    config = TrainingConfig.parse(
        {
            "env_id": "CartPole-v1",
            "parallel_episodes": 2,
            "evaluation_games": 0,
            "total_timesteps": 64,
            "hyperparameters": {"n_steps": 32, "batch_size": 32, "n_epochs": 1},
        }
    )
    Trainer(config, run_dir=tmp_path / "run").run_training_loop()
    (checkpoint,) = (tmp_path / "run" / "checkpoints").glob("step-*")
    exported = find_policy(tmp_path / "run", "CartPole-v1")
    assert exported.kind == "npz" and exported.path == checkpoint / "policy.npz"
    async with BatchEpisodeManager(1) as manager:
        of_run, of_checkpoint, of_file = [
            await played(manager, path) for path in (tmp_path / "run", checkpoint, checkpoint / "policy.npz")
        ]
    assert of_run == of_checkpoint == of_file
    with pytest.raises(BatchInputError, match=r"was trained on CartPole-v1, which is not MountainCar-v0"):
        find_policy(checkpoint, "MountainCar-v0")
    # A file that was changed is not used, and nothing of it is played.
    (checkpoint / "model.pt").write_bytes(b"something else")
    with pytest.raises(BatchInputError, match="no checkpoint that verifies"):
        find_policy(tmp_path / "run", "CartPole-v1")
