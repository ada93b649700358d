"""What a training tells about itself: its state as events, warnings, and failures with a log line each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from gymcast.envs.subproc import WorkerError
from gymcast.training.algorithm_table import AUTO
from gymcast.training.broadcast import Sink
from gymcast.training.callbacks import RunProgress
from gymcast.training.config import ConfigError
from gymcast.training.env_workers import MAX_TRACEBACK
from gymcast.training.events import ErrorData, Message, Phase, SessionStatus, TrainingStatusData

log = logging.getLogger(__name__)

_LONGEST = 2000  # characters of a text in an event


class RunReports:
    """Events of one run to ``sink``, where there is one; the settings are those of ``progress``."""

    def __init__(self, sink: Sink | None, progress: RunProgress) -> None:
        self._sink, self._progress = sink, progress

    def emit(self, data: Message) -> None:
        """Send an event."""
        if self._sink is not None:
            self._sink.emit(data)

    def status(self, status: SessionStatus, phase: Phase = "", reason: str | None = None) -> None:
        """What the training does now, and how far it is."""
        progress = self._progress
        config, ended = progress.config, status in ("completed", "failed", "cancelled")
        self.emit(
            TrainingStatusData(
                status=status,
                phase=phase,
                reason=None if reason is None else reason[:_LONGEST],
                current_episode=progress.stats.episodes,
                timesteps=progress.timesteps,
                algorithm=None if config.algorithm == AUTO else config.algorithm,
                total_timesteps=config.total_timesteps,
                progress=1.0 if status == "completed" else progress.progress,
                eta_seconds=None if ended else progress.eta_seconds,
            )
        )

    def warn(self, code: str, message: str) -> None:
        """Something is not as it should be, and the training goes on."""
        log.warning(message)
        self.emit(ErrorData(code=code, message=message[:_LONGEST]))

    def given_up(self, code: str, what: str, text: str) -> None:
        """A part of the run that training can do without has failed."""
        log.warning("%s is given up, training goes on: %s", what, text)
        self.emit(ErrorData(code=code, message=f"{what} is given up: {text}"[:_LONGEST], detail={"what": what}))

    @contextmanager
    def failures(self) -> Iterator[None]:
        """Report what goes wrong inside as a log line and events, and raise it on."""
        try:
            yield
        except ConfigError as error:
            # Settings that only the built environment or algorithm can check: no fault whose traceback would help.
            log.error("%s", error)
            self.emit(ErrorData(code="bad_config", message=str(error)[:_LONGEST]))
            self.status("failed", "", str(error))
            raise
        except Exception as error:
            log.exception("training failed")
            notes = "".join(f"\n{note}" for note in getattr(error, "__notes__", ()))
            message = f"{type(error).__name__}: {error}{notes}"
            detail = {"traceback": message[-MAX_TRACEBACK:]} if isinstance(error, WorkerError) else None
            self.emit(ErrorData(code="training_failed", message=_shortened(message), detail=detail))
            self.status("failed", "", _shortened(message))
            raise


def _shortened(text: str, longest: int = _LONGEST) -> str:
    """``text`` without lines of its middle, where a traceback says least."""
    if len(text) <= longest:
        return text
    cut, end = "\n[...]\n", longest * 2 // 3
    head, tail = text[: longest - end - len(cut)], text[-end:]
    if "\n" in head and "\n" in tail:
        head, tail = head.rpartition("\n")[0], tail.partition("\n")[2]
    return head + cut + tail
