"""Landmarks of one head after another: which keys they are, and their values and masses.

Landmarks are drawn by the attention weights of sampled queries (`thinformer.cpu.drawn`), or they
are pivots (`thinformer.cpu.pivots`). Their values and masses are N_ss^-1 N_sn (V, 1). The
right-hand sides N_sn (V, 1) have two parts: f_s^T P (V, 1) exp(t - top) from the sampled queries,
and the sum over keys j of exp(<x_s, x_j> - h_s - top) (V, 1). Then N between landmarks is
factorised. One thread does all steps for a head, so intermediate arrays are those of one head.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.centring import centre, largest_square, measure_keys
from thinformer.cpu.cholesky import factorise, substitute
from thinformer.cpu.drawn import attend_sampled, draw_landmarks, features, weigh_keys
from thinformer.cpu.jit import ELEMENTWISE, STRICT, inner, kernel
from thinformer.cpu.pivots import BLOCK, choose_pivots
from thinformer.cpu.rows import add, add_rows, copy_row, copy_within, fill, multiply, subtract
from thinformer.cpu.simd import BYTES, PANEL, ROWS, inner_products, padded_size, squared_norms
from thinformer.cpu.softmax import gather_columns
from thinformer.cpu.subnormals import cleared
from thinformer.cpu.tiles import exp, gather_factor
from thinformer.halving.problem import SCALE, Factor

CHUNK = 8 * PANEL  # keys at a time, so that their exponentials stay in the nearest cache


class Heads(NamedTuple):
    """The heads that landmarks are chosen for.

    query, key, value : Factor, with T and S tokens; the queries' SCALE is the softmax scale
    T, S, n_out : numbers of queries, keys and landmarks
    positions : (max(T, S, PANEL),), the numbers from 0 on
    temperature : (problems,), written where it is 0
    mean : (problems, E), written: the mean of the keys
    low, high, average : (problems, D), written: the range of the values and their mean
    sums : (problems,), written: not finite if a token is not finite, or if a square overflows
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


class LandmarkDraws(NamedTuple):
    """Random choices, one row a head.

    queries : (heads, m) int64, the sampled queries; m is 0 where landmarks are pivots
    candidates : (heads, L) int64, increasing: the keys that may be pivots; where queries are
        sampled, the keys that the exponential kernel is summed over
    uniforms : (heads, numbers) float64
    head : (problems,) int64, the row of each problem
    """

    queries: NDArray
    candidates: NDArray
    uniforms: NDArray
    head: NDArray


class Fits(NamedTuple):
    """The landmarks' values and masses, all written.

    values : (B, n_out, H, D)
    masses : (problems, n_out)
    output : (B, T, H, D), only the rows of sampled queries are written
    """

    values: NDArray
    masses: NDArray
    output: NDArray


def workspace(heads: Heads, draws: LandmarkDraws) -> NDArray:
    """Return the memory that one thread works in."""
    E, D, S, n_out = (
        heads.key.dim,
        padded_size(heads.value.dim),
        padded_size(heads.S),
        padded_size(heads.n_out),
    )
    L, m = padded_size(draws.candidates.shape[1]), padded_size(draws.queries.shape[1])
    of_keys = S * (E + D + 3 + PANEL)
    of_queries = m * (E + D + 2)
    of_pivots = L * (E + n_out + 2 * BLOCK + 2) if m == 0 else 0
    of_landmarks = n_out * (E + D + n_out + m + 3 * PANEL + 2)
    few = PANEL * (m + n_out + E + D + CHUNK + 2 * BLOCK + 5 * PANEL + 8)
    return cleared(of_keys + of_queries + of_pivots + of_landmarks + few, heads.mean.dtype)


@kernel
def choose_drawn(first, last, heads, draws, two_rho, balance, indices, work):
    """Draw the landmarks of problems first .. last-1 by the attention of sampled queries.

    heads, draws : Heads and LandmarkDraws
    two_rho : WildCat's constant, for the temperature
    balance : the trace of the exponential kernel, as a multiple of the trace of the other term
    indices : (problems, n_out) int64, written, increasing
    work : see `workspace`
    """
    h, free = work[: heads.n_out], work[heads.n_out :]
    nothing, output = work[:0], np.empty((0, 0, 0, 0), work.dtype)
    for p in range(first, last):
        choose_by_queries(
            p, heads, draws, two_rho, balance, indices[p], h, nothing, nothing, output, free
        )


