"""MaskableRecurrentPPO: everything has a closed form or another algorithm's answer to compare with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch as th
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3.common.evaluation import evaluate_policy
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import nn

from gymcast.training import CheckpointManager, MaskableRecurrentPPO, Trainer, TrainingConfig
from gymcast.training.callbacks.decisions import DecisionExplainer
from gymcast.training.events import BotDecisionData
from gymcast.training.masked_actions import ActionMaskError, mask_groups
from gymcast.training.masked_buffers import MaskableRecurrentRolloutBuffer, MaskedSequences
from gymcast.training.sb3_zip import export_sb3

DISCRETE = spaces.Discrete(5)
MULTI = spaces.MultiDiscrete([3, 2])
BINARY = spaces.MultiBinary(2)


class Walk(gym.Env[Any, Any]):
    """Episodes of lengths 1 to 5, every other one truncated; the observation tells its own mask.

    Observation (0, 1)^(choices + 1): a number drawn at random, and 1 for what is legal. Reward 1 for a legal step.
    """

    def __init__(self, space: spaces.Space[Any] = DISCRETE, lane: int = 0, masked: bool = True) -> None:
        self.action_space, self._lane, self._masked = space, lane, masked
        self._choices = sum(mask_groups(space))
        self.observation_space: spaces.Space[Any] = spaces.Box(0.0, 1.0, (self._choices + 1,), np.float32)
        self._episode = 0
        self.mask: Any = None

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self._episode += 1
        self._left = 1 + (self._episode + self._lane) % 5
        return self._look(), {}

    def step(self, action: Any) -> Any:
        self._left -= 1
        ended, truncated = self._left == 0, self._episode % 2 == 0
        starts = np.cumsum([0, *mask_groups(self.action_space)])[:-1]
        reward = float(self.mask[np.asarray(action).reshape(-1) + starts].all())
        return self._look(), reward, ended and not truncated, ended and truncated, {}

    def action_masks(self) -> Any:
        return self.mask

    def _look(self) -> Any:
        self.mask = np.ones(self._choices, bool)
        if self._masked:
            self.mask = self.np_random.random(self._choices) < 0.6
            starts = np.cumsum([0, *mask_groups(self.action_space)])[:-1]
            for start, size in zip(starts, mask_groups(self.action_space), strict=True):
                self.mask[start + self.np_random.integers(size)] = True
        return np.array([self.np_random.random(), *self.mask], np.float32)


class Pictures(gym.ObservationWrapper[Any, Any, Any]):
    """The same as images or as a Dict."""

    def __init__(self, env: Any, kind: str) -> None:
        super().__init__(env)
        self._kind = kind
        image = spaces.Box(0, 255, (36, 36, 1), np.uint8)
        self.observation_space = image if kind == "image" else spaces.Dict(n=env.observation_space, image=image)

    def observation(self, observation: Any) -> Any:
        image = np.full((36, 36, 1), 255 * observation[0], np.uint8)
        return image if self._kind == "image" else {"n": observation, "image": image}


ARGUMENTS: dict[str, Any] = {"n_steps": 12, "batch_size": 20, "n_epochs": 2, "seed": 3, "device": "cpu"}
SMALL = {"lstm_hidden_size": 6, "net_arch": {"pi": [8], "vf": [8]}}
CRITICS: dict[str, dict[str, Any]] = {
    "its own": {},
    "shared": {"shared_lstm": True, "enable_critic_lstm": False},
    "none": {"enable_critic_lstm": False},
}


def lanes(n: int = 3, **options: Any) -> DummyVecEnv:
    env = DummyVecEnv([lambda lane=lane: Walk(lane=lane, **options) for lane in range(n)])  # type: ignore[misc]
    env.seed(1)
    return env


def make(cls: Any = MaskableRecurrentPPO, env: Any = None, policy: str = "MlpLstmPolicy", **changes: Any) -> Any:
    kwargs = {**SMALL, **changes.pop("policy_kwargs", {})}
    return cls(policy, lanes() if env is None else env, policy_kwargs=kwargs, **{**ARGUMENTS, **changes})


def rolled_out(model: Any) -> Any:
    """The model with one rollout in its buffer and its own logger."""
    model.set_logger(Logger(None, []))
    _, callback = model._setup_learn(1000)
    th.manual_seed(0)
    assert model.collect_rollouts(model.env, callback, model.rollout_buffer, model.n_steps)
    return model


def weights(model: Any) -> th.Tensor:
    return th.nn.utils.parameters_to_vector(model.policy.parameters()).detach()


# ------------------------------------------------------------------------------------------- against other algorithms


@pytest.mark.parametrize("critic", CRITICS)
@pytest.mark.parametrize("space", [DISCRETE, MULTI], ids=["discrete", "multidiscrete"])
def test_masks_that_allow_everything_give_the_weights_of_recurrent_ppo_bit_for_bit(critic: str, space: Any) -> None:
    models = [
        make(cls, lanes(space=space, masked=False), policy_kwargs=CRITICS[critic]).learn(12 * 3 * 3)
        for cls in (RecurrentPPO, MaskableRecurrentPPO)
    ]
    start = weights(make(env=lanes(space=space), policy_kwargs=CRITICS[critic]))
    assert th.equal(weights(models[0]), weights(models[1])) and not th.equal(weights(models[1]), start)


def test_without_masking_it_is_recurrent_ppo_whatever_the_environment_masks() -> None:
    ours, theirs = make().learn(72, use_masking=False), make(RecurrentPPO).learn(72)
    assert th.equal(weights(ours), weights(theirs))
    assert not th.equal(weights(ours), weights(make().learn(72)))


@pytest.mark.parametrize("critic", CRITICS)
def test_whole_sequences_change_nothing_but_rounding(critic: str) -> None:
    sgd = {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {}}  # Adam would enlarge rounding where gradients are 0
    one, other = (
        make(n_steps=30, policy_kwargs={**CRITICS[critic], **sgd, "whole_sequences": whole}).learn(90)
        for whole in (False, True)
    )
    assert not th.equal(weights(one), weights(make(policy_kwargs={**CRITICS[critic], **sgd})))
    assert th.allclose(weights(one), weights(other), atol=1e-6)
    np.testing.assert_array_equal(one.rollout_buffer.episode_starts, other.rollout_buffer.episode_starts)


def test_an_episode_that_starts_inside_a_sequence_is_still_begun_anew() -> None:
    policy = make(policy_kwargs={"whole_sequences": True}).policy
    obs, state = th.rand(4, 6), (th.rand(1, 1, 6), th.rand(1, 1, 6))
    begun = policy.predict_values(obs, state, th.tensor([0.0, 0.0, 1.0, 0.0]))
    parts = [policy.predict_values(obs[rows], state, th.tensor([start, 0.0])) for rows, start in
             ((slice(0, 2), 0.0), (slice(2, 4), 1.0))]  # fmt: skip
    assert th.allclose(begun, th.cat(parts), atol=1e-6)


class OneStepLstm(BaseFeaturesExtractor):
    """What an LSTM makes of a single observation, beginning from nothing."""

    def __init__(self, observation_space: spaces.Box, units: int) -> None:
        super().__init__(observation_space, units)
        self.lstm = nn.LSTM(observation_space.shape[0], units)

    def forward(self, observations: th.Tensor) -> th.Tensor:
        hidden: th.Tensor = self.lstm(observations.unsqueeze(0))[0][0]
        return hidden


def test_with_its_memory_cut_it_is_maskable_ppo() -> None:
    """Input of the state 0 and the forget gate shut: every output depends on its own observation alone."""
    sgd = {"optimizer_class": th.optim.SGD, "optimizer_kwargs": {}}
    common = {"n_epochs": 1, "batch_size": 36, "ent_coef": 0.1, "max_grad_norm": 1e9}
    recurrent = make(**common, policy_kwargs=sgd)
    for lstm in (recurrent.policy.lstm_actor, recurrent.policy.lstm_critic):
        with th.no_grad():
            lstm.weight_hh_l0.zero_()
            lstm.bias_hh_l0[6:12] = -1e4
    kwargs = {
        **sgd,
        "net_arch": SMALL["net_arch"],
        "features_extractor_class": OneStepLstm,
        "features_extractor_kwargs": {"units": 6},
        "share_features_extractor": False,
    }
    plain = MaskablePPO("MlpPolicy", lanes(), policy_kwargs=kwargs, **{**ARGUMENTS, **common})
    plain.policy.pi_features_extractor.lstm.load_state_dict(recurrent.policy.lstm_actor.state_dict())
    plain.policy.vf_features_extractor.lstm.load_state_dict(recurrent.policy.lstm_critic.state_dict())
    for part in ("mlp_extractor", "action_net", "value_net"):
        getattr(plain.policy, part).load_state_dict(getattr(recurrent.policy, part).state_dict())

    rolled_out(recurrent), rolled_out(plain)
    for name in ("observations", "actions", "rewards", "values", "log_probs", "advantages", "returns", "action_masks"):
        np.testing.assert_allclose(
            getattr(plain.rollout_buffer, name), getattr(recurrent.rollout_buffer, name), atol=1e-6, err_msg=name
        )
    recurrent.train(), plain.train()
    for name in ("policy_gradient_loss", "value_loss", "entropy_loss", "approx_kl", "loss", "explained_variance"):
        ours, theirs = (model.logger.name_to_value[f"train/{name}"] for model in (recurrent, plain))
        assert ours == pytest.approx(theirs, abs=1e-6), name
    for part in ("mlp_extractor", "action_net", "value_net"):
        for ours, theirs in zip(*(getattr(m.policy, part).parameters() for m in (recurrent, plain)), strict=True):
            assert th.allclose(ours, theirs, atol=1e-7)


# -------------------------------------------------------------------------------------------------------- probabilities


def set_logits(model: Any, logits: list[float]) -> None:
    with th.no_grad():
        model.policy.action_net.weight.zero_()
        model.policy.action_net.bias.copy_(th.tensor(logits))


def one_row(model: Any, action: Any, mask: list[int]) -> tuple[th.Tensor, th.Tensor]:
    """Logarithm of the probability and entropy of one action in the first step of an episode."""
    state = tuple(th.zeros(1, 1, 6) for _ in range(2))
    obs = th.zeros(1, sum(mask_groups(model.action_space)) + 1)
    states: Any = MaskedSequences(state, state, th.tensor([mask]))
    _, log_prob, entropy = model.policy.evaluate_actions(obs, th.tensor([action]), states, th.ones(1))
    return log_prob, entropy


def entropy_of(*probabilities: float) -> float:
    return -sum(p * math.log(p) for p in probabilities)


@pytest.mark.parametrize(
    ("space", "logits", "mask", "action", "probability", "entropy"),
    [
        (DISCRETE, [0, 7, math.log(2), 9, math.log(5)], [1, 0, 1, 0, 1], 2, 2 / 8, entropy_of(1 / 8, 2 / 8, 5 / 8)),
        (DISCRETE, [0, 7, 1, 9, 2], [0, 0, 1, 0, 0], 2, 1.0, 0.0),
        (MULTI, [0, 3, math.log(3), 0, 5], [1, 0, 1, 1, 0], [2, 0], 3 / 4, entropy_of(1 / 4, 3 / 4)),
        (BINARY, [4, 0, 0, math.log(4)], [0, 1, 1, 1], [1, 1], 4 / 5, entropy_of(1 / 5, 4 / 5)),
    ],
    ids=["discrete", "one choice left", "multidiscrete", "multibinary"],
)
def test_probability_entropy_and_gradients_by_hand(
    space: Any, logits: list[float], mask: list[int], action: Any, probability: float, entropy: float
) -> None:
    model = make(env=lanes(space=space))
    set_logits(model, logits)
    log_prob, found = one_row(model, action, mask)
    assert log_prob.item() == pytest.approx(math.log(probability), abs=1e-6)
    assert found.item() == pytest.approx(entropy, abs=1e-6)
    (log_prob.sum() + 3 * found.sum()).backward()
    gradient = model.policy.action_net.bias.grad
    illegal = ~th.tensor(mask, dtype=th.bool)
    assert (gradient[illegal] == 0).all() and gradient.isfinite().all()
    if 0 < probability < 1:
        assert (gradient != 0).any()
    state = tuple(th.zeros(1, 1, 6) for _ in range(2))
    distribution, _ = model.policy.get_distribution(th.zeros(1, len(mask) + 1), state, th.ones(1), np.array([mask]))
    parts = getattr(distribution, "distributions", None) or [distribution.distribution]
    probabilities = th.cat([part.probs[0] for part in parts])
    assert (probabilities[illegal] == 0.0).all() and (probabilities[~illegal] > 0.0).all()


@pytest.mark.parametrize("space", [DISCRETE, MULTI, BINARY], ids=["discrete", "multidiscrete", "multibinary"])
def test_every_action_is_legal_under_the_mask_of_its_own_step(space: Any) -> None:
    model = rolled_out(make(env=lanes(space=space), n_steps=40))
    buffer = model.rollout_buffer
    np.testing.assert_array_equal(buffer.action_masks, buffer.observations[..., 1:].astype(bool))
    starts = np.cumsum([0, *mask_groups(space)])[:-1]
    chosen = buffer.actions.reshape(40, 3, len(starts)).astype(int) + starts
    assert np.take_along_axis(buffer.action_masks, chosen, axis=2).all()
    assert not buffer.action_masks.all() and buffer.episode_starts.sum() > 20
    model.train()
    assert weights(model).isfinite().all()


# ------------------------------------------------------------------------------------------------ sequences and padding


def test_a_batch_of_sequences_gives_what_each_gives_alone() -> None:
    model = rolled_out(make(n_epochs=1, batch_size=36, ent_coef=0.1, max_grad_norm=1e9))
    np.random.seed(2)
    batch = next(model.rollout_buffer.get(36))
    real = batch.mask > 0
    sequences, longest = len(batch.lstm_states.pi[0][0]), len(real) // len(batch.lstm_states.pi[0][0])
    lengths = real.view(sequences, longest).sum(dim=1)
    assert len(set(lengths.tolist())) > 2 and (~real).any()
    assert batch.lstm_states.action_masks[~real].all(), "rows that fill up allow everything"
    actions = batch.actions.long().flatten()
    together = model.policy.evaluate_actions(batch.observations, actions, batch.lstm_states, batch.episode_starts)
    assert all(part.isfinite().all() for part in together)
    alone: list[list[th.Tensor]] = [[], [], []]
    for number, length in enumerate(lengths.tolist()):
        rows = slice(number * longest, number * longest + length)
        pi, vf = (tuple(part[:, number : number + 1] for part in kind) for kind in batch.lstm_states[:2])
        states = MaskedSequences(pi, vf, batch.lstm_states.action_masks[rows])
        parts = model.policy.evaluate_actions(
            batch.observations[rows], actions[rows], states, batch.episode_starts[rows]
        )
        for found, part in zip(alone, parts, strict=True):
            found.append(part.flatten())
    values, log_prob, entropy = (th.cat(found) for found in alone)
    for ours, expected in zip(together, (values, log_prob, entropy), strict=True):
        assert th.allclose(ours.flatten()[real], expected, atol=1e-6)

    advantages = batch.advantages[real]
    advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    ratio = th.exp(log_prob - batch.old_log_prob[real])
    expected_losses = {
        "policy_gradient_loss": -th.min(advantages * ratio, advantages * ratio.clamp(0.8, 1.2)).mean(),
        "value_loss": ((batch.returns[real] - values) ** 2).mean(),
        "entropy_loss": -entropy.mean(),
        "approx_kl": (ratio - 1 - ratio.log()).mean(),
    }
    np.random.seed(2)
    model.train()
    for name, loss in expected_losses.items():
        assert model.logger.name_to_value[f"train/{name}"] == pytest.approx(loss.item(), abs=1e-6), name


def test_what_fills_up_a_sequence_has_no_effect() -> None:
    model = rolled_out(make(batch_size=36))
    batch = next(model.rollout_buffer.get(36))
    real = batch.mask > 0
    actions = batch.actions.long().flatten()

    def gradients(obs: th.Tensor, masks: th.Tensor) -> th.Tensor:
        model.policy.zero_grad()
        states = MaskedSequences(*batch.lstm_states[:2], masks)
        parts = model.policy.evaluate_actions(obs, actions, states, batch.episode_starts)
        sum(part.flatten()[real].sum() for part in parts).backward()
        return th.cat([p.grad.flatten() for p in model.policy.parameters() if p.grad is not None])

    first = gradients(batch.observations, batch.lstm_states.action_masks)
    obs, masks = batch.observations.clone(), batch.lstm_states.action_masks.clone()
    obs[~real] = 0.7
    masks[~real] = th.tensor([False, True, False, False, False])
    assert th.equal(gradients(obs, masks), first) and first.isfinite().all()


@pytest.mark.parametrize("batch_size", [7, 20, None])
def test_masks_stay_with_their_steps_in_every_minibatch(batch_size: int | None) -> None:
    """The mask of step ``k`` of lane ``l`` is the number ``1 + k * lanes + l`` in binary."""
    steps, n = 9, 4
    buffer = MaskableRecurrentRolloutBuffer(
        steps, spaces.Box(0, 99, (1,)), spaces.Discrete(6), (steps, 1, n, 2), device="cpu", n_envs=n
    )
    states: Any = MaskedSequences((th.zeros(1, n, 2),) * 2, (th.zeros(1, n, 2),) * 2, th.zeros(0))
    for _ in range(2):
        buffer.reset()
        for step in range(steps):
            number = 1 + step * n + np.arange(n)
            bits = (number[:, None] >> np.arange(6)) & 1
            starts = (step * 3 + np.arange(n)) % 5 == 0
            flat = th.zeros(n)
            buffer.add(number[:, None], number[:, None], flat.numpy(), starts, flat, flat, lstm_states=states,
                       action_masks=bits)  # fmt: skip
        buffer.compute_returns_and_advantage(th.zeros(n), np.zeros(n))
        for _ in range(3):
            seen: list[int] = []
            for batch in buffer.get(batch_size):
                real = batch.mask > 0
                masks = batch.lstm_states.action_masks
                assert masks.dtype == th.bool and masks[~real].all()
                decoded = (masks[real].long() * 2 ** th.arange(6)).sum(dim=1)
                assert th.equal(decoded, batch.observations[real, 0].long())
                seen += decoded.tolist()
            assert sorted(seen) == list(range(1, steps * n + 1))


def test_a_truncated_episode_is_worth_what_its_own_memory_expects() -> None:
    model = make(gamma=0.5, n_steps=15)
    steps: list[tuple[Any, Any, Any]] = []
    step = model.env.step_wait

    def listening() -> Any:
        obs, rewards, dones, infos = step()
        steps.append((obs.copy(), dones.copy(), list(infos)))
        return obs, rewards, dones, infos

    model.env.step_wait = listening
    rolled_out(model)
    buffer = model.rollout_buffer
    kinds = {"truncated": 0, "terminated": 0}
    for lane in range(3):
        begin = 0
        for number, (_, dones, infos) in enumerate(steps):
            expected = 1.0
            if dones[lane]:
                if infos[lane]["TimeLimit.truncated"]:
                    episode = [*buffer.observations[begin : number + 1, lane], infos[lane]["terminal_observation"]]
                    state = tuple(th.zeros(1, 1, 6) for _ in range(2))
                    starts = th.tensor([1.0] + [0.0] * (len(episode) - 1))
                    with th.no_grad():
                        values = model.policy.predict_values(th.tensor(np.array(episode)), state, starts)
                    expected += 0.5 * values[-1].item()
                kinds["truncated" if expected != 1.0 else "terminated"] += 1
                begin = number + 1
            assert buffer.rewards[number, lane] == pytest.approx(expected, abs=1e-6)
    assert min(kinds.values()) >= 3


# -------------------------------------------------------------------------------------------- predict, files, mistakes


def test_predict_keeps_a_state_for_each_lane_and_begins_anew_where_told() -> None:
    model = make()
    random = np.random.default_rng(0)
    obs = random.random((4, 3, 6), dtype=np.float32)
    masks = np.ones((3, 5), bool)
    state: Any = None
    for row in obs:
        _, state = model.predict(row, state, np.zeros(3, bool), action_masks=masks)
    for lane in range(3):
        own: Any = None
        for row in obs:
            _, own = model.predict(row[lane], own, np.zeros(1, bool), action_masks=masks[lane])
        assert all(
            np.allclose(part[:, lane : lane + 1], alone, atol=1e-6) for part, alone in zip(state, own, strict=True)
        )
    _, after = model.predict(obs[0], state, np.array([False, True, False]), action_masks=masks)
    _, fresh = model.predict(obs[0], None, np.ones(3, bool), action_masks=masks)
    same = [np.allclose(after[0][:, lane], fresh[0][:, lane], atol=1e-7) for lane in range(3)]
    assert same == [False, True, False]


def test_predict_takes_nothing_but_what_is_legal() -> None:
    model = make()
    only = np.eye(5, dtype=bool)[[4, 0, 2]]
    for deterministic in (True, False):
        actions, _ = model.predict(np.zeros((3, 6), np.float32), deterministic=deterministic, action_masks=only)
        assert actions.tolist() == [4, 0, 2]
    single, _ = model.predict(np.zeros(6, np.float32), action_masks=only[0])
    assert single == 4
    free = {int(model.predict(np.zeros(6, np.float32))[0]) for _ in range(80)}
    assert free == {0, 1, 2, 3, 4}, "masks do not outlive their call"


def test_evaluation_functions_that_know_no_masks_get_them_from_the_environment() -> None:
    env, model = lanes(), make()
    rewards, lengths = evaluate_policy(model.masked_by(env), env, 30, return_episode_rewards=True, warn=False)
    assert rewards == lengths and len(rewards) >= 30, "no action was illegal: such a step would be worth 0"
    obs, state = env.reset(), model.predict(np.ones((3, 6), np.float32))[1]
    masks = np.stack(env.env_method("action_masks"))
    ours = model.masked_by(env).predict(obs, state, np.array([True, False, False]), True)
    theirs = model.predict(obs, state, np.array([True, False, False]), True, action_masks=masks)
    for part, expected in zip((ours[0], *ours[1]), (theirs[0], *theirs[1]), strict=True):
        np.testing.assert_array_equal(part, expected)


@pytest.mark.parametrize(("kind", "policy"), [("image", "CnnLstmPolicy"), ("dict", "MultiInputLstmPolicy")])
def test_images_and_dicts_are_learned_from_and_saved(kind: str, policy: str, tmp_path: Path) -> None:
    env = DummyVecEnv([lambda: Pictures(Walk(), kind)] * 2)
    env.seed(1)
    model = make(env=env, policy=policy, n_epochs=1).learn(24)
    before = weights(model)
    model.save(tmp_path / "model.zip")
    loaded = MaskableRecurrentPPO.load(tmp_path / "model.zip", env=env, device="cpu")
    assert th.equal(weights(loaded), before) and type(loaded.policy) is type(model.policy)
    obs, masks = env.reset(), np.stack(env.env_method("action_masks"))
    ours, theirs = (m.predict(obs, deterministic=True, action_masks=masks) for m in (model, loaded))
    np.testing.assert_array_equal(ours[0], theirs[0])
    np.testing.assert_array_equal(ours[1], theirs[1])
    loaded.learn(24, reset_num_timesteps=False)
    assert loaded.num_timesteps == 48 and not th.equal(weights(loaded), before)


@pytest.mark.parametrize("space", [DISCRETE, MULTI, BINARY], ids=["discrete", "multidiscrete", "multibinary"])
def test_a_lane_without_a_legal_action_is_named(space: Any) -> None:
    env = lanes(space=space)
    model = make(env=env)
    masks = np.ones((3, sum(mask_groups(space))), bool)
    masks[1, -mask_groups(space)[-1] :] = False
    with pytest.raises(ActionMaskError, match=r"lane 1: .* none of the \d choices.* at least one"):
        model.predict(np.zeros((3, masks.shape[1] + 1), np.float32), action_masks=masks)
    env.envs[2]._look = lambda: np.zeros(masks.shape[1] + 1, np.float32)  # type: ignore[attr-defined]
    env.envs[2].mask = np.zeros(masks.shape[1], bool)  # type: ignore[attr-defined]
    with pytest.raises(ActionMaskError, match=r"lane 2: "):
        model.learn(36)


def test_masks_of_the_wrong_shape_are_refused() -> None:
    with pytest.raises(ActionMaskError, match=r"shape \(3, 4\), needed \(3, 5\)"):
        make().predict(np.zeros((3, 6), np.float32), action_masks=np.ones((3, 4), bool))


def test_what_cannot_work_is_said_at_once() -> None:
    with pytest.raises(ValueError, match=r"got Box.*RecurrentPPO takes actions without masks"):
        make(env=DummyVecEnv([lambda: gym.make("Pendulum-v1")]))
    with pytest.raises(ValueError, match="minibatch of one sample with batch_size 35"):
        make(batch_size=35)
    with pytest.raises(ValueError, match=r"no action_masks\(\).*use_masking=False"):
        make(env=DummyVecEnv([lambda: gym.make("CartPole-v1")])).learn(12)
    with pytest.raises(ValueError, match="takes no masks"):
        make(policy=RecurrentPPO.policy_aliases["MlpLstmPolicy"])  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- runs of gymcast


class Decisions:
    """A sink that keeps what the bot considered."""

    desired = "running"

    def __init__(self) -> None:
        self.kept: list[BotDecisionData] = []

    def emit(self, data: Any) -> None:
        if isinstance(data, BotDecisionData):
            self.kept.append(data)


def test_the_vaults_preset_learns_to_open_it_and_its_file_plays_on(tmp_path: Path) -> None:
    sink = Decisions()
    config = TrainingConfig.for_env("gymcast/Vault-v0", seed=1, total_timesteps=23_040, evaluation_games=300)
    assert config.algorithm == "maskable_recurrent_ppo"
    result = Trainer(config, run_dir=tmp_path / "run", sink=sink).run_training_loop()
    assert result.evaluations[0].mean_return >= 0.9, "no policy without a memory, or without masks, gets more than 1/4"
    assert sink.kept, "the page shows what a recurrent policy considers, too"
    shown = [decision.action_probabilities for decision in sink.kept]
    assert all(sum(p.values()) == pytest.approx(1.0, abs=1e-3) for p in shown)
    in_rooms = [p for p in shown if sorted(p.values())[1] == 0.0]
    assert in_rooms, "two of four doors are locked: probability 0"

    checkpoint = CheckpointManager(tmp_path / "run" / "checkpoints").newest()
    assert checkpoint is not None
    export_sb3(config, checkpoint, tmp_path / "model.zip")
    model = MaskableRecurrentPPO.load(tmp_path / "model.zip", device="cpu")
    env = DummyVecEnv([lambda: gym.make("gymcast/Vault-v0")] * 8)
    env.seed(5)
    mean, _ = evaluate_policy(model.masked_by(env), env, 200, warn=False)
    assert mean >= 0.9
    plain, _ = evaluate_policy(model, env, 100, warn=False)
    assert plain < 0.5, "without masks it runs into locked doors"


def test_what_the_bot_considers_is_what_its_memory_makes_of_the_masks() -> None:
    model = rolled_out(make())
    explainer, buffer = DecisionExplainer(model), model.rollout_buffer
    obs, masks, actions = (array[:, 0] for array in (buffer.observations, buffer.action_masks, buffer.actions))
    starts = np.flatnonzero(buffer.episode_starts[:, 0])
    first, end = starts[np.argmax(np.diff(starts))], starts[np.argmax(np.diff(starts)) + 1]
    assert end - first >= 3
    explained = explainer.explain(obs[first:end], masks[first:end], actions[first:end])
    for step, decision in enumerate(explained, start=first):
        assert decision.state_values == pytest.approx(buffer.values[step, 0], abs=1e-5)
        assert decision.confidence_score == pytest.approx(math.exp(buffer.log_probs[step, 0]), abs=1e-5)
        assert all(decision.action_probabilities[str(k)] == 0.0 for k in np.flatnonzero(~masks[step]))
    kinds = [(kind[0][first + 1, :, :1], kind[1][first + 1, :, :1]) for kind in (
        (buffer.hidden_states_pi, buffer.cell_states_pi), (buffer.hidden_states_vf, buffer.cell_states_vf)
    )]  # fmt: skip
    memory: Any = MaskedSequences(*(tuple(map(th.as_tensor, kind)) for kind in kinds), th.zeros(0))
    rows = slice(first + 1, first + 2)
    alone = explainer.explain(obs[rows], masks[rows], actions[rows], memory)[0]
    assert alone.state_values == pytest.approx(buffer.values[first + 1, 0], abs=1e-5)


def test_the_snippet_of_the_docs_runs() -> None:
    page = (Path(__file__).parents[2] / "docs" / "recurrent-masks.md").read_text(encoding="utf-8")
    exec(page.split("```python\n")[1].split("```")[0], {})
