"""Rows of those types of events that have a table of their own and come seldom; finished episodes."""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Sequence

import sqlalchemy as sa

from gymcast.training.events import CheckpointData, EvaluationData, Event, PerformanceGraphData, ReplayData

from . import schema
from .errors import DuplicateIdError
from .ids import to_us
from .records import NewEpisode


class ReplayContentError(ValueError):
    """``bytes_base64`` of a replay event is not base64."""


def decode_replay(data: ReplayData) -> bytes:
    """The replay's bytes. Raises :class:`ReplayContentError`."""
    try:
        return base64.b64decode(data.bytes_base64, validate=True)
    except (binascii.Error, ValueError):
        raise ReplayContentError(f"replay {data.replay_id}: bytes_base64 is not base64") from None


def insert_typed(connection: sa.Connection, session_id: str, event: Event) -> None:
    """Store what an event says where its type belongs, if its type is one of these.

    Raises :class:`DuplicateIdError` for a replay whose id another session has.
    """
    match event.data:
        case PerformanceGraphData() as graph:
            _merge_graph(connection, session_id, graph)
        case CheckpointData() | EvaluationData() as data:
            table = schema.checkpoints if isinstance(data, CheckpointData) else schema.evaluations
            row = {"session_id": session_id, "ts_us": to_us(event.ts), **data.model_dump()}
            connection.execute(sa.insert(table), row)
        case ReplayData() as data:
            _insert_replay(connection, session_id, event, data)


def _merge_graph(connection: sa.Connection, session_id: str, graph: PerformanceGraphData) -> None:
    meta = schema.graphs
    points = schema.graph_points
    here = (meta.c.session_id == session_id, meta.c.graph_id == graph.graph_id)
    values = graph.model_dump(include={"title", "y_label", "metrics", "max_points"})
    updated = connection.execute(sa.update(meta).where(*here).values(values))
    if not updated.rowcount:
        connection.execute(sa.insert(meta), {"session_id": session_id, "graph_id": graph.graph_id, **values})
    for metric, sent in graph.data_points.items():
        curve = (points.c.session_id == session_id, points.c.graph_id == graph.graph_id, points.c.metric == metric)
        latest = {to_us(point.timestamp): point.value for point in sent}
        if not latest:
            continue
        connection.execute(sa.delete(points).where(*curve, points.c.ts_us.in_(latest)))
        connection.execute(
            sa.insert(points),
            [
                {"session_id": session_id, "graph_id": graph.graph_id, "metric": metric, "ts_us": ts_us, "value": value}
                for ts_us, value in latest.items()
            ],
        )
        oldest_kept = (
            sa.select(points.c.ts_us)
            .where(*curve)
            .order_by(points.c.ts_us.desc())
            .offset(graph.max_points - 1)
            .limit(1)
        )
        connection.execute(sa.delete(points).where(*curve, points.c.ts_us < oldest_kept.scalar_subquery()))


def _insert_replay(connection: sa.Connection, session_id: str, event: Event, data: ReplayData) -> None:
    table = schema.replays
    owner = connection.scalar(sa.select(table.c.session_id).where(table.c.replay_id == data.replay_id))
    if owner == session_id:
        return  # a producer that restarted with new numbers sends the same episode once more
    if owner is not None:
        raise DuplicateIdError(f"replay id {data.replay_id!r} is taken by another session")
    decisions = json.dumps([decision.to_json() for decision in data.decisions], separators=(",", ":"))
    connection.execute(
        sa.insert(table),
        {
            "replay_id": data.replay_id,
            "session_id": session_id,
            "ts_us": to_us(event.ts),
            "env_id": data.env_id,
            "episode": data.episode,
            "timesteps": data.timesteps,
            "summary": data.summary,
            "content": decode_replay(data),
            "decisions": zlib.compress(decisions.encode(), 6) if data.decisions else None,
        },
    )


def insert_episodes(connection: sa.Connection, session_id: str, episodes: Sequence[NewEpisode], moment: int) -> int:
    """Insert those whose id the session, whose row is locked, does not have yet; returns how many."""
    table = schema.episodes
    by_id: dict[str, NewEpisode] = {}
    for episode in episodes:
        by_id.setdefault(episode["episode_id"], episode)
    for known in connection.scalars(
        sa.select(table.c.episode_id).where(table.c.session_id == session_id, table.c.episode_id.in_(by_id))
    ):
        del by_id[known]
    rows = [
        {
            "session_id": session_id,
            "episode_id": episode["episode_id"],
            "ts_us": to_us(episode["ended"]) if "ended" in episode else moment,
            "status": episode["status"],
            "total_reward": episode.get("total_reward"),
            "length": episode.get("length"),
            "outcome": episode.get("outcome"),
            "duration_seconds": episode.get("duration_seconds"),
            "attempts": episode.get("attempts", 1),
            "error": episode.get("error"),
            "data": episode.get("data"),
        }
        for episode in by_id.values()
    ]
    if rows:
        connection.execute(sa.insert(table), rows)
    return len(rows)
