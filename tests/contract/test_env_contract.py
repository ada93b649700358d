"""What Gymnasium and SB3 ask of an environment, over every built-in game and every form of observation and action."""

from __future__ import annotations

import itertools
import os
import warnings
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import gymcast.envs
from gymcast.envs import GAMES, ActionError, GameVectorEnv

IDS = sorted(GAMES)
FORMS = [
    pytest.param(env_id, {"observation": observation, "action": action}, id=f"{env_id}-{observation}-{action}")
    for env_id in IDS
    for observation, action in itertools.product(
        GAMES[env_id].options["observation"].choices, GAMES[env_id].options["action"].choices
    )
]


def act(env: Any, decisions: int, seed: int = 0) -> None:
    env.action_space.seed(seed)
    env.reset(seed=seed)
    for _ in range(decisions):
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        if terminated or truncated:
            env.reset()


@pytest.mark.parametrize(("env_id", "form"), FORMS)
def test_gymnasiums_checker_finds_nothing(env_id: str, form: dict[str, Any]) -> None:
    env = gymnasium.make(env_id, render_mode="rgb_array", **form)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.close()


@pytest.mark.parametrize(("env_id", "form"), FORMS)
def test_stable_baselines_checker_finds_nothing(env_id: str, form: dict[str, Any]) -> None:
    env = gymnasium.make(env_id, **form)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sb3_check_env(env.unwrapped, warn=True)
    env.close()


@pytest.mark.parametrize(("env_id", "form"), FORMS)
def test_random_play_stays_within_the_spaces(env_id: str, form: dict[str, Any]) -> None:
    env = gymnasium.make(env_id, max_duration_s=1, **form)
    env.action_space.seed(1)
    observation, info = env.reset(seed=1)
    masks = 288 if form["action"] == "discrete" else 24
    for _ in range(30):
        assert env.observation_space.contains(observation)
        assert info["action_mask"].shape == (masks,) and info["action_mask"].dtype == np.bool_
        np.testing.assert_array_equal(info["action_mask"], env.unwrapped.action_masks())  # type: ignore[attr-defined]
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
        assert isinstance(reward, float) and isinstance(terminated, bool) and isinstance(truncated, bool)
        if terminated or truncated:
            assert env.observation_space.contains(observation)
            assert info["outcome"] in ("win", "draw", "loss")
            observation, info = env.reset()
    env.close()


@pytest.mark.parametrize("env_id", IDS)
def test_the_module_form_of_the_id_works(env_id: str) -> None:
    env = gymnasium.make(f"gymcast.envs:{env_id}")
    act(env, 5)
    assert env.spec is not None and env.spec.id.endswith(env_id.split("/")[1])
    env.close()


@pytest.mark.parametrize("env_id", IDS)
def test_make_vec_takes_the_vector_entry_point(env_id: str) -> None:
    env = gymnasium.make_vec(env_id, num_envs=6, vectorization_mode="vector_entry_point", opponent="expert")
    assert isinstance(env.unwrapped, GameVectorEnv) and env.num_envs == 6
    assert env.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    observations, infos = env.reset(seed=3)
    assert env.observation_space.contains(observations) and infos["action_mask"].shape[0] == 6
    observations, rewards, terminated, truncated, _ = env.step(env.action_space.sample())
    assert env.observation_space.contains(observations)
    assert rewards.dtype == np.float64 and terminated.dtype == truncated.dtype == np.bool_
    assert rewards.shape == terminated.shape == truncated.shape == (6,)
    env.close()


@pytest.mark.parametrize("env_id", IDS)
def test_make_vec_of_single_environments_works_too(env_id: str) -> None:
    env = gymnasium.make_vec(env_id, num_envs=2, vectorization_mode="sync")
    env.action_space.seed(0)
    env.reset(seed=3)
    for _ in range(3):
        env.step(env.action_space.sample())
    env.close()


@pytest.mark.parametrize("env_id", IDS)
def test_rendering(env_id: str) -> None:
    env = gymnasium.make(env_id, render_mode="rgb_array", frame_skip=5)
    act(env, 10)
    image = env.render()
    assert isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.shape == (600, 800, 3)
    assert env.metadata["render_fps"] == 10, "a frame per decision of 5 ticks at 50 ticks a second: real time"
    before = image.copy()
    act(env, 11)
    assert (np.asarray(env.render()) != before).any()
    env.close()
    text = gymnasium.make(env_id, render_mode="ansi")
    act(text, 10)
    drawn = text.render()
    assert isinstance(drawn, str) and "#" in drawn and "1" in drawn
    text.close()
    blind = gymnasium.make(env_id).unwrapped
    blind.reset(seed=0)
    assert blind.render() is None


