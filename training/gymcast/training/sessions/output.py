"""What a worker prints, kept within bounds: a game that floods its output must not fill the disk."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Final

log = logging.getLogger(__name__)

MAX_BYTES: Final = 8 << 20
KEPT_BYTES: Final = 1 << 20


def bound_output(path: Path) -> None:
    """Cut a log that has outgrown ``MAX_BYTES`` down to its last ``KEPT_BYTES``.

    Its writer appends, so it goes on at the new end; what it writes during the cut may be lost.
    """
    try:
        if path.stat().st_size <= MAX_BYTES:
            return
        with open(path, "r+b") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(size - KEPT_BYTES)
            kept = file.read(KEPT_BYTES)
            kept = kept[kept.find(b"\n") + 1 :]
            file.seek(0)
            file.truncate()
            file.write(f"... {size - len(kept):,} bytes of output were dropped ...\n".encode() + kept)
    except OSError as error:
        log.warning("%s cannot be kept within bounds: %s", path, error)
