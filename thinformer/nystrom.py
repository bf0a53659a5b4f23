"""Landmarks of one head after another: which keys, and what values and masses they get.

`choose` factorises the kernel N of `thinformer.pivots` among candidates. The factor's columns at
the pivots are the Cholesky factor R of N between landmarks, and values and masses are
R^-1 R^-T N_sn (V, 1). Of the right-hand sides `choose` writes what sampled queries say,
f_s^T P (V, 1), and `add_exponentials` adds exp(<x_s, x_j> - h_s - top) (V, 1), summed over all
keys j. `solve` is two substitutions.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer._jit import ELEMENTWISE, STRICT, inner, kernel
from thinformer._simd import BYTES, PANEL, ROWS, inner_products, squared_norms
from thinformer.pivots import BLOCK, factorise
from thinformer.problem import SCALE, Factor
from thinformer.sampled import attend, exponents, scale_features
from thinformer.softmax import gather_columns
from thinformer.tiles import exp, gather_factor

CHUNK = 8 * PANEL  # keys at a time: what is made of them stays in the nearest cache


class Heads(NamedTuple):
    """Heads whose landmarks are wanted.

    query, key, value : Factor, with T and S tokens; the queries' SCALE is the softmax scale
    T, S, n_out : tokens, and landmarks
    positions : the numbers from 0 on, as many as there are tokens, and at least PANEL
    temperature : (problems,), written where it is 0
    mean : (problems, E), written: of the keys
    low, high, average : (problems, D), written: the range of the values and their mean
    sums : (problems,), written: not finite if any token is not, or if a square overflows
    """

    query: Factor
    key: Factor
    value: Factor
    T: int
    S: int
    n_out: int
    positions: NDArray
    temperature: NDArray
    mean: NDArray
    low: NDArray
    high: NDArray
    average: NDArray
    sums: NDArray


class Draws(NamedTuple):
    """Random choices, a row a head; and which row a problem has.

    queries : (heads, m) int64, those sampled; candidates : (heads, L) int64, increasing
    uniforms : (heads, proposals, 2) float64
    head : (problems,) int64
    """

    queries: NDArray
    candidates: NDArray
    uniforms: NDArray
    head: NDArray


class Pivots(NamedTuple):
    """Landmarks in the order they were chosen, all written.

    indices : (problems, n_out) int64
    exponents : (problems, n_out), their h; top : (problems,), the largest h of all keys
    factor : (problems, n_out, n_out), R, upper triangular
    right : (problems, ...), panels (n_out, PANEL) of the D + 1 columns of right-hand sides

    There are no problems in the last two where landmarks are only chosen.
    """

    indices: NDArray
    exponents: NDArray
    top: NDArray
    factor: NDArray
    right: NDArray


def whole(size: int) -> int:
    """As many points as the panels have that hold so many."""
    return -(-size // PANEL) * PANEL


def workspace(heads: Heads, draws: Draws) -> NDArray:
    """Return the memory that one thread works in."""
    E, D, S, n_out = heads.key.dim, whole(heads.value.dim), whole(heads.S), whole(heads.n_out)
    L, m = whole(draws.candidates.shape[1]), whole(draws.queries.shape[1])
    of_keys = S * (E + D + 1 + PANEL) + PANEL * (PANEL + E)
    of_candidates = L * (E + m + n_out + 2 * BLOCK + 5)
    of_queries = max(whole(heads.T) * E, m * D)
    few = PANEL * (m + n_out + 2 * BLOCK + E + CHUNK + D + 2 * PANEL + 8)
    return np.empty(of_keys + of_candidates + of_queries + few, heads.mean.dtype)


@kernel
def choose(first, last, heads, draws, two_rho, balance, nugget, pivots, work):
    """Choose the landmarks of problems first .. last-1.

    two_rho : WildCat's constant, for the temperature
    balance : the exponential kernel's trace beside that of the sampled queries' attention
    nugget : added to the diagonal of N
    """
    key, value, S, positions = heads.key, heads.value, heads.S, heads.positions
    E, D, m, L = key.dim, value.dim, draws.queries.shape[1], draws.candidates.shape[1]
    queries, padded = -(-m // PANEL) * PANEL, -(-L // PANEL) * PANEL
    rows, fit = queries + heads.n_out + BLOCK, pivots.factor.shape[0] > 0
    index = np.empty(padded, np.int64)
    for p in range(first, last):
        head = draws.head[p]
        for c in range(padded):
            index[c] = draws.candidates[head, min(c, L - 1)]
        x, _, free = gather_factor(key, p, positions[:S], work)
        values, free = gather_columns(value, p, positions[:S], free)
        squares, free = free[: x.size // E], free[x.size // E :]
        measure_values(values, S, heads.low[p], heads.high[p], heads.average[p])
        measure_keys(x, S, E, heads.mean[p], squares)
        largest_query, total = largest_square(heads.query, p, positions[: heads.T], free)
        largest_key = squares[0]
        for j in range(S):
            largest_key = max(largest_key, squares[j])
            total += squares[j]
        for d in range(D):
            total += heads.low[p, d] + heads.high[p, d]
        heads.sums[p] = total
        beta = float(heads.query.parameters[p, SCALE])
        if heads.temperature[p] == 0:
            heads.temperature[p] = temperature(
                math.sqrt(largest_query) / beta, math.sqrt(largest_key), S, beta, two_rho
            )
        tau = heads.temperature[p]
        to_x = x.dtype.type(math.sqrt(beta) / tau)
        multiply(x, to_x)
        candidates, _, free = gather_factor(key, p, index, free)
        centre(candidates, heads.mean[p], to_x)
        squares, importance, h, free = (
            free[:padded], free[padded : 2 * padded], free[2 * padded : 3 * padded],
            free[3 * padded :],
        )  # fmt: skip
        for start in range(0, padded, PANEL):
            squared_norms(candidates, start * E, E, squares, start)
        features, free = free[: padded * rows], free[padded * rows :]
        size = queries * -(-D // PANEL) * PANEL if fit else 0
        outputs, free = free[:size], free[size:]
        if m > 0:
            attend(
                p, x, S, heads.query, draws.queries[head], x.dtype.type(tau / math.sqrt(beta)),
                values, D if fit else 0, positions, index, features, rows, importance, outputs, free,
            )  # fmt: skip
            t = exponents(importance[:L], squares, balance, h[:L])
            h[L:] = h[L - 1]
            top = h.max()
            scale_features(features, h, rows, m, t)
        else:
            h[:], t, top = squares / 2, x.dtype.type(0), largest_key * to_x * to_x / 2
        chosen = factorise(
            candidates, E, features, queries, rows, h, L, draws.uniforms[head], heads.n_out, nugget,
            free,
        )  # fmt: skip
        pivots.top[p] = top
        for i in range(chosen.size):
            pivots.indices[p, i] = index[chosen[i]]
            pivots.exponents[p, i] = h[chosen[i]]
        if fit:
            read_factor(features, rows, queries, chosen, pivots.factor[p])
            start_right(
                features,
                rows,
                queries,
                chosen,
                outputs,
                D,
                math.exp(t - top),
                pivots.right[p],
                free,
            )


@inner(STRICT)
def measure_values(values, n, low, high, average):
    """Write range and mean of each of the values' dimensions, from panels (n, PANEL) of them."""
    for start in range(0, low.size, PANEL):
        panel = values[start * n : (start + PANEL) * n]
        least, most = panel[:PANEL].copy(), panel[:PANEL].copy()
        widen(panel, least, most)
        copy_row(least, low[start:])
        copy_row(most, high[start:])
    mean_of_rows(values, n, average)


