"""The states of a session and the moves between them."""

from __future__ import annotations

from typing import Final

from .errors import StateError

TERMINAL: Final = frozenset({"completed", "failed", "cancelled"})
ACTIVE: Final = frozenset({"starting", "running", "paused", "stopping"})
WAITING: Final = frozenset({"queued", "retrying"})

_ENDS: Final = ("completed", "failed", "cancelled")
MOVES: Final[dict[str, tuple[str, ...]]] = {
    "queued": ("starting", "stopping", "failed", "cancelled"),
    "starting": ("running", "paused", "stopping", "retrying", *_ENDS),
    "running": ("paused", "stopping", "retrying", *_ENDS),
    "paused": ("running", "stopping", "retrying", *_ENDS),
    "stopping": ("queued", "retrying", *_ENDS),
    "retrying": ("queued", "starting", "stopping", "failed", "cancelled"),
    "completed": (),
    "failed": (),
    "cancelled": (),
}


def check_move(current: str, wanted: str) -> None:
    """Raise :class:`StateError` unless a session may go from ``current`` to ``wanted``; staying is always allowed."""
    if current != wanted and wanted not in MOVES[current]:
        raise StateError(current, wanted, MOVES[current])
