"""Plain Stable-Baselines3 loads what is exported, and nothing of a foreign file is executed."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest
import stable_baselines3
import torch as th
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import VecNormalize

from gymcast.training import Trainer, TrainingConfig
from gymcast.training.algorithm_table import ALGORITHMS as TABLE
from gymcast.training.checkpoints import CheckpointManager, load_tensors
from gymcast.training.config import INITIAL_FILE, ConfigError
from gymcast.training.sb3_zip import Sb3ZipError, export_sb3, load_weights, read_sb3_zip

SHORT = {
    "env_id": "CartPole-v1",
    "parallel_episodes": 2,
    "evaluation_games": 0,
    "seed": 1,
    "network": {"hidden": [24, 16], "activation": "relu"},
    "algorithm": "ppo",
}
PPO_ARGUMENTS = {
    "n_steps": 32,
    "batch_size": 32,
    "n_epochs": 1,
    "learning_rate": {"schedule": "linear", "start": 0.01, "end": 0},
}
OFF_POLICY = {"learning_starts": 32, "buffer_size": 100, "batch_size": 16}
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ppo": {"hyperparameters": PPO_ARGUMENTS},
    "maskable_ppo": {"hyperparameters": PPO_ARGUMENTS, "env_id": "archers"},
    "recurrent_ppo": {"hyperparameters": PPO_ARGUMENTS, "network": {**SHORT["network"], "lstm_hidden": 8}},
    "trpo": {"hyperparameters": {"n_steps": 32, "batch_size": 32}},
    "qrdqn": {"hyperparameters": OFF_POLICY, "network": {**SHORT["network"], "quantiles": 7}},
    "sac": {"hyperparameters": OFF_POLICY, "env_id": "Pendulum-v1"},
    "td3": {"hyperparameters": OFF_POLICY, "env_id": "Pendulum-v1"},
    "ars": {"hyperparameters": {"n_delta": 2}},
    "a2c": {"hyperparameters": {"n_steps": 8}},
    "dqn": {"hyperparameters": OFF_POLICY},
}


def trained(run_dir: Path, **changes: Any) -> tuple[TrainingConfig, Any]:
    """A configuration and the checkpoint of a short training with it."""
    config = TrainingConfig.parse({**SHORT, "total_timesteps": 128, **changes})
    Trainer(config, run_dir=run_dir).run_training_loop()
    checkpoint = CheckpointManager(run_dir / "checkpoints").newest()
    assert checkpoint is not None
    return config, checkpoint


LOADER = """
import sys, json, numpy as np
import sb3_contrib, stable_baselines3
for line in sys.stdin:
    module, name, path = line.split()
    model = getattr(sys.modules[module], name).load(path)
    space = model.observation_space
    obs = np.stack([np.full(space.shape, 0.1, np.float32)] * 2)
    actions, _ = model.predict(obs, deterministic=True)
    state = {key: value.double().sum().item() for key, value in model.policy.state_dict().items()}
    print(json.dumps({"actions": np.asarray(actions).tolist(), "timesteps": model.num_timesteps, "sums": state,
                      "gymcast": [name for name in sys.modules if name.startswith("gymcast")]}), flush=True)
