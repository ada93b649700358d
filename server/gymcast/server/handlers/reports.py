"""What producers report: metrics, decisions and graphs one kind at a time, or numbered events of every kind.

A plain POST of one kind may be numbered with ``?producer=NAME&seq=N`` (``N`` for the first object of a list), so that
sending it again counts as a repeat.
"""

from __future__ import annotations

from typing import Any

from aiohttp import web

from gymcast.server.problems import from_replay, invalid
from gymcast.training.events import (
    MAX_EVENTS_PER_POST,
    BotDecisionData,
    EventBatch,
    EventReceipt,
    Message,
    PerformanceGraphData,
    ReplayData,
    TrainingMetricsData,
    event_type_of,
    utc_now,
)
from gymcast.training.storage import ReplayContentError, decode_replay

from .common import SERVICES, answer, read_json, session_id_of, validate
from .queries import ReportQuery


async def events(request: web.Request) -> web.Response:
    """Report numbered events of every kind.

    201 with the receipt once they are committed; 200 for an empty list, which is a heartbeat. Events whose number the
    session has of this producer already are counted as duplicates. The receipt says what the producer is to do next.
    """
    services = request.app[SERVICES]
    batch = validate(EventBatch, await read_json(request))
    for place, event in enumerate(batch.events):
        if isinstance(event.data, ReplayData):
            try:
                decode_replay(event.data)
            except ReplayContentError as error:
                raise from_replay(error, f"/events/{place}/data/bytes_base64") from None
    receipt = await services.storage.add_events(session_id_of(request), batch.producer, batch.events)
    return _receipt(request, receipt, heartbeat=not batch.events)


async def metrics(request: web.Request, query: ReportQuery) -> web.Response:
    """Report readings.

    One, or a list of up to 500. 201 once they are committed. With `producer` and `seq` a repeat is counted as one.
    """
    return await _typed(request, query, TrainingMetricsData)


async def bot_decision(request: web.Request, query: ReportQuery) -> web.Response:
    """Report decisions.

    One, or a list of up to 500. 201 once they are committed. With `producer` and `seq` a repeat is counted as one.
    """
    return await _typed(request, query, BotDecisionData)


async def graph_update(request: web.Request, query: ReportQuery) -> web.Response:
    """Report graphs.

    One, or a list of up to 500. 201 once they are committed. With `producer` and `seq` a repeat is counted as one.
    """
    return await _typed(request, query, PerformanceGraphData)


async def _typed(request: web.Request, query: ReportQuery, model: type[Message]) -> web.Response:
    services = request.app[SERVICES]
    value: Any = await read_json(request)
    if not isinstance(value, list):
        data = [validate(model, value)]
    elif not 1 <= len(value) <= MAX_EVENTS_PER_POST:
        raise invalid("", "too_many", f"expected 1 to {MAX_EVENTS_PER_POST} objects, got {len(value)}")
    else:
        data = [validate(model, item, prefix=f"/{place}") for place, item in enumerate(value)]
    producer, first = query.producer, query.seq
    if producer is None and first is None:
        return _receipt(request, await services.storage.add_data(session_id_of(request), data))
    if producer is None or first is None:
        raise invalid("producer" if producer is None else "seq", "query_parameter", "producer and seq belong together")
    moment = utc_now()
    numbered = [
        {"seq": first + place, "ts": moment, "type": event_type_of(item), "data": item}
        for place, item in enumerate(data)
    ]
    batch = validate(EventBatch, {"producer": producer, "events": numbered})
    return _receipt(request, await services.storage.add_events(session_id_of(request), batch.producer, batch.events))


def _receipt(request: web.Request, receipt: EventReceipt, *, heartbeat: bool = False) -> web.Response:
    watchers = request.app[SERVICES].hub.spectators(session_id_of(request))
    return answer({**receipt.model_dump(), "watchers": watchers}, status=200 if heartbeat else 201)
