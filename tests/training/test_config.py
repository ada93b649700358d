"""Configuration: what is accepted, what is refused, and how it is said."""

from __future__ import annotations

import os

import pytest

from gymcast.training.algorithm_table import ALGORITHMS
from gymcast.training.config import ConfigError, NetworkConfig, TrainingConfig, TrainingMode
from gymcast.training.limits import ResourceLimits

REFERENCE = {"speedMultiplier": 15.0, "headlessMode": True, "maxEpisodes": 500}


def problems_of(values: dict[str, object]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        TrainingConfig.parse(values)
    return dict(caught.value.problems)


def test_reference_fields_in_camel_and_snake_case_mean_the_same() -> None:
    snake = {"speed_multiplier": 15.0, "headless_mode": True, "max_episodes": 500}
    assert TrainingConfig.parse(REFERENCE) == TrainingConfig.parse(snake)


def test_all_problems_are_reported_at_once_with_value_and_meaning() -> None:
    problems = problems_of(
        {"speed_multiplier": 1000, "maxEpisode": 3, "parallel_episodes": 0, "network": {"acivation": "tanh"}}
    )
    assert set(problems) == {"speed_multiplier", "maxEpisode", "parallel_episodes", "network.acivation"}
    assert "less than or equal to 100" in problems["speed_multiplier"] and "1000" in problems["speed_multiplier"]
    assert "did you mean 'maxEpisodes'" in problems["maxEpisode"]
    assert "did you mean 'activation'" in problems["network.acivation"]


@pytest.mark.parametrize("field", ["speed_multiplier", "max_minutes", "metrics_hz", "footage_seconds"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1, 0, "fast"])
def test_bad_numbers_are_refused(field: str, value: object) -> None:
    assert field in problems_of({field: value})


def test_a_field_in_both_spellings_is_refused() -> None:
    assert "max_episodes" in problems_of({"max_episodes": 3, "maxEpisodes": 4})["configuration"]
    with pytest.raises(ConfigError, match="given twice"):
        TrainingConfig.from_request({"max_episodes": 3, "maxEpisodes": 4})


def test_the_room_password_is_neither_written_nor_shown() -> None:
    config = TrainingConfig(room_password="open sesame")
    assert config.room_password == "open sesame"
    for text in (config.to_yaml(), repr(config), config.model_dump_json()):
        assert "sesame" not in text
    assert "sesame" not in problems_of({"room_password": "sesame" * 100})["room_password"]


@pytest.mark.parametrize("name", TrainingConfig.preset_names())
def test_presets_are_valid_and_survive_a_file(name: str, tmp_path: object) -> None:
    config = TrainingConfig.preset(name, seed=3)
    path = f"{tmp_path}/config.yaml"
    with open(path, "w", encoding="utf-8") as file:
        file.write(config.to_yaml())
    assert TrainingConfig.from_yaml(path) == config


def test_overrides_merge_mappings_and_replace_limits() -> None:
    config = TrainingConfig.preset("archers", env_kwargs={"map": "pit"}, maxEpisodes=10, network={"valueHidden": [8]})
    assert config.env_kwargs["map"] == "pit" and config.env_kwargs["opponent"] == "intermediate"
    assert config.max_episodes == 10 and config.max_minutes is None
    assert config.network.value_hidden == (8,)
    assert config.network.hidden == TrainingConfig.preset("archers").network.hidden


def test_another_algorithm_replaces_the_presets_hyperparameters_but_masking_keeps_them() -> None:
    assert TrainingConfig.preset("default", algorithm="dqn").hyperparameters == ALGORITHMS["dqn"].defaults
    kept = TrainingConfig.preset("archers", algorithm="ppo").hyperparameters
    assert kept == TrainingConfig.preset("archers").hyperparameters != {}


def test_the_preset_follows_the_environment() -> None:
    assert TrainingConfig.for_env("archers").parallel_episodes == TrainingConfig.preset("archers").parallel_episodes
    assert TrainingConfig.for_env("gymcast/Archers-v0").env_id == "gymcast/Archers-v0"
    assert TrainingConfig.for_env("CartPole-v1").hyperparameters == TrainingConfig.preset("cartpole").hyperparameters
    assert TrainingConfig.preset_for("module:MountainCarContinuous-v0") == "mountaincarcontinuous"
    assert TrainingConfig.preset_for("MiniGrid-DoorKey-6x6-v0") == "minigrid"
    assert TrainingConfig.preset_for("Theirs/CartPole-v1") == TrainingConfig.preset_for("Pole-v0") == "default"
    assert TrainingConfig.from_request({"envId": "CartPole-v1", **REFERENCE}).max_episodes == 500


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'archers'"):
        TrainingConfig.preset("archer")


@pytest.mark.parametrize(
    ("values", "pacing"),
    [
        ({}, None),
        ({"speed_multiplier": 10}, 10.0),
        ({"speed_multiplier": 10, "headless_mode": True}, None),
        ({"training_mode": "realtime"}, 1.0),
        ({"training_mode": "realtime", "speed_multiplier": 1}, 1.0),
        ({"training_mode": "headless"}, None),
        ({"training_mode": "headless", "speed_multiplier": 80}, 80.0),
        ({"training_mode": "headless", "speed_multiplier": 10, "headless_mode": True}, None),
        ({"training_mode": "batch"}, None),
    ],
)
def test_pacing(values: dict[str, object], pacing: float | None) -> None:
    assert TrainingConfig.parse(values).pacing == pacing


@pytest.mark.parametrize(
    ("mode", "speed", "remedy"),
    [("realtime", 10, "give 1,"), ("headless", 10, "give 50 to 100,"), ("batch", 80, "leave")],
)
def test_a_speed_that_the_mode_does_not_have_is_refused(mode: str, speed: float, remedy: str) -> None:
    with pytest.raises(ConfigError, match=f"not at speed_multiplier {speed}: {remedy}") as raised:
        TrainingConfig.parse({"training_mode": mode, "speed_multiplier": speed})
    assert [field for field, _ in raised.value.problems] == ["training_mode"]


def test_broken_files_are_said_to_be_broken(tmp_path: object) -> None:
    for number, text in enumerate([b"a: [1", b"\xff\xfe\x00", b"just words", b""]):
        path = f"{tmp_path}/{number}.yaml"
        with open(path, "wb") as file:
            file.write(text)
        with pytest.raises(ConfigError, match=str(number)):
            TrainingConfig.from_yaml(path)


def test_every_field_is_documented() -> None:
    for model in (TrainingConfig, NetworkConfig, ResourceLimits):
        undocumented = [name for name, info in model.model_fields.items() if not info.description and name != "network"]
        assert undocumented == []


def test_resource_limits_take_the_references_names() -> None:
    limits = ResourceLimits.parse({"maxConcurrentSessions": 2, "memory_limit_mb": 4096, "cpu_limit_percent": 80})
    assert (limits.max_concurrent_sessions, limits.memory_limit_mb) == (2, 4096)
    assert limits.allowed_workers == 2 * (os.cpu_count() or 1)
    own = ResourceLimits.of_one(TrainingConfig(workers=700, parallel_episodes=20_000))
    assert (own.allowed_workers, own.max_parallel_episodes_per_session) == (700, 20_000)
    assert TrainingMode("batch") is TrainingMode.BATCH
