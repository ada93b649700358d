"""``GymcastSubprocVecEnv`` in the place of Stable-Baselines3's ``SubprocVecEnv``."""

from __future__ import annotations

import copy
import sys
import time
from typing import Any

import cloudpickle
import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import MaskablePPO
from sb3_contrib.common.maskable.utils import get_action_masks, is_masking_supported
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import SubprocVecEnv, VecNormalize

from gymcast.envs import GameFactory, GameVectorEnv
from gymcast.envs.shared_arrays import mask_size
from gymcast.training import GameVecEnv, GymcastSubprocVecEnv
from gymcast.training.algorithms import BatchMaskablePPO, BatchPPO

cloudpickle.register_pickle_by_value(sys.modules[__name__])

SPACES: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-100, 100, (3,), np.float32),
    "float64": spaces.Box(-100, 100, (2, 2), np.float64),
    "image": spaces.Box(0, 255, (36, 36, 3), np.uint8),
    "discrete": spaces.Discrete(7),
    "multi-discrete": spaces.MultiDiscrete([3, 4]),
    "multi-binary": spaces.MultiBinary(5),
    "dict": spaces.Dict(view=spaces.Box(0, 255, (8, 8, 1), np.uint8), level=spaces.Discrete(5), at=spaces.Box(-1, 1)),
    "tuple": spaces.Tuple((spaces.Box(-1, 1, (2,)), spaces.Discrete(3))),
}
ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3),
    "box": spaces.Box(-1, 1, (2,), np.float32),
    "multi-discrete": spaces.MultiDiscrete([2, 5]),
    "dict": spaces.Dict(move=spaces.Discrete(2), aim=spaces.Box(-1, 1, (1,))),
}


class Unsteady(gym.Env[Any, Any]):
    """Steps take from nothing to a millisecond; observes how many steps its episode has had."""

    observation_space = spaces.Box(0, 1000, (1,), np.int64)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.pace = np.random.default_rng(id(self) % 1000)

    def reset(self, **_: Any) -> tuple[Any, dict[str, Any]]:
        self.steps = 0
        return np.zeros(1, np.int64), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        time.sleep(self.pace.choice([0.0, 0.0, 0.0002, 0.001]))
        self.steps += 1
        info = {"steps": self.steps} if self.steps % 7 == 0 else {}
        return np.array([self.steps]), float(action), False, False, info


class Sampler(gym.Env[Any, Any]):
    """Observations drawn from any space; what it was given is in its infos, now and then."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012 - as Gymnasium declares it

    def __init__(self, space: str = "box", action: str = "discrete", render_mode: str | None = None) -> None:
        self.observation_space, self.action_space = copy.deepcopy((SPACES[space], ACTIONS[action]))
        self.render_mode = render_mode
        self.level = 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self.steps, self.last = 0, None
        return self.observation_space.sample(), {"options": options, "seed": seed}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.last = action
        ended = self.np_random.random() < 0.1
        info = {"action": action, "level": self.level} if self.steps % 3 == 0 else {}
        return self.observation_space.sample(), self.np_random.random(), ended, self.steps == 12, info

    def action_masks(self) -> np.ndarray[Any, Any]:
        allowed = np.ones(mask_size(self.action_space), np.bool_)
        allowed[self.steps % 3 : -1] = False
        return allowed

    def set_level(self, level: int) -> None:
        self.level = level

    def fail(self, text: str) -> None:
        raise LookupError(text)

    def render(self) -> Any:
        return np.full((4, 6, 3), self.level, np.uint8)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return bool(one == other)


def pair(workers: int = 2, lanes: int = 5, method: str | None = None, **more: Any) -> tuple[Any, Any]:
    """The same five lanes in Stable-Baselines3's vector environment and in ours."""
    functions = [lambda: Monitor(Sampler(**more), info_keywords=())] * lanes
    ours = GymcastSubprocVecEnv(functions, method, n_workers=workers)
    return SubprocVecEnv(functions, start_method="forkserver"), ours


