"""How torch computes: threads, precision, and the distribution of grouped actions against Stable-Baselines3's."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch as th
from sb3_contrib.common.maskable.distributions import MaskableMultiCategoricalDistribution
from stable_baselines3.common.distributions import MultiCategoricalDistribution

from gymcast.training.compute import choose_torch_threads, network_work
from gymcast.training.config import NetworkConfig, TrainingConfig
from gymcast.training.distributions import BatchMaskableMultiCategorical, BatchMultiCategorical
from gymcast.training.models import build_model, torch_threads
from gymcast.training.vec_env import make_training_vec_env

SIZES = [3, 3, 2, 16]


def archers_model(**changes: Any) -> Any:
    env = make_training_vec_env("archers", 4, 1, options={"opponent": "random"})
    return build_model(TrainingConfig.parse({"env_id": "archers", **changes}), env, seed=3)


def test_threads_grow_with_the_work_and_never_beyond_the_cores() -> None:
    work = network_work(NetworkConfig(hidden=(64, 64)), 80, 24)
    assert work == (80 * 64 + 64 * 64 + 64 * 24) + (80 * 64 + 64 * 64 + 64)
    assert choose_torch_threads(1, work, 8) == choose_torch_threads(256, work, 8) == 1
    assert choose_torch_threads(8192, work, 2) == 2 and choose_torch_threads(8192, work, 1) == 1
    counts = [choose_torch_threads(2**power, work, 16) for power in range(20)]
    assert counts == sorted(counts) and counts[-1] == 16


def test_threads_follow_the_algorithms_batches() -> None:
    small = archers_model(hyperparameters={"n_steps": 8, "batch_size": 32})
    assert torch_threads(TrainingConfig(), small) == 1
    assert torch_threads(TrainingConfig(), small, rows=10**7) == choose_torch_threads(10**7, 10**6)


def distributions(masked: bool) -> tuple[Any, Any, th.Tensor, np.ndarray[Any, Any]]:
    """Stable-Baselines3's and ours on the same random logits (64, 24) and legal masks."""
    generator = th.Generator().manual_seed(5)
    logits = th.randn((64, sum(SIZES)), generator=generator) * 3
    masks = th.rand((64, sum(SIZES)), generator=generator) < 0.5
    masks[:, np.cumsum([0, *SIZES[:-1]])] = True  # each group has a legal action
    kinds = (MaskableMultiCategoricalDistribution, BatchMaskableMultiCategorical)
    theirs, ours = (
        kind(SIZES) for kind in (kinds if masked else (MultiCategoricalDistribution, BatchMultiCategorical))
    )
    return theirs, ours, logits, masks.numpy()


@pytest.mark.parametrize("masked", [False, True])
def test_the_grouped_distribution_is_stable_baselines3s(masked: bool) -> None:
    theirs, ours, logits, masks = distributions(masked)
    found = []
    for distribution in (theirs, ours):
        weights = logits.clone().requires_grad_()
        distribution.proba_distribution(action_logits=weights)
        if masked:
            distribution.apply_masking(masks)
        actions = theirs.mode().float()
        log_prob, entropy = distribution.log_prob(actions), distribution.entropy()
        (log_prob.sum() + 0.3 * entropy.sum()).backward()
        found.append((distribution.mode(), log_prob.detach(), entropy.detach(), weights.grad))
    assert th.equal(found[0][0], found[1][0])
    for expected, actual in zip(found[0][1:], found[1][1:], strict=True):
        assert th.allclose(expected, actual, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_samples_follow_the_probabilities_and_never_the_illegal(masked: bool) -> None:
    _, ours, logits, masks = distributions(masked)
    draws = 20_000
    ours.proba_distribution(logits[:1].repeat(draws, 1))
    if masked:
        ours.apply_masking(masks[:1].repeat(draws, 0))
    th.manual_seed(1)
    samples = ours.sample()
    for group, expected in enumerate(p[0] for p in ours.group_probabilities()):
        counts = np.bincount(samples[:, group].numpy(), minlength=SIZES[group])
        assert counts.shape == expected.shape and (counts[expected == 0] == 0).all()
        error = np.sqrt(np.maximum(expected * (1 - expected), 1e-9) / draws)
        assert (np.abs(counts / draws - expected) < 5 * error + 1e-12).all()


def test_a_group_with_one_legal_action_always_gets_it() -> None:
    ours = BatchMaskableMultiCategorical([2, 16])
    ours.proba_distribution(th.zeros((1000, 18)))
    only_last = np.zeros((1000, 18), np.bool_)
    only_last[:, [0, 17]] = True
    ours.apply_masking(only_last)
    assert (ours.sample() == th.tensor([0, 15])).all() and th.equal(ours.entropy(), th.zeros(1000))
    ours.apply_masking(None)
    assert len(ours.sample()[:, 1].unique()) == 16
