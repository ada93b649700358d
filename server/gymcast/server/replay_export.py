"""Replays as files for people: contact sheets (PNG), animations (GIF) and films (MP4)."""

from __future__ import annotations

import itertools
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np
from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gymcast.envs import Replay

_CAPTION_HEIGHT: Final = 18
_GAP: Final = 6
_PAPER, _INK = (255, 255, 255), (30, 30, 30)


class MissingFilmError(Exception):
    """The package that writes films is not installed."""


def moments(decisions: int, count: int) -> list[int]:
    """``count`` moments (decisions played so far), evenly from the beginning to the end of an episode."""
    return sorted({round(place) for place in np.linspace(0, decisions, max(1, count))})


def write_sheet(replay: Replay, path: Path, *, count: int = 12, columns: int = 4, width: int = 240) -> None:
    """A PNG of ``count`` moments in rows of ``columns`` images, each ``width`` px wide and captioned with its time."""
    from gymcast.envs.replay_player import frames_per_second, replay_images

    fps = frames_per_second(replay)
    shots = [
        (f"decision {number}, {number / fps:.1f} s", _scaled(image, width))
        for number, image in replay_images(replay, set(moments(len(replay.actions), count)))
    ]
    columns = min(columns, len(shots))
    rows = -(-len(shots) // columns)
    cell_width, cell_height = width + _GAP, shots[0][1].height + _CAPTION_HEIGHT + _GAP
    sheet = Image.new("RGB", (columns * cell_width + _GAP, rows * cell_height + _GAP), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for place, (caption, image) in enumerate(shots):
        x, y = _GAP + place % columns * cell_width, _GAP + place // columns * cell_height
        sheet.paste(image, (x, y))
        draw.text((x, y + image.height + 2), caption, fill=_INK)
    sheet.save(path, format="PNG")


def write_gif(replay: Replay, path: Path, *, width: int = 400, speed: float = 1.0) -> None:
    """An endless GIF, ``width`` px wide, ``speed`` times as fast as the game."""
    from gymcast.envs.replay_player import frames_per_second

    images = (image.quantize(64) for image in _images(replay, width))
    # Times in a GIF are hundredths of a second; browsers take less than two for ten.
    duration = max(20, round(100 / (frames_per_second(replay) * speed)) * 10)
    first = next(images)
    first.save(path, format="GIF", save_all=True, append_images=images, duration=duration, loop=0)


def write_film(replay: Replay, path: Path, *, width: int = 800, speed: float = 1.0) -> None:
    """An MP4 (H.264), ``width`` px wide, ``speed`` times as fast as the game.

    Raises :class:`MissingFilmError` without the extra ``video``, ``OSError`` with what the encoder says.
    """
    try:
        import imageio_ffmpeg
    except ModuleNotFoundError as error:
        raise MissingFilmError(
            'films need the extra "video": pip install "gymcast[video]" (.gif and .png work without it)'
        ) from error
    from gymcast.envs.replay_player import frames_per_second

    images = _images(replay, width)
    first = next(images)
    size = (first.width // 2 * 2, first.height // 2 * 2)  # H.264 has no odd sizes
    command = [
        *(imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error"),
        *("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{size[0]}x{size[1]}"),
        *("-r", f"{frames_per_second(replay) * speed:g}", "-i", "-"),
        *("-c:v", "libx264", "-pix_fmt", "yuv420p", "-movflags", "+faststart", "-f", "mp4", f"file:{path}"),
    ]
    with tempfile.TemporaryFile() as complaints:
        encoder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=complaints)
        with suppress(BrokenPipeError), encoder:  # it has given up, and says below why
            assert encoder.stdin is not None, "it is a pipe"
            for image in itertools.chain((first,), images):
                encoder.stdin.write(image.crop((0, 0, *size)).tobytes())
        if encoder.returncode != 0:
            complaints.seek(0)
            raise OSError(complaints.read().decode(errors="replace").strip()[-300:] or "ffmpeg failed")


def _images(replay: Replay, width: int) -> Iterator[Image.Image]:
    from gymcast.envs.replay_player import replay_images

    for _, image in replay_images(replay):
        yield _scaled(image, width)


def _scaled(image: NDArray[np.uint8], width: int) -> Image.Image:
    found = Image.fromarray(image)
    return found.resize((width, max(1, round(found.height * width / found.width))), Image.Resampling.LANCZOS)