@kernel
def choose_pivoted(first, last, heads, draws, two_rho, nugget, indices, work):
    """Choose the landmarks of problems first .. last-1 as pivots.

    nugget : added to the diagonal of N
    two_rho, indices, work : see `choose_drawn`
    """
    h, free = work[: heads.n_out], work[heads.n_out :]
    for p in range(first, last):
        choose_by_pivots(p, heads, draws, two_rho, nugget, indices[p], h, free)


@kernel
def fit_drawn(first, last, heads, draws, two_rho, balance, nugget, bound, indices, fits, work):
    """Draw the landmarks of problems first .. last-1, and fit their values and masses.

    nugget : added to the diagonal of N
    bound : the largest magnitude of masses, and of values over the largest of all keys' values
    fits : Fits
    two_rho, balance, indices, work : see `choose_drawn`
    """
    n_out, padded = heads.n_out, padded_size(draws.queries.shape[1])
    panels, columns = padded_size(n_out), padded_size(heads.value.dim + 1)
    h, free = work[:panels], work[panels:]
    f, free = free[: panels * padded], free[panels * padded :]
    right, free = free[: n_out * columns], free[n_out * columns :]
    for p in range(first, last):
        fill(right, 0)
        top = choose_by_queries(
            p, heads, draws, two_rho, balance, indices[p], h[:n_out], f, right, fits.output, free
        )
        summed = draws.candidates[draws.head[p]]
        fit(p, heads, summed, indices[p], f, padded, h, top, nugget, bound, right, fits, free)


@kernel
def fit_pivoted(first, last, heads, draws, two_rho, nugget, bound, indices, fits, work):
    """Choose the landmarks of problems first .. last-1 as pivots, and fit them; see `fit_drawn`."""
    n_out, every = heads.n_out, heads.positions[: heads.S]
    panels, columns = padded_size(n_out), padded_size(heads.value.dim + 1)
    h, free = work[:panels], work[panels:]
    right, free = free[: n_out * columns], free[n_out * columns :]
    for p in range(first, last):
        fill(right, 0)
        top = choose_by_pivots(p, heads, draws, two_rho, nugget, indices[p], h[:n_out], free)
        fit(p, heads, every, indices[p], work[:0], 0, h, top, nugget, bound, right, fits, free)


