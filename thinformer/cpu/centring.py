"""Keys minus their mean, and the norms of queries and keys, which temperatures follow from.

A shift of all keys changes no attention weight, but it changes the values of a kernel on keys.
Points lie in panels (E, PANEL).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.jit import ELEMENTWISE, STRICT, inner, kernel
from thinformer.cpu.rows import add
from thinformer.cpu.simd import PANEL, padded_size, squared_norms
from thinformer.cpu.softmax import write_columns
from thinformer.cpu.subnormals import cleared
from thinformer.cpu.tiles import gather_factor
from thinformer.halving.problem import Factor


def workspace(key: Factor, S: int) -> NDArray:
    """Return the memory that one thread of `centre_keys` works in."""
    padded = padded_size(S) + PANEL
    beyond = PANEL * PANEL  # a vector of rows reads past the last
    return cleared(padded * (key.dim + 1) + PANEL * PANEL + beyond, key.window.dtype)


@kernel
def centre_keys(first, last, query, key, T, S, positions, out, of_query, of_key, work):
    """Write keys minus their mean, and sums of squared norms, of problems first .. last-1.

    positions : the numbers from 0 on, as many as there are tokens, and as E in whole panels
    out : flat, of (problems, S, E), written
    of_query, of_key : (problems,) float64, written: the sums of squared norms of the queries, and
        of the keys minus their mean
    """
    E, mean = key.dim, np.empty(key.dim, work.dtype)
    block, work = work[: PANEL * PANEL], work[PANEL * PANEL :]
    for p in range(first, last):
        _, of_query[p] = largest_square(query, p, positions[:T], work)
        x, _, free = gather_factor(key, p, positions[:S], work)
        squares = free[: x.size // E]
        measure_keys(x, S, E, mean, squares)
        of_key[p] = 0
        for j in range(S):
            of_key[p] += squares[j]
        for start in range(0, S, PANEL):
            chosen = positions[start : min(start + PANEL, S)]
            write_columns(x[start * E :], E, chosen, positions, out, p * S * E, E, block)


@inner(STRICT)
def measure_keys(x, n, E, mean, squares):
    """Write the mean (E,) of the n keys in panels x, subtract it, and write squared norms.

    squares : (n in whole panels,), the norms of the keys minus their mean
    """
    total = np.zeros(PANEL * E, x.dtype)
    for c in range(n, x.size // E):
        x[c // PANEL * PANEL * E + c % PANEL : (c // PANEL + 1) * PANEL * E : PANEL] = 0
    for start in range(0, x.size, total.size):
        add(x[start : start + total.size], total)
    for d in range(E):
        mean[d] = total[d * PANEL : (d + 1) * PANEL].sum() / n
    centre(x, mean, x.dtype.type(1))
    for start in range(0, squares.size, PANEL):
        squared_norms(x, start * E, E, squares, start)


@inner(STRICT)
def largest_square(query, p, positions, free):
    """Return the largest |q|^2 of a problem's queries, and the sum of all."""
    largest, total = free.dtype.type(0), 0.0
    for start in range(0, positions.size, PANEL):
        count = min(PANEL, positions.size - start)
        panel, _, rest = gather_factor(query, p, positions[start : start + count], free)
        squared_norms(panel, 0, query.dim, rest, 0)
        for c in range(count):
            largest = max(largest, rest[c])
            total += rest[c]
    return largest, total


@inner(ELEMENTWISE)
def centre(panels, mean, scale):
    """Replace all points x of panels (E, PANEL) by (x - mean) * scale."""
    E = mean.size
    for start in range(0, panels.size, E * PANEL):
        for d in range(E):
            row = panels[start + d * PANEL : start + (d + 1) * PANEL]
            for c in range(row.size):
                row[c] = (row[c] - mean[d]) * scale
