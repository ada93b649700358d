"""What a run writes down: a text log, the same and every update's values as JSON lines, TensorBoard, and W&B if wanted.

A log must never end a training: a destination that fails (a full disk, no network) is reported once and left alone.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from stable_baselines3.common.logger import KVWriter, Logger, TensorBoardOutputFormat

from gymcast.training.config import ConfigError, TrainingConfig
from gymcast.training.logged_values import is_result, scalars

TEXT_LOG: Final = "log.txt"
JSON_LOG: Final = "log.jsonl"
# An algorithm may log many times a second; the JSON log takes one set of values a second, the text log one line in ten.
JSON_SECONDS: Final = 1.0
TEXT_SECONDS: Final = 10.0
_PREFIX: Final = "gymcast/"
LEVEL_VARIABLE: Final = "GYMCAST_LOG_LEVEL"
LEVELS: Final = ("DEBUG", "INFO", "WARNING", "ERROR")

log = logging.getLogger(__name__)

Failed = Callable[[str, str, str], None]
"""Called with the code ``"log_failed"``, a destination's name and what went wrong."""


class RunLog:
    """The log files of a run, open while entered, and the Stable-Baselines3 logger that feeds every destination.

    ``failed`` is told once when a destination has to be given up.
    """

    def __init__(self, run_dir: Path, failed: Failed) -> None:
        self.run_dir = run_dir
        self._failed = failed
        self._stack = ExitStack()
        self._values: ValuesLog | None = None

    def __enter__(self) -> Self:
        level = log_level()
        self._stack.__enter__()
        text = logging.FileHandler(self.run_dir / TEXT_LOG, encoding="utf-8")
        text.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        lines = JsonLines(self.run_dir / JSON_LOG)
        for handler in (text, lines):
            self._stack.enter_context(_attached(handler, level))
        self._values = ValuesLog(lines)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    def summarise(self, result: Mapping[str, Any]) -> None:
        """Write ``summary.json``, the end of the run; a full disk is reported."""
        try:
            write_text(self.run_dir / "summary.json", json.dumps(result, default=str, indent=1))
        except OSError as error:
            self._failed("log_failed", "summary.json", str(error))

    def logger(self, config: TrainingConfig) -> Logger:
        """The logger for the algorithm; it is closed with the log files.

        Raises :class:`~gymcast.training.config.ConfigError` when W&B is wanted and its package is missing.
        """
        assert self._values is not None, "enter the log first"
        makers: dict[str, Callable[[], KVWriter]] = {
            "TensorBoard": lambda: TensorBoardOutputFormat(str(self.run_dir / "tb"))
        }
        if config.use_wandb:
            from gymcast.training.wandb_log import WandbLog, require_wandb

            require_wandb()
            makers["W&B"] = lambda: WandbLog(config, self.run_dir)
        writers = [Guarded(name, make, self._failed) for name, make in makers.items()]
        logger = Logger(str(self.run_dir), [self._values, *writers])
        self._stack.callback(logger.close)
        return logger