@inner(STRICT)
def mean_of_rows(values, n, average):
    """Write the mean of each of the values' dimensions, from panels (n, PANEL) of them."""
    total = np.empty(PANEL, values.dtype)
    for start in range(0, average.size, PANEL):
        total[:] = 0
        add_rows(values[start * n : (start + PANEL) * n], total)
        multiply(total, values.dtype.type(1 / n))
        copy_row(total, average[start:])


@inner(ELEMENTWISE)
def add_rows(panel, total):
    """Add all rows of a panel."""
    for start in range(0, panel.size, PANEL):
        row = panel[start : start + PANEL]
        for d in range(total.size):
            total[d] += row[d]


@inner(ELEMENTWISE)
def widen(panel, low, high):
    """Widen ranges by the rows of a panel; those of NaN become NaN."""
    for start in range(0, panel.size, PANEL):
        row = panel[start : start + PANEL]
        for d in range(low.size):
            low[d] = row[d] if not (row[d] >= low[d]) else low[d]
            high[d] = row[d] if not (row[d] <= high[d]) else high[d]


@inner(STRICT)
def measure_keys(x, n, E, mean, squares):
    """Write the mean of the n keys in panels x, subtract it, and write what is left squared."""
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
    """The largest |q|^2, and their sum."""
    panels, _, free = gather_factor(query, p, positions, free)
    largest, total = panels.dtype.type(0), 0.0
    for start in range(0, positions.size, PANEL):
        squared_norms(panels, start * query.dim, query.dim, free, 0)
        for c in range(min(PANEL, positions.size - start)):
            largest = max(largest, free[c])
            total += free[c]
    return largest, total


