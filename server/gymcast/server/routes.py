"""The URL table: every address, who may call it, and all that the OpenAPI document says about it.

To add an address, add a row to one of the groups. A row that stands in the document has an ``id`` (its operationId) and

- ``answers``: status -> model out of ``models`` (``None``: no body; :class:`Media`: no JSON). Errors that follow
  from the rest of the row (a body, a query, an id in the path, a scope) are added; ``problems`` names the others, by
  their keys in ``problems.PROBLEM_TYPES``;
- ``query``: a model out of ``handlers/queries.py``. The handler is called as ``handler(request, query)`` with the query
  as it was read by that model, so document and behaviour are the same;
- ``body``: the model that the handler reads the body with, or a union of such models;
- ``takes`` and ``gives``: headers of the request and of the answers, out of ``route.py``;
- ``links``: name of a path parameter -> where in the answer a value for it stands.

The first line of the handler's docstring is the summary, the rest the description. Then run ``make docs`` for the table
in docs/rest.md; the tests hold every answer that they see to the document.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

from aiohttp import web

from gymcast.training.events import BotDecisionData, EventReceipt, PerformanceGraphData, TrainingMetricsData
from gymcast.training.sessions.api import SessionUpdate

from . import models, openapi
from .auth import ROUTE_SCOPES
from .handlers import history, live, pages, queries, ratings, reports, rooms, sessions, system, tickets
from .handlers.common import CONFIG
from .rooms import RoomWanted
from .route import ETAG, IDEMPOTENCY_KEY, IF_MATCH, IF_NONE_MATCH, LOCATION, Media, Route, in_group

_ID: Final = "[A-Za-z0-9_-]{1,64}"
_SESSIONS: Final = "/api/training/sessions"
_ONE: Final = _SESSIONS + "/{session_id:" + _ID + "}"
_REPLAY: Final = "/api/replays/{replay_id:" + _ID + "}"
_ROOM: Final = "/api/rooms/{code:[A-Za-z0-9]{1,16}}"
_MADE: Final = {"session_id": "$response.body#/session_id"}
_FIRST_SESSION: Final = {"session_id": "$response.body#/sessions/0/session_id"}
_FIRST_REPLAY: Final = {"replay_id": "$response.body#/replays/0/replay_id"}
_CONFLICT: Final = ("conflict",)

# fmt: off
_SESSION_ROUTES: Final = in_group(
    "Sessions",
    # ingest is enough for a session that somebody else trains; one that is trained here takes control (auth.py).
    Route("POST", _SESSIONS, sessions.create, "ingest", "create_session",
          body=models.NewSession, answers={201: models.SessionInfo}, takes=(IDEMPOTENCY_KEY,), gives=(LOCATION, ETAG),
          links=_MADE, problems=("conflict", "idempotency-key-reused", "not-managed")),
    Route("GET", _SESSIONS, sessions.listing, "read", "list_sessions",
          query=queries.SessionsQuery, answers={200: models.SessionList}, links=_FIRST_SESSION),
    Route("GET", _ONE, sessions.read, "read", "get_session",
          answers={200: models.SessionInfo, 304: None}, takes=(IF_NONE_MATCH,), gives=(ETAG,)),
    Route("PUT", _ONE, sessions.update, "ingest", "update_session",
          body=SessionUpdate, answers={200: models.SessionInfo}, takes=(IF_MATCH,), gives=(ETAG,), problems=_CONFLICT),
    Route("DELETE", _ONE, sessions.delete, "control", "delete_session",
          answers={204: None}, takes=(IF_MATCH,), problems=_CONFLICT),
    Route("POST", _ONE + "/pause", sessions.pause, "control", "pause_session",
          answers={200: models.SessionInfo}, gives=(ETAG,), problems=_CONFLICT),
    Route("POST", _ONE + "/resume", sessions.resume, "control", "resume_session",
          answers={200: models.SessionInfo}, gives=(ETAG,), problems=_CONFLICT),
    Route("POST", _ONE + "/stop", sessions.stop, "control", "stop_session",
          answers={200: models.SessionInfo}, gives=(ETAG,), problems=_CONFLICT),
    Route("GET", _ONE + "/transitions", sessions.transitions, "read", "list_transitions",
          answers={200: models.TransitionList}),
    Route("GET", _ONE + "/metrics", sessions.metrics, "read", "get_session_metrics",
          answers={200: models.SessionMetricsInfo}),
    Route("GET", "/api/training/queue", sessions.queue, "read", "get_queue", answers={200: models.QueueList}),
)
_REPORT_ROUTES: Final = in_group(
    "Reports",
    Route("POST", _ONE + "/metrics", reports.metrics, "ingest", "report_metrics",
          query=queries.ReportQuery, body=models.one_or_more(TrainingMetricsData), answers={201: EventReceipt}),
    Route("POST", _ONE + "/bot_decision", reports.bot_decision, "ingest", "report_decisions",
          query=queries.ReportQuery, body=models.one_or_more(BotDecisionData), answers={201: EventReceipt}),
    Route("POST", _ONE + "/graph_update", reports.graph_update, "ingest", "report_graphs",
          query=queries.ReportQuery, body=models.one_or_more(PerformanceGraphData), answers={201: EventReceipt}),
    Route("POST", _ONE + "/events", reports.events, "ingest", "report_events",
          body=models.EventBatchBody, answers={200: EventReceipt, 201: EventReceipt}, problems=_CONFLICT),
)
_DATA_ROUTES: Final = in_group(
    "History and replays",
    Route("GET", _ONE + "/history", history.history, "read", "get_history",
          query=queries.HistoryQuery, answers={200: models.History}),
    Route("GET", _ONE + "/checkpoints", sessions.checkpoints, "read", "list_checkpoints",
          query=queries.PageQuery, answers={200: models.CheckpointList}),
    Route("GET", _ONE + "/evaluations", sessions.evaluations, "read", "list_evaluations",
          query=queries.PageQuery, answers={200: models.EvaluationList}),
    Route("GET", _ONE + "/errors", sessions.errors, "read", "list_errors",
          query=queries.PageQuery, answers={200: models.ErrorList}),
    Route("GET", _ONE + "/logs", sessions.logs, "read", "list_logs",
          query=queries.LogsQuery, answers={200: models.LogList}),
    Route("GET", _ONE + "/replays", history.replays, "read", "list_session_replays",
          query=queries.ReplaysQuery, answers={200: models.ReplayList}, links=_FIRST_REPLAY),
    Route("GET", "/api/replays", history.all_replays, "read", "list_replays",
          query=queries.AllReplaysQuery, answers={200: models.ReplayList}, links=_FIRST_REPLAY,
          problems=("not-found",)),
    Route("GET", _REPLAY, history.replay, "read", "get_replay",
          answers={200: Media("application/octet-stream", binary=True)}, problems=_CONFLICT),
    Route("GET", _REPLAY + "/frames", history.frames, "read", "get_replay_frames",
          answers={200: models.ReplayView}, problems=_CONFLICT),
    Route("GET", "/ws/{session_id:" + _ID + "}", live.live, "read", "watch_session",
          query=queries.LiveQuery, answers={101: None},
          problems=("foreign-origin", "upgrade-required", "busy", "conflict", "no-capacity")),
)
_ROOM_ROUTES: Final = in_group(
    "Rooms",
    Route("POST", "/api/rooms", rooms.create, "control", "create_room",
          body=RoomWanted, answers={201: models.NewRoomInfo}, gives=(LOCATION,),
          links={"code": "$response.body#/code"}, problems=("not-found", "conflict")),
    Route("GET", "/api/rooms", rooms.listing, "read", "list_rooms",
          query=queries.RoomsQuery, answers={200: models.RoomList}, links={"code": "$response.body#/rooms/0/code"}),
    Route("GET", _ROOM, rooms.read, "read", "get_room", answers={200: models.RoomInfo}),
    Route("DELETE", _ROOM, rooms.close, "control", "close_room", answers={204: None}),
    Route("POST", _ROOM + "/join", rooms.join, None, "join_room",
          body=rooms.JoinWanted, answers={200: models.JoinedRoom},
          problems=("too-many-requests", "database-unavailable")),
)
_SERVER_ROUTES: Final = in_group(
    "Server",
    Route("POST", "/api/tickets", tickets.create, "read", "create_ticket",
          body=tickets.TicketWanted, answers={200: tickets.Ticket}),
    Route("GET", "/health", system.health, None, "health", answers={200: models.Health}),
    Route("GET", "/health/live", system.health, None, "health_live", answers={200: models.Health}),
    Route("GET", "/health/ready", system.ready, None, "health_ready",
          answers={200: models.Readiness}, problems=("not-ready",)),
    Route("GET", "/metrics", system.prometheus, "read", "get_prometheus_metrics", answers={200: Media("text/plain")}),
    Route("GET", "/status", system.status, "read", "get_status", answers={200: models.ServerStatus}),
    Route("GET", "/api/system/status", system.system_status, "read", "get_system_status",
          answers={200: models.SystemStatus}),
    Route("GET", "/api/envs", system.envs, "read", "list_envs",
          answers={200: models.EnvList}, links={"env_id": "$response.body#/envs/0/name"}),
    Route("GET", "/api/envs/{env_id:.+}", system.env, "read", "get_env", answers={200: models.EnvInfo}),
    Route("GET", "/api/ratings", ratings.ratings, "read", "get_ratings",
          query=queries.RatingsQuery, answers={200: models.Ladders}),
    Route("GET", "/problems", system.problems, None, "list_problems", answers={200: models.ProblemTypes}),
    Route("GET", "/problems/{slug}", system.problem, None, "get_problem", answers={200: models.ProblemType}),
)

_PAGE_ROUTES: Final = (
    Route("GET", "/", pages.index, None),
    Route("GET", "/docs", pages.docs, None),
    Route("GET", "/openapi.json", openapi.document, None),
    Route("GET", "/favicon.ico", pages.favicon, None),
    Route("GET", "/static/vendor/plotly.min.js", pages.plotly, None),
    Route("GET", "/static/{path:.+}", pages.static, None),
)
# fmt: on


def routes() -> tuple[Route, ...]:
    """Every address of the server."""
    return (*_SESSION_ROUTES, *_REPORT_ROUTES, *_DATA_ROUTES, *_ROOM_ROUTES, *_SERVER_ROUTES, *_PAGE_ROUTES)


def add_routes(app: web.Application) -> None:
    """Let ``app`` answer at every address."""
    app[openapi.OPENAPI] = openapi.OpenApi(routes(), auth=app[CONFIG].security.enable_auth)
    scopes = app[ROUTE_SCOPES] = {}
    # Of addresses that begin alike aiohttp tries one after the other; training reports more often than anybody asks.
    for route in sorted(routes(), key=lambda route: route.handler not in (reports.metrics, reports.events)):
        handler = _with_query(route.handler, route.query) if route.query is not None else route.handler
        for method in ("GET", "HEAD") if route.method == "GET" else (route.method,):
            scopes[app.router.add_route(method, route.path, handler)] = route.scope


def _with_query(
    handler: Callable[..., Awaitable[web.StreamResponse]], query: type[queries.Query]
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def call(request: web.Request) -> web.StreamResponse:
        return await handler(request, queries.read_query(request, query))

    return call
