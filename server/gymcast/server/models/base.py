"""What all answers share, and errors."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Cursor = Annotated[str | None, Field(description="cursor of the next page; null at the end")]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Answer(BaseModel):
    """Base of what is answered."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())


# Errors


class ProblemError(Answer):
    """One value that is wrong."""

    pointer: str = Field(description="JSON pointer (RFC 6901) into the body, or the name of a parameter")
    code: str = Field(description="stable name of what is wrong")
    message: str = Field(description="for people: what is expected")


class ProblemDocument(Answer):
    """An error (RFC 9457)."""

    type: str = Field(
        description="address of the problem type; `GET` it for its meaning", examples=["/problems/conflict"]
    )
    title: str = Field(description="name of the problem type")
    status: Annotated[int, Field(ge=400, le=599)] = Field(description="the HTTP status")
    detail: str = Field(description="what is wrong with this request, and what to do")
    instance: str = Field(description="id of the request, the same as in X-Request-Id and in the log")
    errors: list[ProblemError] = Field(default=[], description="every value that is wrong; with status 422")


class ProblemType(Answer):
    """What a type of problem means."""

    type: str
    status: int
    title: str
    description: str


class ProblemTypes(Answer):
    """Every problem type."""

    problems: list[ProblemType]
