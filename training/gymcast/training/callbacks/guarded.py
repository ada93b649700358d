"""Callbacks inside a training that must not end because of one, nor hang in one unnoticed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from stable_baselines3.common.callbacks import BaseCallback, CallbackList

from gymcast.training.hang_watch import WATCH, Place

log = logging.getLogger(__name__)


class WatchedCallbacks(CallbackList):
    """Callbacks one after the other; whoever looks after the process knows when it is in them."""

    def on_step(self) -> bool:
        """Call all of them; false when one wants the training to end."""
        with WATCH.at(Place.CALLBACKS):
            return super().on_step()


class GuardedCallback(BaseCallback):
    """Calls ``callback`` at every point it is made for; the first exception ends its part.

    ``failed`` is then called with the code ``"callback_failed"``, the callback's name and what went wrong. What the
    callback returns from a step still counts: false ends the training.
    """

    def __init__(self, callback: BaseCallback, failed: Callable[[str, str, str], None]) -> None:
        super().__init__()
        self.callback: BaseCallback | None = callback
        self._failed = failed

    def _init_callback(self) -> None:
        self._try(lambda callback: callback.init_callback(self.model))

    def _on_training_start(self) -> None:
        self._try(lambda callback: callback.on_training_start(self.locals, self.globals))

    def _on_rollout_start(self) -> None:
        self._try(lambda callback: callback.on_rollout_start())

    def _on_step(self) -> bool:
        return self._try(lambda callback: callback.on_step()) is not False

    def _on_rollout_end(self) -> None:
        self._try(lambda callback: callback.on_rollout_end())

    def _on_training_end(self) -> None:
        self._try(lambda callback: callback.on_training_end())

    def update_child_locals(self, locals_: dict[str, Any]) -> None:
        """Hand the algorithm's variables on."""
        self._try(lambda callback: callback.update_locals(locals_))

    def _try(self, action: Callable[[BaseCallback], Any]) -> Any:
        callback = self.callback
        if callback is None:
            return None
        try:
            return action(callback)
        except Exception as error:
            self.callback = None
            log.exception("the callback %s has failed and is left out", type(callback).__name__)
            self._failed("callback_failed", type(callback).__name__, f"{type(error).__name__}: {error}")
            return None
