"""What is stored of a session: history, graphs, checkpoints, evaluations, replays.

History answers ``{session_id, resolution, metrics_data, graph_data, total_points, next_cursor}``. With ``points`` (or
``max_points``) ``metrics_data`` is a list of at most that many buckets ``{timestamp, end, count, metrics: {name: {min,
max, mean, count}}}``; without it (or with ``resolution=raw``) it is a page of readings as they were sent.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gymcast.server.episodes import ORDERS, OUTCOMES
from gymcast.server.problems import invalid
from gymcast.training.storage import MAX_POINTS, HistoryRange, Page

from .common import SERVICES, answer, page_query, query_int, query_names, query_text, query_time, session_id_of

_KINDS = ("training_metrics", "graph_update", "bot_decision")
_LAST = 2**53


async def history(request: web.Request) -> web.Response:
    """``GET .../history``: see the module."""
    services = request.app[SERVICES]
    points = query_int(request, "points", 1, MAX_POINTS)
    if points is None:
        points = query_int(request, "max_points", 1, MAX_POINTS)
    resolution = query_text(request, "resolution") or ("raw" if points is None else "buckets")
    if resolution not in ("raw", "buckets"):
        raise invalid("resolution", "query_parameter", f"expected raw or buckets, got {resolution!r}")
    kinds = query_names(request, "type") or ["training_metrics", "graph_update"]
    if unknown := [kind for kind in kinds if kind not in _KINDS]:
        raise invalid("type", "query_parameter", f"unknown: {', '.join(unknown)}; known: {', '.join(_KINDS)}")
    wanted = HistoryRange(
        query_time(request, "start_time"),
        query_time(request, "end_time"),
        query_int(request, "first_episode", 0, _LAST),
        query_int(request, "last_episode", 0, _LAST),
    )
    cursor, limit = page_query(request)
    document = await services.api.get_history(
        session_id_of(request),
        wanted,
        points=None if resolution == "raw" else points or MAX_POINTS,
        kinds=kinds,
        metrics=query_names(request, "metrics"),
        cursor=cursor,
        limit=limit,
        max_raw_rows=services.config.performance.metrics_history_size,
    )
    return answer(document)


async def replays(request: web.Request) -> web.Response:
    """``GET .../replays``: newest first, each with the address of its frames; ``kind`` as in :func:`all_replays`."""
    return await _replays(request, session_id_of(request))


async def all_replays(request: web.Request) -> web.Response:
    """``GET /api/replays``: replays of all sessions or of ``session``, newest first.

    ``kind`` is footage (the default: a few episodes with the bot's decisions, kept in the database) or logged (every
    episode of one ``session`` that was trained on this machine), which ``lane``, ``outcome`` and ``order`` select from.
    """
    return await _replays(request, query_text(request, "session", 64))


async def _replays(request: web.Request, session_id: str | None) -> web.Response:
    services = request.app[SERVICES]
    kind = _choice(request, "kind", ("footage", "logged"))
    order, outcome = _choice(request, "order", ORDERS), query_text(request, "outcome")
    lane = query_int(request, "lane", 0, 1 << 20)
    if outcome is not None:
        outcome = _choice(request, "outcome", OUTCOMES)
    cursor, limit = page_query(request)
    page: Page[Any]
    if kind == "logged":
        if session_id is None:
            raise invalid("session", "query_parameter", "say of which session: the log belongs to its run")
        page = await services.episodes.page(
            session_id, lane=lane, outcome=outcome, order=order, cursor=cursor, limit=limit
        )
    elif outcome is not None or lane is not None or order != ORDERS[0]:
        raise invalid("kind", "query_parameter", "lane, outcome and order select from logged episodes: kind=logged")
    else:
        page = await services.api.get_replays(session_id, cursor=cursor, limit=limit)
    found = [{**item, "frames_url": f"/api/replays/{item['replay_id']}/frames"} for item in page.items]
    return answer({"replays": found, "next_cursor": page.next_cursor})


def _choice(request: web.Request, name: str, choices: tuple[str, ...]) -> str:
    text = query_text(request, name)
    if text is not None and text not in choices:
        raise invalid(name, "query_parameter", f"expected {', '.join(choices)}, got {text!r}")
    return choices[0] if text is None else text


async def replay(request: web.Request) -> web.Response:
    """``GET /api/replays/{id}``: the replay file, stored or out of the log of its run."""
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
    """``GET /api/replays/{id}/frames``: what the page draws, with the bot's decisions."""
    body = await request.app[SERVICES].frames.get(request.match_info["replay_id"])
    # An episode never changes, and a viewer scrubs through it more than once.
    headers = {"Cache-Control": "private, max-age=3600"}
    response = web.Response(body=body, content_type="application/json", headers=headers)
    response.enable_compression()
    return response