@pytest.mark.parametrize("env_id", IDS)
def test_record_video(env_id: str, tmp_path: Path) -> None:
    if not os.environ.get("CI"):
        pytest.importorskip("moviepy", reason="moviepy makes the videos; install gymcast[video]")
    env = gymnasium.wrappers.RecordVideo(
        gymnasium.make(env_id, render_mode="rgb_array", max_duration_s=0.5),
        str(tmp_path / "videos"),
        disable_logger=True,
    )
    with warnings.catch_warnings():  # Pillow's and ffmpeg's own deprecations are not ours
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", ResourceWarning)
        act(env, 8)
        env.close()
    videos = list((tmp_path / "videos").glob("*.mp4"))
    assert videos and videos[0].stat().st_size > 1000


@pytest.mark.parametrize("env_id", IDS)
def test_terminal_observations_are_those_of_an_environment_without_autoreset(env_id: str) -> None:
    """Same-step autoreset: the step that ends a match shows the next one, and its last observation in `final_obs`."""
    options: dict[str, Any] = {"opponent": "expert", "max_duration_s": 3, "kills_to_win": 1, "map": "random"}
    vector = GameVectorEnv(env_id, 4, threads=1, **options)
    observations, _ = vector.reset(seed=50)
    singles = [gymnasium.make(env_id, **options).unwrapped for _ in range(4)]
    for lane, single in enumerate(singles):
        single.reset(seed=50 + lane)
    vector.action_space.seed(0)
    ends = {"terminated": 0, "truncated": 0}
    for _ in range(250):
        actions = vector.action_space.sample()
        observations, _, terminated, truncated, infos = vector.step(actions)
        assert set(vector.ended.tolist()) == set(np.flatnonzero(terminated | truncated).tolist())
        for lane, single in enumerate(singles):
            last, _, single_terminated, single_truncated, _ = single.step(actions[lane])
            assert (single_terminated, single_truncated) == (terminated[lane], truncated[lane])
            if single_terminated or single_truncated:
                assert infos["_final_obs"][lane] and infos["_final_info"][lane]
                np.testing.assert_array_equal(infos["final_obs"][lane], last)
                ends["terminated" if single_terminated else "truncated"] += 1
                last, _ = single.reset()
            elif "_final_obs" in infos:
                assert not infos["_final_obs"][lane]
            np.testing.assert_array_equal(observations[lane], last)
    assert min(ends.values()) >= 2


@pytest.mark.parametrize("env_id", IDS)
def test_returns_and_lengths_of_matches_are_the_sums(env_id: str) -> None:
    env = GameVectorEnv(env_id, 8, threads=1, opponent="expert", max_duration_s=5)
    env.reset(seed=0)
    env.action_space.seed(0)
    total, length, matches = np.zeros(8), np.zeros(8, int), 0
    for _ in range(200):
        _, rewards, *_, infos = env.step(env.action_space.sample())
        total += rewards
        length += 1
        for lane in env.ended:
            assert infos["final_info"]["episode"]["r"][lane] == pytest.approx(total[lane])
            assert infos["final_info"]["episode"]["l"][lane] == length[lane]
            assert env.episode_return[lane] == pytest.approx(total[lane]) and env.episode_length[lane] == length[lane]
            total[lane], length[lane] = 0.0, 0
            matches += 1
    assert matches >= 8


@pytest.mark.parametrize("env_id", IDS)
def test_seeding(env_id: str) -> None:
    def story(env: Any, seed: int | None) -> bytes:
        told = [env.reset(seed=seed)[0].tobytes()]
        env.action_space.seed(4)
        for _ in range(20):
            told.append(env.step(env.action_space.sample())[0].tobytes())
        return b"".join(told)

    first, second = (gymnasium.make(env_id, map="random", opponent="random") for _ in range(2))
    assert story(first, 8) == story(second, 8)
    assert story(first, None) == story(second, None), "the next match of a seed is determined too"
    assert story(first, 8) != story(second, 9)
    unseeded = [story(gymnasium.make(env_id, map="random", opponent="random"), None) for _ in range(4)]
    assert len(set(unseeded)) > 1


@pytest.mark.parametrize("env_id", IDS)
def test_reset_mask_resets_the_chosen_lanes_only(env_id: str) -> None:
    env = GameVectorEnv(env_id, 5, threads=1)
    env.reset(seed=0)
    env.action_space.seed(0)
    for _ in range(10):
        env.step(env.action_space.sample())
    before = env.batch.state.copy()
    chosen = np.array([False, True, False, False, True])
    env.reset(options={"reset_mask": chosen})
    assert ((env.batch.state == before) == ~chosen).all()
    assert (env.batch.state["tick"][chosen] == 0).all()


