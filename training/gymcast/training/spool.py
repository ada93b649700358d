"""Events on disk while the server is away."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from gymcast.training.events import MAX_EVENTS_PER_POST, MAX_POST_BYTES

# Room for the envelope of a batch, so that the body as a whole stays within the server's limit.
MAX_BATCH_BYTES: Final = MAX_POST_BYTES - 1024


class Spool:
    """Events as JSON lines in ``folder/<producer>.jsonl``, oldest first, at most ``max_bytes``.

    One file per producer, so that what an earlier process left behind keeps its own numbering.
    """

    def __init__(self, folder: Path, producer: str, max_bytes: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._own = folder / f"{producer}.jsonl"
        self._max_bytes = max_bytes
        self._offsets: dict[Path, int] = {}
        self.pending = any(folder.glob("*.jsonl"))
        """Whether there may be stored events that have not arrived."""

    def append(self, lines: list[bytes]) -> int:
        """Store as many of ``lines`` as there is room for; returns how many. Raises ``OSError``."""
        size = self._own.stat().st_size if self._own.exists() else 0
        stored = 0
        self.pending = True
        with open(self._own, "ab") as file:
            for line in lines:
                size += len(line) + 1
                if size > self._max_bytes:
                    break
                file.write(line + b"\n")
                stored += 1
        return stored

    def peek(self) -> tuple[str, list[bytes], Path, int] | None:
        """The next batch as ``(producer, lines, file, offset after it)``; ``None`` when nothing is stored."""
        for path in sorted(self.folder.glob("*.jsonl"), key=lambda entry: (entry == self._own, entry.name)):
            offset = self._offsets.get(path, 0)
            lines: list[bytes] = []
            total = 0
            with open(path, "rb") as file:
                file.seek(offset)
                for line in file:
                    # A line without an end is a write that was cut off when its process was killed.
                    if not line.endswith(b"\n"):
                        break
                    if len(lines) == MAX_EVENTS_PER_POST or total + len(line) > MAX_BATCH_BYTES:
                        break
                    lines.append(line[:-1])
                    total += len(line) + 1
                    offset += len(line)
            if lines:
                return path.stem, lines, path, offset
            path.unlink()
            self._offsets.pop(path, None)
        self.pending = False
        return None

    def advance(self, path: Path, offset: int) -> None:
        """Note that everything before ``offset`` in ``path`` has arrived."""
        self._offsets[path] = offset
