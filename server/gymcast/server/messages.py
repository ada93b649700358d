"""Every WebSocket message: what clients may send, what the server sends, and how it is encoded and framed."""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from gymcast.training.events import (
    BotDecisionData,
    CheckpointData,
    ErrorData,
    EvaluationData,
    Event,
    FrameData,
    PerformanceGraphData,
    PictureData,
    ReplayData,
    TrainingMetricsData,
)
from gymcast.training.storage import rfc3339, to_us

PROTOCOL_VERSION: Final = 1
MAX_INBOUND_BYTES: Final = 64 << 10

ChannelType = Literal[
    "training_metrics",
    "bot_decision",
    "graph_update",
    "frame",
    "picture",
    "training_status",
    "checkpoint",
    "evaluation",
]
# Types that a client may subscribe to. connection_status and error always arrive.
CHANNEL_TYPES: Final[tuple[str, ...]] = get_args(ChannelType)
# Types of which a slow client gets only the newest, or (decisions) none.
LATEST_WINS: Final = frozenset({"training_metrics", "graph_update", "frame", "picture"})
SKIPPED_WHEN_SLOW: Final = frozenset({"bot_decision"})

CLOSE_SHUTDOWN: Final = 1001
CLOSE_RATE: Final = 1008
CLOSE_FAILED: Final = 1011
CLOSE_SLOW: Final = 4008
CLOSE_STATE_LOST: Final = 4010
CLOSE_SIGNED_OUT: Final = 4401
CLOSE_UNKNOWN: Final = 4404
CLOSE_ENDED: Final = 4410

_ENCODER: Final = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
PING: Final = b"\x89\x00"
# A batch is closed once it is this large, and another one begun: clients have limits of their own.
_BATCH_BYTES: Final = 512 << 10

# Errors arrive whatever is subscribed to, and are numbered as well.
NumberedType = ChannelType | Literal["error"]


class _Inbound(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Subscribe(_Inbound):
    """Receive exactly ``types`` (null: all), lossy ones at most ``max_hz`` times a second (null: as they come).

    With ``batch`` several messages of one tick come as one message of the type ``batch``.
    """

    type: Literal["subscribe"]
    types: Annotated[list[ChannelType], Field(max_length=32)] | None = None
    max_hz: Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)] | None = None
    batch: bool = False


class Unsubscribe(_Inbound):
    """Stop receiving ``types``."""

    type: Literal["unsubscribe"]
    types: Annotated[list[ChannelType], Field(max_length=32)]


class Ping(_Inbound):
    """Answered by ``connection_status`` with ``status: "pong"`` and the same ``id``."""

    type: Literal["ping"]
    id: Annotated[str, Field(max_length=64)] | int | None = None


class Resume(_Inbound):
    """Send what followed the last message seen of each type; types that are left out have not been seen at all."""

    type: Literal["resume"]
    epoch: Annotated[str, Field(max_length=64)]
    seq: Annotated[dict[NumberedType, Annotated[int, Field(ge=0, le=2**63 - 1)]], Field(max_length=32)]


Inbound = Subscribe | Unsubscribe | Ping | Resume
INBOUND: Final[TypeAdapter[Inbound]] = TypeAdapter(Annotated[Inbound, Field(discriminator="type")])


def encode(session_id: str, epoch: str, kind: str, seq: int, ts: datetime, data: dict[str, Any]) -> bytes:
    """The envelope as JSON text. ``ValueError`` for a number that is not finite."""
    return _ENCODER.encode(
        {
            "v": PROTOCOL_VERSION,
            "type": kind,
            "session": session_id,
            "epoch": epoch,
            "seq": seq,
            "ts": rfc3339(to_us(ts)),
            "data": data,
        }
    ).encode()


def frame_text(payload: bytes) -> bytes:
    """``payload`` as one unmasked, uncompressed WebSocket text frame (RFC 6455, section 5.2)."""
    length = len(payload)
    if length < 126:
        return struct.pack("!BB", 0x81, length) + payload
    if length < 1 << 16:
        return struct.pack("!BBH", 0x81, 126, length) + payload
    return struct.pack("!BBQ", 0x81, 127, length) + payload


def frame_pong(payload: bytes) -> bytes:
    """The answer to a ping; ``payload`` is the ping's, at most 125 bytes."""
    return struct.pack("!BB", 0x8A, len(payload)) + payload


def _payload(frame: bytes) -> bytes:
    return frame[{126: 4, 127: 10}.get(frame[1], 2) :]


def batched(session_id: str, epoch: str, ts: datetime, frames: Sequence[bytes]) -> bytes:
    """Framed messages of one tick as one of the type ``batch``, several when they are large; one alone as it is."""
    if len(frames) == 1:
        return frames[0]
    head, tail = encode(session_id, epoch, "batch", 0, ts, {"messages": []}).split(b"[]")
    batches, parts, size = [], list[bytes](), 0
    for frame in frames:
        if size + len(frame) > _BATCH_BYTES and parts:
            batches.append(frame_text(head + b"[" + b",".join(parts) + b"]" + tail))
            parts, size = [], 0
        parts.append(_payload(frame))
        size += len(frame)
    batches.append(frame_text(head + b"[" + b",".join(parts) + b"]" + tail))
    return b"".join(batches)


def outgoing(event: Event) -> tuple[str, str, dict[str, Any]] | None:
    """``(type, key, data)`` of the message that tells viewers about an event; ``None`` when another message does.

    Of messages with the same key, a newer one replaces an older one.
    """
    data = event.data
    match data:
        case ReplayData():
            announced = FrameData(
                **data.model_dump(include={"replay_id", "env_id", "episode", "timesteps", "summary"}),
                frames_url=f"/api/replays/{data.replay_id}/frames",
            )
            return "frame", "frame", announced.to_json()
        case PerformanceGraphData():
            return "graph_update", f"graph_update/{data.graph_id}", data.to_json()
        case ErrorData():
            return "error", f"error/{data.code}", data.to_json()
        case (
            TrainingMetricsData()
            | BotDecisionData()
            | FrameData()
            | PictureData()
            | CheckpointData()
            | EvaluationData()
        ):
            return event.type, event.type, data.to_json()
    return None  # a status event shows in the session info, which is sent as training_status
