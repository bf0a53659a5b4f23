"""The loops that run before halving: random numbers, starting points, largest entries."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.jit import STRICT, bind, kernel
from thinformer.cpu.rows import fill
from thinformer.cpu.simd import BYTES, raise_to_magnitudes
from thinformer.halving import draws

SCANNED = 8  # rows that are read together, one vector of columns after another, while in cache

mix = bind(draws.mix, STRICT)
unit = bind(draws.unit, STRICT)


@kernel
def unit_numbers(keys, stream, out):
    """Write numbers in [0, 1) of a numbered stream of every head's key, as `draws` defines them.

    keys : (heads,) uint64; out : (heads, size) float64, written
    """
    for head in range(keys.size):
        start = mix(keys[head] + np.uint64(stream))
        for i in range(out.shape[1]):
            out[head, i] = unit(mix(start + np.uint64(i + 1) * np.uint64(draws.GOLDEN)))


@kernel
def stratify(n_points, uniforms, positions):
    """Write positions (heads, length), increasing: one of each of `length` strata around a ring.

    uniforms : (heads, length + 1) float64, where the ring begins, and where in its stratum each
        position is
    """
    (heads, length), rotated = positions.shape, np.empty(positions.shape[1], np.int64)
    for head in range(heads):
        start = np.int64(uniforms[head, 0] * n_points)
        low, beyond = 0, 0
        for i in range(length):
            high = (i + 1) * n_points // length
            rotated[i] = start + low + np.int64(uniforms[head, i + 1] * (high - low))
            beyond += rotated[i] >= n_points
            low = high
        for i in range(length):  # positions beyond the end wrap around and come first
            last = i >= length - beyond
            to = i - length + beyond if last else i + beyond
            positions[head, to] = rotated[i] - n_points if last else rotated[i]


def workspace(dtype: np.dtype) -> NDArray:
    """Return the memory that one thread of `scan` works in: a vector."""
    return np.empty(BYTES // dtype.itemsize, dtype)


@kernel
def scan(first, last, factor, index, largest, work):
    """Write the largest magnitude among the rows in index, for problems first .. last-1.

    It is NaN if an entry is NaN. A row of 64 numbers in float32 takes 5 to 6 ns; in a plain loop it
    takes 12 ns.

    factor : Factor
    index : (problems, n) int64, or (1, n) where all problems share the rows
    largest : (problems,), written
    work : see `workspace`
    """
    width = BYTES // factor.window.itemsize
    whole = factor.dim // width * width if factor.column == 1 else 0
    for problem in range(first, last):
        positions, corner = index[problem % index.shape[0]], factor.first[problem]
        fill(work, 0)
        for i in range(0, positions.size, SCANNED):
            count = min(SCANNED, positions.size - i)
            for c in range(0, whole, width):
                place = corner + c
                raise_to_magnitudes(work, factor.window, place, factor.row, positions, i, count)
        top = work[0]
        for i in range(width):
            if work[i] > top or work[i] != work[i]:  # NaN stays, as nothing is above it
                top = work[i]
        if whole < factor.dim:
            for i in range(positions.size):
                row = corner + positions[i] * factor.row
                for c in range(whole, factor.dim):
                    entry = abs(factor.window[row + c * factor.column])
                    if entry > top or entry != entry:
                        top = entry
        largest[problem] = top