@pytest.mark.parametrize("env_id", IDS)
def test_self_play_makes_every_seat_a_lane(env_id: str) -> None:
    env = GameVectorEnv(env_id, 6, threads=1, opponent="self", players=3, max_duration_s=2, kills_to_win=1)
    assert env.num_games == 2 and env.seats == 3
    env.reset(seed=0)
    env.action_space.seed(1)
    while not env.ended.size:
        env.step(env.action_space.sample())
    for game in {int(lane) // 3 for lane in env.ended}:
        assert set(range(3 * game, 3 * game + 3)) <= set(env.ended.tolist()), "the seats of a match end together"


@pytest.mark.parametrize("env_id", IDS)
def test_a_callable_plays_the_other_seats(env_id: str) -> None:
    """The opponent is asked for the seats that are not the learner's and what it says is what is played."""
    asked: list[tuple[int, ...]] = []

    def mirror(observations: Any, masks: Any) -> Any:
        asked.append(observations.shape)
        assert masks.shape == (len(observations), 24)
        return np.full((len(observations), 4), (2, 0, 1, 0))

    env = GameVectorEnv(env_id, 3, threads=1, opponent=mirror, players=3)
    both = GameVectorEnv(env_id, 9, threads=1, opponent="self", players=3)
    observations, _ = env.reset(seed=5)
    everyone, _ = both.reset(seed=5)
    random = np.random.default_rng(0)
    for _ in range(30):
        np.testing.assert_array_equal(observations, everyone[::3])
        chosen = random.integers(0, (3, 3, 2, 16), (3, 4))
        told = np.full((9, 4), (2, 0, 1, 0))
        told[::3] = chosen
        observations, *_ = env.step(chosen)
        everyone, *_ = both.step(told)
    assert set(asked) == {(6, everyone.shape[1])}


# ---------------------------------------------------------------------------------------------------------- bad input

BAD = {
    "multidiscrete": [
        np.array([0, 0, 0, 16]),
        np.array([0, -1, 0, 0]),
        np.array([0.0, 0.0, 0.0, np.nan]),
        np.array([0.0, 0.0, 0.0, 1.0]),
        np.array([0, 0, 0]),
        np.zeros((2, 4), int),
        np.array([True, False, True, False]),
        [0, [1], 0, 0],
        "left",
        None,
        np.array([2**63, 0, 0, 0], np.uint64),
    ],
    "discrete": [-1, 288, 1.5, np.nan, [1], "3", None, 10**30],
    "box": [
        np.full(5, np.nan),
        np.array([0, 0, 0, 0, np.inf]),
        np.zeros(4),
        np.array(["a"] * 5),
        np.zeros((1, 5, 1)),
        None,
        [0, 0, 0, 0, [0]],
    ],
}


@pytest.mark.parametrize("env_id", IDS)
@pytest.mark.parametrize(
    ("kind", "action"), [pytest.param(k, a, id=f"{k}-{i}") for k, bad in BAD.items() for i, a in enumerate(bad)]
)
def test_bad_actions_are_refused_and_change_nothing(env_id: str, kind: str, action: Any) -> None:
    env = gymnasium.make(env_id, action=kind, disable_env_checker=True).unwrapped
    env.reset(seed=0)
    batch = env._vector.batch  # type: ignore[attr-defined]
    before = batch.state.tobytes()
    with pytest.raises(ActionError, match=r"actions? .*(shape|dtype|finite|range|array)"):
        env.step(action)
    assert batch.state.tobytes() == before
    env.step(env.action_space.sample())
    assert batch.state["length"][0] == 1


@pytest.mark.parametrize("env_id", IDS)
def test_a_step_before_the_first_reset_is_refused(env_id: str) -> None:
    vector = GameVectorEnv(env_id, 2, threads=1)
    with pytest.raises(ActionError, match="reset"):
        vector.step(vector.action_space.sample())
    env = gymnasium.make(env_id).unwrapped
    with pytest.raises(ActionError, match="reset"):
        env.step(env.action_space.sample())


@pytest.mark.parametrize("env_id", IDS)
def test_a_step_after_the_end_is_refused(env_id: str) -> None:
    env = gymnasium.make(env_id, max_duration_s=0.1).unwrapped
    env.reset(seed=0)
    ended = False
    while not ended:
        _, _, terminated, truncated, _ = env.step(env.action_space.sample())
        ended = terminated or truncated
    with pytest.raises(ActionError, match="reset"):
        env.step(env.action_space.sample())
    env.reset()
    env.step(env.action_space.sample())


@pytest.mark.parametrize("env_id", IDS)
def test_boxes_beyond_their_bounds_are_clipped(env_id: str) -> None:
    one, other = (GameVectorEnv(env_id, 1, threads=1, action="box") for _ in range(2))
    one.reset(seed=0)
    other.reset(seed=0)
    one.step(np.array([[9.0, -7.0, 3.0, 1e300, -1.0]]))
    other.step(np.array([[1.0, -1.0, 1.0, 1.0, -1.0]], np.float32))
    assert one.batch.state.tobytes() == other.batch.state.tobytes()


def test_everything_public_is_there() -> None:
    for name in gymcast.envs.__all__:
        assert getattr(gymcast.envs, name) is not None
