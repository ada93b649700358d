"""Every algorithm there is, one entry each: whatever depends on the algorithm asks here. Known without torch."""

from __future__ import annotations

import difflib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal

from gymcast.training import hyperparameters as of

if TYPE_CHECKING:
    from gymnasium import spaces

# Stands for the algorithm that the action space asks for.
AUTO: Final = "auto"
# With more lanes than this continuous actions are learned by PPO: an off-policy algorithm learns from each decision
# many times, so that its updates, not its games, take the time, and further lanes do not make it faster.
FEW_LANES: Final = 16

Layout = Literal["actor_critic", "q_network", "actor_and_q", "actor"]
# Fields of NetworkConfig that every network of a layout has.
_LAYOUT_FIELDS: Final[dict[Layout, tuple[str, ...]]] = {
    "actor_critic": ("hidden", "activation", "value_hidden", "shared", "ortho_init", "log_std_init"),
    "q_network": ("hidden", "activation"),
    "actor_and_q": ("hidden", "activation", "value_hidden"),
    "actor": ("hidden", "activation"),
}
_ANY: Final = ("Box", "Discrete", "MultiDiscrete", "MultiBinary")
_CHOICES: Final = ("Discrete", "MultiDiscrete", "MultiBinary")


@dataclass(frozen=True)
class AlgorithmSpec:
    """What an algorithm is, and what it can take."""

    home: str
    """``module:Class`` of the plain class, which ``load`` of an exported file is called on."""
    actions: tuple[str, ...]
    """Names of the Gymnasium spaces its actions may be of."""
    rules: of.Rules
    """Its hyperparameters."""
    layout: Layout = "actor_critic"
    """Networks of its policy: actor and critic; one for action values; an actor and two critics; an actor alone."""
    batched: str = ""
    """``module:Class`` used for environments with many lanes; empty: the plain class."""
    buffer: str = ""
    """``module:Class`` of the rollout buffer that goes with ``batched``; empty: the algorithm's own."""
    off_policy: bool = False
    """Whether it learns from a replay buffer."""
    masked: bool = False
    """Whether it is told which actions are legal, and needs an environment that says so."""
    recurrent: bool = False
    """Whether its policy has an LSTM."""
    deterministic: bool = False
    """Whether its policy does not explore, so that noise has to."""
    fused_adam: bool = True
    """Whether its optimizer is Adam, which then runs as one kernel."""
    network: tuple[str, ...] = ()
    """Fields of NetworkConfig beyond those of its layout."""
    observations: tuple[str, ...] = ("flat", "image", "Dict")
    """Kinds of observations; ``flat`` includes discrete ones."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Hyperparameters where neither a preset nor anybody else says more: few lanes, small control tasks."""

    @property
    def title(self) -> str:
        """The name of the class, such as ``MaskablePPO``."""
        return self.home.partition(":")[2]

    @property
    def network_fields(self) -> tuple[str, ...]:
        """Fields of NetworkConfig that mean something to it."""
        return (*_LAYOUT_FIELDS[self.layout], *self.network)


_OURS: Final = "gymcast.training.algorithms"
_PPO_DEFAULTS: Final = {"n_steps": 256, "batch_size": 256, "n_epochs": 10, "gamma": 0.99, "gae_lambda": 0.95}
_Q_DEFAULTS: Final = {
    "learning_rate": 0.001,
    "learning_starts": 1000,
    "train_freq": 4,
    "gradient_steps": 16,
    "batch_size": 64,
    "target_update_interval": 500,
    "exploration_fraction": 0.2,
    "exploration_final_eps": 0.05,
}
_ACTOR_Q_DEFAULTS: Final = {"learning_rate": 0.001, "learning_starts": 1000, "gradient_steps": -1}

