"""Writes an episode log in a thread of its own: training hands over blocks and never waits for the disk."""

from __future__ import annotations

import logging
import queue
import threading
from pathlib import Path
from typing import Final

from gymcast.envs.episode_log import next_segment_path, prune
from gymcast.envs.segments import Block, SegmentFile, SegmentHeader

log = logging.getLogger(__name__)

_WAITING_BLOCKS: Final = 16
_SEGMENT_BYTES: Final = 16 << 20
_SMALLEST_SEGMENT: Final = 64 << 10
# The log is pruned by whole files: so many of them make up what is kept.
_SEGMENTS_KEPT: Final = 8


class EpisodeWriter:
    """Appends blocks to the segments in ``folder`` and keeps within ``max_bytes`` and ``kept`` episodes.

    ``problem`` is the first thing the disk refused (it goes on trying with the next block), ``dropped`` the number of
    blocks that were left out because the disk could not keep up.
    """

    def __init__(self, folder: Path, *, max_bytes: int | None, kept: int | None) -> None:
        self.problem: OSError | None = None
        self.dropped = 0
        self._folder = folder
        self._max_bytes = max_bytes
        self._kept = kept
        share = _SEGMENT_BYTES if max_bytes is None else max_bytes // _SEGMENTS_KEPT
        self._segment_bytes = max(_SMALLEST_SEGMENT, min(_SEGMENT_BYTES, share))
        self._segment_episodes = None if kept is None else max(1, kept // _SEGMENTS_KEPT)
        self._file: SegmentFile | None = None
        self._waiting: queue.Queue[tuple[SegmentHeader, Block] | threading.Event | None] = queue.Queue(_WAITING_BLOCKS)
        self._thread = threading.Thread(target=self._work, name="episode log", daemon=True)
        self._thread.start()

    def put(self, header: SegmentHeader, block: Block) -> bool:
        """Hand over a block, which is not to be changed any more; false when it had to be dropped."""
        try:
            self._waiting.put_nowait((header, block))
        except queue.Full:
            self.dropped += 1
            return False
        return True

    def flush(self, timeout: float) -> bool:
        """Have everything handed over on the disk; false when that takes longer than ``timeout`` seconds."""
        done = threading.Event()
        try:
            self._waiting.put(done, timeout=timeout)
        except queue.Full:
            return False
        return done.wait(timeout)

    def close(self, timeout: float) -> bool:
        """Write what is left and end the thread; false when it does not end within ``timeout`` seconds."""
        try:
            self._waiting.put(None, timeout=timeout)
        except queue.Full:
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _work(self) -> None:
        while (item := self._waiting.get()) is not None:
            try:
                if isinstance(item, threading.Event):
                    if self._file is not None:
                        self._file.sync()
                    item.set()
                else:
                    self._append(*item)
            except OSError as error:
                if self.problem is None:
                    log.warning("episode log: %s", error)
                    self.problem = error
                self._close_file()
        self._close_file()

    def _append(self, header: SegmentHeader, block: Block) -> None:
        file = self._file
        if file is not None and (file.size >= self._segment_bytes or self._enough_episodes(file)):
            self._file = None
            file.close()
            file = None
        if file is None:
            # Room is made first: on a full disk the oldest episodes go before the newest are refused.
            prune(self._folder, max_bytes=self._max_bytes, kept=self._kept)
            header = SegmentHeader(**{**vars(header), "first": block.first})
            file = self._file = SegmentFile(next_segment_path(self._folder), header)
        file.append(block)

    def _enough_episodes(self, file: SegmentFile) -> bool:
        return self._segment_episodes is not None and file.episodes >= self._segment_episodes

    def _close_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            try:
                file.close()
            except OSError as error:
                log.warning("episode log: %s", error)
                self.problem = self.problem or error
