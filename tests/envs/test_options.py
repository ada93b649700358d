"""Names and options: what is wrong is said with what was given, what is allowed and the nearest name."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import gymnasium
import pytest

from gymcast.envs import (
    GAMES,
    GameVectorEnv,
    OptionValueError,
    UnknownEnvError,
    UnknownOptionError,
    game_spec,
    register_all,
    resolve_env_id,
)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("archers", "gymcast/Archers-v0"),
        ("Archers", "gymcast/Archers-v0"),
        ("gymcast/Archers-v0", "gymcast/Archers-v0"),
        ("CartPole-v1", "CartPole-v1"),
    ],
)
def test_names_and_ids_are_found(name: str, found: str) -> None:
    assert resolve_env_id(name) == found


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("archer", "archers"),
        ("Archrs", "archers"),
        ("gymcast/Archer-v0", "gymcast/Archers-v0"),
        ("CartPol-v1", "CartPole-v1"),
    ],
)
def test_unknown_environments_name_the_nearest(name: str, meant: str) -> None:
    with pytest.raises(UnknownEnvError, match=f'Did you mean "{meant}"') as caught:
        resolve_env_id(name)
    assert repr(name) in str(caught.value) and "archers (gymcast/Archers-v0)" in str(caught.value)
    with pytest.raises(UnknownEnvError):
        GameVectorEnv(name, 1)


def test_a_name_like_nothing_gets_no_guess() -> None:
    with pytest.raises(UnknownEnvError) as caught:
        resolve_env_id("zzzzqqqq")
    assert "Did you mean" not in str(caught.value)


@pytest.mark.parametrize(("given", "meant"), [("oponent", "opponent"), ("maps", "map"), ("frameskip", "frame_skip")])
def test_unknown_options_name_the_nearest(given: str, meant: str) -> None:
    for make in (lambda **o: gymnasium.make("gymcast/Archers-v0", **o), lambda **o: GameVectorEnv("archers", 1, **o)):
        with pytest.raises(UnknownOptionError, match=f'Did you mean "{meant}"') as caught:
            make(**{given: 1})
        assert "kills_to_win" in str(caught.value), "all options are listed"


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("opponent", "intermediat", 'Did you mean "intermediate"'),
        ("map", "towr", 'Did you mean "tower"'),
        ("map", 3, "choose one of 'open', 'tower'"),
        ("players", 5, "choose one of 2, 3, 4"),
        ("players", "2", "choose one of 2, 3, 4"),
        ("players", True, "choose one of"),
        ("frame_skip", 0, "a whole number, 1 to 50"),
        ("frame_skip", 51, "a whole number, 1 to 50"),
        ("frame_skip", 2.5, "a whole number"),
        ("frame_skip", None, "a whole number"),
        ("kills_to_win", True, "a whole number"),
        ("max_duration_s", float("nan"), "a number, 0.1 to 3600"),
        ("max_duration_s", float("inf"), "a number, 0.1 to 3600"),
        ("max_duration_s", -1, "a number"),
        ("max_duration_s", "60", "a number"),
        ("reward", "dense", "choose one of 'sparse', 'kills', 'shaped'"),
        ("observation", [1], "choose one of"),
        ("action", {"a": 1}, "choose one of"),
    ],
)
def test_values_that_are_not_allowed(name: str, value: Any, text: str) -> None:
    with pytest.raises(OptionValueError, match=text) as caught:
        GameVectorEnv("archers", 1, **{name: value})
    assert f"{name}={value!r}" in str(caught.value)


@pytest.mark.parametrize("options", [{"num_envs": 0}, {"num_envs": -1}, {"num_envs": True}, {"num_envs": 1.5}])
def test_numbers_of_lanes_that_are_none(options: dict[str, Any]) -> None:
    with pytest.raises(OptionValueError, match="num_envs"):
        GameVectorEnv("archers", **options)


def test_self_play_needs_whole_games() -> None:
    with pytest.raises(OptionValueError, match="a multiple of 3"):
        GameVectorEnv("archers", 4, opponent="self", players=3)
    with pytest.raises(OptionValueError, match="GameVectorEnv"):
        gymnasium.make("gymcast/Archers-v0", opponent="self")


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_numbers_of_threads_that_are_none(threads: Any) -> None:
    with pytest.raises(OptionValueError, match="threads"):
        GameVectorEnv("archers", 1, threads=threads)


def test_a_render_mode_that_is_none() -> None:
    from gymcast.envs.single import ArchersEnv

    with pytest.raises(OptionValueError, match="rgb_array"):
        ArchersEnv(render_mode="human")


@pytest.mark.parametrize("spec", GAMES.values(), ids=list(GAMES))
def test_every_default_is_allowed_and_every_option_explained(spec: Any) -> None:
    complete = spec.complete_options({})
    assert complete == spec.complete_options(complete)
    for name, option in spec.options.items():
        assert option.check(name, option.default) == option.default and len(option.help) > 8
    assert complete["frame_skip"] == spec.frame_skip_default
    assert set(spec.options["opponent"].choices) == set(spec.opponents)


def test_labels_and_layout_agree_with_the_kernels() -> None:
    from gymcast.envs.games import archers as kernels

    spec = game_spec("archers")
    assert tuple(len(labels) for _, labels in spec.action_labels) == kernels.ACTION_NVEC
    assert spec.version == kernels.VERSION
    assert tuple(len(labels) for _, labels in spec.action_labels) == kernels.ACTION_NVEC
    assert spec.tick_rate == kernels.TICK_RATE and spec.max_seats == kernels.MAX_PLAYERS
    assert [kernels.observation_size(players) for players in (2, 3, 4)] == [93, 104, 115]


def test_registering_again_does_nothing() -> None:
    before = gymnasium.registry["gymcast/Archers-v0"]
    register_all()
    assert gymnasium.registry["gymcast/Archers-v0"] is before


@pytest.mark.parametrize(("imports", "env_id"), [(", gymcast.envs", ""), ("", "gymcast.envs:")])
def test_the_games_need_no_torch(imports: str, env_id: str) -> None:
    """In a fresh process, by importing the package or by the module form of the id."""
    program = (
        f"import gymnasium, sys{imports}; env = gymnasium.make('{env_id}gymcast/Archers-v0'); env.reset(seed=0);"
        "print('torch' in sys.modules, 'stable_baselines3' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout.split()) == (0, ["False", "False"]), done.stderr
