"""The adapter from the native batch to Stable-Baselines3."""

from __future__ import annotations

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecFrameStack, VecMonitor, VecNormalize

from gymcast.envs import GameVectorEnv, OptionValueError, UnknownEnvError, UnknownOptionError
from gymcast.training.config import ConfigError
from gymcast.training.vec_env import GameVecEnv, WallClockLimit, make_training_vec_env

SHORT = {"opponent": "random", "max_duration_s": 2.0}
LANES = 6


def random_actions(env: Any, rng: np.random.Generator) -> np.ndarray[Any, Any]:
    return np.stack([rng.integers(0, env.action_space.nvec) for _ in range(env.num_envs)])


@pytest.fixture
def env() -> Any:
    env = make_training_vec_env("archers", LANES, 5, **SHORT)
    yield env
    env.close()


def test_it_plays_what_the_batch_plays(env: GameVecEnv) -> None:
    batch = GameVectorEnv("archers", LANES, **SHORT)
    expected, _ = batch.reset(seed=5)
    assert np.array_equal(env.reset(), expected)
    rng = np.random.default_rng(0)
    for _ in range(80):
        actions = random_actions(env, rng)
        obs, rewards, dones, infos = env.step(actions)
        batch_obs, batch_rewards, terminated, truncated, batch_infos = batch.step(actions)
        assert np.array_equal(obs, batch_obs)
        assert rewards.dtype == np.float32 and np.array_equal(rewards, batch_rewards.astype(np.float32))
        assert np.array_equal(dones, terminated | truncated)
        assert np.array_equal(env.action_masks(), batch_infos["action_mask"])
        for lane in range(LANES):
            if dones[lane]:
                assert np.array_equal(infos[lane]["terminal_observation"], batch_infos["final_obs"][lane])
                assert infos[lane]["TimeLimit.truncated"] == bool(truncated[lane] and not terminated[lane])
                assert infos[lane]["episode"]["l"] == batch_infos["final_info"]["episode"]["l"][lane]
                assert infos[lane]["episode"]["r"] == batch_infos["final_info"]["episode"]["r"][lane]
                assert infos[lane]["outcome"] == batch_infos["final_info"]["outcome"][lane]
            else:
                assert infos[lane] == {}
    batch.close()


def test_observations_are_not_copied_and_stay_valid_for_one_more_step(env: GameVecEnv) -> None:
    first = env.reset()
    assert np.shares_memory(first, env.env.batch.observation)
    kept = first.copy()
    rng = np.random.default_rng(0)
    second, *_ = env.step(random_actions(env, rng))
    assert np.array_equal(first, kept) and not np.shares_memory(first, second)


def test_infos_are_one_list_whose_entries_last_one_step(env: GameVecEnv) -> None:
    env.reset()
    rng = np.random.default_rng(0)
    seen = 0
    for _ in range(60):
        _, _, dones, infos = env.step(random_actions(env, rng))
        assert infos is env.infos
        kept = [infos[lane] for lane in np.flatnonzero(dones)]
        seen += len(kept)
        if kept:
            _, _, again, infos = env.step(random_actions(env, rng))
            assert all("terminal_observation" in info for info in kept), "a kept info must not change later"
            assert all(infos[lane] == {} for lane in np.flatnonzero(dones & ~again))
    assert seen >= LANES


def test_seeds_repeat_a_batch_and_are_used_once(env: GameVecEnv) -> None:
    assert env.seed(9) == [9 + i for i in range(LANES)]
    first = env.reset().copy()
    second = env.reset().copy()
    env.seed(9)
    assert np.array_equal(env.reset(), first)
    assert not np.array_equal(first, second)


def test_masks_for_maskable_ppo(env: GameVecEnv) -> None:
    env.reset()
    assert is_masking_supported(env)
    masks = get_action_masks(env)
    assert masks.dtype == np.bool_ and masks.shape == (LANES, int(np.sum(env.action_space.nvec)))
    assert np.array_equal(masks, env.env.action_masks())
    assert np.array_equal(env.get_attr("action_masks", 2)[0](), masks[2])
    assert np.array_equal(np.stack(env.env_method("action_masks", indices=[4, 1])), masks[[4, 1]])


def test_attributes_and_methods_of_the_batch(env: GameVecEnv) -> None:
    assert env.get_attr("decision_seconds") == [0.08] * LANES
    assert env.has_attr("num_games") and not env.has_attr("no_such_thing")
    env.set_attr("note", "x")
    assert env.get_attr("note", [0, 1]) == ["x", "x"]
    with pytest.raises(ValueError, match="whole batch"):
        env.set_attr("note", "y", indices=[0])
    with pytest.raises(AttributeError, match="action_masks and render"):
        env.env_method("jump")
    assert env.env_is_wrapped(Monitor) == [False] * LANES


def test_rendering() -> None:
    env = make_training_vec_env("archers", 2, 0, render_mode="rgb_array")
    env.reset()
    image = env.render()
    assert image is not None and image.dtype == np.uint8 and image.shape[2] == 3 and image.std() > 0
    env.close()