@inner(STRICT)
def temperature(q, k, n, scale, two_rho):
    """WildCat's temperature (arXiv 2602.10056), of the largest norms; 1 if one of them is 0.

    W_0 by Halley's method, which from here needs three steps for all digits of float64.
    """
    if not (q > 0 and k > 0):
        return 1.0
    b = math.log(n) / (scale * q * k) + 2
    z = b / two_rho
    w = math.log1p(z)
    w *= 1 - math.log1p(w) / (2 + w)
    for _ in range(4):
        e = math.exp(w)
        f = w * e - z
        w -= f / (e * (w + 1) - (w + 2) * f / (2 * w + 2))
    return math.sqrt(k / q * b / (2 * w))


@inner(ELEMENTWISE)
def centre(panels, mean, scale):
    """(x - mean) scale of all points of panels (E, PANEL)."""
    E = mean.size
    for start in range(0, panels.size, E * PANEL):
        for d in range(E):
            row = panels[start + d * PANEL : start + (d + 1) * PANEL]
            for c in range(row.size):
                row[c] = (row[c] - mean[d]) * scale


@inner(ELEMENTWISE)
def multiply(row, factor):
    """Multiply a row by a number."""
    for d in range(row.size):
        row[d] *= factor


@inner(ELEMENTWISE)
def add(row, total):
    """Add a row."""
    for d in range(total.size):
        total[d] += row[d]


@inner(STRICT)
def read_factor(features, rows, queries, chosen, factor):
    """Write the Cholesky factor's columns at the pivots."""
    factor[:] = 0
    for j in range(chosen.size):
        at = chosen[j] // PANEL * PANEL * rows + chosen[j] % PANEL
        for i in range(j + 1):
            factor[i, j] = features[at + (queries + i) * PANEL]


