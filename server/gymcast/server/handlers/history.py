"""What is stored of a session: history, graphs, checkpoints, evaluations, replays."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from aiohttp import web

from gymcast.server.problems import invalid
from gymcast.training.storage import MAX_POINTS, HistoryRange, Page, to_us

from .common import SERVICES, answer, session_id_of
from .queries import AllReplaysQuery, HistoryQuery, ReplaysQuery


async def history(request: web.Request, query: HistoryQuery) -> web.Response:
    """Get the history of a session.

    With `points` (or `max_points`) `metrics_data` holds at most that many buckets with min, max, mean and count of each
    metric, however long the training; without, it is a page of readings as they were sent. A bound inside a bucket of
    the stored sums takes in all of it.
    """
    services = request.app[SERVICES]
    points = _points(query)
    wanted = HistoryRange(
        _microseconds(query.start_time), _microseconds(query.end_time), query.first_episode, query.last_episode
    )
    document = await services.api.get_history(
        session_id_of(request),
        wanted,
        points=points,
        kinds=query.type,
        metrics=query.metrics,
        cursor=query.cursor,
        limit=query.limit,
        max_raw_rows=services.config.performance.metrics_history_size,
    )
    if points is None and query.metrics is not None:
        document["metrics_data"] = [_chosen(reading, query.metrics) for reading in document["metrics_data"]]
    return answer(document)


def _points(query: HistoryQuery) -> int | None:
    """How many buckets at most; ``None`` for readings as they were sent."""
    if query.points is not None and query.max_points is not None:
        raise invalid("max_points", "query_parameter", "points and max_points are the same; give one of them")
    points = query.max_points if query.points is None else query.points
    if query.resolution == "raw" and points is not None:
        raise invalid("resolution", "query_parameter", "points ask for buckets; leave them out, or resolution=raw")
    return MAX_POINTS if query.resolution == "buckets" and points is None else points


def _microseconds(moment: datetime | None) -> int | None:
    return None if moment is None else to_us(moment)


def _chosen(reading: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    extra = reading.get("extra", {})
    values = {name: reading.get(name, extra.get(name)) for name in names}
    return {
        "timestamp": reading["timestamp"],
        "episode": reading["episode"],
        "metrics": {name: value if isinstance(value, int | float) else None for name, value in values.items()},
    }


async def replays(request: web.Request, query: ReplaysQuery) -> web.Response:
    """List episodes of a session.

    Each with the address of its frames. `kind` is footage (a few episodes with the bot's decisions, kept in the
    database, newest first) or logged (every episode of a training on this machine), which `lane`, `outcome` and `order`
    select from.
    """
    return await _replays(request, query, session_id_of(request))


async def all_replays(request: web.Request, query: AllReplaysQuery) -> web.Response:
    """List episodes of all sessions, or of one.

    As for one session; `kind=logged` needs to know of which one.
    """
    return await _replays(request, query, query.session)


async def _replays(request: web.Request, query: ReplaysQuery, session_id: str | None) -> web.Response:
    services = request.app[SERVICES]
    page: Page[Any]
    if query.kind == "logged":
        if session_id is None:
            raise invalid("session", "query_parameter", "say of which session: the log belongs to its run")
        page = await services.episodes.page(
            session_id,
            lane=query.lane,
            outcome=query.outcome,
            order=query.order,
            cursor=query.cursor,
            limit=query.limit,
        )
    elif query.outcome is not None or query.lane is not None or query.order != "newest":
        raise invalid("kind", "query_parameter", "lane, outcome and order select from logged episodes: kind=logged")
    else:
        page = await services.api.get_replays(session_id, cursor=query.cursor, limit=query.limit)
    found = [{**item, "frames_url": f"/api/replays/{item['replay_id']}/frames"} for item in page.items]
    return answer({"replays": found, "next_cursor": page.next_cursor})


async def replay(request: web.Request) -> web.Response:
    """Get the replay file of an episode.

    Stored, or out of the log of its run.
    """
    record = await request.app[SERVICES].episodes.find(request.match_info["replay_id"])
    return web.Response(
        body=record.content,
        content_type="application/octet-stream",
        headers={
            "Content-Disposition": f'attachment; filename="{record.replay_id}.replay"',
            "Cache-Control": "private, max-age=31536000, immutable",
        },
    )


async def frames(request: web.Request) -> web.Response:
    """Get what the page draws of an episode.

    The frames, with the bot's decisions.
    """
    body = await request.app[SERVICES].frames.get(request.match_info["replay_id"])
    # An episode never changes, and a viewer scrubs through it more than once.
    headers = {"Cache-Control": "private, max-age=3600"}
    response = web.Response(body=body, content_type="application/json", headers=headers)
    response.enable_compression()
    return response