def test_vec_normalize(env: GameVecEnv) -> None:
    wrapped = VecNormalize(env, clip_obs=1e9)
    raw = wrapped.reset()
    rng = np.random.default_rng(0)
    for _ in range(60):
        raw, _, dones, infos = wrapped.step(random_actions(env, rng))
        original = wrapped.get_original_obs()
        assert np.array_equal(original, env.env.batch.observation)
        assert np.allclose(wrapped.unnormalize_obs(raw), original, atol=1e-2)
        for lane in np.flatnonzero(dones):
            assert infos[lane]["terminal_observation"].shape == raw[lane].shape
    assert np.isfinite(raw).all() and wrapped.obs_rms.count > 60 * LANES


def test_vec_frame_stack(env: GameVecEnv) -> None:
    size = env.observation_space.shape[0]
    wrapped = VecFrameStack(env, 3)
    last = wrapped.reset()
    rng = np.random.default_rng(0)
    for _ in range(60):
        stacked, _, dones, infos = wrapped.step(random_actions(env, rng))
        going_on = ~dones
        assert np.array_equal(stacked[going_on, :-size], last[going_on, size:])
        assert np.array_equal(stacked[:, -size:], env.env.batch.observation)
        for lane in np.flatnonzero(dones):
            assert not stacked[lane, :-size].any()
            assert infos[lane]["terminal_observation"].shape == (3 * size,)
        last = stacked


def test_vec_monitor(env: GameVecEnv) -> None:
    wrapped = VecMonitor(env)
    wrapped.reset()
    rng = np.random.default_rng(0)
    episodes = 0
    for _ in range(60):
        _, _, dones, infos = wrapped.step(random_actions(env, rng))
        for lane in np.flatnonzero(dones):
            episodes += 1
            ours = env.infos[lane]["episode"]
            assert infos[lane]["episode"]["l"] == ours["l"]
            assert infos[lane]["episode"]["r"] == pytest.approx(ours["r"], abs=1e-4)
    assert episodes >= LANES


def test_listeners_see_what_the_actions_were_chosen_from(env: GameVecEnv) -> None:
    class Listener:
        def __init__(self) -> None:
            self.seen: list[Any] = []
            self.steps = 0

        def before_step(self, obs: Any, action_mask: Any, actions: Any) -> None:
            self.seen.append((obs.copy(), action_mask.copy(), actions.copy()))

        def after_step(self) -> None:
            self.steps += 1

    listener = Listener()
    env.listeners.append(listener)
    obs = env.reset().copy()
    rng = np.random.default_rng(0)
    for step in range(5):
        mask, actions = env.action_masks().copy(), random_actions(env, rng)
        following = env.step(actions)[0].copy()
        for got, expected in zip(listener.seen[step], (obs, mask, actions), strict=True):
            assert np.array_equal(got, expected)
        obs = following
    assert listener.steps == 5


@pytest.mark.parametrize(("subprocesses", "kind"), [(False, DummyVecEnv), (True, SubprocVecEnv)])
def test_other_environments_run_in_stable_baselines_own(subprocesses: bool, kind: type) -> None:
    env = make_training_vec_env("CartPole-v1", 2, 3, subprocesses=subprocesses)
    assert isinstance(env, kind)
    first = env.reset()
    env.seed(3)
    assert np.array_equal(env.reset(), first)
    env.close()


def test_mistakes_are_named() -> None:
    with pytest.raises(UnknownEnvError, match="archers"):
        make_training_vec_env("archer", 1)
    with pytest.raises(UnknownOptionError, match="opponent"):
        make_training_vec_env("archers", 1, oponent="random")
    with pytest.raises(OptionValueError):
        make_training_vec_env("archers", 1, opponent="nobody")


def test_episode_timeout_is_game_time_in_built_in_games() -> None:
    env = make_training_vec_env("archers", 1, 0, episode_timeout=0.8, opponent="random")
    env.reset()
    steps = 0
    done = False
    while not done:
        _, _, dones, infos = env.step(np.zeros((1, 4), dtype=np.int64))
        steps, done = steps + 1, bool(dones[0])
    assert steps == 10 and infos[0]["TimeLimit.truncated"]
    env.close()


def test_episode_timeout_is_wall_clock_time_elsewhere() -> None:
    class Endless(gym.Env[Any, Any]):
        observation_space = spaces.Box(-1.0, 1.0, (1,))
        action_space = spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
            return np.zeros(1, dtype=np.float32), {}

        def step(self, action: Any) -> Any:
            return np.zeros(1, dtype=np.float32), 0.0, False, False, {}

    env = WallClockLimit(Endless(), 0.05)
    env.reset()
    truncated = False
    while not truncated:
        _, _, terminated, truncated, _ = env.step(0)
        assert not terminated
    assert not WallClockLimit(Endless(), 60.0).reset()[1]


def test_an_option_the_environment_does_not_take_is_a_matter_of_settings() -> None:
    with pytest.raises(ConfigError, match=r"env_kwargs: .*unexpected keyword argument 'foo'"):
        make_training_vec_env("CartPole-v1", 1, 0, options={"foo": 1})


@pytest.mark.parametrize("env_id", ["archers", "Pendulum-v1"])
def test_episodes_are_cut_off_after_so_many_decisions(env_id: str) -> None:
    env = make_training_vec_env(env_id, 4, 0, episode_steps=7)
    env.reset()
    lengths = set()
    for _ in range(15):
        *_, infos = env.step([env.action_space.sample() for _ in range(4)])
        lengths |= {info["episode"]["l"] for info in infos if "episode" in info}
    assert lengths == {7}
