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
    """The values one hyperparameter may have: numbers in ``low..high`` (``above``: without ``low``), bool, words."""

    kind: type
    meaning: str
    low: float = -_INF
    high: float = _INF
    above: bool = False
    none: bool = False
    """Whether null is allowed."""
    words: tuple[str, ...] = ()
    """Words that are allowed, besides numbers or (``kind`` str) alone; ``auto_N`` stands for any positive number N."""

    @property
    def allowed(self) -> str:
        """The range in words, such as ``0..1`` or ``an integer >= 1``."""
        named = ", ".join(self.words)
        if self.kind is str:
            return f"{named} or null" if self.none else named
        if self.words:
            return f"{Rule(self.kind, self.meaning, self.low, self.high, self.above, self.none).allowed}, or {named}"
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
        if isinstance(value, str):
            return any(_is_word(value, word) for word in self.words)
        if self.kind in (bool, dict):
            return isinstance(value, self.kind)
        if self.kind is str or isinstance(value, bool):
            return False
        if not isinstance(value, int if self.kind is int else (int, float)):
            return False
        return math.isfinite(value) and (value > self.low if self.above else value >= self.low) and value <= self.high


def _is_word(value: str, word: str) -> bool:
    stem, parted, number = word.rpartition("_")
    if not (parted and number == "N"):
        return value == word
    try:
        return value.startswith(f"{stem}_") and 0.0 < float(value.removeprefix(f"{stem}_")) < _INF
    except ValueError:
        return False


Rules = Mapping[str, Rule]

