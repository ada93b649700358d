"""The process of one training session: ``python -m gymcast.training.worker --run-dir DIR --server URL --session ID``.

Exit codes: 0 when the run ended as it should (its goal reached, or stopped on request), 130 and 143 after SIGINT and
SIGTERM (a checkpoint was written), 1 after an error, 2 for settings that cannot be used.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from gymcast.envs import UnknownEnvError, resolve_env_id
from gymcast.training.broadcast import EventSink
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.events import ErrorData, TrainingStatusData
from gymcast.training.signals import StopSignals

FLUSH_SECONDS = 10.0
AWAY_FLUSH_SECONDS = 1.0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one session; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gymcast.training.worker", description=__doc__)
    parser.add_argument(
        "--run-dir", type=Path, required=True, help="run folder; config.yaml in it is the configuration"
    )
    parser.add_argument("--server", required=True, help="URL of the server, such as http://127.0.0.1:8000")
    parser.add_argument("--session", required=True, help="id of the session at that server")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint that verifies")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    sink = EventSink(
        options.server,
        options.session,
        spool_dir=options.run_dir / "spool",
        token=os.environ.get("GYMCAST_WORKER_TOKEN"),
    )
    with StopSignals() as signals:
        try:
            return _train(options.run_dir, sink, options.resume, signals)
        finally:
            sink.close(FLUSH_SECONDS if sink.connected else AWAY_FLUSH_SECONDS)


def _train(run_dir: Path, sink: EventSink, resume: bool, signals: StopSignals) -> int:
    try:
        config = TrainingConfig.from_yaml(run_dir / "config.yaml")
        resolve_env_id(config.env_id)
    except (ConfigError, UnknownEnvError, OSError) as error:
        sink.emit(ErrorData(code="bad_config", message=str(error)[:2000]))
        sink.emit(TrainingStatusData(status="failed", reason=str(error)[:2000]))
        print(error, file=sys.stderr)
        return 2
    sink.emit(TrainingStatusData(status="starting", phase="compiling", total_timesteps=config.total_timesteps))
    # torch and Stable-Baselines3 take a second to import; the viewer has heard from us by then.
    from gymcast.training.trainer import Trainer

    try:
        trainer = Trainer(config, run_dir=run_dir, sink=sink, resume=resume, signals=signals)
        return trainer.run_training_loop().exit_code
    except ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    except Exception as error:  # noqa: BLE001 - the process boundary: the trainer has reported it, the code says it
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