@pytest.mark.parametrize(
    ("space", "action", "method", "workers"),
    [
        *[(space, "discrete", None, 2) for space in SPACES],
        *[("box", action, None, 3) for action in ACTIONS],
        ("dict", "multi-discrete", "fork", 2),
        ("dict", "multi-discrete", "spawn", 1),
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_it_gives_what_sb3_gives(space: str, action: str, method: str | None, workers: int) -> None:
    theirs, ours = pair(workers, method=method, space=space, action=action)
    try:
        assert isinstance(ours, SubprocVecEnv) and ours.num_envs == 5
        assert (ours.observation_space, ours.action_space) == (theirs.observation_space, theirs.action_space)
        for env in (theirs, ours):
            env.seed(11)
            env.set_options({"stage": 2})
        expected, found = theirs.reset(), ours.reset()
        assert same(expected, found) and same(list(theirs.reset_infos), list(ours.reset_infos))
        assert ours.reset_infos[3] == {"options": {"stage": 2}, "seed": 14}
        theirs.action_space.seed(0)
        kept = [(found, expected)]
        for _ in range(40):
            chosen = [theirs.action_space.sample() for _ in range(5)]
            actions = chosen if action == "dict" else np.stack(chosen)
            (obs, rewards, dones, infos), (obs2, rewards2, dones2, infos2) = theirs.step(actions), ours.step(actions)
            kept.append((obs2, obs))
            assert same(rewards, rewards2) and same(dones, dones2)
            for info, info2 in zip(infos, infos2, strict=True):
                info.get("episode", {}).pop("t", None), info2.get("episode", {}).pop("t", None)
                assert same(info, info2)
        assert all(same(mine, yours) for mine, yours in kept), "what was returned must not change later"
        assert same(list(theirs.reset_infos), list(ours.reset_infos))
    finally:
        theirs.close()
        ours.close()


def test_calls_and_attributes() -> None:
    theirs, ours = pair(render_mode="rgb_array")
    try:
        ours.reset()
        ours.set_attr("level", 4, indices=[1, 4])
        assert ours.get_attr("level") == [1, 4, 1, 1, 4] and ours.get_attr("level", [4, 0]) == [4, 1]
        assert ours.get_attr("level", indices=2) == [1]
        assert ours.env_method("get_wrapper_attr", "level", indices=[4]) == [4]
        assert ours.has_attr("steps") and not ours.has_attr("nonsense")
        with pytest.raises(AttributeError, match="nonsense"):
            ours.get_attr("nonsense")
        with pytest.raises(LookupError, match="broken bow") as caught:
            ours.env_method("fail", "broken bow", indices=3)
        assert "lane 3" in caught.value.__notes__[0] and "raise LookupError(text)" in caught.value.__notes__[0]
        assert ours.env_is_wrapped(Monitor) == [True] * 5
        assert ours.env_is_wrapped(gym.wrappers.TimeLimit, indices=[0]) == [False]
        ours.env_method("set_level", 7, indices=[2])
        assert [image[0, 0, 0] for image in ours.get_images()] == [1, 1, 7, 1, 1]
        assert ours.render().shape == theirs.render().shape
        assert ours.step(np.zeros(5, np.int64))[0].shape == (5, 3), "an error of a call leaves nothing behind"
        with pytest.raises(ValueError, match=r"shape \(1,\), expected \(5,\)"):
            ours.step(np.zeros(1, np.int64))
        with pytest.raises(TypeError, match="same_kind"):
            ours.step(np.full(5, 0.7))
        ours.step_async(np.zeros(5, np.int64))
        with pytest.raises(RuntimeError, match="step_wait"):
            ours.get_attr("level")
        ours.reset()
    finally:
        theirs.close()
        ours.close()


def test_action_masks_are_those_of_the_environments() -> None:
    theirs, ours = pair()
    try:
        assert is_masking_supported(ours)
        for env in (theirs, ours):
            env.seed(0)
            env.reset()
        for _ in range(20):
            assert np.array_equal(get_action_masks(theirs), get_action_masks(ours))
            assert np.array_equal(ours.action_masks()[1:3], ours.env_method("action_masks", indices=[1, 2]))
            theirs.step(np.zeros(5, np.int64))
            ours.step(np.zeros(5, np.int64))
    finally:
        theirs.close()
        ours.close()


def test_algorithms_train_on_it() -> None:
    more = {"vec_env_cls": GymcastSubprocVecEnv, "vec_env_kwargs": {"n_workers": 2}}
    env = make_vec_env("CartPole-v1", 4, seed=1, **more)  # type: ignore[arg-type]
    PPO("MlpPolicy", VecNormalize(env), n_steps=32, batch_size=32, n_epochs=1, device="cpu").learn(256)
    DQN("MlpPolicy", env, learning_starts=50, buffer_size=500, device="cpu").learn(200)
    env.close()
    masked = make_vec_env(Sampler, 4, seed=1, env_kwargs={"space": "image"}, **more)  # type: ignore[arg-type]
    MaskablePPO("CnnPolicy", masked, n_steps=8, batch_size=16, n_epochs=1, device="cpu").learn(64)
    masked.close()


@pytest.mark.parametrize("workers", [1, 2])
def test_a_built_in_game_plays_in_workers_what_it_plays_in_one_batch(workers: int) -> None:
    options = {"opponent": "random", "max_duration_s": 2.0}
    batch = GameVecEnv(GameVectorEnv("archers", 4, **options))
    env = GymcastSubprocVecEnv([GameFactory("archers", options)] * 4, n_workers=workers)
    mixed = GymcastSubprocVecEnv([GameFactory("archers", {**options, "kills_to_win": 3 + i // 3}) for i in range(4)])
    try:
        for one in (batch, env, mixed):
            one.seed(5)
        first = batch.reset()
        assert np.array_equal(first, env.reset()) and np.array_equal(first[:3], mixed.reset()[:3])
        rng = np.random.default_rng(0)
        ended = 0
        for _ in range(60):
            assert np.array_equal(batch.action_masks(), env.action_masks())
            actions = rng.integers(0, batch.action_space.nvec, (4, 4))
            obs, rewards, dones, infos = batch.step(actions)
            obs2, rewards2, dones2, infos2 = env.step(actions)
            obs3, _, dones3, _ = mixed.step(actions)
            assert np.array_equal(obs, obs2) and np.array_equal(dones, dones2)
            assert np.array_equal(obs[:3], obs3[:3]) and np.array_equal(dones[:3], dones3[:3])
            assert np.array_equal(rewards, rewards2.astype(np.float32))
            for lane in np.flatnonzero(dones):
                ended += 1
                infos[lane]["episode"].pop("t"), infos2[lane]["episode"].pop("t")
                assert same(infos[lane], infos2[lane])
        assert ended > 4
        assert env.get_attr("decision_seconds") == [0.08] * 4 and env.env_is_wrapped(Monitor) == [False] * 4
        with pytest.raises(AttributeError, match="lanes of a native batch"):
            env.set_attr("options", {})
    finally:
        for one in (batch, env, mixed):
            one.close()


class Echo(gym.Env[Any, Any]):
    """Shows the number of its step, its random state and the last action; rewards depend on both, masks on the step."""

    def __init__(self, action: str = "box") -> None:
        self.observation_space = spaces.Box(-100, 100, (3,), np.float32)
        self.action_space = spaces.Box(-1, 1, (1,)) if action == "box" else spaces.Discrete(4)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps, self.state, self.last = 0, self.np_random.random(), 0.0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        self.last, self.state = float(np.ravel(action)[0]), self.np_random.random()
        ends = self.state < 0.1
        return self._seen(), self.last + self.state, ends, self.steps == 7, {}

    def _seen(self) -> Any:
        return np.array([self.steps, self.state, self.last], np.float32)

    def action_masks(self) -> Any:
        return allowed_after(self.steps)


def allowed_after(steps: int) -> Any:
    return np.array([(steps + choice) % 3 != 0 for choice in range(4)])


def rollout(algorithm: Any, action: str, overlap: bool) -> Any:
    """The buffer after two rollouts of a policy that hardly explores."""
    env = GymcastSubprocVecEnv([lambda: Echo(action)] * 5, n_workers=3, overlap=overlap)
    more = {"log_std_init": -25.0} if action == "box" else {}
    model = algorithm("MlpPolicy", env, n_steps=20, batch_size=50, seed=3, policy_kwargs=more, learning_rate=0.0)
    model.learn(200)
    env.close()
    assert model.num_timesteps == 200
    return model.rollout_buffer


def test_overlap_fills_the_rollout_with_what_it_would_hold_without() -> None:
    plain, overlapped = (rollout(BatchPPO, "box", overlap) for overlap in (False, True))
    assert np.array_equal(plain.episode_starts, overlapped.episode_starts) and plain.episode_starts.sum() > 10
    for name in ("observations", "actions", "rewards", "values", "advantages", "returns"):
        assert np.allclose(getattr(plain, name), getattr(overlapped, name), atol=1e-5), name


def test_overlap_gives_each_lane_the_action_and_the_mask_of_its_own_observation() -> None:
    filled = rollout(BatchMaskablePPO, "discrete", True)
    rows, actions = filled.observations.reshape(5, 20, 3), filled.actions.reshape(5, 20)  # its order after training
    masks = filled.action_masks.reshape(5, 20, 4)
    for lane, step in np.ndindex(5, 20):
        allowed = allowed_after(int(rows[lane, step, 0]))
        assert np.array_equal(masks[lane, step], allowed) and allowed[int(actions[lane, step])]
        if step < 19 and not filled.episode_starts[step + 1, lane]:
            assert rows[lane, step + 1, 2] == actions[lane, step], "the observation echoes the action of its own lane"


def test_overlap_is_refused_where_it_cannot_work() -> None:
    with pytest.raises(ValueError, match="n_workers is 1, give 2 or more"):
        GymcastSubprocVecEnv([Echo] * 2, n_workers=1, overlap=True)
    env = GymcastSubprocVecEnv([Echo] * 2, n_workers=2, overlap=True)
    model = BatchPPO("MlpPolicy", VecNormalize(env), n_steps=4, batch_size=8)
    with pytest.raises(ValueError, match="VecNormalize knows nothing"):
        model.learn(8)
    env.close()


class Words(Sampler):
    def __init__(self) -> None:
        super().__init__()
        self.observation_space = spaces.Text(5)


def test_what_it_cannot_take_is_refused_with_words() -> None:
    with pytest.raises(TypeError, match=r"Text\(.*no fixed shape.*Flatten"):
        GymcastSubprocVecEnv([Words])
    with pytest.raises(ValueError, match="env_fns is empty"):
        GymcastSubprocVecEnv([])
    with pytest.raises(ValueError, match="n_workers=0"):
        GymcastSubprocVecEnv([Sampler], n_workers=0)


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_steps_at_any_pace_are_answered_once_and_in_order(workers: int) -> None:
    env = GymcastSubprocVecEnv([Unsteady] * 3, n_workers=workers)
    pace = np.random.default_rng(0)
    try:
        env.reset()
        for step in range(1, 400):
            actions = pace.integers(0, 2, 3)
            env.step_async(actions)
            time.sleep(pace.choice([0.0, 0.0, 0.0003, 0.0015]))
            observations, rewards, _, infos = env.step_wait()
            assert observations.ravel().tolist() == [step] * 3
            assert rewards.tolist() == actions.tolist()
            assert [info.get("steps") for info in infos] == [step if step % 7 == 0 else None] * 3
            if step % 50 == 0:
                assert env.get_attr("steps") == [step] * 3
            time.sleep(pace.choice([0.0, 0.0, 0.0003, 0.0015]))
    finally:
        env.close()
