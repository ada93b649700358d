"""A script's training under the control of whoever may steer its session."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

from stable_baselines3.common.callbacks import BaseCallback

from gymcast.training.callbacks.progress import RunProgress
from gymcast.training.script_session import ScriptOptions, ScriptSession, join_session

PAUSE_POLL_SECONDS: Final = 0.05


def note_step(progress: RunProgress, callback: BaseCallback) -> None:
    """Count the step that ``callback`` has just been told of."""
    progress.start()
    progress.timesteps = callback.model.num_timesteps
    found = callback.locals
    if "infos" in found and "dones" in found:
        progress.stats.update(found["rewards"], found["dones"], found["infos"])


def note_rollout(progress: RunProgress, callback: BaseCallback) -> None:
    """Count the episodes of a round by an algorithm that does not tell callbacks of steps, such as ARS."""
    if "infos" not in callback.locals:
        for episode in callback.model.ep_info_buffer or ():
            progress.stats.record(float(episode["r"]), int(episode["l"]), None)


class SessionCallback(BaseCallback):
    """Announces a script's training as a session and does what the server wishes: pause, go on, stop.

    A pause holds the training between two steps for as long as it is wished for. A stop ends ``learn()``, and the calls
    of it that count timesteps on; ``stopped`` then tells. Wishes arrive within about a second. Metrics and everything
    else to see are sent by :class:`~gymcast.training.MetricsBroadcastCallback`; the two of one model and server share
    one session, in any order, and each works alone.

    ``server`` is a URL such as ``"http://127.0.0.1:8000"``; ``token`` defaults to ``GYMCAST_TOKEN``, ``name`` to
    algorithm, environment and time. ``spool_dir`` is where events wait for the server (see
    :func:`~gymcast.training.script_spool.spool_root`). Raises ``ValueError`` for a URL that is none.
    """

    def __init__(
        self,
        server: str,
        *,
        token: str | None = None,
        name: str | None = None,
        model_generation: int = 1,
        spool_dir: str | Path | None = None,
        verbose: int = 1,
    ) -> None:
        super().__init__()
        self.options = ScriptOptions(server, token, name, model_generation, spool_dir, verbose)
        self._session: ScriptSession | None = None

    @property
    def session_id(self) -> str | None:
        """The session's id; ``None`` until the server has told it."""
        return None if self._session is None else self._session.sink.session_id

    @property
    def stopped(self) -> bool:
        """Whether the server has wished for the end."""
        return self._session is not None and self._session.stopped

    def close(self, timeout: float = 5.0) -> bool:
        """Wait at most ``timeout`` seconds for everything to arrive; returns whether it has. Not needed in a script."""
        return self._session is None or self._session.sink.flush(timeout)

    def _on_training_start(self) -> None:
        self._session = join_session(self.model, self.options)
        if self._session.keeper is None:
            self._session.keeper = self

    def _on_step(self) -> bool:
        session = self._session
        if session is None:
            return True
        if session.keeper is self:
            note_step(session.progress, self)
        session.tick()
        if session.desired != "running":
            self._obey(session)
        return not session.stopped

    def _obey(self, session: ScriptSession) -> None:
        if session.desired == "paused":
            self._stay_paused(session)
        if session.desired in ("stopping", "cancelled"):
            session.stopped = True

    def _stay_paused(self, session: ScriptSession) -> None:
        session.progress.pause()
        session.report("paused", "paused on request")
        while session.desired == "paused":
            time.sleep(PAUSE_POLL_SECONDS)
        session.progress.resume()
        session.report("running")

    def _on_rollout_end(self) -> None:
        if self._session is not None and self._session.keeper is self:
            note_rollout(self._session.progress, self)

    def _on_training_end(self) -> None:
        if self._session is not None:
            self._session.leave()

    def __getstate__(self) -> dict[str, Any]:
        """Without the training it is in: a copy joins one of its own."""
        return {**without_training(self.__dict__), "_session": None}


def without_training(values: dict[str, Any]) -> dict[str, Any]:
    """A callback's attributes but for those that Stable-Baselines3 gives it when a training begins."""
    return {
        **{name: value for name, value in values.items() if name not in ("model", "parent")},
        "parent": None,
        "locals": {},
        "globals": {},
    }
