"""What a batch of episodes is made of and what comes out of it: results, status, errors."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

EpisodeState = Literal["completed", "failed", "cancelled"]
BatchState = Literal["queued", "running", "completed", "failed", "cancelled"]
Outcome = Literal["win", "draw", "loss"]

MAX_PARALLEL: Final = 1024
MAX_LANES: Final = 256
MAX_EPISODES: Final = 10_000_000
_ROOM_CODE: Final = re.compile(r"[A-Z0-9]{4,16}")
_LONGEST_ID: Final = 200


class BatchError(Exception):
    """A request to a ``BatchEpisodeManager`` that cannot be met."""


class BatchInputError(BatchError, ValueError):
    """A value that is not allowed: what was given, what is allowed."""


class DuplicateBatchError(BatchInputError):
    """A batch of this id is there already."""


class UnknownBatchError(BatchError, LookupError):
    """No batch has this id."""


class UnknownEpisodeError(BatchError, LookupError):
    """A batch has no episode of this id."""


class BatchStateError(BatchError, RuntimeError):
    """The manager is not running, or the batch is over."""


@dataclass(frozen=True, slots=True)
class EpisodeResult:
    """What became of one episode. What only a played episode has is ``None`` when it failed or was cancelled."""

    batch_id: str
    episode_id: str
    status: EpisodeState
    total_reward: float | None
    """Sum of the rewards."""
    length: int | None
    """Decisions."""
    outcome: Outcome | None
    """``None``: the environment does not say who won."""
    success: bool | None
    """``info["is_success"]``, else whether it was won; ``None``: unknown. A failed episode is no success."""
    truncated: bool | None
    """Whether a limit of time or steps ended it."""
    duration_seconds: float | None
    """Wall-clock time of the attempt that counted, in its worker."""
    game_seconds: float | None
    """Game time; ``None`` where the environment does not say how long a decision is."""
    seed: int
    """Seed of its reset; follows from the batch's seed and the episode's id."""
    attempts: int
    worker: int | None
    """Number of the worker that played it."""
    replay: str | None
    """File of its replay."""
    error: str | None
    """Why it failed, or why there is no replay."""
    traceback: str | None
    """Of the environment or of the worker, when it failed and there is one."""
    room_code: str | None

    def to_json(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class BatchStatus:
    """How far a batch is. Rewards and rates are of completed episodes; ``None`` before there is one."""

    batch_id: str
    state: BatchState
    room_code: str | None
    env_id: str
    policy: str
    seed: int
    total: int
    queued: int
    """Waiting for a worker, those that wait to be tried again included."""
    running: int
    completed: int
    failed: int
    cancelled: int
    retries: int
    """Attempts that failed and were followed by another one."""
    progress: float
    """Share of episodes that are over, 0..100."""
    elapsed_seconds: float
    episodes_per_minute: float | None
    eta_seconds: float | None
    """Seconds until the end at this rate; 0 at the end."""
    average_reward: float | None
    reward_error: float | None
    """Standard error of ``average_reward``."""
    best_reward: float | None
    worst_reward: float | None
    average_length: float | None
    success_rate: float | None
    """Successes in 100 completed episodes of which it is known."""
    success_low: float | None
    success_high: float | None
    """95 % Wilson interval of ``success_rate``."""
    wins: int
    draws: int
    losses: int
    replays: int
    """Replays written."""
    replays_failed: int
    error: str | None
    """Why the batch as a whole failed."""

    @property
    def done(self) -> bool:
        """Whether every episode is over."""
        return self.state in ("completed", "failed", "cancelled")

    def to_json(self) -> dict[str, Any]:
        """All fields, JSON-able."""
        return asdict(self)


@dataclass(slots=True)
class Moments:
    """Count, mean and spread of numbers that are seen once (Welford 1962, "Note on a method...", Technometrics 4)."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, value: float) -> None:
        """Take one more number."""
        self.count += 1
        away = value - self.mean
        self.mean += away / self.count
        self.squares += away * (value - self.mean)
        self.low, self.high = min(self.low, value), max(self.high, value)

    @property
    def standard_error(self) -> float | None:
        """Of the mean; ``None`` for fewer than two numbers."""
        if self.count < 2:
            return None
        return math.sqrt(self.squares / (self.count - 1) / self.count)


def whole(name: str, value: Any, low: int, high: int) -> int:
    """``value`` when it is a whole number from ``low`` to ``high``; raises :class:`BatchInputError`."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise BatchInputError(f"{name}={_shown(value)} is not allowed: give a whole number, {low} to {high:,}.")
    return value


def seconds(name: str, value: Any) -> float:
    """``value`` when it is a number of seconds above 0; raises :class:`BatchInputError`."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not 0 < value < math.inf:
        raise BatchInputError(f"{name}={_shown(value)} is not allowed: give seconds, above 0.")
    return float(value)


def check_id(name: str, value: Any) -> str:
    """``value`` when it is an id: printable text of 1 to 200 characters; raises :class:`BatchInputError`."""
    if not isinstance(value, str) or not 1 <= len(value) <= _LONGEST_ID or not value.isprintable():
        text = f"printable text of 1 to {_LONGEST_ID} characters"
        raise BatchInputError(f"{name}={_shown(value)} is not allowed: give {text}.")
    return value


def check_room_code(value: Any) -> str | None:
    """``value`` when it is a room code or ``None``; raises :class:`BatchInputError`."""
    if value is None or (isinstance(value, str) and _ROOM_CODE.fullmatch(value)):
        return value
    raise BatchInputError(
        f"room_code={_shown(value)} is no room code: give 4 to 16 capital letters and digits, such as TR123456."
    )


def check_episode_ids(values: Any) -> tuple[str, ...]:
    """Episode ids, each once; raises :class:`BatchInputError` naming the first one that is not allowed."""
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise BatchInputError(f"episode_ids={_shown(values)} is not allowed: give a list of ids.")
    if not 1 <= len(values) <= MAX_EPISODES:
        raise BatchInputError(f"episode_ids has {len(values):,} entries: give 1 to {MAX_EPISODES:,}.")
    for number, value in enumerate(values):
        if not (type(value) is str and 0 < len(value) <= _LONGEST_ID and value.isprintable()):
            check_id(f"episode_ids[{number}]", value)
    if len(set(values)) < len(values):
        seen: set[str] = set()
        double = next(value for value in values if value in seen or seen.add(value))  # type: ignore[func-returns-value]
        raise BatchInputError(f"episode_ids has {double!r} more than once: each episode needs an id of its own.")
    return tuple(values)


def check_callable(name: str, value: Any) -> Callable[..., Any]:
    """``value`` when it can be called; raises :class:`BatchInputError`."""
    if not callable(value):
        raise BatchInputError(f"{name} is {_shown(value)}, not a function.")
    return value  # type: ignore[no-any-return]


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
