"""A picture of the game now and then, of environments that draw themselves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

import numpy as np
from stable_baselines3.common.callbacks import BaseCallback

from gymcast.envs.pictures import as_url
from gymcast.training.broadcast import Sink
from gymcast.training.callbacks.decisions import LEAST_PAUSE
from gymcast.training.callbacks.progress import RunProgress
from gymcast.training.events import MAX_PICTURE_CHARS, PictureData

PICTURE_SECONDS: Final = 0.5


class PictureCallback(BaseCallback):
    """Sends how lane 0 looks while somebody watches: at most every ``seconds``, and within 1 % of the time.

    The environment has to be made with ``render_mode="rgb_array"``; with any other there are no pictures. One that is
    larger than 48 KiB after it was made small is left out. What the first one takes is not counted: it loads what
    draws.
    """

    def __init__(
        self,
        sink: Sink,
        progress: RunProgress,
        env_id: str,
        watchers: Callable[[], int],
        seconds: float = PICTURE_SECONDS,
    ) -> None:
        super().__init__()
        self._sink, self._progress, self._env_id = sink, progress, env_id
        self._watchers = watchers
        self._seconds = seconds
        self._next = 0.0
        self._drawn = False

    def _on_step(self) -> bool:
        now = time.monotonic()
        if now < self._next or self._watchers() == 0:
            return True
        if self.training_env.render_mode != "rgb_array":
            self._next = float("inf")
            return True
        image = self.training_env.env_method("render", indices=[0])[0]
        if isinstance(image, np.ndarray) and image.ndim == 3 and image.dtype == np.uint8:
            url = as_url(image)
            if len(url) <= MAX_PICTURE_CHARS:
                self._sink.emit(
                    PictureData(
                        image=url,
                        env_id=self._env_id,
                        episode=self._progress.stats.episodes,
                        timesteps=self._progress.timesteps,
                    )
                )
        took = time.monotonic() - now if self._drawn else 0.0
        self._drawn = True
        self._next = now + max(self._seconds, LEAST_PAUSE * took)
        return True
