"""Softmax attention of many queries over few keys, on NumPy arrays.

A thread works on PANEL queries of one head at a time: their logits with all keys, the exponentials,
then the weighted sums of the values. Logits lie in one row a key, with one column a query. So
maxima and sums run over rows, and `tile_of_products` takes the rows as the columns of the second
product. A thread holds the keys and values of a head and these logits; the weights of all queries
are stored only if the caller wants them.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.jit import ELEMENTWISE, STRICT, inner, kernel
from thinformer.cpu.products import tile_of_products
from thinformer.cpu.rows import copy_row, fill
from thinformer.cpu.run import without_subnormals
from thinformer.cpu.simd import BYTES, PANEL, padded_size, transpose
from thinformer.cpu.subnormals import cleared
from thinformer.cpu.tiles import exp, gather_factor
from thinformer.halving.problem import Factor


class Landmarks(NamedTuple):
    """The masses of keys with values of their own, and bounds of the output.

    masses : (problems, n), may be negative
    low, high : (problems, D), the range of all keys' values; the output stays within it
    share : a weighted sum of masses is at least this share of the weighted sum of their magnitudes
    least : a weighted mean of masses is at least this number
    """

    masses: NDArray
    low: NDArray
    high: NDArray
    share: float
    least: float


def softmax_attention(
    query: Factor,
    key: Factor,
    value: Factor,
    indices: NDArray,
    output: NDArray,
    weights: NDArray | None,
    landmarks: Landmarks | None = None,
    known: NDArray | None = None,
) -> None:
    """Write softmax(scale q k^T) v of every head, and the weights if there is an array for them.

    Parameters
    ----------
    query, key, value : Factor
        Of B * H problems; the queries' SCALE is the softmax scale.
    indices : (B * H, n) int64 array
        The keys that the queries of each head attend to, and whose values they sum.
    output : (B, T, H, D) array, contiguous, written
    weights : (B * H, T, n) array, written, or None
    landmarks : Landmarks, or None
        The keys' masses, if these differ.
    known : (H, m) int64 array, increasing, or None
        Queries of each head whose rows of output are written already, and stay.
    """
    B, T, H, D = output.shape
    problems, n = indices.shape
    place = (np.arange(B)[:, None] * T * H * D + np.arange(H) * D).ravel()
    none = np.empty(0, output.dtype)
    every = none if weights is None else weights.ravel()
    known = np.empty((1, 0), np.int64) if known is None else np.ascontiguousarray(known)
    order, wanted = np.empty((len(known), T), np.int64), T - known.shape[1]
    put_last(known, order)
    blocks = -(-(wanted if weights is None else T) // PANEL)
    positions = np.arange(padded_size(n))

    def attend(first: int, last: int) -> None:
        work = workspace(n, query.dim, D, output.dtype)
        attend_blocks(
            first, last, blocks, order, wanted, positions, query, key, value, indices,
            landmarks, output.ravel(), place, H * D, every, work,
        )  # fmt: skip

    without_subnormals(
        attend, problems * blocks, 2.0 * problems * blocks * PANEL * n * (query.dim + D)
    )


@kernel
def put_last(some, order):
    """Write all positions to order (rows, n); the increasing positions some (rows, m) come last."""
    (rows, n), m = order.shape, some.shape[1]
    for row in range(rows):
        taken = 0
        for i in range(n):
            if taken < m and some[row, taken] == i:
                order[row, n - m + taken] = i
                taken += 1
            else:
                order[row, i - taken] = i


def workspace(n: int, E: int, D: int, dtype: np.dtype) -> NDArray:
    """Return the memory that one thread works in."""
    keys, columns = padded_size(n), padded_size(D)
    return cleared(keys * E + n * columns + PANEL * (E + keys + 2 * PANEL + 3), dtype)


@kernel
def attend_blocks(
    first, last, blocks, order, wanted, positions, query, key, value, indices, landmarks, output,
    place, stride, weights, work,
):  # fmt: skip
    """Write the attention of blocks of queries first .. last-1, counted over all problems.

    blocks : the number of blocks of a problem
    order : (rows, n_queries) int64, the queries; the first `wanted` of them need an output
    positions : (n in whole panels,), the numbers from 0 on
    indices : (problems, n) int64
    landmarks : Landmarks; or None, of a type of its own, so that they are then not compiled
    output : flat, written; a problem's query t is at place[problem] + t * stride
    weights : flat, of (problems, n_queries, n), written; or empty
    work : see `workspace`
    """
    n, n_queries = indices.shape[1], order.shape[1]
    padded = padded_size(n)
    top, total, work = work[:PANEL], work[PANEL : 2 * PANEL], work[2 * PANEL :]
    logits, work = work[: padded * PANEL], work[padded * PANEL :]
    sums, work = work[: PANEL * PANEL], work[PANEL * PANEL :]
    block, work = work[: PANEL * PANEL], work[PANEL * PANEL :]
    loaded = -1
    for unit in range(first, last):
        problem, start = unit // blocks, unit % blocks * PANEL
        if problem != loaded:
            keys, _, rest = gather_factor(key, problem, indices[problem], work)
            values, free = gather_columns(value, problem, indices[problem], rest)
            loaded = problem
        chosen = order[problem % order.shape[0], start : min(start + PANEL, n_queries)]
        queries, _, _ = gather_factor(query, problem, chosen, free)
        E = query.dim
        for row in range(0, n, PANEL):
            count = min(PANEL, n - row)
            tile_of_products(keys, row * E, queries, 0, E, count, logits, row * PANEL)
        row_maxima(logits, n, top)
        exponentials(logits, n, top, total)
        if landmarks is not None:
            weigh_sums(logits, landmarks.masses[problem], landmarks.share, landmarks.least, total)
        count = max(0, min(chosen.size, wanted - start))
        for start_column in range(0, value.dim if count > 0 else 0, PANEL):
            panel, end = start_column * n, min(PANEL, value.dim - start_column)
            tile_of_products(values, panel, logits, 0, n, end, sums, 0)
            divide(sums[: end * PANEL], total)
            if landmarks is not None:
                low, high = landmarks.low[problem], landmarks.high[problem]
                clamp(sums, low[start_column:], high[start_column:], end)
            at = place[problem] + start_column
            write_columns(sums, end, chosen[:count], positions, output, at, stride, block)
        if weights.size > 0:
            divide(logits[: n * PANEL], total)
            if landmarks is not None:
                scale_rows(logits, landmarks.masses[problem])
            at = problem * n_queries * n
            write_columns(logits, n, chosen, positions, weights, at, n, block)


@inner(STRICT)
def gather_columns(factor, problem, positions, free):
    """Gather the points of one factor, PANEL columns at a time.

    Returns panels (points, PANEL), the last one filled up with zeros, and the memory still free.
    """
    points, dim = positions.size, factor.dim
    padded = padded_size(dim)
    panels = free[: points * padded]
    for start in range(0, dim, PANEL):
        for i in range(points):
            row = panels[start * points + i * PANEL : start * points + (i + 1) * PANEL]
            corner = factor.first[problem] + positions[i] * factor.row + start * factor.column
            end = min(PANEL, dim - start)
            if factor.column == 1 and end == PANEL:
                copy_row(factor.window[corner : corner + PANEL], row)
                continue
            for c in range(end):
                row[c] = factor.window[corner + c * factor.column]
            row[end:] = 0
    return panels, free[points * padded :]


@inner(STRICT)
def gather_with_mass(factor, problem, positions, free):
    """Gather the points of one factor as `gather_columns` does, and a column of ones behind them.

    Returns panels (points, PANEL), 0 behind the ones, and the memory still free.
    """
    points, dim = positions.size, factor.dim
    size = points * padded_size(dim + 1)
    panels, free = free[:size], free[size:]
    gather_columns(factor, problem, positions, panels)
    if dim % PANEL == 0:
        fill(panels[points * dim :], 0)
    fill_column(panels, points, dim)
    return panels, free


@inner(STRICT)
def fill_column(panels, points, column):
    """Write 1 to a column of panels (points, PANEL)."""
    panel = panels[column // PANEL * PANEL * points + column % PANEL :]
    for j in range(points):
        panel[j * PANEL] = 1


@inner(ELEMENTWISE)
def add_log_masses(logits, log_mass):
    """Add its log mass to each row of logits (n, PANEL); most are 0."""
    for j in range(log_mass.size):
        row, number = logits[j * PANEL : (j + 1) * PANEL], log_mass[j]
        if number != 0:
            for q in range(row.size):
                row[q] += number


@inner(ELEMENTWISE)
def row_maxima(logits, n, top):
    """Write the largest of n logits to top (PANEL,), for every query.

    Four rows a step: the maxima are loaded and stored less often, and a row takes 2 ns instead of
    7.
    """
    copy_row(logits, top)  # assignment to a slice would take two seconds to compile
    i = 0
    while i + 4 <= n:
        a, b = logits[i * PANEL :], logits[(i + 1) * PANEL :]
        c, d = logits[(i + 2) * PANEL :], logits[(i + 3) * PANEL :]
        for q in range(PANEL):
            top[q] = max(top[q], max(max(a[q], b[q]), max(c[q], d[q])))
        i += 4
    for row in range(i, n):
        a = logits[row * PANEL :]
        for q in range(PANEL):
            top[q] = max(top[q], a[q])


@inner(ELEMENTWISE)
def exponentials(logits, n, top, total):
    """Replace n rows of logits by exp(logit - top); write their sums to total (PANEL,).

    Two rows a step.
    """
    total[:] = 0
    for i in range(0, n - 1, 2):
        a, b = logits[i * PANEL :], logits[(i + 1) * PANEL :]
        for q in range(PANEL):
            first, second = exp(a[q] - top[q]), exp(b[q] - top[q])
            total[q] += first + second
            a[q], b[q] = first, second
    if n % 2 == 1:
        a = logits[(n - 1) * PANEL :]
        for q in range(PANEL):
            a[q] = exp(a[q] - top[q])
            total[q] += a[q]


@inner(ELEMENTWISE)
def weigh_sums(exponentials, masses, share, least, total):
    """Replace sums of exponentials (PANEL,) by sums in which key i counts `masses[i]` times.

    Masses may be negative. Where their weighted sum nearly cancels, the numerator does so too; the
    sum is kept above a share of the sum of magnitudes.
    """
    share, least = masses.dtype.type(share), masses.dtype.type(least)
    weighed, magnitude = np.zeros(total.size, total.dtype), np.zeros(total.size, total.dtype)
    for i in range(masses.size):
        row, mass = exponentials[i * PANEL : (i + 1) * PANEL], masses[i]
        for q in range(total.size):
            weighed[q] += mass * row[q]
            magnitude[q] += abs(mass) * row[q]
    for q in range(total.size):
        total[q] = max(weighed[q], share * magnitude[q], least * total[q])


@inner(ELEMENTWISE)
def scale_rows(tile, factors):
    """Multiply every row of a tile by its factor."""
    for i in range(factors.size):
        row = tile[i * PANEL : (i + 1) * PANEL]
        for q in range(row.size):
            row[q] *= factors[i]


@inner(ELEMENTWISE)
def clamp(tile, low, high, rows):
    """Bring the numbers of every row i of a tile into the range low[i] .. high[i]."""
    for i in range(rows):
        row = tile[i * PANEL : (i + 1) * PANEL]
        for q in range(row.size):
            row[q] = min(max(row[q], low[i]), high[i])


@inner(STRICT)
def write_columns(tile, rows, chosen, positions, out, at, apart, block):
    """Write the first columns of a tile as the chosen rows of out, which begin at `at`.

    block : (PANEL * PANEL,), memory to transpose in: a number takes 0.2 ns; picked one by one, it
        takes 0.4 ns
    """
    one, width = tile.dtype.type(1), BYTES // tile.itemsize
    for start in range(0, rows, PANEL):
        end = min(PANEL, rows - start)
        for i in range(0, end, width):
            transpose(tile, 0, PANEL, positions, start + i, PANEL, one, block, i, PANEL)
        for q in range(chosen.size):
            row = at + chosen[q] * apart + start
            copy_row(block[q * PANEL : q * PANEL + end], out[row:])


@inner(ELEMENTWISE)
def divide(tile, total):
    """Divide every column of a tile by the total (PANEL,) of its query."""
    for start in range(0, tile.size, PANEL):
        row = tile[start : start + PANEL]
        for q in range(total.size):
            row[q] /= total[q]
