"""Putting live messages in order by their numbers."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any, Self

import pytest

from gymcast.server.channels import Numbered
from gymcast.server.fanout import Sequencer, epoch_of
from gymcast.server.hub import Hub
from gymcast.server.messages import outgoing
from gymcast.server.redis_link import SILENCE_S, RedisLink
from gymcast.training.events import EVENT_MODELS, Event, utc_now
from gymcast.training.storage import live_type

from ..reference_examples import DECISION, GRAPH, METRICS

REPLAY = {"replay_id": "r1", "env_id": "CartPole-v1", "episode": 1, "timesteps": 10, "summary": {}}
GAMES = {"games": 10, "wins": 5, "losses": 5, "draws": 0, "win_rate": 50.0, "ci_low": 20.0, "ci_high": 80.0}
EXAMPLES: dict[str, dict[str, Any]] = {
    "training_metrics": METRICS,
    "bot_decision": DECISION,
    "graph_update": GRAPH,
    "training_status": {"status": "running"},
    "episodes": {"first": 1, "lengths": [1], "rewards": [1.0], "outcomes": [None]},
    "checkpoint": {"path": "c", "timesteps": 1, "episodes": 1, "bytes": 1, "sha256": "0" * 64, "reason": "final"},
    "evaluation": {"opponent": "novice", **GAMES, "mean_return": 1.0, "mean_length": 9.0},
    "replay": {**REPLAY, "bytes_base64": ""},
    "frame": {**REPLAY, "frames_url": "/api/replays/r1/frames"},
    "picture": {"image": "data:image/png;base64,", "env_id": "CartPole-v1", "episode": 1, "timesteps": 10},
    "error": {"code": "odd", "message": "odd"},
}


def message(seq: int, kind: str = "training_metrics") -> Numbered:
    return Numbered("s1", kind, kind, seq, utc_now(), {"number": seq})


def sent(hub: Hub) -> list[int]:
    return [message.seq for message, _size in hub.channel("s1").ring]


async def test_early_ones_wait_and_repeats_are_dropped() -> None:
    hub = Hub(epoch_of=partial(epoch_of, "life"))
    sequencer = Sequencer(hub)
    for seq in (1, 3, 4, 3, 1):
        sequencer.offer(message(seq))
    assert sent(hub) == [1]
    assert sorted(sequencer.gaps["s1", "training_metrics"].held) == [3, 4]
    sequencer.offer(message(2))
    assert sent(hub) == [1, 2, 3, 4]
    assert sequencer.gaps == {}


async def test_the_first_message_seen_begins_unless_the_numbers_are_known() -> None:
    hub = Hub(epoch_of=partial(epoch_of, "life"))
    sequencer = Sequencer(hub)
    sequencer.offer(message(57))
    assert sent(hub) == [57]
    hub.channel("s1").know_heads({"training_metrics": 3, "error": 2})
    assert hub.channel("s1").heads == {"training_metrics": 57, "error": 2}
    sequencer.offer(message(2, "checkpoint"))
    assert sent(hub) == [57]
    assert sequencer.gaps["s1", "checkpoint"].target == 2


async def test_giving_up_leaves_a_hole_that_resuming_tells() -> None:
    hub = Hub(epoch_of=partial(epoch_of, "life"))
    sequencer = Sequencer(hub)
    for seq in (1, 4, 5):
        sequencer.offer(message(seq))
    sequencer.give_up("s1", "training_metrics", 3)
    assert sent(hub) == [1, 4, 5]
    assert sequencer.gaps == {}
    client = hub.join("s1")
    assert hub.resume(client, epoch_of("life", "s1"), {"training_metrics": 1}) is None
    rest = hub.resume(client, epoch_of("life", "s1"), {"training_metrics": 3})
    assert rest is not None and len(rest) == 2


@pytest.mark.parametrize("kind", EVENT_MODELS)
def test_what_the_database_counts_is_what_viewers_get(kind: str) -> None:
    event = Event.model_validate({"seq": 1, "type": kind, "data": EXAMPLES[kind]})
    told = outgoing(event)
    assert live_type(event) == (None if told is None else told[0])


class ForgetfulRedis:
    """Stands in for the client where it loses a cancellation, as ``asyncio.wait_for`` of Python 3.11 does now and then.

    With a real Redis that was killed and came back one server of thirty did not end for this reason.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.lost = 0

    def pubsub(self) -> Self:
        return self

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_error: object) -> None:
        pass

    async def subscribe(self, _channel: str) -> None:
        pass

    async def get_message(self, *, timeout: float) -> dict[str, Any]:  # noqa: ASYNC109 - the client's
        await self._lose(timeout)
        return {"type": "subscribe"}

    async def publish(self, _channel: str, _data: bytes) -> None:
        self.asked.set()
        await self._lose(SILENCE_S)

    async def _lose(self, seconds: float) -> None:
        try:
            await asyncio.sleep(seconds if self.asked.is_set() else 0)
        except asyncio.CancelledError:
            if self.lost > 1:
                raise
            self.lost += 1


async def test_a_cancellation_that_the_redis_client_loses_still_ends_the_link() -> None:
    client = ForgetfulRedis()
    running = asyncio.create_task(RedisLink(client, "test", lambda _counts: None).run())  # type: ignore[arg-type]
    await client.asked.wait()
    running.cancel()
    ended, _ = await asyncio.wait({running}, timeout=10)
    assert ended and running.cancelled() and client.lost == 2