ALGORITHMS: Final[dict[str, AlgorithmSpec]] = {
    "ppo": AlgorithmSpec(
        "stable_baselines3:PPO",
        _ANY,
        of.PPO,
        batched=f"{_OURS}:BatchPPO",
        buffer=f"{_OURS}:BatchRolloutBuffer",
        defaults=_PPO_DEFAULTS,
    ),
    "maskable_ppo": AlgorithmSpec(
        "sb3_contrib:MaskablePPO",
        _CHOICES,
        of.MASKABLE_PPO,
        batched=f"{_OURS}:BatchMaskablePPO",
        buffer=f"{_OURS}:BatchMaskableRolloutBuffer",
        masked=True,
        defaults=_PPO_DEFAULTS,
    ),
    "recurrent_ppo": AlgorithmSpec(
        "sb3_contrib:RecurrentPPO",
        _ANY,
        of.RECURRENT_PPO,
        recurrent=True,
        network=("lstm_hidden",),
        defaults=_PPO_DEFAULTS,
    ),
    "maskable_recurrent_ppo": AlgorithmSpec(
        "gymcast.training.maskable_recurrent:MaskableRecurrentPPO",
        _CHOICES,
        of.MASKABLE_RECURRENT_PPO,
        masked=True,
        recurrent=True,
        network=("lstm_hidden",),
        defaults=_PPO_DEFAULTS,
    ),
    "a2c": AlgorithmSpec(
        "stable_baselines3:A2C",
        _ANY,
        of.A2C,
        batched=f"{_OURS}:BatchA2C",
        buffer=f"{_OURS}:BatchRolloutBuffer",
        fused_adam=False,
    ),
    "trpo": AlgorithmSpec(
        "sb3_contrib:TRPO",
        _ANY,
        of.TRPO,
        batched=f"{_OURS}:BatchTRPO",
        buffer=f"{_OURS}:BatchRolloutBuffer",
        defaults={"n_steps": 256, "batch_size": 256, "n_critic_updates": 15},
    ),
    "dqn": AlgorithmSpec(
        "stable_baselines3:DQN",
        ("Discrete",),
        of.DQN,
        layout="q_network",
        off_policy=True,
        fused_adam=False,
        defaults=_Q_DEFAULTS,
    ),
    "qrdqn": AlgorithmSpec(
        "sb3_contrib:QRDQN",
        ("Discrete",),
        of.QRDQN,
        layout="q_network",
        off_policy=True,
        fused_adam=False,
        network=("quantiles",),
        defaults=_Q_DEFAULTS,
    ),
    "sac": AlgorithmSpec(
        "stable_baselines3:SAC",
        ("Box",),
        of.SAC,
        layout="actor_and_q",
        off_policy=True,
        network=("log_std_init",),
        defaults=_ACTOR_Q_DEFAULTS,
    ),
    "td3": AlgorithmSpec(
        "stable_baselines3:TD3",
        ("Box",),
        of.TD3,
        layout="actor_and_q",
        off_policy=True,
        deterministic=True,
        defaults=_ACTOR_Q_DEFAULTS,
    ),
    "ars": AlgorithmSpec(
        "sb3_contrib:ARS",
        ("Box", "Discrete"),
        of.ARS,
        layout="actor",
        batched="gymcast.training.ars:BatchARS",
        fused_adam=False,
        observations=("flat",),
    ),
}
# For help texts.
ALGORITHM_NAMES: Final = f"{', '.join(ALGORITHMS)}, or {AUTO}, which takes the one that suits the actions"
RULES: Final[dict[str, of.Rules]] = {name: spec.rules for name, spec in ALGORITHMS.items()}


def algorithm_name(text: str | None) -> str | None:
    """A name as it was typed, such as ``Maskable-PPO``, in the spelling of the table; it need not be in there."""
    return None if text is None else text.strip().lower().replace("-", "_")


def problem_of_name(name: str) -> str | None:
    """What is wrong with the name of an algorithm, with the nearest one; ``None`` when it is one, or ``auto``."""
    if name == AUTO or name in ALGORITHMS:
        return None
    close = difflib.get_close_matches(name.lower().replace("-", "_"), ALGORITHMS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}algorithms are: {', '.join(ALGORITHMS)}; auto takes the one that suits the actions"


