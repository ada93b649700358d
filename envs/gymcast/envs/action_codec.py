"""Actions of many lanes in few bytes: each group of a discrete action in as many bits as it needs, then deflated."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

# Level 1 took 0.97 bytes for a decision of a trained archer (288 actions), level 6 0.96; four bytes unpacked.
_LEVEL = 1
_FLOATS = {"<f4": np.dtype("<f4"), "<f8": np.dtype("<f8")}


@dataclass(frozen=True)
class ActionCodec:
    """How the actions of one seat are stored: `sizes` of its discrete groups, or `floats` numbers of type `dtype`."""

    sizes: tuple[int, ...] = ()
    floats: int = 0
    dtype: str = "|u1"

    @staticmethod
    def for_groups(sizes: tuple[int, ...]) -> ActionCodec:
        """For groups with that many entries each, numbered from 0."""
        largest = max(sizes)
        return ActionCodec(sizes, 0, "|u1" if largest <= 1 << 8 else "<u2" if largest <= 1 << 16 else "<u4")

    @staticmethod
    def for_floats(count: int, dtype: str = "<f4") -> ActionCodec:
        """For that many float32 ("<f4") or float64 ("<f8") numbers."""
        return ActionCodec((), count, dtype)

    @staticmethod
    def for_space(space: spaces.Space[Any]) -> ActionCodec | None:
        """For the actions of a space, discrete ones counted from the space's own start; None: they cannot be stored."""
        if isinstance(space, spaces.Discrete) and space.n <= 1 << 32:
            return ActionCodec.for_groups((int(space.n),))
        if isinstance(space, spaces.MultiDiscrete) and space.nvec.size and space.nvec.max() <= 1 << 32:
            return ActionCodec.for_groups(tuple(int(n) for n in space.nvec.ravel()))
        if isinstance(space, spaces.MultiBinary):
            return ActionCodec.for_groups((2,) * math.prod(space.shape))
        if isinstance(space, spaces.Box) and space.dtype.newbyteorder("<").str in _FLOATS and space.shape:
            return ActionCodec.for_floats(math.prod(space.shape), space.dtype.newbyteorder("<").str)
        return None

    @property
    def width(self) -> int:
        """Numbers per action."""
        return self.floats or len(self.sizes)

    def empty(self, steps: int, rows: int) -> NDArray[Any]:
        """An array for the actions of some steps, (steps, rows, width); its content is arbitrary."""
        return np.empty((steps, rows, self.width), self.dtype)

    def pack(self, actions: NDArray[Any]) -> bytes:
        """Actions (steps, rows, width) as bytes."""
        if self.floats:
            return zlib.compress(np.ascontiguousarray(actions, self.dtype).tobytes(), _LEVEL)
        planes = (_pack_plane(actions[..., i], size) for i, size in enumerate(self.sizes))
        return zlib.compress(b"".join(planes), _LEVEL)

    def unpack(self, data: bytes, steps: int, rows: int) -> NDArray[Any]:
        """What `pack` was given; raises ValueError when the bytes are not those of so many actions."""
        count = steps * rows
        sizes = [_plane_bytes(count, size) for size in self.sizes]
        expected = sum(sizes) if self.sizes else count * self.floats * np.dtype(self.dtype).itemsize
        unpacker = zlib.decompressobj()
        try:
            # No more is ever unpacked than the header promises.
            raw = unpacker.decompress(data, expected + 1)
        except zlib.error as error:
            raise ValueError(str(error)) from error
        if len(raw) != expected:
            raise ValueError(f"{len(raw)} bytes where {count} actions take {expected}")
        if self.floats:
            return np.frombuffer(raw, self.dtype).reshape(steps, rows, self.floats)
        actions = self.empty(steps, rows)
        at = 0
        for i, (size, length) in enumerate(zip(self.sizes, sizes, strict=True)):
            actions[..., i] = _unpack_plane(raw[at : at + length], size, count).reshape(steps, rows)
            at += length
        return actions

    def to_json(self) -> dict[str, Any]:
        """For the header of a file."""
        return {"sizes": list(self.sizes), "floats": self.floats, "dtype": self.dtype}

    @staticmethod
    def from_json(value: Any) -> ActionCodec:
        """What `to_json` gave; raises ValueError for anything else."""
        if not isinstance(value, Mapping) or set(value) != {"sizes", "floats", "dtype"}:
            raise ValueError("no description of actions")
        sizes, floats, dtype = value["sizes"], value["floats"], value["dtype"]
        if isinstance(sizes, list) and sizes and all(type(n) is int and 1 <= n <= 1 << 32 for n in sizes):
            codec = ActionCodec.for_groups(tuple(sizes))
        elif type(floats) is int and 1 <= floats <= 1 << 20 and dtype in _FLOATS:
            codec = ActionCodec.for_floats(floats, dtype)
        else:
            raise ValueError(f"unknown kind of actions: {str(value)[:80]}")
        if codec.to_json() != dict(value):
            raise ValueError(f"contradicting description of actions: {str(value)[:80]}")
        return codec


def _bits(size: int) -> int:
    """Bits an entry takes: as needed, rounded up to what divides a byte, or to whole integers."""
    needed = max(1, (size - 1).bit_length())
    return next(bits for bits in (1, 2, 4, 8, 16, 32) if bits >= needed)


def _plane_bytes(count: int, size: int) -> int:
    bits = _bits(size)
    return -(-count * bits // 8)


def _pack_plane(values: NDArray[Any], size: int) -> bytes:
    bits = _bits(size)
    if bits >= 8:
        return np.ascontiguousarray(values, f"<u{bits // 8}").tobytes()
    per_byte = 8 // bits
    flat = np.zeros(-(-values.size // per_byte) * per_byte, np.uint8)
    flat[: values.size] = values.reshape(-1)
    packed = flat[::per_byte].copy()
    for i in range(1, per_byte):
        packed |= flat[i::per_byte] << (bits * i)
    return packed.tobytes()


def _unpack_plane(data: bytes, size: int, count: int) -> NDArray[Any]:
    bits = _bits(size)
    if bits >= 8:
        return np.frombuffer(data, f"<u{bits // 8}")
    per_byte = 8 // bits
    packed = np.frombuffer(data, np.uint8)
    flat = np.empty(len(packed) * per_byte, np.uint8)
    for i in range(per_byte):
        flat[i::per_byte] = (packed >> (bits * i)) & ((1 << bits) - 1)
    return flat[:count]
