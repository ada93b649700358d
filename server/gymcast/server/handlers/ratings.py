"""Who plays how well: ladders of bots and scripted opponents."""

from __future__ import annotations

import asyncio

from aiohttp import web

from gymcast.training.ratings import ladders

from .common import SERVICES, answer
from .queries import RatingsQuery


async def ratings(request: web.Request, query: RatingsQuery) -> web.Response:
    """Ladders with error bars, one for each environment.

    Made of the newest evaluation of each session against each scripted opponent: Elo ratings of the greatest
    likelihood with 95 % intervals, anchored at the opponent that most bots have met.
    """
    results = await request.app[SERVICES].storage.newest_evaluations(query.env_id)
    return answer({"ladders": await asyncio.to_thread(ladders, results)})
