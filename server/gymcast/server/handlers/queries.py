"""What may stand in the query of each address: one model for the handler that reads it and the OpenAPI document.

A parameter that is not in the model, given twice or out of its bounds is a 422 that names it.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Annotated, Any, Literal, TypeVar, get_args

from aiohttp import web
from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from gymcast.server.problems import Problem, invalid
from gymcast.training.events import SessionStatus
from gymcast.training.storage import MAX_POINTS, to_us

MAX_TEXT = 512
_SHOWN = 80


def _names(value: Any) -> Any:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _integer(value: Any) -> Any:
    # Only the plain form: int() takes blanks and underscores as well.
    if isinstance(value, str) and not (len(value) <= 20 and value.removeprefix("-").isdigit() and value.isascii()):
        raise ValueError("expected an integer")
    return value


def _flag(value: Any) -> Any:
    if isinstance(value, str) and value not in ("true", "false"):
        raise ValueError("expected true or false")
    return value


def _moment(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    try:
        # A '+' that was not escaped arrives as a space.
        moment = datetime.fromisoformat(value.upper().replace(" ", "+") if "T" in value.upper() else "")
        if moment.tzinfo is not None:
            to_us(moment)
            return moment
    except (ValueError, OverflowError):
        pass
    raise ValueError("expected an RFC 3339 time with a time zone, such as 2026-01-02T03:04:05Z")


Whole = BeforeValidator(_integer)
Flag = Annotated[bool, BeforeValidator(_flag)]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]
Text = Annotated[str, Field(max_length=MAX_TEXT, pattern=r"^[^\x00-\x1f\x7f]*$")]
Name = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^,\x00-\x1f\x7f]*$")]
Names = BeforeValidator(_names)
Number = Annotated[int, Field(ge=0, le=2**53), Whole]


class Query(BaseModel):
    """Base of the queries; lists are separated by commas."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Q = TypeVar("Q", bound=Query)


def read_query(request: web.Request, model: type[Q]) -> Q:
    """The query of ``request``. Raises :class:`Problem` (422) that names every parameter that is wrong."""
    if not request.query_string:
        empty: Q = _without_query(model)
        return empty
    given = request.query
    values = dict(given)
    if len(values) != len(given):
        twice = next(name for name in values if len(given.getall(name)) > 1)
        raise invalid(twice[:_SHOWN], "given_twice", "is given more than once")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise _problem(model, error) from None


@cache
def _without_query(model: type[Q]) -> Q:
    # Most reports come without one; every parameter has a default.
    return model()


def _problem(model: type[Query], error: ValidationError) -> Problem:
    errors: dict[str, dict[str, str]] = {}
    for item in error.errors(include_url=False, include_context=False):
        name = str(item["loc"][0]) if item["loc"] else ""
        if item["type"] == "extra_forbidden":
            message = f"unknown; known: {', '.join(model.model_fields) or 'none'}"
        else:
            message = f"{item['msg'].removeprefix('Value error, ')}, got {str(item['input'])[:_SHOWN]!r}"
        errors.setdefault(name, {"pointer": name[:_SHOWN], "code": item["type"], "message": message})
    found = list(errors.values())[:100]
    shown = "; ".join(f"{entry['pointer']}: {entry['message']}" for entry in found[:5])
    return Problem("invalid-values", shown, errors=found)


class PageQuery(Query):
    """A list, page by page."""

    cursor: Text | None = Field(default=None, description="`next_cursor` of the page before; left out: the first page")
    limit: Annotated[int, Field(ge=1, le=1000), Whole] = Field(default=100, description="entries of a page")


class SessionsQuery(PageQuery):
    """Which sessions."""

    status: Annotated[tuple[SessionStatus, ...], Field(min_length=1), Names] | None = Field(
        default=None, description="only sessions in one of these states"
    )
    active: Flag = Field(default=False, description="only sessions that have not ended")


class RoomsQuery(PageQuery):
    """Which rooms."""

    session: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,64}$")] | None = Field(
        default=None, description="only rooms of this session"
    )


class RatingsQuery(Query):
    """Which ladders."""

    env_id: Name | None = Field(default=None, description="only the ladder of this environment")


class LogsQuery(PageQuery):
    """Which log."""

    source: Literal["run", "worker"] = Field(
        default="run", description="run: the training's own log; worker: what its process printed"
    )


HistoryType = Literal["training_metrics", "graph_update", "bot_decision"]


class HistoryQuery(PageQuery):
    """Which part of a history, and how dense."""

    start_time: Moment | None = Field(default=None, description="nothing before this time")
    end_time: Moment | None = Field(default=None, description="nothing after this time")
    first_episode: Number | None = Field(default=None, description="no reading before this episode")
    last_episode: Number | None = Field(default=None, description="no reading after this episode")
    points: Annotated[int, Field(ge=1, le=MAX_POINTS), Whole] | None = Field(
        default=None, description="at most this many buckets with min, max, mean and count instead of the readings"
    )
    max_points: Annotated[int, Field(ge=1, le=MAX_POINTS), Whole] | None = Field(
        default=None, description="another name of `points`"
    )
    resolution: Literal["raw", "buckets"] | None = Field(
        default=None, description="raw: page by page as it was sent; left out: buckets when `points` is given, else raw"
    )
    metrics: Annotated[tuple[Name, ...], Field(min_length=1), Names] | None = Field(
        default=None, description="only these metrics; names of fields, or of entries in `extra`"
    )
    type: Annotated[tuple[HistoryType, ...], Field(min_length=1), Names] = Field(
        default=("training_metrics", "graph_update"), description="what is wanted"
    )


Order = Literal["newest", "oldest", "best", "worst", "longest", "shortest"]
Outcome = Literal["win", "draw", "loss"]
ReplayKind = Literal["footage", "logged"]
ORDERS: tuple[Order, ...] = get_args(Order)


class ReplaysQuery(PageQuery):
    """Which episodes of a session."""

    kind: ReplayKind = Field(
        default="footage",
        description="footage: episodes kept with the bot's decisions; logged: every episode of a run on this machine",
    )
    lane: Annotated[int, Field(ge=0, le=1 << 20), Whole] | None = Field(
        default=None, description="logged: of this lane"
    )
    outcome: Outcome | None = Field(default=None, description="logged: with this outcome")
    order: Order = Field(default="newest", description="logged: in this order")


class AllReplaysQuery(ReplaysQuery):
    """Which episodes of any session."""

    session: Text | None = Field(default=None, description="of this session; `kind=logged` needs it")


class ReportQuery(Query):
    """The numbers of a report, so that sending it again counts as a repeat."""

    producer: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")] | None = Field(
        default=None, description="name of the sender; goes with `seq`"
    )
    seq: Annotated[int, Field(ge=1, le=2**53), Whole] | None = Field(
        default=None, description="number of the first object, counted by the producer; goes with `producer`"
    )


class LiveQuery(Query):
    """How a viewer connects."""

    user_name: Annotated[Text, Field(max_length=64)] | None = Field(default=None, description="name to be shown")
    resume: Text | None = Field(
        default=None, description="with any value: wait for a `resume` message before the state of the session is sent"
    )
    ticket: Annotated[Text, Field(max_length=4096)] | None = Field(
        default=None, description="from `POST /api/tickets`, in the place of the header Authorization"
    )
