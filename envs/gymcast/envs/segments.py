"""One file of an episode log: a header, then blocks, each with the actions of some steps and the episodes that ended.

    file    = b"GCEL" | size u32 | CRC-32 u32 | header (JSON)      everything little-endian
    block   = b"ROLL" | first i64 | steps u32 | ended u32 | index bytes u32 | action bytes u32
              | CRC-32 of the index u32 | CRC-32 of the actions u32 | CRC-32 of all before it u32 | index | actions

The index is the table of the episodes that ended in the block, column by column, deflated; the actions are those of all
seats at every step, see `ActionCodec`. A place in a log is counted in decisions since the run began, all lanes together
(Stable-Baselines3's timesteps), so that a checkpoint says where it stands in the log.

A writer may be killed at any byte: what is not whole at the end of a file does not count, what is before it stays.
"""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from gymcast.envs.action_codec import ActionCodec
from gymcast.envs.foreign_make import NO_EXTRAS, EnvExtras
from gymcast.envs.replay import ReplayError

FORMAT = 1
PATTERN = "segment-*.log"
NO_OUTCOME = -128
NO_COUNT = -1
_FILE_MAGIC, _BLOCK_MAGIC = b"GCEL", b"ROLL"
_FILE_HEAD = struct.Struct("<4sII")
_BLOCK_HEAD = struct.Struct("<4sqIIIIIII")
_LARGEST_HEADER = 1 << 20


def episode_dtype(seats: int) -> np.dtype[np.void]:
    """A row per finished episode of a game with that many recorded seats."""
    return np.dtype(
        [
            ("game", "<u4"),
            ("seed", "<i8"),  # of the game's lane
            ("episode", "<i8"),  # index on its lane; with the seed it determines how the episode begins
            ("end", "<i8"),  # place after its last decision
            ("length", "<i4"),  # decisions
            ("check", "<u8"),  # of the last observations, see `observation_check`
            ("returns", "<f8", (seats,)),
            ("outcomes", "i1", (seats,)),  # +1, 0, -1, or NO_OUTCOME
            ("kills", "<i4", (seats,)),  # or NO_COUNT
            ("deaths", "<i4", (seats,)),
        ]
    )


@dataclass(frozen=True)
class SegmentHeader:
    """What all blocks of a segment share.

    `lanes` are those of the learner, `games` the games they play in, `seats` the recorded seats of each game: with
    opponents of one's own (a policy) there are more of them than lanes.
    """

    env_id: str
    version: int
    options: dict[str, Any]
    lanes: int
    games: int
    seats: int
    codec: ActionCodec
    decision_seconds: float | None  # game time; None where it is unknown
    first: int  # place of the first block
    made_by: dict[str, str] = field(default_factory=dict)  # package versions
    extras: EnvExtras = NO_EXTRAS  # packages and wrappers of an environment that is not gymcast's

    @property
    def rows(self) -> int:
        """Actions per step."""
        return self.games * self.seats

    @property
    def lanes_per_game(self) -> int:
        """Lanes of the learner in each game."""
        return self.lanes // self.games

    def to_bytes(self) -> bytes:
        """The beginning of the file."""
        values = {**vars(self), "codec": self.codec.to_json(), "format": FORMAT}
        extras = values.pop("extras").to_json()
        values |= {"extras": extras} if extras else {}
        text = json.dumps(values, separators=(",", ":")).encode()
        return _FILE_HEAD.pack(_FILE_MAGIC, len(text), zlib.crc32(text)) + text


_HEADER_KINDS: dict[str, Any] = {
    "env_id": str, "version": int, "options": dict, "lanes": int, "games": int, "seats": int, "first": int,
    "made_by": dict, "codec": dict, "decision_seconds": (float, int, type(None)),
}  # fmt: skip


def _read_header(file: BinaryIO) -> SegmentHeader:
    """The header at the beginning of a file; raises ReplayError."""
    start = file.read(_FILE_HEAD.size)
    if len(start) < _FILE_HEAD.size:
        raise ReplayError("it ends within its header.")
    magic, size, check = _FILE_HEAD.unpack(start)
    text = file.read(min(size, _LARGEST_HEADER))
    if magic != _FILE_MAGIC or len(text) != size or zlib.crc32(text) != check:
        raise ReplayError("its header is damaged or that of something else.")
    try:
        values = json.loads(text)
        found = values.pop("format")
        if found != FORMAT:
            raise ReplayError(f"it has format {found}, this gymcast reads format {FORMAT}.")
        codec = ActionCodec.from_json(values.get("codec"))
        extras = EnvExtras.from_json(values.pop("extras", {}))
        if set(values) != set(_HEADER_KINDS) or not all(isinstance(values[n], k) for n, k in _HEADER_KINDS.items()):
            raise ValueError("fields are missing")
        header = SegmentHeader(**{**values, "codec": codec, "extras": extras})
        if not (1 <= header.games <= header.lanes <= 1 << 24 and 1 <= header.seats <= 1 << 10 and header.first >= 0):
            raise ValueError("numbers are out of range")
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        if isinstance(error, ReplayError):
            raise
        raise ReplayError(f"its header is damaged ({error}).") from error
    return header


