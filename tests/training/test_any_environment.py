"""Environments that are not gymcast's: packages, wrappers, every kind of observation, and what is wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import stable_baselines3.common.atari_wrappers
from gymnasium import spaces

from gymcast.envs import EnvExtras, EnvFaultError, EnvMakeError, EpisodeLog, Replay, make_foreign, verify_replay
from gymcast.envs.errors import UnknownEnvError
from gymcast.envs.foreign_wrappers import WRAPPERS, FrameStack
from gymcast.envs.replay import ReplayError
from gymcast.training import Trainer, TrainingConfig, make_training_vec_env
from gymcast.training.config import ConfigError
from gymcast.training.env_settings import parse_wrapper, refused_code


@pytest.fixture(scope="module", autouse=True)
def _importable() -> Iterator[None]:
    sys.path.insert(0, str(Path(__file__).parent))
    yield
    sys.path.remove(str(Path(__file__).parent))


def config(kind: str, **more: Any) -> TrainingConfig:
    options = {"kind": kind, **more.pop("env_kwargs", {})}
    given: dict[str, Any] = {
        "algorithm": "ppo",
        "hyperparameters": {"n_steps": 32, "batch_size": 32, "n_epochs": 1},
        "total_timesteps": 64,
        "parallel_episodes": 2,
        "evaluation_games": 2,
        "workers": 0,
        "seed": 3,
        **more,
    }
    return TrainingConfig.for_env("odd_envs:Odd-v0", env_kwargs=options, **given)


def test_a_module_before_the_id_is_a_package() -> None:
    made = config("dict", wrappers=["ClipReward", {"TimeLimit": {"max_episode_steps": 5}}, "odd_envs:Halved"])
    assert (made.env_id, made.gym_packages) == ("Odd-v0", ("odd_envs",))
    assert [(one.name, one.kwargs) for one in made.wrappers][1] == ("TimeLimit", {"max_episode_steps": 5})
    assert TrainingConfig.parse(made.model_dump(mode="json", by_alias=True)) == made


def test_all_problems_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        config("dict", wrappers=["ClipRewar"], gymPackages=["a-b"], frameStack=1)
    assert [field for field, _ in caught.value.problems] == ["gym_packages.0", "wrappers.0.name", "frame_stack"]
    assert "did you mean 'ClipReward'?" in str(caught.value)


def test_named_wrappers_are_there() -> None:
    here = vars(stable_baselines3.common.atari_wrappers)
    for name, module in WRAPPERS.items():
        assert name in (here if "stable" in module else gym.wrappers.__all__)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ClipReward", {"name": "ClipReward"}),
        ("my.game:Thing", {"name": "my.game:Thing"}),
        ("TimeLimit:{max_episode_steps: 5}", {"name": "TimeLimit", "kwargs": {"max_episode_steps": 5}}),
        ('my.game:Thing:{"a": [1, 2]}', {"name": "my.game:Thing", "kwargs": {"a": [1, 2]}}),
    ],
)
def test_a_wrapper_as_it_is_typed(text: str, expected: dict[str, Any]) -> None:
    assert parse_wrapper(text) == expected


def test_a_wrapper_with_broken_arguments() -> None:
    with pytest.raises(ValueError, match="no mapping"):
        parse_wrapper("TimeLimit:{max_episode_steps")


def test_requests_import_what_the_owner_allows() -> None:
    made = config("dict", wrappers=["ClipReward", "odd_envs:Halved"])
    assert [field for field, _ in refused_code(made.gym_packages, made.wrappers, ())] == ["gym_packages", "wrappers.1"]
    assert refused_code(made.gym_packages, made.wrappers, ["odd_envs"]) == []


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("dict", {"image": (7, 7, 3), "direction": (), "goal_x": (2,)}),
        ("tuple", {"0": (3,), "1": (3,)}),
        ("pixels", (40, 48, 3)),
        ("binary", (5,)),
    ],
)
def test_observations_as_learners_take_them(kind: str, expected: Any) -> None:
    env = make_foreign("Odd-v0", {"kind": kind}, EnvExtras(("odd_envs",)))
    seen, _ = env.reset(seed=1)
    space = env.observation_space
    assert space.contains(seen)
    found = {key: part.shape for key, part in space.spaces.items()} if isinstance(space, spaces.Dict) else space.shape
    assert found == expected
    assert env.get_wrapper_attr("unseen") == (["mission"] if kind == "dict" else [])


@pytest.mark.parametrize("kind", ["sequence", "graph", "text"])
def test_what_nobody_can_learn_from_is_said_with_a_remedy(kind: str) -> None:
    with pytest.raises(EnvMakeError, match=rf"(?i)observations are {kind}.*--wrapper"):
        make_foreign("Odd-v0", {"kind": kind}, EnvExtras(("odd_envs",)))


@pytest.mark.parametrize(
    ("field", "text", "options", "extras"),
    [
        ("env_kwargs", "raised RuntimeError: no display", {"fault": "constructor"}, EnvExtras()),
        ("env_kwargs", "unexpected keyword argument 'size'", {"size": 3}, EnvExtras()),
        ("env_id", "actions are Dict", {"fault": "actions"}, EnvExtras()),
        ("gym_packages", "there is no module 'no_such'", {}, EnvExtras(("no_such",))),
        ("gym_packages", "broken_envs does not import: ZeroDivisionError", {}, EnvExtras(("broken_envs",))),
        ("wrappers.0", "WarpFrame does not fit here", {}, EnvExtras((), (("WarpFrame", {}),))),
        ("wrappers.0", "It takes: max_episode_steps", {}, EnvExtras((), (("TimeLimit", {"steps": 1}),))),
        ("wrappers.0", "is no gymnasium.Wrapper", {}, EnvExtras((), (("odd_envs:Odd", {}),))),
        ("frame_stack", "no Box to stack", {"kind": "binary"}, EnvExtras(frame_stack=2)),
    ],
)
def test_bad_input_names_its_setting(
    field: str, text: str, options: dict[str, Any], extras: EnvExtras, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_envs.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    __import__("odd_envs")
    with pytest.raises(EnvMakeError) as caught:
        make_foreign("Odd-v0", options, extras)
    assert caught.value.field == field and text in str(caught.value)


def test_an_unknown_id_of_a_known_family_says_what_to_install() -> None:
    with pytest.raises(UnknownEnvError, match="pip install 'panda-gym'"):
        make_training_vec_env("PandaReach-v3", 1)
    with pytest.raises(UnknownEnvError, match=r'Did you mean "CartPole-v1".*--gym-packages'):
        make_training_vec_env("CartPol-v1", 1)


@pytest.mark.parametrize(
    ("fault", "text"),
    [("nan", "0 of the observation holds NaN"), ("shape", "tuple"), ("reward", "the reward is None")],
)
def test_a_step_that_breaks_the_rules_is_named(fault: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"env_id: (Odd-v0|.*Odd).*"):
        Trainer(config("tuple", env_kwargs={"fault": f"early {fault}"}), run_dir=tmp_path / "a").run_training_loop()
    with pytest.raises((EnvFaultError, ValueError), match=text if fault != "shape" else None):
        Trainer(config("tuple", env_kwargs={"fault": fault}), run_dir=tmp_path / "b").run_training_loop()


def test_frames_are_stacked_newest_last() -> None:
    class Count(gym.Env[Any, Any]):
        observation_space = spaces.Box(0, 255, (2, 3, 1), np.uint8)
        action_space = spaces.Discrete(2)

        def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
            self.n = 1
            return np.full((2, 3, 1), 1, np.uint8), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            self.n += 1
            return np.full((2, 3, 1), self.n, np.uint8), 0.0, False, False, {}

    env = FrameStack(Count(), 3)
    seen = [env.reset()[0], *(env.step(0)[0] for _ in range(3))]
    assert [one[0, 0].tolist() for one in seen] == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 4]]
    assert env.observation_space.contains(seen[-1]) and seen[-1].dtype == np.uint8


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("dict", {"wrappers": ["odd_envs:Halved"], "frame_stack": 2}),
        ("tuple", {}),
        ("pixels", {"frame_stack": 2}),
        ("small", {}),
        ("binary", {}),
    ],
)
def test_a_run_trains_evaluates_and_plays_again(kind: str, more: dict[str, Any], tmp_path: Path) -> None:
    trainer = Trainer(config(kind, **more), run_dir=tmp_path)
    result = trainer.run_training_loop()
    assert result.status == "completed" and result.evaluations[0].games == 2
    assert trainer.model is not None
    buffer = getattr(trainer.model, "rollout_buffer").observations  # noqa: B009 - on-policy algorithms have one
    if kind in ("pixels", "small"):
        assert buffer.dtype == np.uint8
    if kind == "dict":
        assert buffer["image"].dtype == np.uint8 and buffer["image"].shape[-3:] == (6, 7, 7)
    log = EpisodeLog(tmp_path / "episodes")
    episodes = log.select()
    assert len(episodes) >= 4
    for episode in episodes[:3]:
        replay = Replay.from_bytes(log.replay(episode).to_bytes())
        found = verify_replay(replay)
        assert found["length"] == 12 and bool(replay.extras.wrappers) == ("wrappers" in more)


def test_a_replay_imports_nothing_by_itself() -> None:
    replay = Replay("Odd-v0", 0, {}, 1, 0, np.zeros((1, 1, 1), np.uint8), {}, EnvExtras(("never_imported",)))
    with pytest.raises(ReplayError, match="--gym-packages never_imported"):
        verify_replay(Replay.from_bytes(replay.to_bytes()))


@pytest.mark.parametrize("kind", ["dict", "small"])
def test_resumed_is_the_same(kind: str, tmp_path: Path) -> None:
    def weights(folder: str, *budgets: int) -> list[bytes]:
        for number, budget in enumerate(budgets):
            made = config(kind, frame_stack=2, total_timesteps=budget, evaluation_games=0)
            trainer = Trainer(made, run_dir=tmp_path / folder, resume=number > 0)
            assert trainer.run_training_loop().timesteps == budget
        assert trainer.model is not None
        return [tensor.numpy().tobytes() for tensor in trainer.model.policy.state_dict().values()]

    assert weights("straight", 320) == weights("in parts", 128, 320)
