"""What the bot considers: probabilities per action and per action group, and the value of the situation."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch as th
from gymnasium import spaces
from sb3_contrib.ars.policies import ARSPolicy
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from sb3_contrib.common.recurrent.policies import RecurrentActorCriticPolicy
from sb3_contrib.common.recurrent.type_aliases import RNNStates
from sb3_contrib.qrdqn.policies import QRDQNPolicy
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.policies import ActorCriticPolicy
from stable_baselines3.dqn.policies import DQNPolicy
from stable_baselines3.sac.policies import SACPolicy
from stable_baselines3.td3.policies import TD3Policy

from gymcast.training.broadcast import Sink
from gymcast.training.distributions import GroupedCategoricals
from gymcast.training.events import BotDecisionData
from gymcast.training.maskable_recurrent import MaskableRecurrentActorCriticPolicy
from gymcast.training.vec_env import GameVecEnv

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from stable_baselines3.common.base_class import BaseAlgorithm

SHOWN_ACTIONS = 8
DECISIONS_HZ = 4.0
UNWATCHED_SECONDS = 5.0
# Times as long as the making of a decision or picture took, until the next one is made.
LEAST_PAUSE = 100.0
# Products of group sizes beyond this are not enumerated; the groups' own probabilities are still shown.
MAX_JOINT_ACTIONS = 4096

ActionLabels = Sequence[tuple[str, Sequence[str]]]


@dataclass(frozen=True)
class Decision:
    """One explained decision; see :class:`~gymcast.training.events.BotDecisionData` for the fields."""

    action_probabilities: dict[str, float]
    groups: dict[str, dict[str, float]] | None
    state_values: float | None
    q_values: list[float] | None
    selected_action: str
    confidence_score: float | None

    def as_event(self) -> BotDecisionData:
        """The decision as an event of now."""
        return BotDecisionData(**vars(self))


def is_recurrent(model: BaseAlgorithm) -> bool:
    """Whether the policy makes something else of an observation after other ones."""
    return isinstance(model.policy, RecurrentActorCriticPolicy)


class DecisionExplainer:
    """Turns observations into explained decisions with one batched forward."""

    def __init__(self, model: BaseAlgorithm) -> None:
        self.model = model
        space = model.action_space
        if isinstance(space, spaces.MultiDiscrete):
            self.sizes = [int(n) for n in space.nvec]
        elif isinstance(space, spaces.Discrete):
            self.sizes = [int(space.n)]
        else:
            self.sizes = []
        self.labels = self._find_labels()
        joint = int(np.prod(self.sizes)) if self.sizes else 0
        self._enumerated = 0 < joint <= MAX_JOINT_ACTIONS

    def _find_labels(self) -> list[tuple[str, list[str]]]:
        env = self.model.get_env()
        base = None if env is None else env.unwrapped
        if isinstance(base, GameVecEnv):
            known = [(group, list(names)) for group, names in base.env.game.action_labels]
            if [len(names) for _, names in known] == self.sizes:
                return known
        return [
            (f"action {i}" if len(self.sizes) > 1 else "action", [str(n) for n in range(size)])
            for i, size in enumerate(self.sizes)
        ]

    def explain(
        self,
        obs: Any,
        masks: NDArray[np.bool_] | None,
        actions: NDArray[Any],
        memory: RNNStates | None = None,
    ) -> list[Decision]:
        """Decisions for ``obs`` (T, ...), or a dict of such arrays, as the policy sees them.

        ``masks`` (T, M) are of legal actions or ``None``, ``actions`` (T, ...) those that were chosen.

        For a recurrent policy the rows are steps of one lane in their order, which begin with ``memory``, or with an
        episode where it is ``None``.
        """
        policy: Any = self.model.policy
        with th.no_grad():
            tensor = policy.obs_to_tensor(obs)[0]
            if isinstance(policy, DQNPolicy):
                return self._explain_q_values(policy.q_net(tensor).cpu().numpy(), actions)
            if isinstance(policy, QRDQNPolicy):
                return self._explain_q_values(policy.quantile_net(tensor).mean(dim=1).cpu().numpy(), actions)
            if isinstance(policy, SACPolicy | TD3Policy):
                return self._explain_actor(policy, tensor, actions)
            if isinstance(policy, ARSPolicy):
                return self._explain_deterministic(actions)
            if isinstance(policy, RecurrentActorCriticPolicy):
                return self._explain_recurrent(policy, tensor, masks, actions, memory)
            if isinstance(policy, ActorCriticPolicy):
                values = policy.predict_values(tensor).cpu().numpy().reshape(-1)
                distribution: Any = policy.get_distribution(tensor)
                if not self.sizes:
                    spread = getattr(getattr(distribution, "distribution", None), "stddev", None)
                    return self._explain_numbers(actions, values, distribution.mode(), spread)
                return self._explain_groups(_group_probabilities(distribution), values, actions)
            if isinstance(policy, MaskableActorCriticPolicy):
                values = policy.predict_values(tensor).cpu().numpy().reshape(-1)
                distribution = policy.get_distribution(tensor, action_masks=masks)
                return self._explain_groups(_group_probabilities(distribution), values, actions)
            return self._explain_deterministic(actions)  # of a policy that nobody here knows, the action is known

    def _explain_recurrent(
        self,
        policy: Any,
        obs: th.Tensor,
        masks: NDArray[np.bool_] | None,
        actions: NDArray[Any],
        memory: RNNStates | None,
    ) -> list[Decision]:
        starts = th.zeros(len(actions), device=policy.device)
        if memory is None:
            nothing = th.zeros(policy.lstm_hidden_state_shape, device=policy.device)
            memory = RNNStates((nothing, nothing), (nothing, nothing))
        masked = masks is not None and isinstance(policy, MaskableRecurrentActorCriticPolicy)
        extra = {"action_masks": masks} if masked else {}
        values = policy.predict_values(obs, memory.vf, starts).cpu().numpy().reshape(-1)
        distribution, _ = policy.get_distribution(obs, memory.pi, starts, **extra)
        if not self.sizes:
            spread = getattr(getattr(distribution, "distribution", None), "stddev", None)
            return self._explain_numbers(actions, values, distribution.mode(), spread)
        return self._explain_groups(_group_probabilities(distribution), values, actions)

    def _explain_groups(
        self, groups: list[NDArray[np.float64]], values: NDArray[Any], actions: NDArray[Any]
    ) -> list[Decision]:
        rows = len(values)
        chosen = np.asarray(actions).reshape(rows, len(self.sizes)).astype(np.int64)
        joint = None
        if self._enumerated:
            joint = groups[0]
            for group in groups[1:]:
                joint = (joint[:, :, None] * group[:, None, :]).reshape(rows, -1)
        decisions = []
        for row in range(rows):
            picked = chosen[row]
            confidence = float(np.prod([group[row, index] for group, index in zip(groups, picked, strict=True)]))
            decisions.append(
                Decision(
                    action_probabilities=self._top(joint[row]) if joint is not None else {},
                    groups=self._marginals(groups, row) if len(self.sizes) > 1 else None,
                    state_values=float(values[row]),
                    q_values=None,
                    selected_action=self._name(picked),
                    confidence_score=min(1.0, confidence),
                )
            )
        return decisions

    def _explain_q_values(self, q_values: NDArray[Any], actions: NDArray[Any]) -> list[Decision]:
        """DQN takes the best action except for a share of random ones, the exploration rate."""
        epsilon = float(getattr(self.model, "exploration_rate", 0.0))
        count = q_values.shape[1]
        decisions = []
        for q_row, action in zip(q_values, np.asarray(actions).reshape(-1), strict=True):
            probabilities = np.full(count, epsilon / count)
            probabilities[int(q_row.argmax())] += 1.0 - epsilon
            decisions.append(
                Decision(
                    action_probabilities=self._top(probabilities),
                    groups=None,
                    state_values=float(q_row.max()),
                    q_values=[float(q) for q in q_row] if count <= 256 else None,
                    selected_action=self._name(np.array([int(action)])),
                    confidence_score=float(probabilities[int(action)]),
                )
            )
        return decisions

    def _explain_actor(self, policy: Any, obs: th.Tensor, actions: NDArray[Any]) -> list[Decision]:
        """Continuous actions with what the critics, the more careful of them, think each is worth."""
        taken = np.asarray(actions, dtype=np.float32).reshape(len(actions), -1)
        scaled = th.as_tensor(policy.scale_action(taken), device=policy.device)
        values = th.cat(policy.critic(obs, scaled), dim=1).min(dim=1).values.cpu().numpy()
        return self._explain_numbers(
            actions, values, th.as_tensor(policy.unscale_action(policy._predict(obs, deterministic=True).cpu().numpy()))
        )

    def _explain_numbers(
        self, actions: NDArray[Any], values: NDArray[Any], means: th.Tensor, spreads: th.Tensor | None = None
    ) -> list[Decision]:
        """Actions that are numbers have no probabilities to list: the policy's favourite is shown beside each."""
        mean_rows = means.cpu().numpy().reshape(len(actions), -1)
        spread_rows = None if spreads is None else spreads.cpu().numpy().reshape(len(actions), -1)
        found = []
        for row, (action, value) in enumerate(zip(actions, values, strict=True)):
            said = f"{_numbers(action)} (mean {_numbers(mean_rows[row])}"
            said += ")" if spread_rows is None else f", spread {_numbers(spread_rows[row])})"
            found.append(Decision({}, None, float(value), None, said, None))
        return found

    def _explain_deterministic(self, actions: NDArray[Any]) -> list[Decision]:
        """A policy without chance or critic: the action is all there is to say."""
        if not self.sizes:
            return [Decision({}, None, None, None, _numbers(action), None) for action in actions]
        chosen = np.asarray(actions).reshape(len(actions), len(self.sizes)).astype(np.int64)
        names = [self._name(picked) for picked in chosen]
        return [Decision({name: 1.0}, None, None, None, name, 1.0) for name in names]

    def _top(self, probabilities: NDArray[np.float64]) -> dict[str, float]:
        best = np.argsort(-probabilities, kind="stable")[:SHOWN_ACTIONS]
        shown = {}
        for index in best:
            picked = np.array(np.unravel_index(int(index), self.sizes))
            shown[self._name(picked)] = round(float(probabilities[index]), 5)
        if len(probabilities) > SHOWN_ACTIONS:
            shown["other"] = round(max(0.0, 1.0 - sum(shown.values())), 5)
        return shown

    def _marginals(self, groups: list[NDArray[np.float64]], row: int) -> dict[str, dict[str, float]]:
        return {
            name: {label: round(float(p), 4) for label, p in zip(labels, group[row], strict=True)}
            for (name, labels), group in zip(self.labels, groups, strict=True)
        }

    def _name(self, picked: NDArray[np.int64]) -> str:
        return " + ".join(labels[int(index)] for (_, labels), index in zip(self.labels, picked, strict=True))


