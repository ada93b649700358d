"""What each algorithm's hyperparameters may be, known without torch: a mistake is told before a process starts."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from gymcast.training.schedules import SCHEDULED, is_schedule, parse_schedule

_INF: Final = math.inf


@dataclass(frozen=True)
class Rule:
    """The values one hyperparameter may have: numbers in ``low..high`` (``above``: without ``low`` itself), or bool."""

    kind: type
    meaning: str
    low: float = -_INF
    high: float = _INF
    above: bool = False
    none: bool = False
    """Whether null is allowed."""

    @property
    def allowed(self) -> str:
        """The range in words, such as ``0..1`` or ``an integer >= 1``."""
        if self.kind is bool:
            return "true or false"
        if self.kind is dict:
            return "a mapping"
        what = "an integer" if self.kind is int else "a number"
        if math.isfinite(self.low) and math.isfinite(self.high):
            text = f"{what} {'above ' if self.above else ''}{self.low:g}..{self.high:g}"
        elif math.isfinite(self.low):
            text = f"{what} {'>' if self.above else '>='} {self.low:g}"
        else:
            text = what
        return f"{text} or null" if self.none else text

    def accepts(self, value: Any) -> bool:
        """Whether ``value`` may be given."""
        if value is None:
            return self.none
        if self.kind in (bool, dict):
            return isinstance(value, self.kind)
        if isinstance(value, bool) or not isinstance(value, int if self.kind is int else (int, float)):
            return False
        return math.isfinite(value) and (value > self.low if self.above else value >= self.low) and value <= self.high


_RATE: Final = Rule(float, "step size of the optimizer", 0.0, above=True)
_GAMMA: Final = Rule(float, "discount factor per decision", 0.0, 1.0)
_SHARED: Final = {
    "max_grad_norm": Rule(float, "gradients are scaled down to this norm", 0.0, above=True),
    "stats_window_size": Rule(int, "episodes that Stable-Baselines3's own averages run over", 1),
    "verbose": Rule(int, "what Stable-Baselines3 prints: 0 nothing, 1 information, 2 everything", 0, 2),
}
_ON_POLICY: Final = {
    "learning_rate": _RATE,
    "n_steps": Rule(int, "decisions per lane between updates", 1),
    "gamma": _GAMMA,
    "gae_lambda": Rule(float, "bias against variance of the advantage estimates", 0.0, 1.0),
    "normalize_advantage": Rule(bool, "whether advantages are normalised in each batch"),
    "ent_coef": Rule(float, "weight of the policy's entropy in the loss", 0.0),
    "vf_coef": Rule(float, "weight of the critic's error in the loss", 0.0),
    "rollout_buffer_kwargs": Rule(dict, "further arguments of the rollout buffer", none=True),
    **_SHARED,
}
_SDE: Final = {
    "use_sde": Rule(bool, "state-dependent exploration (continuous actions)"),
    "sde_sample_freq": Rule(int, "decisions between new noise matrices; -1: once per rollout", -1),
}
_PPO: Final = {
    **_ON_POLICY,
    "batch_size": Rule(int, "samples per gradient step", 2),
    "n_epochs": Rule(int, "passes over each rollout", 1),
    "clip_range": Rule(float, "how far an update may move a probability ratio from 1", 0.0, above=True),
    "clip_range_vf": Rule(float, "the same for the critic's values; null: not clipped", 0.0, above=True, none=True),
    "target_kl": Rule(float, "divergence that ends an update early; null: none", 0.0, above=True, none=True),
}
RULES: Final[dict[str, dict[str, Rule]]] = {
    "ppo": {**_PPO, **_SDE},
    "maskable_ppo": _PPO,
    "recurrent_ppo": {name: rule for name, rule in {**_PPO, **_SDE}.items() if name != "rollout_buffer_kwargs"},
    "a2c": {
        **_ON_POLICY,
        **_SDE,
        "rms_prop_eps": Rule(float, "epsilon of RMSProp", 0.0, above=True),
        "use_rms_prop": Rule(bool, "RMSProp instead of Adam"),
    },
    "dqn": {
        "learning_rate": _RATE,
        "gamma": _GAMMA,
        "batch_size": Rule(int, "samples per gradient step", 1),
        "buffer_size": Rule(int, "decisions the replay buffer holds", 1),
        "learning_starts": Rule(int, "decisions before the first update", 0),
        "tau": Rule(float, "share of the network taken over by the target network", 0.0, 1.0),
        "train_freq": Rule(int, "steps of all lanes between updates", 1),
        "gradient_steps": Rule(int, "gradient steps per update; -1: as many as decisions were taken", -1),
        "n_steps": Rule(int, "decisions a return is summed over before the value is trusted", 1),
        "target_update_interval": Rule(int, "decisions between updates of the target network", 1),
        "exploration_fraction": Rule(float, "share of the training in which exploration falls", 0.0, 1.0),
        "exploration_initial_eps": Rule(float, "share of random actions at the beginning", 0.0, 1.0),
        "exploration_final_eps": Rule(float, "share of random actions at the end", 0.0, 1.0),
        "optimize_memory_usage": Rule(bool, "store observations once; not with truncated episodes"),
        "replay_buffer_kwargs": Rule(dict, "further arguments of the replay buffer", none=True),
        **_SHARED,
    },
}
# Arguments of the algorithms that other settings own.
OWNED: Final = {
    "policy": "algorithm",
    "env": "env_id",
    "policy_kwargs": "network",
    "seed": "seed",
    "device": "device",
    "tensorboard_log": "the run folder",
}


def problems_of(algorithm: str, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """``(name, text)`` for everything wrong with hyperparameters: what was given, what is allowed, what was meant."""
    rules = RULES[algorithm]
    found = []
    for name, value in values.items():
        if name in OWNED:
            found.append((name, f"does not belong here; it is set by {OWNED[name]}"))
        elif name not in rules:
            close = difflib.get_close_matches(name, rules, n=1)
            hint = f"did you mean {close[0]!r}? " if close else ""
            found.append((name, f"{hint}{algorithm} takes: {', '.join(sorted(rules))}"))
        elif text := _problem(name, rules[name], value):
            found.append((name, text))
    return found


def _problem(name: str, rule: Rule, value: Any) -> str:
    scheduled = name in SCHEDULED
    if is_schedule(value):
        if not scheduled:
            return f"takes no schedule; only {', '.join(SCHEDULED)} do"
        try:
            parse_schedule(value)
        except ValueError as error:
            return str(error)
        return ""
    if rule.accepts(value):
        return ""
    return f"got {value!r}, allowed: {rule.allowed}{' or a schedule' if scheduled else ''} ({rule.meaning})"
