"""The Numba body: kernel halving of many buckets on the CPU.

A bucket of S points is halved panel by panel, PANEL points at a time. For the points x of a panel
the walk's inner products <psi, k(x, .)> = sum_j eta_j (k(x_2j, x) - k(x_2j+1, x)) are summed over
all pairs decided before it, a tile of kernel values at a time; then the panel's own pairs are
decided in turn. So every kernel value is computed once, half of the Gram matrix in all, and only
one tile of it ever exists: memory is that of the bucket's points.

A tile is one matrix product and phi. The product is BLAS's: loops in plain Numba reached 14 GFLOP/s
where BLAS reaches 110 on tiles of this size (one Zen 4 core, float32). OpenBLAS runs a product of
up to 2^18 multiply-adds on the calling thread and starts threads of its own above, inside ours, so
a tile's product is cut to that, or to one row (of more than 8192 dimensions).
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
    OF_DISTANCE,
    POLYNOMIAL,
)
from thinformer.problem import CONSTANT, DEGREE, SCALE

PANEL = 32  # points: two vectors of 16 floats, in loops of constant length
TILE_ROWS = 128
BLAS_SERIAL = 2**18  # multiply-adds of one product

exp = by_dtype(exp32, exp64)
phi_linear = bind(kernels.phi_linear, ELEMENTWISE)
phi_polynomial = bind(kernels.phi_polynomial, ELEMENTWISE)
phi_exponential = bind(kernels.phi_exponential, ELEMENTWISE, exp=exp)
phi_gaussian = bind(kernels.phi_gaussian, ELEMENTWISE, exp=exp)
phi_laplace = bind(kernels.phi_laplace, ELEMENTWISE, exp=exp)
phi_inverse_multiquadric = bind(kernels.phi_inverse_multiquadric, ELEMENTWISE)
threshold_factor = bind(halving.threshold_factor, STRICT)
pair_distance = bind(halving.pair_distance, STRICT)
swaps = bind(halving.swaps, STRICT)


def workspace(largest_bucket: int, dims: int, dtype: np.dtype) -> NDArray:
    """Return the memory that one thread works in: a bucket's points, a panel and two tiles."""
    rows = -(-largest_bucket // PANEL) * PANEL
    return np.empty(rows * (dims + 1) + PANEL * (2 * TILE_ROWS + dims + 1), dtype)


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
    size = TILE_ROWS * PANEL
    tile, other = work[:size], work[size : 2 * size]
    sums, free = work[2 * size : 2 * size + PANEL], work[2 * size + PANEL :]
    for unit in range(first_unit, last_unit):
        problem, bucket = unit // buckets, unit % buckets
        first, last = bucket * pairs // buckets, (bucket + 1) * pairs // buckets
        points = 2 * (last - first)
        positions = index[problem, 2 * first : 2 * last]
        signs, rest = free[:points], free[points:]
        key, key_constant, rest = load(keys, problem, positions, rest)
        value, value_constant, rest = load(values, problem, positions, rest)
        of_key, of_value = keys.parameters[problem], values.parameters[problem]
        factor = work.dtype.type(threshold_factor(points, delta))
        b_max = work.dtype.type(0)
        for start in range(0, points, PANEL):
            stop = min(start + PANEL, points)
            key_panel = columns(keys.tag, key, start, rest)
            value_panel = columns(values.tag, value, start, rest[PANEL * keys.dim :])
            sums[:] = 0
            row = 0
            while row < stop:
                # tiles of the pairs decided before, then the panel's own
                end = min(row + TILE_ROWS, start) if row < start else stop
                tabulate(keys.tag, key, row, end, start, key_panel, key_constant, of_key, tile)
                if values.dim > 0:
                    tabulate(values.tag, value, row, end, start, value_panel, value_constant,
                             of_value, other)  # fmt: skip
                    multiply(tile, other, end - row)
                if row < start:
                    add_signed(tile, signs[row:end], sums)
                row = end
            uniform = uniforms[uniform_row[problem], first + start // 2 : first + stop // 2]
            b_max = decide(tile, start, sums, signs, b_max, factor, uniform)
        coin = coins[coin_row[problem], bucket]
        for pair in range(last - first):
            second = (signs[2 * pair] < 0) != coin
            kept[problem, first + pair] = positions[2 * pair + second]


@inner(STRICT)
def decide(tile, start, sums, signs, b_max, factor, uniform):
    """Decide the pairs of a panel in turn, from its own tile and the sums before it.

    Writes their signs, +1 for the point kept and -1 for the other, and returns max b.
    """
    for pair in range(uniform.size):
        i, j = 2 * pair, 2 * pair + 1
        row_i, row_j = tile[i * PANEL :], tile[j * PANEL :]
        b = pair_distance(row_i[i], row_i[j], row_j[i], row_j[j])
        b_max = max(b_max, b)
        alpha = sums[i] - sums[j]
        # pair 0 of the bucket has nothing to balance and keeps its first point
        swap = start + pair > 0 and swaps(uniform[pair], b, b_max, factor, alpha)
        signs[start + i], signs[start + j] = (-1, 1) if swap else (1, -1)
        add_signed(row_i, signs[start + i : start + j + 1], sums)
    return b_max


@inner(STRICT)
def add_signed(tile, signs, sums):
    """sums[x] += sum_j eta_j (tile[2j, x] - tile[2j+1, x]), in the order of the pairs.

    Two pairs a step: the sums are loaded and stored half as often, 0.1 ns an entry for 0.3.
    """
    row = 0
    while row + 4 <= signs.size:
        a, b = tile[row * PANEL :], tile[(row + 1) * PANEL :]
        c, d = tile[(row + 2) * PANEL :], tile[(row + 3) * PANEL :]
        first, second = signs[row], signs[row + 2]
        for x in range(PANEL):
            sums[x] = (sums[x] + first * (a[x] - b[x])) + second * (c[x] - d[x])
        row += 4
    if row < signs.size:
        a, b, first = tile[row * PANEL :], tile[(row + 1) * PANEL :], signs[row]
        for x in range(PANEL):
            sums[x] += first * (a[x] - b[x])


@inner(STRICT)
def columns(tag, rows, start, free):
    """Copy rows start .. start+PANEL-1 into free memory as the columns of a panel (dim, PANEL).

    BLAS multiplies by such a panel at 110 GFLOP/s, by transposed rows at 75: the copy pays where
    there are rows enough to multiply. Otherwise the panel is empty.
    """
    dim = rows.shape[1]
    if tag < OF_DISTANCE and start + PANEL <= dim // 2:
        return free[:0].reshape(0, PANEL)
    panel = free[: dim * PANEL].reshape(dim, PANEL)
    for d in range(dim):
        for c in range(PANEL):
            panel[d, c] = rows[start + c, d]
    return panel


@inner(STRICT)
def tabulate(tag, rows, first, last, start, panel, constant, parameters, tile):
    """Kernel values of rows first .. last-1 and of the panel at start, into the tile (rows, PANEL).

    `panel` : that panel's columns, or empty.
    """
    if tag >= OF_DISTANCE:
        squared_distances(rows[first:last], panel, parameters[SCALE], tile)
    else:
        step = max(1, BLAS_SERIAL // (PANEL * rows.shape[1]))
        for row in range(first, last, step):
            part = rows[row : min(row + step, last)]
            at = (row - first) * PANEL
            out = tile[at : at + part.shape[0] * PANEL].reshape(part.shape[0], PANEL)
            if panel.size > 0:
                np.dot(part, panel, out)
            else:
                np.dot(part, rows[start : start + PANEL].T, out)
    apply(tag, tile[: (last - first) * PANEL], constant, parameters[DEGREE])


@inner(ELEMENTWISE)
def squared_distances(rows, panel, scale, tile):
    """|x - y|^2 scale^2 for some rows and a panel's columns.

    Subtracted before anything is rounded: |x|^2 + |y|^2 - 2 <x, y> would be faster in many
    dimensions, and would cancel all digits between close points that are far from the rest.
    """
    for r in range(rows.shape[0]):
        out = tile[r * PANEL : (r + 1) * PANEL]
        out[:] = 0
        for d in range(rows.shape[1]):
            x, y = rows[r, d], panel[d]
            for c in range(PANEL):
                difference = scale * (x - y[c])
                out[c] += difference * difference


@inner(ELEMENTWISE)
def multiply(tile, other, rows):
    """Multiply a tile by another, entry by entry."""
    for i in range(rows * PANEL):
        tile[i] *= other[i]


@inner(ELEMENTWISE)
def apply(tag, tile, constant, degree):
    """Turn inner products or squared distances into kernel values, in loops that vectorise."""
    if tag == LINEAR:
        for i in range(tile.size):
            tile[i] = phi_linear(tile[i], constant, degree)
    elif tag == POLYNOMIAL:
        for i in range(tile.size):
            tile[i] = phi_polynomial(tile[i], constant, degree)
    elif tag == EXPONENTIAL:
        for i in range(tile.size):
            tile[i] = phi_exponential(tile[i], constant, degree)
    elif tag == GAUSSIAN:
        for i in range(tile.size):
            tile[i] = phi_gaussian(tile[i], constant, degree)
    elif tag == LAPLACE:
        for i in range(tile.size):
            tile[i] = phi_laplace(tile[i], constant, degree)
    elif tag == INVERSE_MULTIQUADRIC:
        for i in range(tile.size):
            tile[i] = phi_inverse_multiquadric(tile[i], constant, degree)


@inner(STRICT)
def load(factor, problem, positions, free):
    """Gather a bucket's points into free memory, times the scale where phi takes products.

    Returns rows (S, dim), filled up with zeros to whole panels, the constant that phi takes in this
    bucket, and the memory still free.
    """
    points, dim = positions.size, factor.dim
    padded = -(-points // PANEL) * PANEL
    rows = free[: padded * dim].reshape(padded, dim)
    rows[points:] = 0
    scale, constant = factor.parameters[problem, SCALE], factor.parameters[problem, CONSTANT]
    if factor.tag >= OF_DISTANCE:
        scale = free.dtype.type(1)
    for i in range(points):
        place = factor.first[problem] + positions[i] * factor.row
        if factor.column == 1:
            source = factor.window[place : place + dim]
            for c in range(dim):
                rows[i, c] = source[c] * scale
        else:
            for c in range(dim):
                rows[i, c] = factor.window[place + c * factor.column] * scale
    if factor.tag == EXPONENTIAL:
        # the least shift that keeps exp from overflowing in this bucket; KH is blind to it
        constant = largest_norm(rows)
    return rows, constant, free[padded * dim :]


@inner(REDUCTION)
def largest_norm(rows):
    """Max |x|^2 over the rows."""
    largest = rows.dtype.type(0)
    for i in range(rows.shape[0]):
        norm = rows.dtype.type(0)
        for c in range(rows.shape[1]):
            norm += rows[i, c] * rows[i, c]
        largest = max(largest, norm)
    return largest


@kernel
def halve_gram(first, last, gram, delta, kept, uniforms, uniform_row, coins, coin_row, work):
    """Halve problems first .. last-1, each an (S, S) Gram matrix; an odd last point is left out.

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
