"""Hyperparameters that change while training goes on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gymcast.training.config import ConfigError

Schedule = Callable[[float], float]

# Arguments of Stable-Baselines3's algorithms that may be a function of the remaining progress.
SCHEDULED = ("learning_rate", "clip_range", "clip_range_vf")


class LinearSchedule:
    """From ``start`` at the beginning to ``end`` at the end of training, in a straight line.

    Called with the remaining progress, 1.0 at the beginning and 0.0 at the end.
    """

    def __init__(self, start: float, end: float) -> None:
        self.start = start
        self.end = end

    def __call__(self, progress_remaining: float) -> float:
        return self.end + (self.start - self.end) * progress_remaining

    def __repr__(self) -> str:
        return f"LinearSchedule(start={self.start}, end={self.end})"


def resolve_schedules(hyperparameters: dict[str, Any]) -> dict[str, Any]:
    """``hyperparameters`` with every ``{"schedule": "linear", "start": x, "end": y}`` made a :class:`LinearSchedule`.

    Raises :class:`~gymcast.training.config.ConfigError` for a malformed schedule or one where none is possible.
    """
    resolved, problems = {}, []
    for name, value in hyperparameters.items():
        if isinstance(value, dict) and "schedule" in value:
            numbers = [value.get("start"), value.get("end")]
            well_formed = set(value) == {"schedule", "start", "end"} and value["schedule"] == "linear"
            if name not in SCHEDULED:
                problems.append((f"hyperparameters.{name}", f"takes no schedule; only {', '.join(SCHEDULED)} do"))
            elif not well_formed or not all(type(number) in (int, float) for number in numbers):
                problems.append(
                    (
                        f"hyperparameters.{name}",
                        f"got {value}; a schedule is {{schedule: linear, start: 0.001, end: 0}}",
                    )
                )
            else:
                value = LinearSchedule(float(value["start"]), float(value["end"]))
        resolved[name] = value
    if problems:
        raise ConfigError("invalid TrainingConfig", problems)
    return resolved
