"""The process of one training session: ``python -m gymcast.training.worker --run-dir DIR``.

``config.yaml`` and ``session.json`` in the run folder say what to train and where to report
(:mod:`gymcast.training.run_folder`); at the end ``outcome.json`` says how it went.

Exit codes: 0 when the run ended as it should (its goal reached, or stopped on request), 130 and 143 after SIGINT and
SIGTERM (a checkpoint was written), 1 after an error, 2 for settings that cannot be used, 3 when another worker has the
run folder.
"""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from gymcast.envs import EnvMakeError, UnknownEnvError, resolve_env_id
from gymcast.training.broadcast import Address, EventSink
from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.events import ErrorData, TrainingStatusData
from gymcast.training.hang_watch import WATCH, Place
from gymcast.training.run_folder import CONFIG_NAME, LOCK_NAME, FileLock, Orders, Outcome, RunTakenError
from gymcast.training.signals import StopSignals

FLUSH_SECONDS = 10.0
# Whoever sent a signal waits, and what has not arrived by then is in the spool.
SIGNAL_FLUSH_SECONDS = 2.0
AWAY_FLUSH_SECONDS = 1.0
EXIT_FAILED: Final = 1
EXIT_BAD_CONFIG: Final = 2
EXIT_TAKEN: Final = 3

log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one session; returns the exit code."""
    parser = argparse.ArgumentParser(prog="gymcast.training.worker", description=__doc__)
    parser.add_argument("--run-dir", type=Path, required=True, help="run folder with config.yaml and session.json")
    parser.add_argument("--attempt", type=int, default=1, help="number of this attempt, for outcome.json")
    parser.add_argument("--resume", action="store_true", help="continue from the newest checkpoint that verifies")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.captureWarnings(True)
    run_dir: Path = options.run_dir
    try:
        FileLock(run_dir / LOCK_NAME).take()
        orders = Orders.read(run_dir)
    except RunTakenError as error:
        print(error, file=sys.stderr)
        return EXIT_TAKEN
    except (OSError, ValueError, TypeError) as error:
        print(f"{run_dir}: the orders of a worker cannot be read: {error}", file=sys.stderr)
        return EXIT_BAD_CONFIG

    try:
        WATCH.open(run_dir)
    except OSError as error:
        log.warning("a training that hangs will not be noticed: %s", error)

    def address() -> Address:
        now = Orders.read(run_dir)
        return now.server_url, now.token

    sink = EventSink(address, orders.session_id, spool_dir=run_dir / "spool")
    with StopSignals() as signals:
        try:
            code, outcome = _train(run_dir, sink, options.resume, signals, orders, options.attempt)
        finally:
            seconds = FLUSH_SECONDS if signals.received is None else SIGNAL_FLUSH_SECONDS
            sink.close(seconds if sink.connected else AWAY_FLUSH_SECONDS)
    try:
        outcome.write(run_dir)
    except OSError as error:
        log.error("how it ended could not be written: %s", error)
    return code


def _train(
    run_dir: Path, sink: EventSink, resume: bool, signals: StopSignals, orders: Orders, attempt: int
) -> tuple[int, Outcome]:
    def failed(code: int, error: BaseException, *, retry: bool) -> tuple[int, Outcome]:
        reason = str(error) if code == EXIT_BAD_CONFIG else f"{type(error).__name__}: {error}"
        print(reason, file=sys.stderr)
        return code, Outcome(attempt, "failed", reason[:2000], retry, sink.emitted)

    try:
        config = TrainingConfig.from_yaml(run_dir / CONFIG_NAME)
        with WATCH.at(Place.MAKING):
            resolve_env_id(config.env_id, config.gym_packages)
    except (ConfigError, EnvMakeError, UnknownEnvError, OSError) as error:
        sink.emit(ErrorData(code="bad_config", message=str(error)[:2000]))
        sink.emit(TrainingStatusData(status="failed", reason=str(error)[:2000]))
        return failed(EXIT_BAD_CONFIG, error, retry=isinstance(error, OSError))
    sink.emit(TrainingStatusData(status="starting", phase="compiling", total_timesteps=config.total_timesteps))
    # torch and Stable-Baselines3 take a second to import; the viewer has heard from us by then.
    from torch.optim.optimizer import register_optimizer_step_post_hook

    from gymcast.training.env_workers import resolve_workers
    from gymcast.training.trainer import Trainer

    # An update may take as long as it wants, while it gets on.
    register_optimizer_step_post_hook(lambda *_: WATCH.get_on())
    trainer = None
    try:
        if config.workers == "auto":
            config = config.model_copy(update={"workers": resolve_workers(config, auto=True)})
        trainer = Trainer(config, run_dir=run_dir, sink=sink, resume=resume, signals=signals)
        if orders.report_episodes:
            trainer.progress.stats.reports = []
        result = trainer.run_training_loop()
    except ConfigError as error:
        return failed(EXIT_BAD_CONFIG, error, retry=False)
    except Exception as error:  # noqa: BLE001 - the process boundary: the trainer has reported it, the code says it
        # What goes wrong before the first step would go wrong again, unless the machine was to blame.
        begun = trainer is not None and trainer.progress.started
        return failed(EXIT_FAILED, error, retry=begun or isinstance(error, OSError | MemoryError))
    return result.exit_code, Outcome(attempt, result.status, result.reason, False, sink.emitted)


if __name__ == "__main__":
    sys.exit(main())
