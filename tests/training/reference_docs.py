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

from gymcast.training.algorithm_table import RULES
from gymcast.training.callbacks.metric_names import EXTRA_METRICS
from gymcast.training.config import NetworkConfig, NormalizeConfig, TrainingConfig
from gymcast.training.events import TrainingMetricsData
from gymcast.training.limits import ResourceLimits
from gymcast.training.schedules import SCHEDULED
from gymcast.training.sessions import GLOBAL_METRICS, SESSION_METRICS

DOCS = Path(__file__).parents[2] / "docs"
GENERATED = "This page is written by `python tests/training/reference_docs.py --write` from the code."


def bounds(info: FieldInfo) -> str:
    """The limits of a number, such as 1..100, or the names there are."""
    if get_origin(info.annotation) is Literal:
        return ", ".join(get_args(info.annotation))
    if isinstance(info.annotation, type) and issubclass(info.annotation, StrEnum):
        return ", ".join(info.annotation)
    if isinstance(info.json_schema_extra, dict) and "enum" in info.json_schema_extra:
        return ", ".join(str(name) for name in info.json_schema_extra["enum"])
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


SCHEDULES = """\
`learning_rate`, `clip_range` and `clip_range_vf` may be schedules. With *t* the progress of the training (0 to 1,
towards the limit that is nearest) and *u* the progress after the warm-up:

| schedule | value |
|---|---|
| `{schedule: constant, start: 0.001}` | `start` |
| `{schedule: linear, start: 0.001, end: 0}` | `start + (end - start) u` |
| `{schedule: cosine, start: 0.001, end: 0}` | `end + (start - end) (1 + cos(pi u)) / 2` |
| `{schedule: step, start: 0.001, factor: 0.1, at: [0.5, 0.75]}` | `start`, times `factor` at each moment `at` |

Each takes `warmup: 0.05` besides: over that share of the training the value rises from 0 to `start` in a straight line.

```yaml
hyperparameters:
  learning_rate: {schedule: cosine, start: 0.001, end: 0.0001, warmup: 0.05}
  clip_range: {schedule: linear, start: 0.2, end: 0.05}
```

A REST body holds the same under `config`. On the command line:
`--learning-rate 0.001 --lr-schedule cosine --lr-end 0.0001 --lr-warmup 0.05`."""


def hyperparameters_table() -> str:
    rows = ["| hyperparameter | of | allowed | meaning |", "|---|---|---|---|"]
    for name in sorted({name for rules in RULES.values() for name in rules}):
        owners = [algorithm for algorithm, rules in RULES.items() if name in rules]
        of = "all" if len(owners) == len(RULES) else ", ".join(owners)
        for rule in dict.fromkeys(RULES[algorithm][name] for algorithm in owners):
            meant = [algorithm for algorithm in owners if RULES[algorithm][name] == rule]
            shown = of if len(meant) == len(owners) else ", ".join(meant)
            schedule = " or a schedule" if name in SCHEDULED else ""
            rows.append(f"| `{name}` | {shown} | {rule.allowed}{schedule} | {rule.meaning} |")
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
            "## TrainingConfig.normalize",
            settings_table(NormalizeConfig),
            "## TrainingConfig.hyperparameters",
            "Names and meanings are Stable-Baselines3's. What is not given keeps the preset's value, or the"
            " algorithm's own.",
            hyperparameters_table(),
            SCHEDULES,
            "## ResourceLimits",
            settings_table(ResourceLimits) + "\n",
        ]
    )


def metrics_page() -> str:
    fields = ["| field | meaning |", "|---|---|"]
    for name, info in TrainingMetricsData.model_fields.items():
        fields.append(f"| `{name}` | {info.description or 'time of the reading, UTC'} |")
    besides = [f"| `{name}` | {text} |" for name, text in GLOBAL_METRICS.items()]
    extra = ["| field of `extra` | unit | meaning |", "|---|---|---|"]
    extra += [f"| `{name}` | {unit} | {meaning} |" for name, (unit, meaning) in EXTRA_METRICS.items()]
    return "\n\n".join(
        [
            "# Metrics",
            f"{GENERATED} A reading is a `training_metrics` event; numbers are finite, and null where there is none.",
            "\n".join(fields),
            "What gymcast's own trainer and `MetricsBroadcastCallback` put into `extra`:",
            "\n".join(extra),
            "## Of a session and of all sessions",
            'What metrics handlers, `get_session_info()["metrics"]` and `GET /api/training/sessions/{id}/metrics`'
            " have of one session, `get_global_metrics()` and `GET /api/system/status` of all managed ones together;"
            " null where there is no value yet. Processes are measured with psutil every two seconds: a worker and all"
            " it has started.",
            sessions_table(),
            "The global metrics have besides:",
            "\n".join(["| field | meaning |", "|---|---|", *besides]) + "\n",
        ]
    )


def sessions_table() -> str:
    rows = ["| field | unit | of one session | of all |", "|---|---|---|---|"]
    rows += [f"| `{name}` | {unit} | {one} | {both} |" for name, (unit, one, both) in SESSION_METRICS.items()]
    return "\n".join(rows)


if __name__ == "__main__":
    assert sys.argv[1:] == ["--write"], __doc__
    (DOCS / "settings.md").write_text(settings_page(), encoding="utf-8")
    (DOCS / "metrics.md").write_text(metrics_page(), encoding="utf-8")
