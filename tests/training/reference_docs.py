"""Writes docs/metrics.md and docs/settings.md from the code: ``python tests/training/reference_docs.py --write``."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from gymcast.training.callbacks.metrics import EXTRA_METRICS
from gymcast.training.config import NetworkConfig, ResourceLimits, TrainingConfig
from gymcast.training.events import TrainingMetricsData

DOCS = Path(__file__).parents[2] / "docs"
GENERATED = "This page is written by `python tests/training/reference_docs.py --write` from the code."


def bounds(info: FieldInfo) -> str:
    """The limits of a number, such as 1..100, or the names there are."""
    if get_origin(info.annotation) is Literal:
        return ", ".join(get_args(info.annotation))
    if isinstance(info.annotation, type) and issubclass(info.annotation, StrEnum):
        return ", ".join(info.annotation)
    low: Any = ""
    high: Any = ""
    pending: list[Any] = [*info.metadata, info.annotation]
    while pending:
        item = pending.pop()
        if isinstance(item, annotated_types.Ge):
            low = f"{item.ge}"
        elif isinstance(item, annotated_types.Gt):
            low = f">{item.gt}"
        elif isinstance(item, annotated_types.Le):
            high = f"{item.le}"
        elif isinstance(item, FieldInfo):
            pending += item.metadata
        elif get_origin(item) in (Annotated, Union, UnionType):
            pending += get_args(item)
    return f"{low}..{high}" if low or high else ""


def settings_table(model: type[BaseModel]) -> str:
    rows = ["| setting | default | bounds | meaning |", "|---|---|---|---|"]
    for name, info in model.model_fields.items():
        default = info.get_default(call_default_factory=True)
        shown = "see below" if isinstance(default, BaseModel) else "null" if default is None else str(default)
        meaning = (info.description or "see below").replace("|", "\\|")
        rows.append(f"| `{name}` | {shown} | {bounds(info)} | {meaning} |")
    return "\n".join(rows)


def settings_page() -> str:
    return "\n\n".join(
        [
            "# Settings",
            f"{GENERATED} Names may be written in snake_case or camelCase; unknown ones are refused, and all problems"
            " are reported at once. A preset fills in what is not given.",
            "## TrainingConfig",
            settings_table(TrainingConfig),
            "## TrainingConfig.network",
            settings_table(NetworkConfig),
            "## ResourceLimits",
            settings_table(ResourceLimits) + "\n",
        ]
    )


def metrics_page() -> str:
    fields = ["| field | meaning |", "|---|---|"]
    for name, info in TrainingMetricsData.model_fields.items():
        fields.append(f"| `{name}` | {info.description or 'time of the reading, UTC'} |")
    extra = ["| field of `extra` | unit | meaning |", "|---|---|---|"]
    extra += [f"| `{name}` | {unit} | {meaning} |" for name, (unit, meaning) in EXTRA_METRICS.items()]
    return "\n\n".join(
        [
            "# Metrics",
            f"{GENERATED} A reading is a `training_metrics` event; numbers are finite, and null where there is none.",
            "\n".join(fields),
            "What gymcast's own trainer and `MetricsBroadcastCallback` put into `extra`:",
            "\n".join(extra) + "\n",
        ]
    )


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], __doc__
    (DOCS / "settings.md").write_text(settings_page(), encoding="utf-8")
    (DOCS / "metrics.md").write_text(metrics_page(), encoding="utf-8")
