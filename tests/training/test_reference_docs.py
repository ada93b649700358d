"""docs/metrics.md and docs/settings.md say what the code says, and the code sends what they say."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pytest

from gymcast.training import Trainer, TrainingConfig
from gymcast.training.callbacks.metric_names import EXTRA_METRICS, METRICS_OF_SOME
from gymcast.training.events import TrainingMetricsData

GENERATOR = Path(__file__).with_name("reference_docs.py")


@pytest.mark.parametrize("name", ["settings", "metrics"])
def test_the_page_is_what_the_code_says(name: str) -> None:
    generator = runpy.run_path(str(GENERATOR))
    written = (generator["DOCS"] / f"{name}.md").read_text(encoding="utf-8")
    assert written == generator[f"{name}_page"](), f"run: python tests/training/{GENERATOR.name} --write"


def test_the_trainer_sends_exactly_the_listed_metrics(tmp_path: Path, sink: Any) -> None:
    config = TrainingConfig.parse(
        {
            "env_id": "archers",
            "env_kwargs": {"opponent": "random", "max_duration_s": 0.8},
            "parallel_episodes": 8,
            "hyperparameters": {"n_steps": 32, "batch_size": 64, "n_epochs": 1},
            "total_timesteps": 512,
            "evaluation_games": 0,
            "speed_multiplier": 100,
        }
    )
    Trainer(config, run_dir=tmp_path, sink=sink).run_training_loop()
    of_workers = {"worker_restarts", "episodes_failed"}
    assert set(sink.of(TrainingMetricsData)[-1].extra) == set(EXTRA_METRICS) - of_workers - set(METRICS_OF_SOME)
