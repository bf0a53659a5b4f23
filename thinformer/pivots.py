"""Landmarks among the keys of a head, by randomly pivoted Cholesky of a kernel on them.

The kernel is N(j, j') = <f_j, f_j'> + exp(<x_j, x_j'> - h_j - h_j'), of scaled keys x and of what
sampled queries make of a key, f; `thinformer.landmarks` says why. Its diagonal is 1.

Candidates lie in panels, PANEL of them side by side, which hold f and, below, the rows of the
Cholesky factor as they come. What the pivots so far leave of a row of N is then one product, with
the factor's sign changed, and BLOCK rows are made at once: one by one, each would read all panels
for a single product, from memory that is slower than the arithmetic.

The factor's columns at the pivots are the Cholesky factor of N between landmarks, which is what
`thinformer.nystrom` solves with.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from thinformer._jit import ELEMENTWISE, REDUCTION, STRICT, inner, kernel
from thinformer._simd import BYTES, PANEL, ROWS, inner_products, squared_norms, transpose
from thinformer.problem import Factor
from thinformer.softmax import divide, exponentials, gather_columns, row_maxima
from thinformer.tiles import exp, gather_factor

BLOCK = 16  # proposals at a time, a multiple of ROWS
TINY_32, TINY_64 = (float(np.finfo(dtype).tiny) for dtype in (np.float32, np.float64))


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
    """Landmarks, in the order they were chosen, and what fitting them takes.

    indices : (problems, n_out) int64
    exponents : (problems, n_out), their h; top : (problems,), the largest h of all keys
    factor : (problems, n_out, n_out), upper triangular R with N = R^T R
    carried : (problems, n_out, D + 1), f^T P (V, 1) exp(t - top)

    The last two have no entries where nothing is fitted.
    """

    indices: NDArray
    exponents: NDArray
    top: NDArray
    factor: NDArray
    carried: NDArray


def workspace(n: int, L: int, n_out: int, m: int, E: int, D: int, dtype: np.dtype) -> NDArray:
    """Return the memory that one thread works in."""
    n, L, m, few, D = (-(-size // PANEL) * PANEL for size in (n, L, m, n_out, D))
    rows = m + n_out
    of_all = n * (E + PANEL + D + 3)
    of_candidates = L * (E + rows + BLOCK + 2)
    return np.empty(of_all + of_candidates + m * D + PANEL * (2 * rows + 2 * E + PANEL + 3), dtype)


@kernel
def choose_pivots(
    first, last, positions, n, query, key, value, mean, draws, balance, nugget, pivots, work
):  # fmt: skip
    """Choose the landmarks of problems first .. last-1.

    positions, n : the numbers from 0 on, at least PANEL; and how many keys there are
    query, key : Factor, whose SCALEs make <query, key> logits, and keys x
    value : Factor, of dimension 0 where nothing is fitted
    mean : (problems, E), of x before it is subtracted
    draws : Draws
    balance : the exponential kernel's trace beside that of the sampled queries' attention
    nugget : added to the diagonal of N
    pivots : Pivots, written
    work : memory of the thread
    """
    E, D, m = key.dim, value.dim, draws.queries.shape[1]
    L, n_out = draws.candidates.shape[1], pivots.indices.shape[1]
    padded, of_queries = -(-L // PANEL) * PANEL, -(-m // PANEL) * PANEL
    rows = of_queries + n_out
    index = np.empty(padded, np.int64)
    for p in range(first, last):
        head = draws.head[p]
        for c in range(padded):
            index[c] = draws.candidates[head, min(c, L - 1)]
        x, _, free = gather_factor(key, p, positions[:n], work)
        centre(x, mean[p], E)
        squares, free = free[: x.size // E], free[x.size // E :]
        for start in range(0, squares.size, PANEL):
            squared_norms(x, start * E, E, squares, start)
        squares = squares[:n]
        importance, free = free[:n], free[n:]
        importance[:] = 0
        features, free = free[: padded * rows], free[padded * rows :]
        size = of_queries * -(-D // PANEL) * PANEL
        outputs, free = free[:size], free[size:]
        attend_sampled(
            p, x, E, n, query, draws.queries[head], value, positions, index, features, rows,
            importance, outputs, of_queries, free,
        )  # fmt: skip
        h, free = free[:padded], free[padded:]
        t, top = exponents(importance, squares, m > 0, balance, index, h)
        of_candidates, _, free = gather_factor(key, p, index, free)
        centre(of_candidates, mean[p], E)
        scale_features(features, h, rows, m, t)
        chosen = factorise(
            of_candidates, E, features, of_queries, rows, h, top, L, draws.uniforms[head], n_out,
            nugget, free,
        )  # fmt: skip
        pivots.top[p] = top
        for i in range(n_out):
            pivots.indices[p, i] = index[chosen[i]]
            pivots.exponents[p, i] = h[chosen[i]]
        if D > 0:
            read_factor(features, rows, of_queries, chosen, pivots.factor[p])
            carry(
                features, rows, of_queries, chosen, outputs, D, math.exp(t - top),
                pivots.carried[p], free,
            )  # fmt: skip


@inner(ELEMENTWISE)
def centre(panels, mean, dim):
    """Subtract the mean from all points of panels (dim, PANEL)."""
    for start in range(0, panels.size, dim * PANEL):
        for d in range(dim):
            row = panels[start + d * PANEL : start + (d + 1) * PANEL]
            for c in range(row.size):
                row[c] -= mean[d]


@inner(STRICT)
def attend_sampled(
    p, x, E, n, query, sampled, value, positions, index, features, rows, importance, outputs,
    of_queries, free,
):  # fmt: skip
    """Write what sampled queries pay to candidates, add up its squares, and write their outputs.

    features : panels (rows, PANEL) of candidates: the first rows are weights of a query each
    importance : (n,), to which each query's squared weights are added
    outputs : panels (of_queries, PANEL) of the values' dimensions
    """
    D, width = value.dim, BYTES // x.itemsize
    one, m = x.dtype.type(1), sampled.size
    keys = -(-n // PANEL) * PANEL
    top, total, free = free[:PANEL], free[PANEL : 2 * PANEL], free[2 * PANEL :]
    logits, free = free[: keys * PANEL], free[keys * PANEL :]
    sums, free = free[: PANEL * PANEL], free[PANEL * PANEL :]
    values, free = gather_columns(value, p, positions[:n], free)
    for first in range(0, m, PANEL):
        count = min(PANEL, m - first)
        queries, _, _ = gather_factor(query, p, sampled[first : first + count], free)
        for c in range(count, PANEL):
            queries[c::PANEL] = 0  # not whatever was in memory, which might be NaN
        for row in range(0, n, ROWS):
            at = row // PANEL * PANEL * E + row % PANEL
            for column in range(0, PANEL, width):
                inner_products(x, at, queries, column, E, logits, row * PANEL + column)
        row_maxima(logits, n, top)
        exponentials(logits, n, top, total)
        for start in range(0, D, PANEL):
            panel, end = start * n, min(PANEL, D - start)
            for row in range(0, end, ROWS):
                for column in range(0, PANEL, width):
                    inner_products(
                        values, panel + row, logits, column, n, sums, row * PANEL + column
                    )
            divide(sums, total)
            for c in range(count, PANEL):
                sums[c::PANEL] = 0
            at = start * of_queries + first * PANEL
            for i in range(0, PANEL, width):
                transpose(sums, 0, PANEL, positions, i, PANEL, one, outputs, at + i, PANEL)
        normalise(logits, n, total, count, importance)
        for i in range(0, index.size, width):
            at = i // PANEL * PANEL * rows + first * PANEL + i % PANEL
            transpose(logits, 0, PANEL, index, i, PANEL, one, features, at, PANEL)


@inner(REDUCTION)
def normalise(exponentials, n, total, count, importance):
    """From exponentials to weights, and add the squares of those of a key."""
    inverse = np.zeros(total.size, total.dtype)
    for q in range(count):
        inverse[q] = 1 / total[q]
    for i in range(n):
        row, square = exponentials[i * PANEL : (i + 1) * PANEL], total.dtype.type(0)
        for q in range(inverse.size):
            row[q] *= inverse[q]
            square += row[q] * row[q]
        importance[i] += square


@inner(STRICT)
def exponents(importance, squares, of_queries, balance, index, h):
    """Write h of the candidates; return t and the largest h of all keys.

    h is half the logarithm of exp(2 t) importance + exp(|x|^2), and all but a few of its terms are
    taken without a logarithm. Both are overwritten.
    """
    dtype = squares.dtype.type
    largest = squares[0]
    for j in range(squares.size):
        largest = max(largest, squares[j])
    if not of_queries:
        for c in range(h.size):
            h[c] = squares[index[c]] / 2
        return dtype(0), dtype(largest / 2)
    # where no sampled query sees a key, f may not be 0 times infinity
    least = dtype(math.sqrt(TINY_32 if squares.itemsize == 4 else TINY_64))
    of_all, most = 0.0, least
    for j in range(squares.size):
        importance[j] = max(importance[j], least)
        most = max(most, importance[j])
        of_all += importance[j]
    total = sum_of_exponentials(squares, largest)
    t = (largest + math.log(total) - math.log(balance) - math.log(of_all)) / 2
    for c in range(h.size):
        a, b = math.log(importance[index[c]]) + 2 * t, float(squares[index[c]])
        h[c] = (max(a, b) + math.log1p(math.exp(-abs(a - b)))) / 2
    shift = max(float(largest), math.log(most) + 2 * t)
    highest = largest_sum(squares, importance, dtype(shift), dtype(math.exp(2 * t - shift)))
    return dtype(t), dtype((shift + math.log(highest)) / 2)


@inner(REDUCTION)
def sum_of_exponentials(row, shift):
    """The sum of exp(x - shift)."""
    total = 0.0
    for j in range(row.size):
        total += exp(row[j] - shift)
    return total


@inner(ELEMENTWISE)
def largest_sum(row, other, shift, factor):
    """The largest exp(x - shift) + factor y. The first is overwritten with them."""
    for j in range(row.size):
        row[j] = exp(row[j] - shift) + factor * other[j]
    largest = row[0]
    for j in range(row.size):
        largest = max(largest, row[j])
    return largest


@inner(ELEMENTWISE)
def scale_features(features, h, rows, queries, t):
    """From attention weights p_j to features p_j exp(t - h_j)."""
    factor = np.empty(PANEL, features.dtype)
    for start in range(0, h.size, PANEL):
        for c in range(factor.size):
            factor[c] = exp(t - h[start + c])
        for i in range(queries):
            row = features[start * rows + i * PANEL : start * rows + (i + 1) * PANEL]
            for c in range(factor.size):
                row[c] *= factor[c]


@inner(STRICT)
def factorise(x, E, features, queries, rows, h, top, L, uniforms, n_out, nugget, free):
    """Return the pivots, numbers of candidates, in the order they were chosen.

    x : panels (E, PANEL) of the candidates' keys
    features : panels (rows, PANEL): their f, and room for the factor below
    h, top : the candidates' exponents, and the largest of all keys
    uniforms : (proposals, 2)

    When proposals or the diagonal are used up, the first candidates that are left are taken.
    """
    padded, dtype = h.size, x.dtype.type
    block, free = free[: padded * BLOCK], free[padded * BLOCK :]
    diagonal, free = free[:padded], free[padded:]
    few_x, free = free[: PANEL * E], free[PANEL * E :]
    few, free = free[: PANEL * rows], free[PANEL * rows :]
    few_h, free = free[:PANEL], free[PANEL:]
    diagonal[:L], diagonal[L:] = 1, 0
    weight, cumulative = np.empty(L), np.empty(L)
    for j in range(L):
        weight[j] = math.exp(2 * (float(h[j]) - float(top)))
    chosen, taken, count = np.empty(n_out, np.int64), np.zeros(L, np.bool_), 0
    proposed, then = np.empty(BLOCK, np.int64), np.empty(BLOCK, x.dtype)
    accept, start, next_left = np.empty(BLOCK), 0, 0
    while count < n_out:
        total = 0.0
        for j in range(L):
            total += diagonal[j] * weight[j]
            cumulative[j] = total
        at_random = start < uniforms.shape[0] and total > 0
        of_block = min(BLOCK, uniforms.shape[0] - start) if at_random else 0
        for b in range(of_block):
            u = uniforms[start + b, 0]
            proposed[b] = min(np.searchsorted(cumulative, u * total, side="right"), L - 1)
            accept[b] = uniforms[start + b, 1]
        start += of_block
        while not at_random and of_block < BLOCK and next_left < L:
            if not taken[next_left]:
                proposed[of_block] = next_left
                of_block += 1
            next_left += 1
        for b in range(BLOCK):
            j = proposed[min(b, of_block - 1)]
            then[b] = diagonal[j]
            at, from_x = j // PANEL * PANEL * rows + j % PANEL, j // PANEL * PANEL * E + j % PANEL
            for i in range(queries + count):
                value = features[at + i * PANEL]
                few[i * PANEL + b] = value if i < queries else -value
            for d in range(E):
                few_x[d * PANEL + b] = x[from_x + d * PANEL]
            few_h[b] = h[j]
        residuals(x, E, features, rows, queries + count, h, few_x, few, few_h, block)
        before = count
        for b in range(of_block):
            j = proposed[b]
            panel, column = j // PANEL * PANEL, j % PANEL
            at = panel * BLOCK + b * PANEL + column
            block[at] += nugget
            eliminate(features, rows, queries + before, queries + count, panel, column, block, b)
            wanted = not at_random or (diagonal[j] > 0 and accept[b] * then[b] < block[at])
            if count < n_out and wanted:
                # of a key that is left rounding may leave less than the nugget
                inverse = dtype(1 / math.sqrt(max(block[at], nugget / 2)))
                append(block, b, inverse, features, rows, queries + count, diagonal)
                diagonal[j] = 0
                chosen[count], taken[j] = j, True
                count += 1
    return chosen


@inner(STRICT)
def residuals(x, E, features, rows, used, h, few_x, few, few_h, block):
    """What the pivots leave of N in the rows of a block: tiles (BLOCK, PANEL), one a panel."""
    width = BYTES // x.itemsize
    products = np.empty(BLOCK * PANEL, x.dtype)
    for start in range(0, h.size, PANEL):
        tile = block[start * BLOCK : (start + PANEL) * BLOCK]
        for row in range(0, BLOCK, ROWS):
            for column in range(0, PANEL, width):
                at = row * PANEL + column
                inner_products(few_x, row, x, start * E + column, E, tile, at)
                if used > 0:
                    inner_products(few, row, features, start * rows + column, used, products, at)
        to_exponential(tile, few_h, h[start : start + PANEL])
        if used > 0:
            for i in range(tile.size):
                tile[i] += products[i]


@inner(ELEMENTWISE)
def to_exponential(tile, few_h, h):
    """From <x, y> to exp(<x, y> - h_x - h_y), of which no exponent is above 0 but by rounding."""
    zero = tile.dtype.type(0)
    for b in range(BLOCK):
        row, h_b = tile[b * PANEL : (b + 1) * PANEL], few_h[b]
        for c in range(h.size):
            row[c] = exp(min(row[c] - h_b - h[c], zero))


@inner(ELEMENTWISE)
def eliminate(features, rows, before, after, panel, column, block, b):
    """Take from row b of a block what the rows of the factor from `before` on account for."""
    if after == before:
        return
    factors = features[panel * rows + column :]
    for start in range(0, block.size // BLOCK, PANEL):
        row = block[start * BLOCK + b * PANEL : start * BLOCK + (b + 1) * PANEL]
        for i in range(before, after):
            f = factors[i * PANEL]
            of_factor = features[start * rows + i * PANEL : start * rows + (i + 1) * PANEL]
            for c in range(of_factor.size):
                row[c] -= f * of_factor[c]


@inner(ELEMENTWISE)
def append(block, b, inverse, features, rows, at, diagonal):
    """Make row b of a block, divided by the pivot's root, a row of the factor."""
    zero = diagonal.dtype.type(0)
    for start in range(0, diagonal.size, PANEL):
        row = block[start * BLOCK + b * PANEL : start * BLOCK + (b + 1) * PANEL]
        out = features[start * rows + at * PANEL : start * rows + (at + 1) * PANEL]
        left = diagonal[start : start + PANEL]
        for c in range(left.size):
            out[c] = row[c] * inverse
            left[c] = max(left[c] - out[c] * out[c], zero)


