"""The session's row: locking it, writing it, and what producers' events change in it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from gymcast.training.events import Event, TrainingMetricsData, TrainingStatusData

from . import schema
from .errors import NotFoundError, StateError
from .ids import now_us
from .missed import counted
from .prepared import find_sessions, update_sessions
from .states import ACTIVE, TERMINAL, WAITING, check_move

log = logging.getLogger(__name__)

Row = dict[str, Any]


def lock_session(connection: sa.Connection, session_id: str) -> Row:
    """The session's row, locked until the transaction ends. Raises :class:`NotFoundError`."""
    row = find_sessions(connection, (session_id,)).get(session_id)
    if row is None:
        raise NotFoundError("session", session_id)
    return row


def write_session(connection: sa.Connection, session: Row, changes: Row, *, visible: bool) -> Row:
    """Write ``changes``; visible ones count the version up, and a change of status is logged in ``transitions``.

    Visible changes are told to viewers, so unless ``changes`` has ``heads``, they get a number here. Returns what was
    written.
    """
    if visible:
        changes = made_visible(session, changes)
    update_sessions(connection, {session["session_id"]: changes})
    if (move := transition(session, changes)) is not None:
        connection.execute(sa.insert(schema.transitions), move)
    return changes


def made_visible(session: Row, changes: Row) -> Row:
    """``changes`` with all that belongs to one that viewers see: a new version, its time, a number for the message."""
    told = {"heads": counted(session["heads"], (), status=True)}
    return {**told, **changes, "version": session["version"] + 1, "updated_us": now_us()}


def transition(session: Row, changes: Row) -> Row | None:
    """The row of ``transitions`` that goes with ``changes``; ``None`` when the status stays."""
    status = changes.get("status", session["status"])
    if status == session["status"]:
        return None
    return {
        "session_id": session["session_id"],
        "ts_us": changes.get("updated_us", session["updated_us"]),
        "from_status": session["status"],
        "to_status": status,
        "reason": changes.get("reason"),
        "version": changes.get("version", session["version"]),
    }


def times_of_move(session: Row, status: str) -> Row:
    """Columns that follow from entering ``status``."""
    changes: Row = {}
    if status not in ACTIVE:
        changes |= {"lease_owner": None, "lease_expires_us": None, "heartbeat_us": None}
    if status not in WAITING:
        changes |= {"wait_reason": None, "not_before_us": None}
    if status in ("starting", "running") and session["start_us"] is None:
        changes["start_us"] = now_us()
    if status in TERMINAL:
        changes["phase"] = ""
        changes["eta_seconds"] = None
        if session["end_us"] is None:
            changes["end_us"] = now_us()
    return changes


def changes_of_events(session: Row, events: Sequence[Event]) -> tuple[Row, bool]:
    """Columns that the events change, in their order, and whether a status event was among them."""
    changes: Row = {}
    status_seen = False
    newest = next((event for event in reversed(events) if event.type == "training_metrics"), None)
    for event in events:
        if isinstance(event.data, TrainingMetricsData):
            # Of readings in a row only the last one counts, but for a number of timesteps that it may lack.
            if event is newest or "timesteps" in event.data.extra:
                changes |= _from_metrics(session, event.data)
        elif isinstance(event.data, TrainingStatusData):
            status_seen = True
            changes |= _from_status({**session, **changes}, event.data)
    return {name: value for name, value in changes.items() if session[name] != value}, status_seen


def _from_metrics(session: Row, data: TrainingMetricsData) -> Row:
    changes: Row = {"current_episode": data.episode, "model_generation": data.model_generation}
    timesteps = data.extra.get("timesteps")
    if timesteps is not None and 0 <= timesteps < 2**63:
        changes["timesteps"] = int(timesteps)
    if session["kind"] == "external":
        total = data.total_episodes if data.total_episodes is not None else session["total_episodes"]
        changes["total_episodes"] = total
        if total:
            changes["progress"] = min(1.0, data.episode / total)
    return changes


def _from_status(session: Row, data: TrainingStatusData) -> Row:
    # What a producer leaves out stays as it is.
    changes: Row = data.model_dump(exclude={"status"}, exclude_unset=True)
    for name in ("total_timesteps", "algorithm"):
        if changes.get(name) is None:
            changes.pop(name, None)
    if session["kind"] == "managed" and data.status in TERMINAL:
        # How a managed session ends is for its manager to say, once the process is gone and it is settled what follows.
        _drop(changes, "phase", "reason", "eta_seconds")
        return changes
    if _goes_on(session, data.status):
        return {**changes, "status": data.status, "end_us": None}
    try:
        check_move(session["status"], data.status)
    except StateError as error:
        # A producer's word comes late by nature: what it was doing before a stop does not undo the stop.
        log.info("session %s: a status event is not followed: %s", session["session_id"], error)
        if session["status"] in TERMINAL:
            _drop(changes, "phase", "reason", "eta_seconds")
        return changes
    if session["status"] in TERMINAL:
        # Repeated by the session manager or the worker: the first reason stands.
        _drop(changes, "phase", "eta_seconds")
        if session["reason"] is not None or data.reason is None:
            _drop(changes, "reason")
        return changes
    return {**changes, "status": data.status, **times_of_move(session, data.status)}


def _drop(changes: Row, *names: str) -> None:
    for name in names:
        changes.pop(name, None)


def _goes_on(session: Row, status: str) -> bool:
    """Whether somebody's own trainer takes up what it had completed, as the next call of a ``learn()`` does.

    What was ended at the server (which shows in the wish) stays ended.
    """
    return (
        session["kind"] == "external"
        and session["status"] == "completed"
        and session["desired"] == "running"
        and status == "running"
    )