def problems_of_hyperparameters(algorithm: str, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """``(name, text)`` for every hyperparameter that ``algorithm`` does not have or that is out of its range.

    As long as the algorithm is ``auto`` a value is wrong when no algorithm would have it.
    """
    if algorithm != AUTO:
        return of.problems_of(algorithm, RULES[algorithm], values)
    every = {name: rule for rules in reversed(RULES.values()) for name, rule in rules.items()}
    wrong = []
    for name, value in values.items():
        rules = [one for one in RULES.values() if name in one] or [every]
        if all(of.problems_of(AUTO, one, {name: value}) for one in rules):
            wrong.append(of.problems_of(AUTO, every, {name: value})[0])
    return wrong


def problems_of_network(algorithm: str, changed: Mapping[str, Any]) -> list[tuple[str, str]]:
    """``(field, text)`` for every field of the network in ``changed`` that means nothing to ``algorithm``."""
    if algorithm == AUTO:
        return []
    fields = ALGORITHMS[algorithm].network_fields
    found = []
    for name, value in changed.items():
        if name not in fields:
            owners = ", ".join(other for other, spec in ALGORITHMS.items() if name in spec.network_fields)
            found.append((name, f"got {value!r}, which {algorithm} does not have; it belongs to {owners}"))
    return found


def problem_of_actions(algorithm: str, space: spaces.Space[Any], masks: bool) -> str | None:
    """Why ``algorithm`` cannot take these actions, with the names of those that can; ``None`` when it can."""
    spec, kind = ALGORITHMS[algorithm], type(space).__name__
    able = [name for name, other in ALGORITHMS.items() if kind in other.actions and (masks or not other.masked)]
    if not able:
        return f"no algorithm takes {space}; wrap the environment so that its actions are one of {', '.join(_ANY)}"
    if kind not in spec.actions:
        allowed = " or ".join(spec.actions)
        return f"{algorithm} needs {allowed} actions, got {space}; these can be trained with: {', '.join(able)}"
    if kind == "Box" and not _bounded(space):
        return f"{space} has no finite bounds; wrap the environment with gymnasium.wrappers.RescaleAction or ClipAction"
    if spec.masked and not masks:
        return f"{algorithm} needs action_masks(), which the environment does not have; use one of: {', '.join(able)}"
    return None


def observation_kind(space: spaces.Space[Any]) -> Literal["flat", "image", "Dict"]:
    """What ``AlgorithmSpec.observations`` calls a space; images are uint8 0..255 with three axes."""
    box: Any = space
    if type(space).__name__ == "Dict":
        return "Dict"
    if type(space).__name__ != "Box" or len(box.shape) != 3 or box.dtype.name != "uint8":
        return "flat"
    return "image" if (box.low == 0).all() and (box.high == 255).all() else "flat"


def why_not(algorithm: str, actions: spaces.Space[Any], observations: spaces.Space[Any], masks: bool) -> str:
    """Why ``algorithm`` cannot be used on these spaces, in a few words; empty when it can."""
    spec, kind = ALGORITHMS[algorithm], type(actions).__name__
    if kind not in spec.actions:
        return f"actions would have to be {' or '.join(spec.actions)}"
    if kind == "Box" and not _bounded(actions):
        return "actions have no finite bounds"
    if spec.masked and not masks:
        return "needs action_masks()"
    seen = observation_kind(observations)
    return "" if seen in spec.observations else f"observations would have to be flat, not {seen}"


def choose_algorithm(
    space: spaces.Space[Any], *, masks: bool, lanes: int, images: bool, given: Collection[str] = ()
) -> tuple[str, str]:
    """The algorithm that suits actions of ``space``, and the reason in words.

    ``masks``: the environment says which actions are legal; ``images``: it is seen as pixels; ``given``: names of
    hyperparameters and of fields of the network that it has to have. Raises ``ValueError`` when no algorithm takes such
    actions.
    """
    kind = type(space).__name__
    if kind in _CHOICES and masks:
        return "maskable_ppo", f"{kind} actions with masks: illegal ones are never tried"
    if kind in _CHOICES:
        return "ppo", f"{kind} actions without masks"
    if kind != "Box":
        raise ValueError(problem_of_actions("ppo", space, masks))
    if images:
        return "ppo", "continuous actions seen as pixels: a replay buffer of images is large and learning from it slow"
    if lanes > FEW_LANES:
        return "ppo", f"continuous actions on {lanes:,} lanes; up to {FEW_LANES} sac learns from fewer decisions"
    unknown = sorted(set(given) - {*RULES["sac"], *ALGORITHMS["sac"].network_fields})
    if unknown:
        return "ppo", f"continuous actions, and {', '.join(unknown)}, which sac does not have"
    return "sac", f"continuous actions on {lanes} lanes; from {FEW_LANES + 1} on ppo makes better use of them"


def _bounded(box: Any) -> bool:
    return math.isfinite(float(abs(box.low).max())) and math.isfinite(float(abs(box.high).max()))
