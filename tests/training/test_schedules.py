"""Schedules have closed forms; hyperparameters have ranges; every mistake is told at once."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest

from gymcast.training import hyperparameters as of
from gymcast.training.algorithm_table import ALGORITHMS
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.hyperparameters import OWNED
from gymcast.training.models import build_model, load_class
from gymcast.training.schedules import SCHEDULED, parse_schedule, resolve_schedules
from gymcast.training.vec_env import make_training_vec_env


def values(written: dict[str, Any], *progress: float) -> list[float]:
    schedule = parse_schedule(written)
    return [schedule(1.0 - done) for done in progress]


def test_constant() -> None:
    assert values({"schedule": "constant", "start": 0.3}, 0.0, 0.5, 1.0) == [0.3, 0.3, 0.3]


def test_linear() -> None:
    found = values({"schedule": "linear", "start": 1.0, "end": 0.2}, 0.0, 0.25, 0.5, 1.0)
    assert found == pytest.approx([1.0, 0.8, 0.6, 0.2])


def test_cosine() -> None:
    found = values({"schedule": "cosine", "start": 1.0, "end": 0.2}, 0.0, 0.25, 0.5, 0.75, 1.0)
    expected = [1.0, 0.6 + 0.4 * math.sqrt(0.5), 0.6, 0.6 - 0.4 * math.sqrt(0.5), 0.2]
    assert found == pytest.approx(expected)


def test_step() -> None:
    written = {"schedule": "step", "start": 0.8, "factor": 0.5, "at": [0.25, 0.75]}
    assert values(written, 0.0, 0.2499, 0.25, 0.74, 0.75, 1.0) == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.2, 0.2])


@pytest.mark.parametrize(
    ("written", "after"),
    [
        ({"schedule": "constant", "start": 2.0}, [2.0, 2.0]),
        ({"schedule": "linear", "start": 2.0, "end": 0.0}, [1.0, 0.0]),
        ({"schedule": "cosine", "start": 2.0, "end": 0.0}, [1.0, 0.0]),
        ({"schedule": "step", "start": 2.0, "factor": 0.1, "at": [0.6]}, [0.2, 0.2]),
    ],
)
def test_a_warm_up_rises_to_the_start_and_the_rest_follows_it(written: dict[str, Any], after: list[float]) -> None:
    found = values({**written, "warmup": 0.2}, 0.0, 0.05, 0.1, 0.2, 0.6, 1.0)
    assert found == pytest.approx([0.0, 0.5, 1.0, 2.0, *after])


def test_only_schedules_are_resolved() -> None:
    resolved = resolve_schedules({"learning_rate": {"schedule": "linear", "start": 3e-4, "end": 0}, "gamma": 0.9})
    assert resolved["gamma"] == 0.9 and resolved["learning_rate"](0.5) == pytest.approx(1.5e-4)


@pytest.mark.parametrize(
    ("written", "text"),
    [
        ({"schedule": "cubic", "start": 1}, "allowed: constant, linear, cosine, step"),
        ({"schedule": ["linear"], "start": 1}, "allowed: constant, linear, cosine, step"),
        ({"schedule": "linear", "start": 1}, "end is missing"),
        ({"schedule": "linear", "start": "high", "end": 0}, "start has to be a number >= 0, got 'high'"),
        ({"schedule": "linear", "start": 1, "end": -1}, "end has to be a number >= 0, got -1"),
        ({"schedule": "linear", "start": True, "end": 0}, "start has to be a number"),
        ({"schedule": "constant", "start": 1, "end": 0}, "'end' does not belong to a constant schedule"),
        ({"schedule": "cosine", "start": 1, "end": 0, "warmup": 1}, "warmup is a share of the training"),
        ({"schedule": "step", "start": 1, "factor": 0.1, "at": [0.5, 0.5]}, "rising shares"),
        ({"schedule": "step", "start": 1, "factor": 0.1, "at": 0.5}, "rising shares"),
        ({"schedule": "step", "start": 1, "factor": 0.1, "at": [2]}, "rising shares"),
    ],
)
def test_schedules_that_make_no_sense_are_refused(written: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match="invalid TrainingConfig") as caught:
        TrainingConfig.parse({"hyperparameters": {"learning_rate": written}})
    ((field, found),) = caught.value.problems
    assert field == "hyperparameters.learning_rate" and text in found


def test_everything_wrong_is_told_at_once_with_its_range() -> None:
    given = {
        "n_stpes": 3,
        "batch_size": 0,
        "learning_rate": -1,
        "gamma": 7,
        "n_epochs": 1.5,
        "seed": 3,
        "normalize_advantage": "yes",
        "ent_coef": {"schedule": "linear", "start": 1, "end": 0},
    }
    with pytest.raises(ConfigError) as caught:
        TrainingConfig.parse({"hyperparameters": given, "parallel_episodes": 0})
    problems = dict(caught.value.problems)
    assert set(problems) == {"parallel_episodes", *(f"hyperparameters.{name}" for name in given)}
    assert problems["hyperparameters.n_stpes"].startswith("did you mean 'n_steps'?")
    assert problems["hyperparameters.gamma"] == "got 7, allowed: a number 0..1 (discount factor per decision)"
    assert "allowed: an integer >= 2" in problems["hyperparameters.batch_size"]
    assert "allowed: a number > 0 or a schedule" in problems["hyperparameters.learning_rate"]
    assert "set by seed" in problems["hyperparameters.seed"]
    assert "takes no schedule; only learning_rate, clip_range" in problems["hyperparameters.ent_coef"]


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_the_rules_know_every_argument_of_the_algorithm(algorithm: str) -> None:
    spec = ALGORITHMS[algorithm]
    arguments = set(inspect.signature(load_class(spec.home)).parameters)
    # A file of settings can hold no class, and the last one is Stable-Baselines3's own.
    unreachable = {"rollout_buffer_class", "replay_buffer_class", "_init_setup_model"}
    noise = {"noise_type", "noise_std"} if "action_noise" in arguments and algorithm in ("sac", "td3") else set()
    if "Box" not in spec.actions:  # noise of continuous actions
        unreachable |= {"use_sde", "sde_sample_freq"}
    assert set(spec.rules) - noise == arguments - unreachable - set(OWNED)


@pytest.mark.parametrize("algorithm", list(ALGORITHMS))
def test_the_algorithms_own_defaults_are_allowed(algorithm: str) -> None:
    spec = ALGORITHMS[algorithm]
    parameters = inspect.signature(load_class(spec.home)).parameters
    assert of.problems_of(algorithm, spec.rules, spec.defaults) == []
    for name, rule in spec.rules.items():
        assert name.startswith("noise_") or rule.accepts(parameters[name].default), (
            name,
            parameters[name].default,
            rule.allowed,
        )


def test_a_training_follows_its_schedules() -> None:
    config = TrainingConfig(
        env_id="CartPole-v1",
        hyperparameters={
            "n_steps": 10,
            "batch_size": 20,
            "n_epochs": 1,
            "learning_rate": {"schedule": "cosine", "start": 0.01, "end": 0.001, "warmup": 0.2},
            "clip_range": {"schedule": "step", "start": 0.4, "factor": 0.5, "at": [0.5]},
        },
    )
    model = build_model(config, make_training_vec_env("CartPole-v1", 2, 0), 0)
    seen: list[dict[str, float]] = []

    def note(local: dict[str, Any], _: dict[str, Any]) -> bool:
        logged = local["self"].logger.name_to_value
        if "train/learning_rate" in logged and (not seen or seen[-1] != dict(logged)):
            seen.append({name: logged[name] for name in ("train/learning_rate", "train/clip_range")})
        return True

    model.learn(200, callback=note, log_interval=1000)
    rates = [dict(items) for items in dict.fromkeys(tuple(found.items()) for found in seen)]
    lr, clip = (parse_schedule(config.hyperparameters[name]) for name in SCHEDULED[:2])  # type: ignore[arg-type]
    # The rate of an update is that of the progress made when its rollout is complete: 20 decisions of 200 each.
    left = [1 - done / 10 for done in range(1, 10)]
    assert [found["train/learning_rate"] for found in rates] == pytest.approx([lr(share) for share in left])
    assert [found["train/clip_range"] for found in rates] == pytest.approx([clip(share) for share in left])
