"""The table of algorithms: what is chosen, what is refused, and what each of them needs besides."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import ARS

from gymcast.training import Trainer, TrainingConfig
from gymcast.training.algorithm_table import ALGORITHMS, choose_algorithm, problem_of_actions, why_not
from gymcast.training.ars import BatchARS
from gymcast.training.callbacks.metric_names import METRICS_OF_SOME
from gymcast.training.checkpoints import CheckpointError, CheckpointManager
from gymcast.training.config import ConfigError
from gymcast.training.events import BotDecisionData, TrainingMetricsData, TrainingStatusData
from gymcast.training.models import build_model
from gymcast.training.replay_files import restore_replay, save_replay
from gymcast.training.vec_env import make_training_vec_env

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
SMALL = {"parallel_episodes": 4, "evaluation_games": 2, "seed": 1, "network": {"hidden": [16]}, "metrics_hz": 50}
OFF_POLICY = {"buffer_size": 300, "learning_starts": 40, "batch_size": 16}


def config_of(env_id: str, **changes: Any) -> TrainingConfig:
    return TrainingConfig.parse({**SMALL, "env_id": env_id, "total_timesteps": 300, **changes})


@pytest.mark.parametrize(
    ("space", "facts", "chosen"),
    [
        (spaces.Discrete(3), {"masks": True}, "maskable_ppo"),
        (spaces.MultiDiscrete([2, 3]), {"masks": True}, "maskable_ppo"),
        (spaces.MultiBinary(3), {}, "ppo"),
        (spaces.Discrete(3), {}, "ppo"),
        (BOX, {}, "sac"),
        (BOX, {"lanes": 17}, "ppo"),
        (BOX, {"images": True}, "ppo"),
        (BOX, {"given": ["n_epochs"]}, "ppo"),
        (BOX, {"given": ["tau", "hidden"]}, "sac"),
    ],
)
def test_the_actions_choose_the_algorithm(space: Any, facts: dict[str, Any], chosen: str) -> None:
    name, reason = choose_algorithm(space, **{"masks": False, "lanes": 16, "images": False, **facts})
    assert name == chosen and reason
    assert problem_of_actions(name, space, bool(facts.get("masks"))) is None


@pytest.mark.parametrize(
    ("actions", "seen", "masks", "fit"),
    [
        (spaces.Discrete(2), BOX, False, "ppo recurrent_ppo a2c trpo dqn qrdqn ars"),
        (spaces.Discrete(2), BOX, True, " ".join(name for name in ALGORITHMS if name not in ("sac", "td3"))),
        (spaces.MultiBinary(2), BOX, False, "ppo recurrent_ppo a2c trpo"),
        (BOX, spaces.Dict(a=BOX), False, "ppo recurrent_ppo a2c trpo sac td3"),
        (BOX, spaces.Box(0, 255, (9, 9, 3), np.uint8), False, "ppo recurrent_ppo a2c trpo sac td3"),
        (spaces.Box(-np.inf, np.inf, (1,)), BOX, False, ""),
        (spaces.Tuple([BOX]), BOX, False, ""),
    ],
)
def test_each_algorithm_is_built_or_says_why_it_does_not_fit(actions: Any, seen: Any, masks: bool, fit: str) -> None:
    reasons = {name: why_not(name, actions, seen, masks) for name in ALGORITHMS}
    assert [name for name, reason in reasons.items() if not reason] == fit.split()
    for name in fit.split():
        assert problem_of_actions(name, actions, masks) is None


def test_a_training_that_ends_before_it_learns_is_refused(tmp_path: Path) -> None:
    late = config_of("CartPole-v1", algorithm="dqn", hyperparameters={**OFF_POLICY, "learning_starts": 300})
    with pytest.raises(ConfigError, match=r"learning_starts.*after 300 decisions.*ends after 300 \(total_timesteps\)"):
        Trainer(late, run_dir=tmp_path).run_training_loop()


def test_actions_that_nobody_takes_and_algorithms_that_do_not_take_them() -> None:
    with pytest.raises(ValueError, match=r"no algorithm takes Tuple.*one of Box, Discrete, MultiDiscrete, MultiBinary"):
        choose_algorithm(spaces.Tuple([BOX]), masks=False, lanes=1, images=False)
    text = problem_of_actions("td3", spaces.Discrete(2), False)
    assert text is not None and text.startswith("td3 needs Box actions, got Discrete(2)")
    assert text.endswith("can be trained with: ppo, recurrent_ppo, a2c, trpo, dqn, qrdqn, ars")
    unbounded = problem_of_actions("sac", spaces.Box(-np.inf, np.inf, (1,)), False)
    assert unbounded is not None and "no finite bounds" in unbounded


def test_the_choice_is_told_with_its_reason_and_kept(tmp_path: Path, sink: Any) -> None:
    config = config_of("Pendulum-v1", hyperparameters=OFF_POLICY, total_timesteps=60, evaluation_games=0)
    Trainer(config, run_dir=tmp_path, sink=sink).run_training_loop()
    told = [event for event in sink.of(TrainingStatusData) if (event.reason or "").startswith("chosen algorithm")]
    assert [event.algorithm for event in told] == ["sac"] and "4 lanes" in (told[0].reason or "")
    kept = TrainingConfig.from_yaml(tmp_path / "config.yaml")
    assert kept.algorithm == "sac" and kept.hyperparameters == {**ALGORITHMS["sac"].defaults, **OFF_POLICY}


TRAINED: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "sac": (
        "Pendulum-v1",
        {**OFF_POLICY, "use_sde": True},
        {"actor_loss", "critic_loss", "ent_coef", "ent_coef_loss", "replay_size", "warmup_left"},
    ),
    "td3": ("Pendulum-v1", OFF_POLICY, {"actor_loss", "critic_loss", "replay_size", "warmup_left"}),
    "qrdqn": ("FrozenLake-v1", OFF_POLICY, {"replay_size", "warmup_left"}),
    "trpo": (
        "Pendulum-v1",
        {"n_steps": 16, "batch_size": 32},
        {"policy_objective", "kl_divergence", "line_search_success", "action_std"},
    ),
    "ars": ("FrozenLake-v1", {"n_delta": 2}, {"delta_std", "step_size", "return_std"}),
}


@pytest.mark.parametrize("algorithm", TRAINED)
def test_its_metrics_and_decisions_are_sent(algorithm: str, tmp_path: Path, sink: Any) -> None:
    env_id, hyperparameters, own = TRAINED[algorithm]
    config = config_of(env_id, algorithm=algorithm, hyperparameters=hyperparameters, max_episode_steps=30)
    result = Trainer(config, run_dir=tmp_path, sink=sink).run_training_loop()
    assert result.status == "completed" and result.evaluations[0].games == 2
    last = sink.of(TrainingMetricsData)[-1]
    assert set(last.extra) & set(METRICS_OF_SOME) == own and last.learning_rate is not None
    assert all(np.isfinite(value) for value in last.extra.values() if value is not None)
    decision = sink.of(BotDecisionData)[-1]
    assert decision.selected_action
    assert ("mean [" in decision.selected_action) == (env_id == "Pendulum-v1")


def test_every_metric_of_some_algorithm_is_of_one_that_is_tried_here() -> None:
    assert set().union(*(own for _, _, own in TRAINED.values())) == set(METRICS_OF_SOME)


class Walk(gym.Env[Any, Any]):
    """Pays the action for ten steps: the best linear policy is known, and nothing is random."""

    observation_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    action_space = spaces.Box(-1.0, 1.0, (1,), np.float32)
    steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return np.ones(1, np.float32), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.ones(1, np.float32), float(action[0]), self.steps >= 10, False, {}


gym.register("AlgorithmWalk-v0", Walk)


def test_side_by_side_ars_makes_the_updates_of_sb3_contrib() -> None:
    """Nothing in the game is random: the same directions give the same returns however many lanes there are."""
    arguments = {"n_delta": 3, "n_top": 2, "learning_rate": 0.1, "delta_std": 0.2, "seed": 5, "device": "cpu"}
    weights = []
    for kind, lanes in ((ARS, 1), (BatchARS, 1), (BatchARS, 4)):
        env = make_training_vec_env("AlgorithmWalk-v0", lanes, 0)
        model: Any = kind("LinearPolicy", env, **arguments)
        model.learn(6 * 10 * 2)
        weights.append(model.weights.clone())
    assert weights[0].abs().sum() > 0.1
    for other in weights[1:]:
        assert th.allclose(weights[0], other, atol=1e-5)


def test_ars_without_hidden_layers_is_linear_and_images_are_refused() -> None:
    env = make_training_vec_env("AlgorithmWalk-v0", 2, 0)
    model = build_model(config_of("AlgorithmWalk-v0", algorithm="ars", network={"hidden": []}), env, 0)
    assert sum(weight.numel() for weight in model.policy.parameters()) == 1
    env.observation_space = spaces.Box(0, 255, (84, 84, 3), np.uint8)
    with pytest.raises(ConfigError, match="ars takes flat observations"):
        build_model(config_of("AlgorithmWalk-v0", algorithm="ars"), env, 0)


def test_a_replay_buffer_that_does_not_fit_is_refused_before_it_is_made(tmp_path: Path) -> None:
    config = config_of("Pendulum-v1", algorithm="td3", hyperparameters={"buffer_size": 10**12})
    with pytest.raises(ConfigError, match=r"1,000,000,000,000: so many decisions of 40 bytes take 37252.9 GiB, .* fit"):
        Trainer(config, run_dir=tmp_path).run_training_loop()


def buffered(size: int, filled: int) -> Any:
    config = config_of("Pendulum-v1", algorithm="sac", hyperparameters={"buffer_size": size})
    model: Any = build_model(config, make_training_vec_env("Pendulum-v1", 4, 0), 0)
    fill(model, filled)
    return model


def fill(model: Any, steps: int) -> None:
    rng = np.random.default_rng(steps)
    for _ in range(steps):
        obs = rng.random((4, 3), np.float32)
        model.replay_buffer.add(obs, obs + 1, obs[:, :1], obs[:, 0], np.zeros(4, np.bool_), [{}] * 4)


def test_checkpoints_share_the_pieces_of_a_replay_buffer_that_did_not_change(tmp_path: Path) -> None:
    model = buffered(400_000, 60_000)
    manager = CheckpointManager(tmp_path, keep=2)

    def save(timesteps: int, earlier: Path | None) -> Any:
        return manager.save(
            {}, {}, timesteps=timesteps, episodes=0, reason="test",
            write_files=lambda folder: save_replay(model, folder, earlier=earlier),
        )  # fmt: skip

    first = save(1, None)
    fill(model, 1000)
    second = save(2, first.path)
    shared = [path for path in second.path.glob("replay-*") if path.stat().st_nlink == 2]
    assert len(shared) > len(list(second.path.glob("replay-*"))) // 3
    alone = buffered(400_000, 0)
    restore_replay(alone, second.path)
    ours, theirs = model.replay_buffer, alone.replay_buffer
    assert (ours.pos, ours.full) == (theirs.pos, theirs.full) == (61_000, False)
    for name in ("observations", "next_observations", "actions", "rewards", "dones", "timeouts"):
        assert np.array_equal(getattr(ours, name), getattr(theirs, name))
    with pytest.raises(CheckpointError, match="does not fit a replay buffer of shape"):
        restore_replay(buffered(40_000, 0), second.path)
    os.remove(second.path / "replay-position.npy")
    with pytest.raises(CheckpointError, match="holds no replay buffer"):
        restore_replay(alone, second.path)
