"""Events: the reference's examples hold field for field, and nothing that is not finite gets through."""

from __future__ import annotations

import json

import pytest
from pydantic import ValidationError

from gymcast.training.events import (
    EVENT_MODELS,
    BotDecisionData,
    ErrorData,
    Event,
    EventBatch,
    PerformanceGraphData,
    TrainingMetricsData,
    TrainingStatusData,
    event_type_of,
)

from ..reference_examples import DECISION, GRAPH, METRICS


@pytest.mark.parametrize(
    ("model", "example"),
    [(TrainingMetricsData, METRICS), (BotDecisionData, DECISION), (PerformanceGraphData, GRAPH)],
)
def test_reference_examples_come_back_unchanged(model: type, example: dict[str, object]) -> None:
    written = model.model_validate_json(json.dumps(example)).to_json()
    assert {name: written[name] for name in example} == example


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("field", ["average_reward", "win_rate", "training_time_elapsed", "loss_value"])
def test_numbers_have_to_be_finite(field: str, value: float) -> None:
    with pytest.raises(ValidationError):
        TrainingMetricsData.model_validate({**METRICS, field: value})
    with pytest.raises(ValidationError):
        TrainingMetricsData.model_validate({**METRICS, "extra": {"x": value}})


@pytest.mark.parametrize(
    "change",
    [
        {"win_rate": 101},
        {"episode": -1},
        {"episode": 2**63},
        {"timestamp": "2024-01-01T12:00:00"},
        {"extra": {f"m{i}": 0.0 for i in range(33)}},
        {"surprise": 1},
    ],
)
def test_bounds_of_metrics(change: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        TrainingMetricsData.model_validate({**METRICS, **change})


def test_times_are_turned_into_utc() -> None:
    data = TrainingMetricsData.model_validate({**METRICS, "timestamp": "2024-01-01T14:00:00+02:00"})
    assert data.to_json()["timestamp"] == "2024-01-01T12:00:00Z"


@pytest.mark.parametrize("total", [0.99, 1.01])
def test_probabilities_sum_to_one(total: float) -> None:
    with pytest.raises(ValidationError, match="sum to"):
        BotDecisionData.model_validate({"action_probabilities": {"a": total - 0.5, "b": 0.5}})
    assert BotDecisionData.model_validate({"action_probabilities": {"a": 0.5, "b": 0.5005}}).groups is None


def test_an_event_reads_its_data_by_its_type() -> None:
    event = Event.model_validate({"seq": 1, "type": "training_metrics", "data": METRICS})
    assert isinstance(event.data, TrainingMetricsData)
    assert Event.model_validate_json(event.model_dump_json()) == event
    assert event.to_json()["data"]["episode"] == 100


@pytest.mark.parametrize(
    "event",
    [
        {"seq": 0, "type": "error", "data": {"code": "x", "message": "m"}},
        {"seq": 1, "type": "unheard_of", "data": {}},
        {"seq": 1, "type": "bot_decision", "data": METRICS},
        {"seq": 1, "type": "error", "data": "text"},
    ],
)
def test_events_that_do_not_fit_are_refused(event: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        Event.model_validate(event)


def test_a_batch_has_a_limit() -> None:
    status = TrainingStatusData(status="running")
    events = [Event(seq=i + 1, type="training_status", data=status) for i in range(501)]
    assert len(EventBatch(producer="p", events=events[:500]).events) == 500
    with pytest.raises(ValidationError):
        EventBatch(producer="p", events=events)


def test_every_event_model_knows_its_type() -> None:
    for name, model in EVENT_MODELS.items():
        assert event_type_of(model.model_construct()) == name
    with pytest.raises(TypeError, match="EventBatch"):
        event_type_of(EventBatch(producer="p"))
    assert event_type_of(ErrorData(code="x", message="m")) == "error"
