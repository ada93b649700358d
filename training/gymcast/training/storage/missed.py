"""Numbers of live messages, and reading back messages that a viewer's server did not get.

Each session counts its live messages per type, in the transaction that stores what they tell: ``heads`` in its row. So
every server process gives the same message the same number, whoever stored it, and a number that is missing can be
read back. Readings, decisions, checkpoints, evaluations and errors have a row each and are read back exactly. Of the
other types (:data:`STATES`) only the newest state is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from gymcast.training.events import CheckpointData, EvaluationData, Event, Message

from . import schema
from .ids import from_us

STATUS: Final = "training_status"
STATES: Final = frozenset({STATUS, "graph_update", "frame"})
# Events that are told under another type; a status event shows in the session, which is told when it changes.
_TOLD_AS: Final[Mapping[str, str | None]] = {"replay": "frame", STATUS: None, "episodes": None}


@dataclass(frozen=True, slots=True)
class Missed:
    """A message read back. ``ts`` is the time that was stored with it."""

    seq: int
    ts: datetime
    data: dict[str, Any]


def live_type(event: Event) -> str | None:
    """The type of the live message that tells of an event; ``None`` for one that is not told by itself."""
    return _TOLD_AS.get(event.type, event.type)


def counted(heads: Mapping[str, int], events: Iterable[Event], *, status: bool) -> dict[str, int]:
    """``heads`` after the messages that tell of ``events`` and, with ``status``, of the session itself."""
    found = dict(heads)
    for event in events:
        if (kind := live_type(event)) is not None:
            found[kind] = found.get(kind, 0) + 1
    if status:
        found[STATUS] = found.get(STATUS, 0) + 1
    return found


def heads_of(connection: sa.Connection, session_ids: Iterable[str]) -> dict[str, dict[str, int]]:
    """The newest number of each type, of those sessions that exist."""
    table = schema.sessions
    query = sa.select(table.c.session_id, table.c.heads).where(table.c.session_id.in_(list(session_ids)))
    return {row.session_id: row.heads for row in connection.execute(query)}


def read_back(connection: sa.Connection, session_id: str, kind: str, after: int, limit: int) -> list[Missed]:
    """The messages of one type with numbers above ``after``, oldest first; of more than ``limit`` the newest.

    Fewer, when retention has taken rows away; none for :data:`STATES` and for a session that is gone.
    """
    head = heads_of(connection, [session_id]).get(session_id, {}).get(kind, 0)
    wanted = min(head - after, limit)
    if wanted <= 0 or kind not in _READERS:
        return []
    table, data_of = _READERS[kind]
    query = sa.select(table).where(table.c.session_id == session_id).order_by(table.c.id.desc()).limit(wanted)
    if table is schema.events:
        query = query.where(table.c.type == kind)
    # Of one session rows are stored one transaction after the other, so the newest row is that of the head.
    rows = connection.execute(query).mappings().all()
    found = [Missed(head - place, from_us(row["ts_us"]), data_of(row)) for place, row in enumerate(rows)]
    return found[::-1]


def _as_stored(row: sa.RowMapping) -> dict[str, Any]:
    data: dict[str, Any] = row["data"]
    return data


def _columns_of(model: type[Message]) -> Callable[[sa.RowMapping], dict[str, Any]]:
    def data_of(row: sa.RowMapping) -> dict[str, Any]:
        return model.model_validate({name: row[name] for name in model.model_fields}).to_json()

    return data_of


_READERS: Final[Mapping[str, tuple[sa.Table, Callable[[sa.RowMapping], dict[str, Any]]]]] = {
    "training_metrics": (schema.metrics, _as_stored),
    "bot_decision": (schema.decisions, _as_stored),
    "error": (schema.events, _as_stored),
    "checkpoint": (schema.checkpoints, _columns_of(CheckpointData)),
    "evaluation": (schema.evaluations, _columns_of(EvaluationData)),
}