"""


@pytest.fixture(scope="module")
def plain_load() -> Iterator[Callable[[str, Path], dict[str, Any]]]:
    """Loads a file with a class of Stable-Baselines3, in one process that knows nothing of gymcast."""
    command = [sys.executable, "-c", LOADER]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None and process.stdout is not None
        stdin, stdout = process.stdin, process.stdout

        def load(home: str, path: Path) -> dict[str, Any]:
            print(*home.split(":"), path, file=stdin, flush=True)
            return dict(json.loads(stdout.readline()))

        yield load
        stdin.close()


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_plain_stable_baselines3_loads_it_without_gymcast(algorithm: str, tmp_path: Path, plain_load: Any) -> None:
    config, checkpoint = trained(tmp_path / "run", algorithm=algorithm, **ALGORITHMS[algorithm])
    path = tmp_path / "model.zip"
    assert export_sb3(config, checkpoint, path) == [path]
    loaded = plain_load(TABLE[algorithm].home, path)
    policy = load_tensors(checkpoint)["model"]["policy"]
    assert loaded["sums"] == {name: value.double().sum().item() for name, value in policy.items()}
    assert loaded["timesteps"] == checkpoint.timesteps and loaded["gymcast"] == []
    # And back again: the file says what network it needs.
    weights = read_sb3_zip(path)
    assert weights.timesteps == checkpoint.timesteps
    assert weights.network["hidden"] == [24, 16] and weights.network["activation"] == "relu"
    again = TrainingConfig.parse({**config.model_dump(mode="json"), "network": weights.network, "seed": 99})
    (tmp_path / "again").mkdir()
    path.rename(tmp_path / "again" / INITIAL_FILE)
    trainer = Trainer(again.model_copy(update={"hyperparameters": config.hyperparameters}), run_dir=tmp_path / "again")
    trainer.run_training_loop()
    first = trainer.model
    assert first is not None and set(first.policy.state_dict()) == set(policy)


def test_a_training_begins_with_the_weights_of_the_file(tmp_path: Path) -> None:
    config, checkpoint = trained(tmp_path / "run", **ALGORITHMS["ppo"])
    (tmp_path / "next").mkdir()
    export_sb3(config, checkpoint, tmp_path / "next" / INITIAL_FILE)
    frozen = {**PPO_ARGUMENTS, "learning_rate": 1e-30}
    _, after = trained(tmp_path / "next", hyperparameters=frozen, seed=7)
    before = load_tensors(checkpoint)["model"]["policy"]
    policy = load_tensors(after)["model"]["policy"]
    assert all(th.allclose(value, before[name], rtol=0, atol=1e-20) for name, value in policy.items())


def test_shared_layers_and_normalisation_travel_along(tmp_path: Path, plain_load: Any) -> None:
    config, checkpoint = trained(
        tmp_path / "run", normalize={}, network={"hidden": [24], "shared": True}, **ALGORITHMS["ppo"]
    )
    path = tmp_path / "model.zip"
    assert [file.name for file in export_sb3(config, checkpoint, path)] == ["model.zip", "model.vecnormalize.pkl"]
    assert plain_load("stable_baselines3:PPO", path)["gymcast"] == []
    assert read_sb3_zip(path).network == {"hidden": [24], "shared": True, "activation": "tanh"}
    env = VecNormalize.load(str(tmp_path / "model.vecnormalize.pkl"), make_vec_env("CartPole-v1", 2))
    assert env.obs_rms.count > 128 and not np.allclose(env.obs_rms.var, 1.0)
    # Plain Stable-Baselines3 trains on with both.
    PPO.load(path, env=env, device="cpu").learn(64)


def test_a_model_of_stable_baselines3_itself_is_read(tmp_path: Path) -> None:
    model = PPO(
        "MlpPolicy", "CartPole-v1", policy_kwargs={"net_arch": [32, 8]}, device="cpu", n_steps=64, batch_size=64
    )
    model.learn(64)
    model.save(tmp_path / "theirs.zip")
    weights = read_sb3_zip(tmp_path / "theirs.zip")
    assert weights.network == {"hidden": [32, 8], "value_hidden": [32, 8], "activation": "tanh"}
    assert weights.timesteps == 64
    other = PPO("MlpPolicy", "Acrobot-v1", policy_kwargs={"net_arch": [32, 8]}, device="cpu")
    with pytest.raises(ConfigError, match="size mismatch for mlp_extractor"):
        load_weights(other, weights)


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return (Path.touch, (self.marker,))


def rewritten(source: Path, target: Path, **entries: bytes) -> Path:
    """A copy of a zip with some entries replaced or left out (``b""``)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            content = entries.get(name.split(".")[0], old.read(name))
            if content:
                new.writestr(name, content)
    return target


def test_no_pickle_of_a_foreign_file_is_loaded(tmp_path: Path) -> None:
    model = PPO("MlpPolicy", "CartPole-v1", device="cpu")
    model.save(tmp_path / "good.zip")
    marker = tmp_path / "executed"
    evil = base64.b64encode(cloudpickle.dumps(Payload(marker))).decode()
    data = json.dumps({"policy_class": {":type:": "x", ":serialized:": evil}, "num_timesteps": 5}).encode()
    assert read_sb3_zip(rewritten(tmp_path / "good.zip", tmp_path / "data.zip", data=data)).timesteps == 5
    th.save({"weight": Payload(marker)}, tmp_path / "evil.pth")
    with pytest.raises(Sb3ZipError, match="no model of Stable-Baselines3"):
        read_sb3_zip(
            rewritten(tmp_path / "good.zip", tmp_path / "weights.zip", policy=(tmp_path / "evil.pth").read_bytes())
        )
    assert not marker.exists()
    # The same files do run code where pickles are trusted, so the payload is a real one.
    stable_baselines3.common.save_util.load_from_zip_file(tmp_path / "data.zip")
    assert marker.exists()


def test_what_is_no_model_is_refused_with_the_reason(tmp_path: Path) -> None:
    PPO("MlpPolicy", "CartPole-v1", device="cpu").save(tmp_path / "good.zip")
    (tmp_path / "text.zip").write_text("hello")
    with pytest.raises(Sb3ZipError, match="not a zip file"):
        read_sb3_zip(tmp_path / "text.zip")
    with pytest.raises(Sb3ZipError, match=r"no entry 'policy.pth'"):
        read_sb3_zip(rewritten(tmp_path / "good.zip", tmp_path / "empty.zip", policy=b""))
    with pytest.raises(Sb3ZipError, match="no model"):
        read_sb3_zip(rewritten(tmp_path / "good.zip", tmp_path / "broken.zip", data=b"{"))
    odd = json.dumps({"policy_kwargs": {"activation_fn": "<class 'mine.Swish'>"}}).encode()
    with pytest.raises(Sb3ZipError, match=r"Swish.*gymcast builds networks with Tanh"):
        read_sb3_zip(rewritten(tmp_path / "good.zip", tmp_path / "odd.zip", data=odd))
