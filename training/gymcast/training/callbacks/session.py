"""Session control: limits, pause, stop, signals and pacing, checked at every step."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any, Literal

from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.off_policy_algorithm import OffPolicyAlgorithm

from gymcast.envs import Pacer
from gymcast.training.broadcast import Sink
from gymcast.training.callbacks.progress import RunProgress
from gymcast.training.events import ErrorData, Phase, SessionStatus
from gymcast.training.hang_watch import WATCH, Place
from gymcast.training.signals import StopSignals

log = logging.getLogger(__name__)

StopKind = Literal["limit", "stopping", "cancelled", "signal"]
PAUSE_POLL_SECONDS = 0.05
STATUS_SECONDS = 1.0
# Behind by more than this share of the seconds between two looks, the pace is not held.
LATE_SHARE = 0.01
LATE_LOOK_SECONDS = 10.0


class ProgressCallback(BaseCallback):
    """Keeps :class:`RunProgress` current. Comes first in the list, so that the others read this step's numbers."""

    def __init__(self, progress: RunProgress) -> None:
        super().__init__()
        self.progress = progress

    def _on_training_start(self) -> None:
        self.progress.timesteps = self.model.num_timesteps

    def _on_step(self) -> bool:
        self.progress.start()
        self.progress.timesteps = self.model.num_timesteps
        self.progress.stats.update(self.locals["rewards"], self.locals["dones"], self.locals["infos"])
        return True

    def _on_training_end(self) -> None:
        self.progress.pause()


class SessionControlCallback(BaseCallback):
    """Ends, pauses and paces a training.

    ``report(status, phase, reason)`` is called on changes and once a second, ``save(reason)`` before a pause. After
    training ``stop_kind`` says why it ended: ``"limit"``, a wish of the server, or ``"signal"``.
    Whoever drives it asks :meth:`may_go_on` between updates; within a rollout it only stops and pauses while
    ``can_leave_rollout`` says that nothing is lost by it. An on-policy algorithm reaches its limit at any step.
    """

    def __init__(
        self,
        progress: RunProgress,
        signals: StopSignals,
        sink: Sink | None,
        report: Callable[[SessionStatus, Phase, str | None], None],
        save: Callable[[str], Any],
        decision_seconds: float | None,
        can_leave_rollout: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__()
        self.progress = progress
        self.stop_kind: StopKind | None = None
        self.reason: str | None = None
        self._signals = signals
        self._sink = sink
        self._report = report
        self._save = save
        self._next_status = 0.0
        self._can_leave_rollout = can_leave_rollout
        if progress.config.pacing is not None and decision_seconds is not None:
            progress.pacer = Pacer(decision_seconds, progress.config.pacing)
        self._lag_seen = 0.0
        self._next_look = 0.0
        self._said_late = False

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now >= self._next_status:
            self._next_status = now + STATUS_SECONDS
            self._report("running", "training", None)
        if not self._may_take_next_step():
            return False
        if self.progress.pacer is not None:
            self._pace(self.progress.pacer)
        return True

    def _may_take_next_step(self) -> bool:
        if self._can_leave_rollout is None or self._can_leave_rollout():
            return self.may_go_on()
        limit = None if isinstance(self.model, OffPolicyAlgorithm) else self.progress.reached()
        if limit is not None:
            self.stop_kind, self.reason = "limit", f"{limit} reached"
        return limit is None

    def may_go_on(self) -> bool:
        """Stay here while a pause is wished for; false when training has to end."""
        if self._sink is not None and self._sink.desired == "paused":
            self._stay_paused(self._sink)
        return not self._must_stop()

    def _must_stop(self) -> bool:
        desired = "running" if self._sink is None else self._sink.desired
        limit = self.progress.reached()
        if self._signals.received is not None:
            self.stop_kind, self.reason = "signal", f"received {self._signals.received.name}"
        elif desired == "cancelled":
            self.stop_kind, self.reason = "cancelled", "cancelled on request"
        elif desired == "stopping":
            self.stop_kind, self.reason = "stopping", "stopped on request"
        elif limit is not None:
            self.stop_kind, self.reason = "limit", f"{limit} reached"
        return self.stop_kind is not None

    def _stay_paused(self, sink: Sink) -> None:
        self.progress.pause()
        self._save("pause")
        self._report("paused", "", "paused on request")
        with WATCH.at(Place.WAITING):
            while sink.desired == "paused" and self._signals.received is None:
                time.sleep(PAUSE_POLL_SECONDS)
        self.progress.resume()
        if self.progress.pacer is not None:
            self.progress.pacer.restart()
        self._report("running", "training", None)

    def _pace(self, pacer: Pacer) -> None:
        with WATCH.at(Place.WAITING):
            pacer.wait()
        now = time.monotonic()
        if now < self._next_look:
            return
        late, self._lag_seen = pacer.lag - self._lag_seen, pacer.lag
        self._next_look = now + LATE_LOOK_SECONDS
        asked, rate = pacer.multiplier or 0.0, pacer.rate
        slow = rate is not None and rate < (1.0 - LATE_SHARE) * asked
        if slow and late > LATE_SHARE * LATE_LOOK_SECONDS and not self._said_late:
            self._said_late = True
            message = (
                f"the pace of {asked:g} x real time is not held: {late:.1f} s behind within "
                f"{LATE_LOOK_SECONDS:g} s, {rate:.1f} x now; fewer parallel_episodes, a smaller network or a lower "
                "speed_multiplier helps"
            )
            log.warning("%s", message)
            if self._sink is not None:
                detail = {"asked": asked, "rate": rate, "lag_seconds": pacer.lag}
                self._sink.emit(ErrorData(code="pace_not_held", message=message, detail=detail))
