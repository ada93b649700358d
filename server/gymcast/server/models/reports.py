"""What producers send: the event models, one by one, so that a document can tell them apart."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Union

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, create_model

from gymcast.training.events import (
    EVENT_MODELS,
    MAX_EVENTS_PER_POST,
)
from gymcast.training.sessions.api import ExternalSession, ManagedSession

# Reports: the event models of gymcast.training.events, one by one, so that a document can tell them apart.


def _event(kind: str, data: type[BaseModel]) -> type[BaseModel]:
    return create_model(
        data.__name__.removesuffix("Data") + "Event",
        __config__=ConfigDict(extra="forbid"),
        __doc__=f"A numbered event of type {kind}.",
        seq=(Annotated[int, Field(ge=1, le=2**63 - 1)], ...),
        ts=(AwareDatetime, Field(default=None, description="time of the event; left out: now")),
        type=(Literal[kind], ...),  # type: ignore[arg-type]
        data=(data, ...),
    )


EventInfo: Any = Annotated[
    Union[tuple(_event(kind, data) for kind, data in EVENT_MODELS.items())],  # noqa: UP007
    Field(discriminator="type"),
]


class EventBatchBody(BaseModel):
    """Numbered events of one producer; an empty list is a heartbeat."""

    model_config = ConfigDict(title="EventBatch", extra="forbid")

    producer: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.:-]{1,64}$")] = Field(description="name of the sender")
    events: Annotated[list[EventInfo], Field(max_length=MAX_EVENTS_PER_POST)] = Field(default=[])


def one_or_more(model: type[BaseModel]) -> Any:
    """One of ``model``, or a list of up to 500."""
    return model | Annotated[list[model], Field(min_length=1, max_length=MAX_EVENTS_PER_POST)]  # type: ignore[valid-type]


NewSession: Any = ExternalSession | ManagedSession
