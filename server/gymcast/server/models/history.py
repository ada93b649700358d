"""Histories, replays and what the page draws of them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, Field

from gymcast.training.events import (
    BotDecisionData,
    Count,
    Number,
    PerformanceGraphData,
    ReplayDecision,
    TrainingMetricsData,
)

from .base import Answer, Cursor

# History


class MetricSummary(Answer):
    """A metric within a bucket."""

    min: Number
    max: Number
    mean: Number
    count: Annotated[int, Field(ge=1)]


class Bucket(Answer):
    """Readings of a stretch of time, summed up."""

    timestamp: AwareDatetime = Field(description="begin")
    end: AwareDatetime
    count: Annotated[int, Field(ge=1)] = Field(description="readings in it")
    metrics: dict[str, MetricSummary]


class ChosenReading(Answer):
    """A reading of which only some metrics were asked for; those it has no value of are null."""

    timestamp: AwareDatetime
    episode: Count
    metrics: dict[str, Number | None]


class History(Answer):
    """A part of a session's history."""

    session_id: str
    resolution: Literal["raw", "buckets"]
    metrics_data: list[TrainingMetricsData] | list[Bucket] | list[ChosenReading] = Field(
        description="raw: readings, oldest first; buckets: at most `points` of them"
    )
    graph_data: list[PerformanceGraphData]
    decision_data: list[BotDecisionData] = Field(
        default=[], description="the newest `limit` decisions; there when `type` asks for bot_decision"
    )
    total_points: Count = Field(description="readings in the range")
    next_cursor: Cursor


# Replays


class ReplayInfo(Answer):
    """A stored episode."""

    timestamp: AwareDatetime
    replay_id: str
    session_id: str
    env_id: str
    episode: Count
    timesteps: Count
    summary: dict[str, Any]
    frames_url: str


class LoggedEpisodeInfo(Answer):
    """An episode in the log of a run."""

    replay_id: str
    session_id: str
    timesteps: Count
    lane: Count
    env_id: str
    seed: int
    episode: Count
    length: Count
    seconds: float | None
    return_: float = Field(alias="return")
    outcome: Literal["win", "draw", "loss"] | None
    kills: int | None
    deaths: int | None
    summary: dict[str, Any]
    frames_url: str


class ReplayList(Answer):
    """Episodes; stored ones newest first."""

    replays: list[ReplayInfo | LoggedEpisodeInfo]
    next_cursor: Cursor


class ReplayView(Answer):
    """An episode as the page draws it."""

    replay_id: str
    env_id: str
    view: str = Field(description="what draws it: the name of a game, or pictures")
    fps: float = Field(description="decisions per second of game time")
    decision_seconds: float = Field(default=0.0, description="seconds of game time per decision; of pictures only")
    scene: dict[str, Any] = Field(description="what stays the same in all frames")
    frames: list[dict[str, Any]] = Field(description="`t` seconds of game time, and what is to be drawn")
    summary: dict[str, Any]
    decisions: list[ReplayDecision] = Field(description="what the bot considered")
