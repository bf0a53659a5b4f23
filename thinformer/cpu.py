"""The Numba body: kernel halving of many buckets on the CPU.

A bucket of S points is halved panel by panel, PANEL points at a time. For the points x of a panel
the walk's inner products <psi, k(x, .)> = sum_j eta_j (k(x_2j, x) - k(x_2j+1, x)) are summed over
all pairs decided before it, a tile of kernel values at a time; then the panel's own pairs are
decided in turn. So every kernel value is computed once, half of the Gram matrix in all, and only
one tile of it ever exists: memory is that of the bucket's points.

A tile is one matrix product and phi. The product is BLAS's: a register-blocked one in plain Numba
reached 14 GFLOP/s where BLAS reached 83 of 100 on tiles of this size (one Zen 4 core, float32).
Tiles stay within TILE_FLOPS because OpenBLAS runs a product of up to 2^18 multiply-adds on the
calling thread; above that it starts threads of its own inside ours.
The sums run strictly in the order of the pairs, so they do not depend on the tiling.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer import halving, kernels
from thinformer._exp import exp32, exp64
from thinformer._jit import ELEMENTWISE, REDUCTION, STRICT, bind, by_dtype, inner, kernel
from thinformer.kernels import (
    EXPONENTIAL,
    GAUSSIAN,
    INVERSE_MULTIQUADRIC,
    LAPLACE,
    LINEAR,
    POLYNOMIAL,
)

PANEL = 32  # points; two vectors of 16 floats, and BLAS still works at its speed
TILE_ROWS = 128
TILE_FLOPS = 2**18  # multiply-adds

exp = by_dtype(exp32, exp64)
phi_polynomial = bind(kernels.phi_polynomial, ELEMENTWISE)
phi_gaussian = bind(kernels.phi_gaussian, ELEMENTWISE, exp=exp)
phi_exponential = bind(kernels.phi_exponential, ELEMENTWISE, exp=exp)
phi_laplace = bind(kernels.phi_laplace, ELEMENTWISE, exp=exp)
phi_inverse_multiquadric = bind(kernels.phi_inverse_multiquadric, ELEMENTWISE)
phi_linear = bind(kernels.phi_linear, ELEMENTWISE)
threshold_factor = bind(halving.threshold_factor, STRICT)
pair_distance = bind(halving.pair_distance, STRICT)
swaps = bind(halving.swaps, STRICT)


def workspace(largest_bucket: int, dims: int, dtype: np.dtype) -> NDArray:
    """Return the memory that one thread works in: a bucket's points and two tiles."""
    return np.empty(largest_bucket * (dims + 3) + (2 * TILE_ROWS + 1) * PANEL, dtype)


@kernel
def halve_buckets(
    first_unit, last_unit, keys, values, round_, index, kept,
    uniforms, uniform_row, coins, coin_row, work,
):  # fmt: skip
    """Halve buckets first_unit .. last_unit-1 of a round, counted over all problems.

    keys, values : Factor; the kernel is their product
    round_ : Round
    index : (problems, 2 * pairs) int64, the points that are left
    kept : (problems, pairs) int64, written
    uniforms : (any, pairs) in the points' dtype; uniform_row (problems,) says which row
    coins, coin_row : likewise, (any, buckets) bool
    work : see `workspace`
    """
    pairs, buckets, delta = round_.pairs, round_.buckets, round_.delta
    sums, free = work[:PANEL], work[PANEL:]
    for unit in range(first_unit, last_unit):
        problem, bucket = unit // buckets, unit % buckets
        first, last = bucket * pairs // buckets, (bucket + 1) * pairs // buckets
        points = 2 * (last - first)
        positions = index[problem, 2 * first : 2 * last]
        signs, rest = free[:points], free[points:]
        key_rows, key_norms, key_constant, rest = load(keys, problem, positions, rest)
        value_rows, value_norms, value_constant, rest = load(values, problem, positions, rest)
        factor = threshold_factor(points, delta)
        sums[:] = 0
        b_max = work.dtype.type(0)
        for start in range(0, points, PANEL):
            stop = min(start + PANEL, points)
            sums[:] = 0
            row = 0
            while row <= start:
                # tiles of pairs already decided, then the panel's own
                end = min(row + tile_rows(keys.dim, values.dim), start) if row < start else stop
                size = (end - row) * (stop - start)
                tile = rest[:size].reshape(end - row, stop - start)
                product(key_rows[row:end], key_rows[start:stop], tile)
                apply(keys.tag, tile, key_norms[row:end], key_norms[start:stop], key_constant,
                      keys.parameters[problem, 2])  # fmt: skip
                if values.dim > 0:
                    other = rest[size : 2 * size].reshape(end - row, stop - start)
                    product(value_rows[row:end], value_rows[start:stop], other)
                    apply(values.tag, other, value_norms[row:end], value_norms[start:stop],
                          value_constant, values.parameters[problem, 2])  # fmt: skip
                    multiply(tile, other)
                if row == start:
                    break
                add_signed(tile, signs[row:end], sums)
                row = end
            b_max = decide(
                tile, start, sums, signs, b_max, factor,
                uniforms[uniform_row[problem], first : last],
            )  # fmt: skip
        coin = coins[coin_row[problem], bucket]
        for pair in range(last - first):
            second = (signs[2 * pair] < 0) != coin
            kept[problem, first + pair] = positions[2 * pair + second]