_RATE: Final = Rule(float, "step size of the optimizer", 0.0, above=True)
_GAMMA: Final = Rule(float, "discount factor per decision", 0.0, 1.0)
_EVERY: Final = {
    "learning_rate": _RATE,
    "stats_window_size": Rule(int, "episodes that Stable-Baselines3's own averages run over", 1),
    "verbose": Rule(int, "what Stable-Baselines3 prints: 0 nothing, 1 information, 2 everything", 0, 2),
}
_CLIPPED: Final = {"max_grad_norm": Rule(float, "gradients are scaled down to this norm", 0.0, above=True)}
_SDE: Final = {
    "use_sde": Rule(bool, "state-dependent exploration (continuous actions)"),
    "sde_sample_freq": Rule(int, "decisions between new noise matrices; -1: once per rollout", -1),
}
_ON_POLICY: Final = {
    **_EVERY,
    "n_steps": Rule(int, "decisions per lane between updates", 1),
    "gamma": _GAMMA,
    "gae_lambda": Rule(float, "bias against variance of the advantage estimates", 0.0, 1.0),
    "normalize_advantage": Rule(bool, "whether advantages are normalised in each batch"),
    "rollout_buffer_kwargs": Rule(dict, "further arguments of the rollout buffer", none=True),
}
_LOSSES: Final = {
    "ent_coef": Rule(float, "weight of the policy's entropy in the loss", 0.0),
    "vf_coef": Rule(float, "weight of the critic's error in the loss", 0.0),
    **_CLIPPED,
}
MASKABLE_PPO: Final[Rules] = {
    **_ON_POLICY,
    **_LOSSES,
    "batch_size": Rule(int, "samples per gradient step", 2),
    "n_epochs": Rule(int, "passes over each rollout", 1),
    "clip_range": Rule(float, "how far an update may move a probability ratio from 1", 0.0, above=True),
    "clip_range_vf": Rule(float, "the same for the critic's values; null: not clipped", 0.0, above=True, none=True),
    "target_kl": Rule(float, "divergence that ends an update early; null: none", 0.0, above=True, none=True),
}
PPO: Final[Rules] = {**MASKABLE_PPO, **_SDE}
RECURRENT_PPO: Final[Rules] = {name: rule for name, rule in PPO.items() if name != "rollout_buffer_kwargs"}
MASKABLE_RECURRENT_PPO: Final[Rules] = {name: RECURRENT_PPO[name] for name in RECURRENT_PPO if name not in _SDE}
A2C: Final[Rules] = {
    **_ON_POLICY,
    **_LOSSES,
    **_SDE,
    "rms_prop_eps": Rule(float, "epsilon of RMSProp", 0.0, above=True),
    "use_rms_prop": Rule(bool, "RMSProp instead of Adam"),
}
TRPO: Final[Rules] = {
    **_ON_POLICY,
    **_SDE,
    "batch_size": Rule(int, "samples per gradient step of the critic", 2),
    "n_critic_updates": Rule(int, "passes of the critic over each rollout", 1),
    "target_kl": Rule(float, "divergence an update may not exceed", 0.0, above=True),
    "cg_max_steps": Rule(int, "steps of the conjugate gradient method", 1),
    "cg_damping": Rule(float, "damping of the curvature", 0.0),
    "line_search_shrinking_factor": Rule(
        float, "factor of the step in each try of the line search", 0.0, 1.0, above=True
    ),
    "line_search_max_iter": Rule(int, "tries of the line search before an update is dropped", 1),
    "sub_sampling_factor": Rule(int, "of so many samples the actor's update uses one", 1),
}
_OFF_POLICY: Final = {
    **_EVERY,
    "gamma": _GAMMA,
    "batch_size": Rule(int, "samples per gradient step", 1),
    "buffer_size": Rule(int, "decisions the replay buffer holds", 1),
    "learning_starts": Rule(int, "decisions before the first update", 0),
    "tau": Rule(float, "share of the network taken over by the target network", 0.0, 1.0),
    "train_freq": Rule(int, "steps of all lanes between updates", 1),
    "gradient_steps": Rule(int, "gradient steps per update; -1: as many as decisions were taken", -1),
    "n_steps": Rule(int, "decisions a return is summed over before the value is trusted", 1),
    "optimize_memory_usage": Rule(bool, "store observations once; not with truncated episodes"),
    "replay_buffer_kwargs": Rule(dict, "further arguments of the replay buffer", none=True),
}
QRDQN: Final[Rules] = {
    **_OFF_POLICY,
    "max_grad_norm": Rule(float, "gradients are scaled down to this norm; null: not", 0.0, above=True, none=True),
    "target_update_interval": Rule(int, "decisions between updates of the target network", 1),
    "exploration_fraction": Rule(float, "share of the training in which exploration falls", 0.0, 1.0),
    "exploration_initial_eps": Rule(float, "share of random actions at the beginning", 0.0, 1.0),
    "exploration_final_eps": Rule(float, "share of random actions at the end", 0.0, 1.0),
}
DQN: Final[Rules] = {**QRDQN, **_CLIPPED}
_NOISE: Final = {
    "noise_type": Rule(
        str, "noise added to actions while exploring; null: none", none=True, words=("normal", "ornstein_uhlenbeck")
    ),
    "noise_std": Rule(float, "deviation of that noise, with actions scaled to -1..1", 0.0),
}
SAC: Final[Rules] = {
    **_OFF_POLICY,
    **_NOISE,
    **_SDE,
    "use_sde_at_warmup": Rule(bool, "state-dependent instead of uniform exploration before the first update"),
    "ent_coef": Rule(
        float, "weight of the policy's entropy; auto: learned, auto_N from N on", 0.0, words=("auto", "auto_N")
    ),
    "target_entropy": Rule(float, "entropy that a learned ent_coef aims at, nats", words=("auto",)),
    "target_update_interval": Rule(int, "gradient steps between updates of the target network", 1),
}
TD3: Final[Rules] = {
    **_OFF_POLICY,
    **_NOISE,
    "policy_delay": Rule(int, "updates of the critics for each of the actor", 1),
    "target_policy_noise": Rule(float, "deviation of the noise on the target actor's actions", 0.0),
    "target_noise_clip": Rule(float, "largest size of that noise", 0.0),
}
ARS: Final[Rules] = {
    **_EVERY,
    "n_delta": Rule(int, "directions tried per update, each forwards and backwards", 1),
    "n_top": Rule(int, "best directions an update follows; null: all", 1, none=True),
    "delta_std": Rule(float, "size of the change tried on each weight", 0.0, above=True),
    "zero_policy": Rule(bool, "begin with all weights zero"),
    "alive_bonus_offset": Rule(float, "added to the reward of each decision, against a bonus for being alive"),
    "n_eval_episodes": Rule(int, "episodes each changed policy plays", 1),
}
# Arguments of the algorithms that other settings own.
OWNED: Final = {
    "policy": "algorithm",
    "env": "env_id",
    "policy_kwargs": "network",
    "seed": "seed",
    "device": "device",
    "tensorboard_log": "the run folder",
    "action_noise": "noise_type and noise_std",
}


def problems_of(algorithm: str, rules: Rules, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """``(name, text)`` for everything wrong with hyperparameters: what was given, what is allowed, what was meant."""
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
