"""Hyperparameters that change while training goes on: how they are written, and what they come to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

Kind = Literal["constant", "linear", "cosine", "step"]

# Arguments of Stable-Baselines3's algorithms that may be a function of the remaining progress.
SCHEDULED: Final = ("learning_rate", "clip_range", "clip_range_vf", "delta_std")
# Kind -> the keys it needs; every kind takes warmup besides.
KEYS: Final[dict[Kind, tuple[str, ...]]] = {
    "constant": ("start",),
    "linear": ("start", "end"),
    "cosine": ("start", "end"),
    "step": ("start", "factor", "at"),
}
EXAMPLE: Final = "{schedule: linear, start: 0.001, end: 0}"


@dataclass(frozen=True)
class Schedule:
    """A value as a function of the remaining progress, 1.0 at the beginning and 0.0 at the end of training.

    With t the progress made (0..1), w the warm-up and u = (t - w) / (1 - w) the progress after it:

    - warm-up, t < w: ``start * t / w``
    - constant: ``start``
    - linear: ``start + (end - start) * u``
    - cosine: ``end + (start - end) * (1 + cos(pi * u)) / 2``
      (Loshchilov & Hutter 2016, "SGDR", https://arxiv.org/abs/1608.03983, without restarts)
    - step: ``start * factor ** n`` with n the number of moments ``at`` that t has reached
    """

    schedule: Kind
    start: float
    end: float = 0.0
    factor: float = 1.0
    at: tuple[float, ...] = ()
    """Shares of the whole training, rising."""
    warmup: float = 0.0
    """Share of the training in which the value rises from 0 to ``start``."""

    def __call__(self, progress_remaining: float) -> float:
        done = 1.0 - progress_remaining
        if done < self.warmup:
            return self.start * done / self.warmup
        after = (done - self.warmup) / (1.0 - self.warmup)
        match self.schedule:
            case "constant":
                return self.start
            case "linear":
                return self.start + (self.end - self.start) * after
            case "cosine":
                return self.end + (self.start - self.end) * (1.0 + math.cos(math.pi * after)) / 2.0
            case "step":
                return self.start * self.factor ** sum(done >= moment for moment in self.at)


def is_schedule(value: Any) -> bool:
    """Whether a hyperparameter's value is meant as a schedule."""
    return isinstance(value, Mapping) and "schedule" in value


def parse_schedule(value: Mapping[str, Any]) -> Schedule:
    """The schedule written as ``{schedule: linear, start: 0.001, end: 0, warmup: 0.05}``.

    Raises ``ValueError`` saying what is wrong and what is allowed.
    """
    kind = next((known for known in KEYS if known == value["schedule"]), None)
    if kind is None:
        raise ValueError(f"got schedule {value['schedule']!r}; allowed: {', '.join(KEYS)}, such as {EXAMPLE}")
    needed = KEYS[kind]
    wrong = [f"{name} is missing" for name in needed if name not in value]
    wrong += [
        f"{name!r} does not belong to a {kind} schedule"
        for name in value
        if name not in ("schedule", "warmup", *needed)
    ]
    numbers = {name: value[name] for name in ("start", "end", "factor", "warmup") if name in value}
    wrong += [f"{name} has to be a number >= 0, got {number!r}" for name, number in numbers.items() if not _ok(number)]
    if _ok(numbers.get("warmup", 0.0)) and numbers.get("warmup", 0.0) >= 1:
        wrong.append(f"warmup is a share of the training, 0 to below 1, got {numbers['warmup']!r}")
    at = value.get("at", ())
    if kind == "step" and "at" in value and not _rising_shares(at):
        wrong.append(f"at has to list rising shares of the training between 0 and 1, such as [0.5, 0.75], got {at!r}")
    if wrong:
        raise ValueError(f"{'; '.join(wrong)}. A {kind} schedule takes {', '.join(needed)} and, if wanted, warmup")
    return Schedule(kind, **numbers, at=tuple(map(float, at)))


def _ok(number: Any) -> bool:
    return type(number) in (int, float) and math.isfinite(number) and number >= 0


def _rising_shares(at: Any) -> bool:
    if not isinstance(at, list | tuple) or not at or not all(_ok(moment) and moment <= 1 for moment in at):
        return False
    return list(at) == sorted(set(at))


def resolve_schedules(hyperparameters: Mapping[str, Any]) -> dict[str, Any]:
    """``hyperparameters`` with every written schedule made a :class:`Schedule`. Raises ``ValueError``."""
    return {name: parse_schedule(value) if is_schedule(value) else value for name, value in hyperparameters.items()}
