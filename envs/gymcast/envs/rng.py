"""Random streams for compiled games: one sfc32 generator per lane, its state carried in an array.

The generator is Chris Doty-Humphrey's *Small Fast Counting* generator with 32-bit words (PractRand, 2010). All
arithmetic is done in signed 64-bit integers that are masked to 32 bits, so no operation ever overflows and the
compiled kernel, the same code with the JIT switched off, and pure Python integers give the same numbers.

An episode's stream depends on the lane's seed and the episode's index only: any episode can be had again without
playing the ones before it.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# How every kernel is compiled: without the GIL, kept on disk, merged into its callers (gain: docs/design.md).
kernel = njit(cache=True, nogil=True, forceinline=True)

MASK32 = 0xFFFFFFFF
_WARM_UP_ROUNDS = 20
_TO_UNIT = 1.0 / 4294967296.0


@kernel
def next_u32(stream: NDArray[np.uint32]) -> int:
    """Next 32 random bits (0 .. 2**32 - 1) of a lane's stream; `stream` is uint32 (4,), changed in place."""
    a = np.int64(stream[0])
    b = np.int64(stream[1])
    c = np.int64(stream[2])
    counter = np.int64(stream[3])
    out = (a + b + counter) & MASK32
    stream[3] = (counter + 1) & MASK32
    stream[0] = b ^ (b >> 9)
    stream[1] = (c + (c << 3)) & MASK32
    stream[2] = ((((c << 21) & MASK32) | (c >> 11)) + out) & MASK32
    return int(out)


@kernel
def seed_episode(stream: NDArray[np.uint32], seed: int, episode: int) -> None:
    """Set a lane's stream from (seed, episode), both non-negative int64; only the low 32 bits of `episode` count."""
    stream[0] = seed & MASK32
    stream[1] = (seed >> 32) & MASK32
    stream[2] = episode & MASK32
    stream[3] = 1
    for _ in range(_WARM_UP_ROUNDS):
        next_u32(stream)


@kernel
def next_unit(stream: NDArray[np.uint32]) -> float:
    """A float64 uniform on [0, 1) with 32 random bits."""
    return next_u32(stream) * _TO_UNIT


@kernel
def next_below(stream: NDArray[np.uint32], n: int) -> int:
    """An integer 0 .. n - 1 for 1 <= n < 2**31 (multiply-shift; bias below n / 2**32)."""
    return (next_u32(stream) * n) >> 32


def lane_seeds(seed: int | None, lanes: int) -> NDArray[np.int64]:
    """Seeds of `lanes` lanes, int64: seed, seed + 1, ... as in Gymnasium; None draws from the OS."""
    if seed is None:
        base = int(np.random.SeedSequence().generate_state(1, np.uint64)[0]) >> 2
    else:
        base = int(seed)
        if base < 0:
            raise ValueError(f"seed must be a non-negative integer, got {seed}")
        if base > (1 << 62):  # fold what does not fit, as NumPy does with long seeds
            base = int(np.random.SeedSequence(base).generate_state(1, np.uint64)[0]) >> 2
    return base + np.arange(lanes, dtype=np.int64)
