"""Policies evaluated with NumPy alone: equal to torch's, masked, and read without ever unpickling."""

from __future__ import annotations

import itertools
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch as th
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gymcast.envs import GameVectorEnv, NumpyPolicy, OptionValueError, load_policy

NVEC = [3, 3, 2, 16]
ACTIVATIONS = {"tanh": th.nn.Tanh, "relu": th.nn.ReLU, "elu": th.nn.ELU}


def mlp(sizes: list[int], activation: str) -> th.nn.Sequential:
    parts: list[th.nn.Module] = []
    for into, out in itertools.pairwise(sizes):
        parts += [th.nn.Linear(into, out), ACTIVATIONS[activation]()]
    return th.nn.Sequential(*parts[:-1])


def arrays_of(prefix: str, head: str, network: th.nn.Sequential) -> dict[str, Any]:
    layers = [layer for layer in network if isinstance(layer, th.nn.Linear)]
    names = [f"{prefix}.{i}" for i in range(len(layers) - 1)] + [head]
    found = {}
    for name, layer in zip(names, layers, strict=True):
        found[f"{name}.weight"] = layer.weight.detach().numpy()
        found[f"{name}.bias"] = layer.bias.detach().numpy()
    return found


def make(
    activation: str, hidden: list[int], seed: int = 0
) -> tuple[th.nn.Sequential, th.nn.Sequential, dict[str, Any]]:
    th.manual_seed(seed)
    actor, critic = mlp([93, *hidden, 24], activation), mlp([93, *hidden, 1], activation)
    return actor, critic, {**arrays_of("pi", "action", actor), **arrays_of("vf", "value", critic)}


def meta(activation: str = "tanh", nvec: list[int] | None = None) -> dict[str, Any]:
    return {"env_id": "gymcast/Archers-v0", "activation": activation, "nvec": nvec or NVEC}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "policy.npz"
    np.savez(path, meta=np.array(json.dumps(meta())), **make("tanh", [16])[2])
    return path


@pytest.mark.parametrize("activation", list(ACTIVATIONS))
@pytest.mark.parametrize("hidden", [[32, 16], []])
def test_it_computes_what_torch_computes(activation: str, hidden: list[int]) -> None:
    actor, critic, arrays = make(activation, hidden)
    policy = NumpyPolicy(arrays, meta(activation))
    observations = np.random.default_rng(0).uniform(-1, 1, (50, 93)).astype(np.float32)
    with th.no_grad():
        logits = actor(th.from_numpy(observations))
        expected = [th.softmax(group, dim=1).numpy() for group in th.split(logits, NVEC, dim=1)]
        values = critic(th.from_numpy(observations)).numpy()[:, 0]
    for found, wanted in zip(policy.probabilities(observations), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)
    np.testing.assert_allclose(policy.values(observations), values, atol=1e-5)
    policy.deterministic = True
    everything = np.ones((50, 24), np.bool_)
    np.testing.assert_array_equal(policy(observations, everything), np.stack([p.argmax(1) for p in expected], axis=1))


def test_illegal_actions_have_no_probability_and_the_rest_keep_their_odds() -> None:
    policy = NumpyPolicy(make("tanh", [16])[2], meta())
    random = np.random.default_rng(1)
    observations = random.uniform(-1, 1, (200, 93)).astype(np.float32)
    masks = random.random((200, 24)) < 0.5
    masks[:, [0, 3, 6, 8]] = True
    free, masked = policy.probabilities(observations), policy.probabilities(observations, masks)
    for before, after, mask in zip(free, masked, np.split(masks, np.cumsum(NVEC)[:-1], axis=1), strict=True):
        assert (after[~mask] == 0).all()
        legal = before * mask
        np.testing.assert_allclose(after, legal / legal.sum(axis=1, keepdims=True), atol=1e-6)
    actions = policy(observations, masks)
    starts = np.concatenate(([0], np.cumsum(NVEC)[:-1]))
    assert np.take_along_axis(masks, actions + starts, axis=1).all()


