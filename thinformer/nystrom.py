"""Values and masses of landmarks: N_ss^-1 N_sn (V, 1), given a Cholesky factor of N_ss.

`thinformer.pivots` leaves the factor, and what sampled queries add to the right-hand sides. The
rest of those is exp(<x_s, x_j> - h_s - top) (V, 1) over all keys j.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer._jit import ELEMENTWISE, STRICT, inner, kernel
from thinformer._simd import BYTES, PANEL, ROWS, inner_products
from thinformer.pivots import centre
from thinformer.softmax import gather_columns
from thinformer.tiles import exp, gather_factor

CHUNK = 8 * PANEL  # keys at a time: what is made of them stays in the nearest cache


def workspace(n: int, E: int, D: int, dtype: np.dtype) -> NDArray:
    """Return the memory that one thread works in."""
    n, columns = (-(-size // PANEL) * PANEL for size in (n, D))
    return np.empty(n * (E + columns) + PANEL * (E + CHUNK + columns + PANEL + 2), dtype)


@kernel
def add_exponentials(first, last, positions, key, value, mean, pivots, work):
    """Add to `pivots.carried` what all keys add to blocks of PANEL landmarks first .. last-1.

    positions : the numbers from 0 on, as many as there are keys
    key, value, mean, pivots : as `thinformer.pivots.choose_pivots` has them
    """
    n, E, D, width = positions.size, key.dim, value.dim, BYTES // work.itemsize
    n_out = pivots.indices.shape[1]
    blocks = -(-n_out // PANEL)
    shift, total, work = work[:PANEL], work[PANEL : 2 * PANEL], work[2 * PANEL :]
    rows, work = work[: CHUNK * PANEL], work[CHUNK * PANEL :]
    product, work = work[: PANEL * PANEL], work[PANEL * PANEL :]
    columns = -(-D // PANEL) * PANEL
    sums, work = work[: columns * PANEL], work[columns * PANEL :]
    few_work, work = work[: PANEL * E], work[PANEL * E :]
    shift[:], loaded = 0, -1
    for unit in range(first, last):
        p, start = unit // blocks, unit % blocks * PANEL
        if p != loaded:
            x, _, rest = gather_factor(key, p, positions, work)
            centre(x, mean[p], E)
            values, _ = gather_columns(value, p, positions, rest)
            loaded = p
        count = min(PANEL, n_out - start)
        few, _, _ = gather_factor(key, p, pivots.indices[p, start : start + count], few_work)
        centre(few, mean[p], E)
        for s in range(count):
            shift[s] = pivots.exponents[p, start + s] + pivots.top[p]
        sums[:], total[:] = 0, 0
        for from_key in range(0, n, CHUNK):
            keys = min(CHUNK, n - from_key)
            for row in range(0, keys, ROWS):
                at = (from_key + row) // PANEL * PANEL * E + row % PANEL
                for column in range(0, PANEL, width):
                    inner_products(x, at, few, column, E, rows, row * PANEL + column)
            shifted_exponentials(rows, keys, shift, total)
            for d in range(0, D, PANEL):
                at = d * n + from_key * PANEL
                for row in range(0, min(PANEL, D - d), ROWS):
                    for column in range(0, PANEL, width):
                        inner_products(
                            values, at + row, rows, column, keys, product, row * PANEL + column
                        )
                add(product, sums[d * PANEL : (d + PANEL) * PANEL])
        for s in range(count):
            for d in range(D):
                pivots.carried[p, start + s, d] += sums[d * PANEL + s]
            pivots.carried[p, start + s, D] += total[s]


@inner(ELEMENTWISE)
def shifted_exponentials(rows, n, shift, total):
    """exp(x - shift), of which no exponent is above 0 but by rounding; added to their sums."""
    zero = rows.dtype.type(0)
    for i in range(n):
        row = rows[i * PANEL : (i + 1) * PANEL]
        for s in range(shift.size):
            row[s] = exp(min(row[s] - shift[s], zero))
            total[s] += row[s]


@inner(ELEMENTWISE)
def add(tile, sums):
    """Add a tile."""
    for i in range(sums.size):
        sums[i] += tile[i]


@kernel
def solve(first, last, pivots, order, largest, bound, values, place, stride, masses):
    """Solve for the values and masses of the landmarks of problems first .. last-1.

    order : (problems, n_out) int64, which of the pivots comes first, by position
    largest : exponent that exp(top - h) may have
    bound : (problems,), of what is written
    values : flat, written; landmark s of a problem is at place[problem] + s * stride
    masses : (problems, n_out), written
    """
    n_out, columns = pivots.carried.shape[1:]
    y = np.empty((n_out, columns))
    for p in range(first, last):
        R, top = pivots.factor[p], pivots.top[p]
        y[:] = pivots.carried[p]
        for i in range(n_out):
            for k in range(i):
                subtract(y[i], R[k, i], y[k])
            scale(y[i], 1 / R[i, i])
        for i in range(n_out - 1, -1, -1):
            for k in range(i + 1, n_out):
                subtract(y[i], R[i, k], y[k])
            scale(y[i], 1 / R[i, i])
        for s in range(n_out):
            i = order[p, s]
            scale(y[i], np.exp(min(float(top - pivots.exponents[p, i]), largest)))
            at = place[p] + s * stride
            for d in range(columns - 1):
                values[at + d] = min(max(y[i, d], -bound[p]), bound[p])
            masses[p, s] = min(max(y[i, columns - 1], -bound[p]), bound[p])


@inner(ELEMENTWISE)
def subtract(row, factor, other):
    """Subtract a multiple of another row."""
    for d in range(row.size):
        row[d] -= factor * other[d]


@inner(ELEMENTWISE)
def scale(row, factor):
    """Multiply a row."""
    for d in range(row.size):
        row[d] *= factor