@inner(STRICT)
def start_right(features, rows, queries, chosen, outputs, D, factor, right, free):
    """Write f^T (outputs, 1) times a factor."""
    width = BYTES // features.itemsize
    right[:] = 0
    if queries == 0:
        return
    few, free = free[: PANEL * queries], free[PANEL * queries :]
    for first in range(0, chosen.size, PANEL):
        count = min(PANEL, chosen.size - first)
        for c in range(count):
            at = chosen[first + c] // PANEL * PANEL * rows + chosen[first + c] % PANEL
            total = 0.0
            for q in range(queries):
                f = features[at + q * PANEL]
                few[q * PANEL + c] = f
                total += f
            right[(D // PANEL * chosen.size + first + c) * PANEL + D % PANEL] = total * factor
        for start in range(0, D, PANEL):
            for row in range(0, count, ROWS):
                for column in range(0, PANEL, width):
                    at = start * queries + column
                    inner_products(few, row, outputs, at, queries, free, row * PANEL + column)
            for c in range(count):
                for d in range(min(PANEL, D - start)):
                    right[start * chosen.size + (first + c) * PANEL + d] = (
                        free[c * PANEL + d] * factor
                    )


@kernel
def add_exponentials(first, last, heads, summed, row, pivots, work):
    """Add to right-hand sides what keys add: blocks of PANEL landmarks first .. last-1.

    summed, row : (rows, n) int64, positions of keys that stand for all, and which row a problem has

    Values of keys that are not all are moved together, so that their mean is that of all.
    """
    key, value, n = heads.key, heads.value, summed.shape[1]
    E, D, n_out, width = key.dim, value.dim, heads.n_out, BYTES // work.itemsize
    blocks = -(-n_out // PANEL)
    shift, total, work = work[:PANEL], work[PANEL : 2 * PANEL], work[2 * PANEL :]
    rows, work = work[: CHUNK * PANEL], work[CHUNK * PANEL :]
    product, work = work[: PANEL * PANEL], work[PANEL * PANEL :]
    size = -(-D // PANEL) * PANEL * PANEL
    sums, work = work[:size], work[size:]
    of_few, work = work[: PANEL * E], work[PANEL * E :]
    shift[:], loaded, weight = 0, -1, work.dtype.type(heads.S / n)
    apart = np.empty(D, work.dtype)  # how far the values' mean is from that of all keys' values
    for unit in range(first, last):
        p, start = unit // blocks, unit % blocks * PANEL
        if p != loaded:
            to_x = work.dtype.type(
                math.sqrt(float(heads.query.parameters[p, SCALE])) / heads.temperature[p]
            )
            x, _, free = gather_factor(key, p, summed[row[p]], work)
            centre(x, heads.mean[p], to_x)
            values, _ = gather_columns(value, p, summed[row[p]], free)
            mean_of_rows(values, n, apart)
            subtract(apart, 1, heads.average[p])
            loaded = p
        count = min(PANEL, n_out - start)
        few, _, _ = gather_factor(key, p, pivots.indices[p, start : start + count], of_few)
        centre(few, heads.mean[p], to_x)
        for s in range(count):
            shift[s] = pivots.exponents[p, start + s] + pivots.top[p]
        sums[:], total[:] = 0, 0
        for from_key in range(0, n, CHUNK):
            keys = min(CHUNK, n - from_key)
            for i in range(0, keys, ROWS):
                at = (from_key + i) // PANEL * PANEL * E + i % PANEL
                for column in range(0, PANEL, width):
                    inner_products(x, at, few, column, E, rows, i * PANEL + column)
            shifted_exponentials(rows, keys, shift, total)
            for d in range(0, D, PANEL):
                for i in range(0, min(PANEL, D - d), ROWS):
                    for column in range(0, PANEL, width):
                        at = d * n + from_key * PANEL + i
                        inner_products(values, at, rows, column, keys, product, i * PANEL + column)
                add(product, sums[d * PANEL : (d + PANEL) * PANEL])
        right = pivots.right[p]
        for s in range(count):
            for d in range(D + 1):
                of_d = sums[d * PANEL + s] - apart[d] * total[s] if d < D else total[s]
                right[(d // PANEL * n_out + start + s) * PANEL + d % PANEL] += weight * of_d


@inner(ELEMENTWISE)
def shifted_exponentials(rows, n, shift, total):
    """exp(x - shift), of which no exponent is above 0 but by rounding; added to their sums."""
    zero = rows.dtype.type(0)
    for i in range(n):
        row = rows[i * PANEL : (i + 1) * PANEL]
        for s in range(shift.size):
            row[s] = exp(min(row[s] - shift[s], zero))
            total[s] += row[s]


@kernel
def solve(first, last, pivots, order, largest, bound, values, place, stride, masses, D, work):
    """Solve for the values and masses of the landmarks of problems first .. last-1.

    order : (problems, n_out) int64, which of the pivots comes first, by position
    largest : exponent that exp(top - h) may have
    bound : (problems,), of what is written
    values : flat, written; landmark s of a problem is at place[problem] + s * stride
    masses : (problems, n_out), written
    """
    n = order.shape[1]
    for p in range(first, last):
        fitted = pivots.right[p]
        substitute(pivots.factor[p], fitted, work)
        for s in range(n):
            i = order[p, s]
            factor = math.exp(min(float(pivots.top[p] - pivots.exponents[p, i]), largest))
            for d in range(D + 1):
                z = fitted[(d // PANEL * n + i) * PANEL + d % PANEL] * factor
                z = min(max(z, -bound[p]), bound[p])
                if d < D:
                    values[place[p] + s * stride + d] = z
                else:
                    masses[p, s] = z


@inner(STRICT)
def substitute(R, y, free):
    """Replace y, panels (n, PANEL), by R^-1 R^-T y, PANEL rows at a time.

    All is products: of what was solved before with rows of R, and of what that leaves with the
    inverse of R's diagonal block.
    """
    n, square = R.shape[0], PANEL * PANEL
    of_rows, free = free[: n * PANEL], free[n * PANEL :]
    inverse, transposed, tile = free[:square], free[square : 2 * square], free[2 * square :]
    for start in range(0, n, PANEL):
        count = min(PANEL, n - start)
        for k in range(start):
            copy_row(R[k, start : start + count], of_rows[k * PANEL : (k + 1) * PANEL])
        invert(R[start : start + count, start : start + count], inverse)
        for panel in range(0, y.size, n * PANEL):
            block = y[panel + start * PANEL : panel + (start + count) * PANEL]
            if start > 0:
                multiply_panels(of_rows, start, y, panel, count, tile)
                subtract(block, 1, tile)
            multiply_panels(inverse, count, block, 0, count, tile)
            copy_row(tile, block)
    for start in range((n - 1) // PANEL * PANEL, -1, -PANEL):
        count = min(PANEL, n - start)
        end = start + count
        for c in range(count):
            for k in range(end, n):
                of_rows[(k - end) * PANEL + c] = R[start + c, k]
        invert(R[start:end, start:end], inverse)
        for i in range(PANEL):
            for k in range(PANEL):
                transposed[i * PANEL + k] = inverse[k * PANEL + i]
        for panel in range(0, y.size, n * PANEL):
            block = y[panel + start * PANEL : panel + end * PANEL]
            if end < n:
                multiply_panels(of_rows, n - end, y, panel + end * PANEL, count, tile)
                subtract(block, 1, tile)
            multiply_panels(transposed, count, block, 0, count, tile)
            copy_row(tile, block)


@inner(STRICT)
def invert(R, inverse):
    """Write the inverse of an upper triangular block, in rows of PANEL numbers."""
    n = R.shape[0]
    inverse[:] = 0
    for i in range(n - 1, -1, -1):
        row = inverse[i * PANEL : (i + 1) * PANEL]
        row[i] = 1
        for k in range(i + 1, n):
            subtract(row, R[i, k], inverse[k * PANEL : (k + 1) * PANEL])
        multiply(row, 1 / R[i, i])


@inner(STRICT)
def multiply_panels(rows, dim, columns, at, count, tile):
    """Write the products of `count` points of one panel with those of another."""
    for row in range(0, count, ROWS):
        for column in range(0, PANEL, BYTES // tile.itemsize):
            inner_products(rows, row, columns, at + column, dim, tile, row * PANEL + column)


@inner(ELEMENTWISE)
def copy_row(row, out):
    """Copy the shorter of two rows."""
    for d in range(min(row.size, out.size)):
        out[d] = row[d]


@inner(ELEMENTWISE)
def subtract(row, factor, other):
    """Subtract a multiple of another row."""
    for d in range(row.size):
        row[d] -= factor * other[d]