def _numbers(values: Any) -> str:
    shown = np.asarray(values).reshape(-1)
    return f"[{', '.join(f'{number:.3g}' for number in shown[:8])}{', ...' if len(shown) > 8 else ''}]"


def _group_probabilities(distribution: Any) -> list[NDArray[np.float64]]:
    """Probabilities (T, n) per action group of a (maskable) categorical or multi-categorical distribution."""
    if isinstance(distribution, GroupedCategoricals):
        return distribution.group_probabilities()
    parts = getattr(distribution, "distributions", None) or distribution.distribution
    parts = parts if isinstance(parts, list) else [parts]
    return [np.clip(part.probs.cpu().numpy().astype(np.float64), 0.0, 1.0) for part in parts]


class BotDecisionCallback(BaseCallback):
    """Sends what the bot considered in lane 0, at most ``hz`` times a second, with one forward of a single row each.

    With ``watchers`` it does so while there are any, and otherwise only every :data:`UNWATCHED_SECONDS`; and it never
    takes more than 1 % of the time.
    """

    def __init__(self, sink: Sink, hz: float = DECISIONS_HZ, watchers: Callable[[], int] | None = None) -> None:
        super().__init__()
        self._sink = sink
        self._watchers = watchers
        self._period = 1.0 / min(hz, DECISIONS_HZ)
        self._next = 0.0
        self._explainer: DecisionExplainer | None = None

    def _on_training_start(self) -> None:
        self._explainer = DecisionExplainer(self.model)

    def _on_step(self) -> bool:
        now = time.monotonic()
        last_obs = self.model._last_obs
        if now < self._next or self._explainer is None or last_obs is None or "actions" not in self.locals:
            return True  # algorithms such as sb3-contrib's ARS do not tell callbacks of actions
        masks = self.locals.get("action_masks")
        actions = np.asarray(self.locals["actions"])[:1]
        first = {k: part[:1] for k, part in last_obs.items()} if isinstance(last_obs, dict) else last_obs[:1]
        masks = None if masks is None else masks[:1]
        decision = self._explainer.explain(first, masks, actions, self._memory())[0]
        self._sink.emit(decision.as_event())
        seen = self._watchers is None or self._watchers() > 0
        taken = 0.0 if self._watchers is None else time.monotonic() - now
        self._next = now + max(self._period if seen else UNWATCHED_SECONDS, LEAST_PAUSE * taken)
        return True

    def _memory(self) -> RNNStates | None:
        """What the LSTMs of lane 0 held before the action; ``None`` when an episode begins, and without a LSTM."""
        states: RNNStates | None = getattr(self.model, "_last_lstm_states", None)
        starts: Any = getattr(self.model, "_last_episode_starts", None)
        if states is None or starts[0]:
            return None
        return RNNStates(*(tuple(part[:, :1].contiguous() for part in kind) for kind in states))