def test_actions_are_drawn_with_their_probabilities() -> None:
    policy = NumpyPolicy(make("tanh", [16])[2], meta(), seed=3)
    one = np.random.default_rng(0).uniform(-1, 1, (1, 93)).astype(np.float32)
    drawn = policy(np.repeat(one, 20_000, axis=0), np.ones((20_000, 24), np.bool_))
    for group, expected in enumerate(policy.probabilities(one)):
        found = np.bincount(drawn[:, group], minlength=NVEC[group]) / 20_000
        assert np.abs(found - expected[0]).max() < 4 * 0.5 / 20_000**0.5


def test_the_seed_determines_the_draws(saved: Path) -> None:
    observations, masks = np.zeros((64, 93), np.float32), np.ones((64, 24), np.bool_)
    first, second, third = (load_policy(saved, seed)(observations, masks) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, second)
    assert (first != third).any()


def test_one_group_of_actions_gives_a_row_of_numbers() -> None:
    policy = NumpyPolicy(make("tanh", [16])[2], meta(nvec=[24]))
    assert policy(np.zeros((5, 93), np.float32), np.ones((5, 24), np.bool_)).shape == (5,)


def test_a_policy_file_plays_the_other_seat(saved: Path) -> None:
    env = GameVectorEnv("archers", 4, threads=1, opponent=str(saved))
    env.reset(seed=0)
    for _ in range(40):
        env.step(np.zeros((4, 4), int))
    assert env.options["opponent"] == "self"
    assert (env.batch.state["shots"][:, 1] > 0).any() and (env.batch.state["shots"][:, 0] == 0).all()


# ------------------------------------------------------------------------------------------------------- bad files


class Trap:
    """Unpickling this would make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["meta", "pi.0.weight"])
def test_nothing_is_ever_unpickled(name: str, tmp_path: Path) -> None:
    trap = np.empty((), object)
    trap[()] = Trap(tmp_path / "sprung")
    path = tmp_path / "policy.npz"
    whole = {"meta": np.array(json.dumps(meta())), **make("tanh", [16])[2], name: trap}
    np.savez(path, allow_pickle=True, **whole)
    with pytest.raises(OptionValueError, match="not a policy file"):
        load_policy(path)
    assert not (tmp_path / "sprung").exists()


def test_a_missing_file_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(OptionValueError, match=r"there is no policy file .*nowhere\.npz"):
        load_policy(tmp_path / "nowhere.npz")
    with pytest.raises(OptionValueError, match="there is no policy file"):
        GameVectorEnv("archers", 1, opponent=str(tmp_path / "nowhere.npz"))


@pytest.mark.parametrize("without", ["meta", "action.weight", "value.bias"])
def test_a_file_without_a_part_is_refused(without: str, tmp_path: Path) -> None:
    arrays = {"meta": np.array(json.dumps(meta())), **make("tanh", [16])[2]}
    del arrays[without]
    np.savez(tmp_path / "policy.npz", **arrays)
    with pytest.raises(OptionValueError, match="not a policy file"):
        load_policy(tmp_path / "policy.npz")


@pytest.mark.parametrize(
    "text", ["[]", "5", "{", '{"nvec": 3, "activation": "tanh"}', '{"nvec": [3], "activation": "x"}']
)
def test_a_meta_that_is_none_is_refused(text: str, tmp_path: Path) -> None:
    np.savez(tmp_path / "policy.npz", **{"meta": np.array(text), **make("tanh", [16])[2]})
    with pytest.raises(OptionValueError, match="not a policy file"):
        load_policy(tmp_path / "policy.npz")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), keep=st.floats(0, 1))
def test_damaged_files_raise_nothing_else(saved: Path, tmp_path: Path, data: bytes, keep: float) -> None:
    whole = saved.read_bytes()
    path = tmp_path / "damaged.npz"
    for content in (data, whole[: int(keep * (len(whole) - 1))], b"PK\x03\x04" + data, b"\x93NUMPY" + data):
        path.write_bytes(content)
        with pytest.raises(OptionValueError, match="not a policy file"):
            load_policy(path)
