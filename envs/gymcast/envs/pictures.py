"""Episodes of environments that are not gymcast's, as pictures for the page: played again and drawn by ``rgb_array``.

Nothing is drawn while a game is trained on, so that drawing cannot change it; see docs/any-environment.md.
"""

from __future__ import annotations

import base64
import io
import math
import time
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gymcast.envs.replay import Replay, ReplayError
from gymcast.envs.replay_player import Player, frames_per_second, player_for

MOST_PICTURES: Final = 240
MOST_PER_SECOND: Final = 15.0
LARGEST_SIDE: Final = 400
MOST_BYTES: Final = 2_000_000
_MOST_SECONDS: Final = 60.0
_QUALITY: Final = 70


def replay_pictures(replay: Replay) -> dict[str, Any]:
    """An episode for the page: {env_id, view, fps, decision_seconds, scene, frames, summary}.

    ``frames`` are {t, image}, the image a ``data:`` URL of WebP, at most 400 pixels wide and high, 15 for a second of
    game time and 240 in all, which together take 2 MB at most. Where nothing can be drawn, or the episode goes another
    way than it was played, ``scene["note"]`` says so. Raises ``ReplayError`` when it cannot be played at all.
    """
    fps = frames_per_second(replay)
    count = len(replay.actions)
    stride = max(math.ceil(count / (MOST_PICTURES - 1)), math.ceil(fps / MOST_PER_SECOND), 1)
    player = player_for(replay, images=True)
    frames: list[dict[str, Any]] = []
    try:
        note = _play(player, count, stride, fps, frames)
        found = player.result()
    finally:
        player.close()
    differs = any(found[name] != replay.summary[name] for name in ("length", "return") if name in replay.summary)
    if differs and not note:
        note = f"{replay.env_id} played again goes another way: it is not deterministic under its seed."
    if frames[-1]["t"] < count / fps:
        frames.append({"t": round(count / fps, 3)})
    return {
        "env_id": replay.env_id,
        "view": "pictures",
        "fps": fps,
        "decision_seconds": 1.0 / fps,
        "scene": {"note": note},
        "frames": frames,
        "summary": replay.summary,
    }


def _play(player: Player, count: int, stride: int, fps: float, frames: list[dict[str, Any]]) -> str:
    """Play an episode and draw every ``stride``-th moment into ``frames``; returns what kept it from that."""
    note, size, deadline = "", 0, time.monotonic() + _MOST_SECONDS
    ended = False
    for number in range(count + 1):
        moment: dict[str, Any] = {"t": round(number / fps, 3)}
        if number % stride == 0 or ended or number == count:
            if not note:
                try:
                    moment["image"] = as_url(player.image())
                    size += len(moment["image"])
                except ReplayError as error:
                    note = str(error)
                except Exception as error:  # noqa: BLE001 - what other people's drawing raises is told, not raised
                    note = f"it cannot be drawn: {type(error).__name__}: {error}"
                if size > MOST_BYTES:
                    note = f"the first {number} of {count} decisions are drawn, more would be too large to send."
            if "image" in moment or not frames:
                frames.append(moment)
        if ended or number == count:
            return note
        if time.monotonic() > deadline:
            return note or f"the first {number} of {count} decisions are drawn: it is slow to play again."
        ended = player.step(number)
    return note


def as_url(image: NDArray[Any]) -> str:
    """An image uint8 (H, W, 3) as a ``data:`` URL of WebP, made smaller where it is larger than 400 pixels."""
    picture = Image.fromarray(np.ascontiguousarray(image, np.uint8))
    picture.thumbnail((LARGEST_SIDE, LARGEST_SIDE))
    out = io.BytesIO()
    picture.convert("RGB").save(out, "WEBP", quality=_QUALITY, method=2)
    return f"data:image/webp;base64,{base64.b64encode(out.getvalue()).decode('ascii')}"