@dataclass(frozen=True)
class Block:
    """Consecutive steps: `actions` (steps, rows, width) from place `first` on, and the `episodes` that ended."""

    first: int
    actions: NDArray[Any]
    episodes: NDArray[np.void]

    def to_bytes(self, codec: ActionCodec) -> bytes:
        """As it stands in a file."""
        columns = (np.ascontiguousarray(self.episodes[name]).tobytes() for name in self.episodes.dtype.names or ())
        index = zlib.compress(b"".join(columns), 6) if len(self.episodes) else b""
        actions = codec.pack(self.actions)
        numbers = (len(self.actions), len(self.episodes), len(index), len(actions))
        head = _BLOCK_HEAD.pack(_BLOCK_MAGIC, self.first, *numbers, zlib.crc32(index), zlib.crc32(actions), 0)
        return head[:-4] + zlib.crc32(head[:-4]).to_bytes(4, "little") + index + actions


@dataclass(frozen=True)
class BlockPlace:
    """Where a block's actions lie in a file, and which steps they are."""

    first: int
    steps: int
    offset: int  # of the actions
    size: int
    check: int
    begin: int  # of the whole block
    ended: int  # episodes


@dataclass(frozen=True)
class Segment:
    """A file as far as it is whole; `episodes` are in the order of the blocks they ended in."""

    path: Path
    header: SegmentHeader
    blocks: list[BlockPlace]
    episodes: NDArray[np.void]
    size: int  # bytes that count; what lies behind is torn

    @property
    def end(self) -> int:
        """Place after the last step."""
        return self.end_of(self.blocks[-1]) if self.blocks else self.header.first

    def end_of(self, block: BlockPlace) -> int:
        """Place after a block's last step."""
        return block.first + block.steps * self.header.lanes

    def read_actions(self, block: BlockPlace) -> NDArray[Any]:
        """The actions of a block, (steps, rows, width); raises ReplayError when they are damaged, OSError."""
        with open(self.path, "rb") as file:
            file.seek(block.offset)
            data = file.read(block.size)
        if len(data) != block.size or zlib.crc32(data) != block.check:
            raise ReplayError(f"{self.path.name} is damaged at byte {block.offset}: its checksum does not fit.")
        try:
            return self.header.codec.unpack(data, block.steps, self.header.rows)
        except ValueError as error:
            raise ReplayError(f"{self.path.name} is damaged at byte {block.offset} ({error}).") from error


def read_segment(path: Path) -> Segment:
    """A file's header and the index of its whole blocks, without the actions; raises ReplayError, OSError."""
    blocks: list[BlockPlace] = []
    tables: list[NDArray[np.void]] = []
    with open(path, "rb") as file:
        try:
            header = _read_header(file)
        except ReplayError as error:
            raise ReplayError(f"{path.name} is no segment of an episode log: {error}") from error
        dtype = episode_dtype(header.seats)
        size = file.tell()
        length = os.fstat(file.fileno()).st_size
        for block, table in _blocks(file, dtype, length):
            blocks.append(block)
            tables.append(table)
            size = block.offset + block.size
    episodes = np.concatenate(tables) if tables else np.zeros(0, dtype)
    return Segment(path, header, blocks, episodes, size)


def _blocks(file: BinaryIO, dtype: np.dtype[np.void], length: int) -> Iterator[tuple[BlockPlace, NDArray[np.void]]]:
    """Blocks until the end, or until one that is not whole."""
    while True:
        begin = file.tell()
        head = file.read(_BLOCK_HEAD.size)
        if len(head) < _BLOCK_HEAD.size:
            return
        magic, first, steps, ended, index_size, action_size, index_check, action_check, check = _BLOCK_HEAD.unpack(head)
        offset = begin + _BLOCK_HEAD.size + index_size
        if magic != _BLOCK_MAGIC or zlib.crc32(head[:-4]) != check or offset + action_size > length:
            return
        index = file.read(index_size)
        table = _read_table(index, ended, dtype) if zlib.crc32(index) == index_check else None
        if table is None:
            return
        yield BlockPlace(first, steps, offset, action_size, action_check, begin, ended), table
        file.seek(offset + action_size)


def _read_table(index: bytes, ended: int, dtype: np.dtype[np.void]) -> NDArray[np.void] | None:
    try:
        raw = zlib.decompressobj().decompress(index, ended * dtype.itemsize + 1) if ended else b""
    except zlib.error:
        return None
    if len(raw) != ended * dtype.itemsize:
        return None
    rows = np.zeros(ended, dtype)
    at = 0
    for name in dtype.names or ():
        column = rows[name]
        column[...] = np.frombuffer(raw[at : at + column.nbytes], column.dtype).reshape(column.shape)
        at += column.nbytes
    return rows


class SegmentFile:
    """A segment being written; `path` appears with its header and is synced when it is closed.

    Raises OSError, with nothing left behind.
    """

    def __init__(self, path: Path, header: SegmentHeader) -> None:
        self.path = path
        self.header = header
        self.episodes = 0
        self._file = open(path, "xb", buffering=0)  # noqa: SIM115 - kept open until close()
        self.size = 0
        try:
            self._write(header.to_bytes())
        except OSError:
            self._file.close()
            path.unlink()
            raise

    def append(self, block: Block) -> None:
        """Add a block, wholly or not at all. Raises OSError."""
        self._write(block.to_bytes(self.header.codec))
        self.episodes += len(block.episodes)

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        try:
            while view:
                view = view[self._file.write(view) :]
        except OSError:
            os.ftruncate(self._file.fileno(), self.size)
            self._file.seek(self.size)
            raise
        self.size += len(data)

    def sync(self) -> None:
        """Have everything on the disk. Raises OSError."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close."""
        try:
            self.sync()
        finally:
            self._file.close()