@inner(STRICT)
def fit(p, heads, summed, indices, f, queries, h, top, nugget, bound, right, fits, free):
    """Write values and masses of a problem's landmarks.

    summed : (n,) int64, the keys that the exponential kernel is summed over
    f, queries : panels (queries, PANEL) of the landmarks' features, and their number
    h : the landmarks' h, in whole panels; top : the largest h of all keys
    right : panels (n_out, PANEL) of right-hand sides, the part of the sampled queries; overwritten
    """
    n_out, D, H = heads.n_out, heads.value.dim, fits.values.shape[2]
    fill(h[n_out:], 0)
    add_exponentials(p, heads, summed, indices, h, top, right, free)
    solve(p, heads, indices, f, queries, h, nugget, right, free)
    largest = 0.9 * math.log(np.finfo(h.dtype).max)  # exponent that exp(top - h) may have
    bound *= max(1.0, float(-heads.low[p].min()), float(heads.high[p].max()))
    for s in range(n_out):
        factor = math.exp(min(float(top - h[s]), largest))
        for d in range(D + 1):
            z = right[(d // PANEL * n_out + s) * PANEL + d % PANEL] * factor
            z = min(max(z, -bound), bound)
            if d < D:
                fits.values[p // H, s, p % H, d] = z
            else:
                fits.masses[p, s] = z


@inner(STRICT)
def load_head(p, heads, two_rho, free):
    """Gather a head's keys, minus their mean, and its values; write the head's rows of Heads.

    Returns panels (E, PANEL) of the keys; their squared norms, in whole panels; panels (S, PANEL)
    of the values; the factor that makes scaled keys x of the keys; and the memory still free.
    """
    key, value, S, positions = heads.key, heads.value, heads.S, heads.positions
    x, _, free = gather_factor(key, p, positions[:S], free)
    values, free = gather_columns(value, p, positions[:S], free)
    squares, free = free[: x.size // key.dim], free[x.size // key.dim :]
    measure_values(values, S, heads.low[p], heads.high[p], heads.average[p])
    measure_keys(x, S, key.dim, heads.mean[p], squares)
    largest_query, total = largest_square(heads.query, p, positions[: heads.T], free)
    largest_key = squares[0]
    for j in range(S):
        largest_key = max(largest_key, squares[j])
        total += squares[j]
    for d in range(value.dim):
        total += heads.average[p, d]
    heads.sums[p] = total
    if heads.temperature[p] == 0:
        beta = float(heads.query.parameters[p, SCALE])
        heads.temperature[p] = temperature(
            math.sqrt(largest_query) / beta, math.sqrt(largest_key), S, beta, two_rho
        )
    return x, squares, values, scaling(heads, p, x), free


@inner(STRICT)
def choose_by_pivots(p, heads, draws, two_rho, nugget, indices, h, free):
    """Choose the pivots of one problem; return the largest h of all keys.

    indices, h : (n_out,), the pivots and their h, written
    """
    x, squares, _, to_x, free = load_head(p, heads, two_rho, free)
    head, half = draws.head[p], x.dtype.type(to_x * to_x / 2)
    write_pivots(
        heads.key, p, draws.candidates[head], heads.mean[p], to_x, draws.uniforms[head], nugget,
        indices, free,
    )  # fmt: skip
    largest = squares[0]
    for j in range(heads.S):
        largest = max(largest, squares[j])
    for i in range(indices.size):
        h[i] = half * squares[indices[i]]
    return half * largest


@inner(STRICT)
def choose_by_queries(p, heads, draws, two_rho, balance, indices, h, f, right, output, free):
    """Draw the landmarks of one problem by sampled queries; return the largest h of all keys.

    indices, h : (n_out,), the landmarks and their h, written
    f : panels (m in whole panels, PANEL) of the landmarks' features, written
    right : panels (n_out, PANEL) of right-hand sides, D + 1 columns, written
    output : (B, T, H, D), the sampled queries' rows are written

    `f`, `right` and `output` are empty where landmarks are only chosen.
    """
    S, E, D, n_out = heads.S, heads.key.dim, heads.value.dim, heads.n_out
    head, dtype, m, fitting = draws.head[p], h.dtype.type, draws.queries.shape[1], right.size > 0
    padded = padded_size(m)
    x, squares, values, to_x, free = load_head(p, heads, two_rho, free)
    squares = squares[:S]
    multiply(x, to_x)
    multiply(squares, to_x * to_x)
    importance, free = free[:S], free[S:]
    top_of, total_of, free = free[:padded], free[padded : 2 * padded], free[2 * padded :]
    size = padded * padded_size(D)
    outputs, free = free[:size], free[size:]
    queries, _, free = gather_factor(heads.query, p, draws.queries[head], free)
    for c in range(m, padded):
        queries[c // PANEL * PANEL * E + c % PANEL : (c // PANEL + 1) * PANEL * E : PANEL] = 0
    multiply(queries, dtype(1 / to_x))  # queries have the softmax scale, and keys have its root
    attend_sampled(
        x, S, E, queries, m, values, D if fitting else 0, heads.positions, top_of, total_of,
        importance, outputs, free,
    )  # fmt: skip
    t, top = weigh_keys(importance, squares, balance)
    draw_landmarks(importance, n_out, draws.uniforms[head, 0], indices)
    for i in range(n_out):
        h[i] = top + math.log(importance[indices[i]])
    if not fitting:
        return dtype(top)
    H = output.shape[2]
    for q in range(m):
        row = output[p // H, draws.queries[head, q], p % H]
        for d in range(0, D, PANEL):
            known = outputs[d * padded + q * PANEL : d * padded + (q + 1) * PANEL]
            copy_within(known, heads.low[p, d:], heads.high[p, d:], row[d:])
    shift = np.zeros(PANEL, x.dtype)
    for start in range(0, n_out, PANEL):
        count = min(PANEL, n_out - start)
        few, _, rest = gather_factor(heads.key, p, indices[start : start + count], free)
        for c in range(count, PANEL):
            few[c::PANEL] = 0
        centre(few, heads.mean[p], to_x)
        copy_row(h[start : start + count], shift)
        of_few = f[start * padded : (start + PANEL) * padded]
        features(few, E, queries, m, top_of, total_of, shift, dtype(t), of_few)
        start_right(of_few, padded, outputs, D, math.exp(t - top), start, count, n_out, right, rest)
    return dtype(top)


@inner(STRICT)
def write_pivots(key, p, candidates, mean, to_x, uniforms, nugget, indices, free):
    """Write the pivots among candidates (L,) to indices (n_out,), increasing."""
    E, L = key.dim, candidates.size
    index = np.empty(padded_size(L), np.int64)
    index[:L], index[L:] = candidates, candidates[L - 1]
    x, _, free = gather_factor(key, p, index, free)
    centre(x, mean, to_x)
    h, free = free[: index.size], free[index.size :]
    for start in range(0, index.size, PANEL):
        squared_norms(x, start * E, E, h, start)
    multiply(h, h.dtype.type(0.5))
    pairs = uniforms.reshape(uniforms.size // 2, 2)
    pivots = choose_pivots(x, E, h, L, pairs, indices.size, nugget, free)
    pivots.sort()
    for i in range(pivots.size):
        indices[i] = candidates[pivots[i]]


@inner(STRICT)
def measure_values(values, n, low, high, average):
    """Write range and mean of each dimension, (D,), of values in panels (n, PANEL)."""
    rows = np.empty((3, PANEL), values.dtype)
    least, most, total = rows[0], rows[1], rows[2]
    for start in range(0, low.size, PANEL):
        measure_rows(values[start * n : (start + PANEL) * n], n, least, most, total)
        copy_row(least, low[start:])
        copy_row(most, high[start:])
        copy_row(total, average[start:])
    multiply(average, values.dtype.type(1 / n))


@inner(STRICT)
def mean_of_rows(values, n, average):
    """Write the mean of each dimension, (D,), of values in panels (n, PANEL)."""
    total = np.empty(PANEL, values.dtype)
    for start in range(0, average.size, PANEL):
        total[:] = 0
        add_rows(values[start * n : (start + PANEL) * n], total)
        multiply(total, values.dtype.type(1 / n))
        copy_row(total, average[start:])


@inner(ELEMENTWISE)
def measure_rows(panel, n, low, high, total):
    """Write range and sum, (PANEL,), of a panel's n rows.

    Two rows a step: a row takes 5 ns instead of 13.
    """
    for d in range(PANEL):
        low[d], high[d], total[d] = panel[d], panel[d], 0
    for i in range(0, n - 1, 2):
        a, b = panel[i * PANEL :], panel[(i + 1) * PANEL :]
        for d in range(PANEL):
            low[d] = min(low[d], min(a[d], b[d]))
            high[d] = max(high[d], max(a[d], b[d]))
            total[d] += a[d] + b[d]
    if n % 2 == 1:
        a = panel[(n - 1) * PANEL :]
        for d in range(PANEL):
            low[d], high[d] = min(low[d], a[d]), max(high[d], a[d])
            total[d] += a[d]


@inner(STRICT)
def temperature(q, k, n, scale, two_rho):
    """Return WildCat's temperature (arXiv 2602.10056) for the largest norms of queries and of keys.

    It is 1 if a norm is 0. Lambert's W_0 is found by Halley's method, which from this start needs
    three steps for all digits of float64.
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


@inner(STRICT)
def start_right(f, queries, outputs, D, factor, start, count, n_out, right, free):
    """Write f^T (outputs, 1) times a factor to the right-hand sides of a panel of landmarks.

    f : (queries, PANEL), features of landmarks start .. start+count-1
    outputs : panels (queries, PANEL) of the sampled queries' outputs, D columns
    right : panels (n_out, PANEL), rows start .. start+count-1 are written
    """
    width, total = BYTES // f.itemsize, np.zeros(PANEL, f.dtype)
    add_rows(f[: queries * PANEL], total)
    for c in range(count):
        right[(D // PANEL * n_out + start + c) * PANEL + D % PANEL] = total[c] * factor
    for column in range(0, D, PANEL):
        for row in range(0, count, ROWS):
            for i in range(0, PANEL, width):
                inner_products(
                    f, row, outputs, column * queries + i, queries, free, row * PANEL + i
                )
        for c in range(count):
            for d in range(min(PANEL, D - column)):
                right[(column // PANEL * n_out + start + c) * PANEL + d] = (
                    free[c * PANEL + d] * factor
                )


@inner(STRICT)
def add_exponentials(p, heads, summed, indices, h, top, right, free):
    """Add the sum over keys j of exp(<x_s, x_j> - h_s - top) (V, 1) to the right-hand sides.

    summed : (n,) int64, the keys of the sum; with fewer than all, each one counts S / n times
    h : the landmarks' h, in whole panels; top : the largest h of all keys

    Where `summed` has not all keys, its values are shifted, so that their mean is that of all keys'
    values.
    """
    key, value, n, n_out = heads.key, heads.value, summed.size, indices.size
    E, D, width = key.dim, value.dim, BYTES // free.itemsize
    to_x = scaling(heads, p, free)
    x, _, free = gather_factor(key, p, summed, free)
    centre(x, heads.mean[p], to_x)
    values, free = gather_columns(value, p, summed, free)
    apart = np.empty(D, free.dtype)  # the values' mean minus the mean of all keys' values
    mean_of_rows(values, n, apart)
    subtract(apart, 1, heads.average[p])
    weight = free.dtype.type(heads.S / n)
    shift, total, free = free[:PANEL], free[PANEL : 2 * PANEL], free[2 * PANEL :]
    rows, free = free[: CHUNK * PANEL], free[CHUNK * PANEL :]
    product, free = free[: PANEL * PANEL], free[PANEL * PANEL :]
    size = padded_size(D) * PANEL
    sums, free = free[:size], free[size:]
    for start in range(0, n_out, PANEL):
        count = min(PANEL, n_out - start)
        few, _, _ = gather_factor(key, p, indices[start : start + count], free)
        centre(few, heads.mean[p], to_x)
        for s in range(PANEL):
            shift[s] = h[start + s] + top
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
        for s in range(count):
            for d in range(D + 1):
                of_d = sums[d * PANEL + s] - apart[d] * total[s] if d < D else total[s]
                right[(d // PANEL * n_out + start + s) * PANEL + d % PANEL] += weight * of_d


@inner(STRICT)
def scaling(heads, p, like):
    """Return the factor that makes scaled keys x of a problem's centred keys, in a dtype."""
    return like.dtype.type(
        math.sqrt(float(heads.query.parameters[p, SCALE])) / heads.temperature[p]
    )


@inner(ELEMENTWISE)
def shifted_exponentials(rows, n, shift, total):
    """Replace n rows x by exp(x - shift), and add them to total (PANEL,).

    Only rounding makes an exponent positive.
    """
    zero = rows.dtype.type(0)
    for i in range(n):
        row = rows[i * PANEL : (i + 1) * PANEL]
        for s in range(shift.size):
            row[s] = exp(min(row[s] - shift[s], zero))
            total[s] += row[s]


@inner(STRICT)
def solve(p, heads, indices, f, queries, h, nugget, right, free):
    """Replace right-hand sides, panels (n_out, PANEL), by N_ss^-1 times them.

    f, queries : panels (queries, PANEL) of the landmarks' features, and their number
    nugget : added to the diagonal of N
    """
    key, n = heads.key, indices.size
    blocks = -(-n // PANEL)
    x, _, free = gather_factor(key, p, indices, free)
    centre(x, heads.mean[p], scaling(heads, p, free))
    R, free = free[: blocks * PANEL * n], free[blocks * PANEL * n :]
    inverses, free = free[: blocks * PANEL * PANEL], free[blocks * PANEL * PANEL :]
    factorise(x, key.dim, f, queries, h, n, nugget, R, inverses, free)
    substitute(R, inverses, n, right, free)
