"""What Stable-Baselines3's logger hands to the destinations of a run's values."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import numpy as np

EVALUATION: Final = "evaluation/"


def is_result(names: Iterable[str]) -> bool:
    """Whether logged values hold the result of an evaluation, which no throttle may leave out."""
    return any(name.startswith(EVALUATION) for name in names)


def scalars(key_values: Mapping[str, Any]) -> dict[str, float | int | None]:
    """The numbers among logged values as JSON numbers; ``None`` for one that is not finite."""
    found: dict[str, float | int | None] = {}
    for name, value in key_values.items():
        if isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool):
            plain = value.item() if isinstance(value, np.generic) else value
            found[name] = plain if math.isfinite(plain) else None
    return found