def write_text(path: Path, text: str) -> None:
    """Write a file so that it is there whole or not at all. Raises ``OSError``."""
    unfinished = path.with_name(f".{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)


def log_level() -> int:
    """The level of the log files, from ``GYMCAST_LOG_LEVEL`` (INFO when it is not set).

    Raises :class:`~gymcast.training.config.ConfigError` for a name that is no level.
    """
    name = os.environ.get(LEVEL_VARIABLE, "INFO").upper()
    if name not in LEVELS:
        raise ConfigError(f"{LEVEL_VARIABLE} cannot be used", [(LEVEL_VARIABLE, f"{name!r}; use {', '.join(LEVELS)}")])
    return logging.getLevelNamesMapping()[name]


class Guarded(KVWriter):
    """A writer that may fail: the first failure is reported, and nothing more is written to it."""

    def __init__(self, name: str, make: Callable[[], KVWriter], failed: Failed) -> None:
        self._name = name
        self._failed = failed
        self._writer: KVWriter | None = None
        self._try(lambda: setattr(self, "_writer", make()))

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Hand the values on, as long as that works."""
        writer = self._writer
        if writer is not None:
            self._try(lambda: writer.write(key_values, key_excluded, step))

    def close(self) -> None:
        """Close the writer, as long as that works."""
        writer, self._writer = self._writer, None
        if writer is not None:
            self._try(writer.close)

    def _try(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - foreign code that talks to disks and networks; reported, then left alone
            self._writer = None
            self._failed("log_failed", self._name, f"{type(error).__name__}: {error}")


class JsonLines(logging.FileHandler):
    """A log file with one JSON object a line: ``time`` (RFC 3339, UTC), ``kind`` and what belongs to the kind.

    Log records are of kind ``log`` with ``level``, ``logger``, ``message`` and, for an exception, ``traceback``.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")

    def format(self, record: logging.LogRecord) -> str:
        """A log record as a line."""
        fields = {"level": record.levelname, "logger": record.name, "message": record.getMessage()}
        if record.exc_info:
            fields["traceback"] = logging.Formatter().formatException(record.exc_info)
        return _json_line("log", fields, record.created)

    def put(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Write a line of another kind. Raises ``OSError``."""
        with self.lock or ExitStack():
            assert self.stream is not None, "the log is closed"
            self.stream.write(_json_line(kind, fields, time.time()) + self.terminator)
            self.flush()


def _json_line(kind: str, fields: Mapping[str, Any], moment: float) -> str:
    stamp = datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return json.dumps({"time": stamp, "kind": kind, **fields}, ensure_ascii=False, allow_nan=False)


class ValuesLog(KVWriter):
    """The values an algorithm logs: each second a JSON line of kind ``update``, every ten a text line."""

    def __init__(self, lines: JsonLines) -> None:
        self._lines = lines
        self._next_json = self._next_text = 0.0
        self._newest: dict[str, Any] | None = None
        """The newest values that are not in the file yet."""

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, tuple[str, ...]], step: int = 0) -> None:
        """Take one set of values, logged at ``step`` decisions."""
        now = time.monotonic()
        numbers = scalars(key_values)
        self._newest = {"timesteps": step, **numbers}
        if now >= self._next_json or is_result(numbers):
            self._next_json = now + JSON_SECONDS
            self._put()
        if now >= self._next_text:
            self._next_text = now + TEXT_SECONDS
            log.info("%s", describe(step, numbers))

    def close(self) -> None:
        """Write the last values, so that the log ends with them."""
        self._put()

    def _put(self) -> None:
        values, self._newest = self._newest, None
        if values is not None:
            try:
                self._lines.put("update", values)
            except OSError as error:
                log.warning("%s: %s", JSON_LOG, error)


def describe(step: int, numbers: Mapping[str, float | int | None]) -> str:
    """A line for people: how far, how fast, how well. What is not known is left out."""
    known = {name.removeprefix(_PREFIX): value for name, value in numbers.items() if value is not None}
    parts = [f"{step:,} decisions"]
    for name, text in (
        ("epoch", "epoch {:,.0f}"),
        ("samples_per_second", "{:,.0f} samples/s"),
        ("episode", "{:,.0f} episodes"),
        ("wins", "{:,.0f} won"),
        ("losses", "{:,.0f} lost"),
        ("draws", "{:,.0f} drawn"),
        ("win_rate", "win rate {:.1f} %"),
        ("average_reward", "mean return {:.3f}"),
        ("value_loss", "value loss {:.4f}"),
        ("entropy", "entropy {:.3f}"),
    ):
        if name in known:
            parts.append(text.format(known[name]))
    return ", ".join(parts)


@contextmanager
def _attached(handler: logging.Handler, wanted: int) -> Iterator[None]:
    logger = logging.getLogger("gymcast")
    level = logger.level
    handler.setLevel(wanted)
    logger.addHandler(handler)
    logger.setLevel(min(level, wanted) if level else wanted)
    try:
        yield
    finally:
        logger.setLevel(level)
        logger.removeHandler(handler)
        try:
            handler.close()
        except OSError as error:  # what is still buffered finds no room on the disk
            log.warning("%s could not be closed: %s", handler, error)
