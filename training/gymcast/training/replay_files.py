"""Replay buffers in checkpoints: in pieces, of which only those that have changed are written again.

A ring of a million decisions changes in a few places between two checkpoints. A piece that is the same as in the
checkpoint before is a second name of that file (a hard link): it takes no room and no time to write. So all checkpoints
of a run together hold the buffer about once, plus what has come in between.
"""

from __future__ import annotations

import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.buffers import ReplayBuffer

from gymcast.training.checkpoints import CheckpointError, file_hashes

if TYPE_CHECKING:
    from numpy.typing import NDArray

REPLAY_PREFIX: Final = "replay-"
# An array is cut into at most so many pieces of at least so many bytes.
_PIECES: Final = 64
_PIECE_BYTES: Final = 1 << 20


def save_replay(model: BaseAlgorithm, folder: Path, *, earlier: Path | None = None) -> None:
    """Write the filled part of the model's replay buffer into ``folder``; nothing without one.

    ``earlier`` is a checkpoint that may hold the same pieces already. Raises ``OSError``.
    """
    buffer = getattr(model, "replay_buffer", None)
    if not isinstance(buffer, ReplayBuffer):
        return
    known = {} if earlier is None else file_hashes(earlier)
    pieces = _pieces(buffer)
    pieces[f"{REPLAY_PREFIX}position.npy"] = np.array([buffer.pos, int(buffer.full)])
    for name, array in pieces.items():
        content = io.BytesIO()
        np.save(content, array, allow_pickle=False)
        data = content.getbuffer()
        if earlier is not None and known.get(name) == hashlib.sha256(data).hexdigest():
            try:
                os.link(earlier / name, folder / name)
                continue
            except OSError:
                pass  # a file system without links: the piece is written once more
        (folder / name).write_bytes(data)


def restore_replay(model: BaseAlgorithm, folder: Path) -> None:
    """Read what :func:`save_replay` wrote into the buffer of ``model``. Raises ``CheckpointError``, ``OSError``."""
    buffer = getattr(model, "replay_buffer", None)
    if not isinstance(buffer, ReplayBuffer):
        return
    for name, array in _arrays(buffer):
        found = {
            int(match[1]): path
            for path in folder.glob(f"{REPLAY_PREFIX}*")
            if (match := re.fullmatch(rf"{re.escape(REPLAY_PREFIX + name)}\.(\d+)\.npy", path.name))
        }
        start = 0
        for number in sorted(found):
            piece = np.load(found[number], allow_pickle=False)
            if piece.shape[1:] != array.shape[1:] or start + len(piece) > len(array):
                raise CheckpointError(f"{found[number]} does not fit a replay buffer of shape {array.shape}")
            array[start : start + len(piece)] = piece
            start += len(piece)
    try:
        position = np.load(folder / f"{REPLAY_PREFIX}position.npy", allow_pickle=False)
    except FileNotFoundError:
        raise CheckpointError(f"{folder} holds no replay buffer, which this algorithm needs") from None
    buffer.pos, buffer.full = int(position[0]), bool(position[1])


def _pieces(buffer: ReplayBuffer) -> dict[str, NDArray[Any]]:
    """The filled part of every array by file name, without copies."""
    filled, found = buffer.size(), {}
    for name, array in _arrays(buffer):
        rows = max(1, -(-len(array) // _PIECES), _PIECE_BYTES * len(array) // max(1, array.nbytes))
        for number, start in enumerate(range(0, filled, rows)):
            found[f"{REPLAY_PREFIX}{name}.{number}.npy"] = array[start : min(start + rows, filled)]
    return found


def _arrays(buffer: ReplayBuffer) -> Iterator[tuple[str, NDArray[Any]]]:
    for name, value in vars(buffer).items():
        for key, array in value.items() if isinstance(value, dict) else (("", value),):
            if isinstance(array, np.ndarray) and array.shape[:1] == (buffer.buffer_size,):
                yield f"{name}-{key}" if key else name, array