@inner(STRICT)
def read_factor(features, rows, queries, chosen, factor):
    """Write the columns of the factor at the pivots: R, row by row."""
    for j in range(chosen.size):
        at = chosen[j] // PANEL * PANEL * rows + chosen[j] % PANEL
        for i in range(j + 1):
            factor[i, j] = features[at + (queries + i) * PANEL]


@inner(STRICT)
def carry(features, rows, queries, chosen, outputs, D, factor, carried, free):
    """Write f^T (outputs, 1) times a factor: what sampled queries say on landmarks' right sides."""
    width = BYTES // features.itemsize
    few, free = free[: PANEL * queries], free[PANEL * queries :]
    carried[:] = 0
    if queries == 0:
        return
    for first in range(0, chosen.size, PANEL):
        count = min(PANEL, chosen.size - first)
        for c in range(count):
            at = chosen[first + c] // PANEL * PANEL * rows + chosen[first + c] % PANEL
            total = 0.0
            for q in range(queries):
                f = features[at + q * PANEL]
                few[q * PANEL + c] = f
                total += f
            carried[first + c, D] = total * factor
        for start in range(0, D, PANEL):
            for row in range(0, count, ROWS):
                for column in range(0, PANEL, width):
                    at = start * queries + column
                    inner_products(few, row, outputs, at, queries, free, row * PANEL + column)
            for c in range(count):
                for d in range(start, min(D, start + PANEL)):
                    carried[first + c, d] = free[c * PANEL + d - start] * factor