@inner(STRICT)
def decide(tile, start, sums, signs, b_max, factor, uniforms):
    """Decide the pairs of a panel in turn, from its own tile and the sums before it.

    Writes their signs, +1 for the point kept and -1 for the other, and returns max b.
    """
    for p in range(0, tile.shape[0], 2):
        point = start + p
        b = pair_distance(tile[p, p], tile[p, p + 1], tile[p + 1, p], tile[p + 1, p + 1])
        b_max = max(b_max, b)
        alpha = sums[p] - sums[p + 1]
        # pair 0 has nothing to balance and keeps its first point
        if point > 0 and swaps(uniforms[point // 2], b, b_max, sums.dtype.type(factor), alpha):
            signs[point], signs[point + 1] = -1, 1
        else:
            signs[point], signs[point + 1] = 1, -1
        add_signed(tile[p : p + 2], signs[point : point + 2], sums)
    return b_max


@inner(STRICT)
def add_signed(tile, signs, sums):
    """sums[c] += sum_r signs[r] tile[r, c], in the order of the rows."""
    for r in range(tile.shape[0]):
        for c in range(tile.shape[1]):
            sums[c] += signs[r] * tile[r, c]


@inner(STRICT)
def tile_rows(key_dim, value_dim):
    """Rows of a tile whose matrix products BLAS runs on the calling thread."""
    return max(8, min(TILE_ROWS, TILE_FLOPS // (PANEL * max(key_dim, value_dim, 1))))


@inner(STRICT)
def product(x, y, out):
    """<x_i, y_j> for all rows of both."""
    np.dot(x, y.T, out)


@inner(ELEMENTWISE)
def multiply(tile, other):
    """Tile *= other, entry by entry."""
    for r in range(tile.shape[0]):
        for c in range(tile.shape[1]):
            tile[r, c] *= other[r, c]


@inner(ELEMENTWISE)
def apply(tag, tile, row_norms, column_norms, constant, degree):
    """Turn inner products into kernel values, in place. One branch a row, so loops vectorise."""
    for r in range(tile.shape[0]):
        row, xx, yy = tile[r], row_norms[r], column_norms
        if tag == LINEAR:
            for c in range(row.size):
                row[c] = phi_linear(row[c], xx, yy[c], constant, degree)
        elif tag == POLYNOMIAL:
            for c in range(row.size):
                row[c] = phi_polynomial(row[c], xx, yy[c], constant, degree)
        elif tag == EXPONENTIAL:
            for c in range(row.size):
                row[c] = phi_exponential(row[c], xx, yy[c], constant, degree)
        elif tag == GAUSSIAN:
            for c in range(row.size):
                row[c] = phi_gaussian(row[c], xx, yy[c], constant, degree)
        elif tag == LAPLACE:
            for c in range(row.size):
                row[c] = phi_laplace(row[c], xx, yy[c], constant, degree)
        elif tag == INVERSE_MULTIQUADRIC:
            for c in range(row.size):
                row[c] = phi_inverse_multiquadric(row[c], xx, yy[c], constant, degree)


@inner(STRICT)
def load(factor, problem, positions, free):
    """Gather a bucket's points, times the scale, into free memory.

    Returns rows (S, dim), their squared norms (S,), the constant that phi takes in this bucket,
    and the memory still free.
    """
    points, dim = positions.size, factor.dim
    rows = free[: points * dim].reshape(points, dim)
    norms = free[points * dim : points * (dim + 1)]
    scale, constant = factor.parameters[problem, 0], factor.parameters[problem, 1]
    for i in range(points):
        place = factor.first[problem] + positions[i] * factor.row
        if factor.column == 1:
            source = factor.window[place : place + dim]
            for c in range(dim):
                rows[i, c] = source[c] * scale
        else:
            for c in range(dim):
                rows[i, c] = factor.window[place + c * factor.column] * scale
    tag = factor.tag
    if tag in (GAUSSIAN, LAPLACE, INVERSE_MULTIQUADRIC):
        centre(rows)
    if tag not in (LINEAR, POLYNOMIAL):
        for i in range(points):
            norms[i] = squared_norm(rows[i])
    if tag == EXPONENTIAL:
        # the least shift that keeps exp from overflowing in this bucket; KH is blind to it
        constant = np.max(norms)
    return rows, norms, constant, free[points * (dim + 1) :]


@inner(STRICT)
def centre(rows):
    """Subtract the bucket's mean, to which a function of x - y is blind.

    |x|^2 + |y|^2 - 2 <x, y> then cancels no more digits than it must.
    """
    for c in range(rows.shape[1]):
        mean = np.mean(rows[:, c])
        for i in range(rows.shape[0]):
            rows[i, c] -= mean


@inner(REDUCTION)
def squared_norm(row):
    """|x|^2 of one row."""
    total = row[0] - row[0]
    for c in range(row.size):
        total += row[c] * row[c]
    return total


@kernel
def halve_gram(first, last, gram, delta, kept, uniforms, uniform_row, coins, coin_row, work):
    """Halve problems first .. last-1, each given as an (S, S) Gram matrix; an odd last point is left.

    gram : Factor whose rows are those of the matrix
    kept : (problems, S // 2) int64, written
    work : S entries of memory, the thread's own
    """
    points = 2 * kept.shape[1]
    factor = work.dtype.type(threshold_factor(points, delta))
    for problem in range(first, last):
        corner = gram.first[problem]
        coin = coins[coin_row[problem], 0]
        sums = work[:points]
        sums[:] = 0
        b_max = work.dtype.type(0)
        for pair in range(points // 2):
            i, j = 2 * pair, 2 * pair + 1
            row_i, row_j = corner + i * gram.row, corner + j * gram.row
            ci, cj = i * gram.column, j * gram.column
            w = gram.window
            b = pair_distance(w[row_i + ci], w[row_i + cj], w[row_j + ci], w[row_j + cj])
            b_max = max(b_max, b)
            uniform = uniforms[uniform_row[problem], pair]
            swap = pair > 0 and swaps(uniform, b, b_max, factor, sums[i] - sums[j])
            kept[problem, pair] = j if swap != coin else i
            for c in range(j + 1, points):
                step = w[row_i + c * gram.column] - w[row_j + c * gram.column]
                sums[c] += -step if swap else step


@kernel
def scan(first, last, factor, index, magnitude, largest):
    """Find the largest magnitude among the rows in index of problems first .. last-1, as bits.

    Bits without the sign order as the magnitudes do, with NaN above infinity, and unlike a
    maximum of floats theirs vectorises: 0.13 ms for 800,000 entries against 0.44.

    factor : Factor whose window is a view of the floats' bits
    index : (problems, n) int64, or (1, n) where all problems share the rows
    magnitude : the mask that clears the sign
    largest : (problems,) integers, written
    """
    for problem in range(first, last):
        top = magnitude & 0
        positions = index[problem % index.shape[0]]
        for i in range(positions.size):
            place = factor.first[problem] + positions[i] * factor.row
            if factor.column == 1:
                row = factor.window[place : place + factor.dim]
                for c in range(row.size):
                    top = max(top, row[c] & magnitude)
            else:
                for c in range(factor.dim):
                    top = max(top, factor.window[place + c * factor.column] & magnitude)
        largest[problem] = top
