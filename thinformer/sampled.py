"""What sampled queries make of keys: the attention they pay, and the kernel that follows from it.

A query's weights p_j of key j are features, f_j = p_j exp(t - h_j), of the kernel's first term. Of
the second, exp(<x_j, x_j'>), they need to know only how much it counts beside them: t balances the
two, and h makes the diagonal 1 (`reference.landmarks.kernel`).
"""

from __future__ import annotations

import math

import numpy as np

from thinformer._jit import ELEMENTWISE, REDUCTION, STRICT, inner
from thinformer._simd import BYTES, PANEL, ROWS, inner_products, transpose
from thinformer.softmax import divide, exponentials, row_maxima
from thinformer.tiles import exp, gather_factor

TINY_32, TINY_64 = (float(np.finfo(dtype).tiny) for dtype in (np.float32, np.float64))


@inner(STRICT)
def attend(
    p, x, n, query, sampled, scale, values, D, positions, index, features, rows, importance, outputs,
    free,
):  # fmt: skip
    """Attend from sampled queries, PANEL at a time.

    x : panels (E, PANEL) of the n keys; values : panels (n, PANEL) of their values' D dimensions
    query, sampled, scale : Factor, positions in problem p, and what makes <query, x> logits
    positions : the numbers from 0 on, at least PANEL
    index, features : candidates, and their panels (rows, PANEL), written: in row q the weights of
        query q; queries are padded to whole panels, with zeros
    importance : (n,), written: the sum of the squared weights of a key
    outputs : panels (padded queries, PANEL) of the values' dimensions, written
    """
    E, width = query.dim, BYTES // x.itemsize
    one, keys = x.dtype.type(1), -(-n // PANEL) * PANEL
    top, total, free = free[:PANEL], free[PANEL : 2 * PANEL], free[2 * PANEL :]
    logits, free = free[: keys * PANEL], free[keys * PANEL :]
    sums, free = free[: PANEL * PANEL], free[PANEL * PANEL :]
    padded = -(-sampled.size // PANEL) * PANEL
    importance[:] = 0
    for first in range(0, sampled.size, PANEL):
        count = min(PANEL, sampled.size - first)
        queries, _, _ = gather_factor(query, p, sampled[first : first + count], free)
        for c in range(count, PANEL):
            queries[c::PANEL] = 0  # not whatever was in memory, which might be NaN
        for i in range(queries.size):
            queries[i] *= scale
        for row in range(0, n, ROWS):
            at = row // PANEL * PANEL * E + row % PANEL
            for column in range(0, PANEL, width):
                inner_products(x, at, queries, column, E, logits, row * PANEL + column)
        row_maxima(logits, n, top)
        exponentials(logits, n, top, total)
        total[count:] = np.inf  # so that weights of no query are 0
        for start in range(0, D, PANEL):
            for row in range(0, min(PANEL, D - start), ROWS):
                for column in range(0, PANEL, width):
                    at = start * n + row
                    inner_products(values, at, logits, column, n, sums, row * PANEL + column)
            divide(sums, total)
            for i in range(0, PANEL, width):
                at = start * padded + first * PANEL + i
                transpose(sums, 0, PANEL, positions, i, PANEL, one, outputs, at, PANEL)
        normalise(logits, n, total, importance)
        for i in range(0, index.size, width):
            at = i // PANEL * PANEL * rows + first * PANEL + i % PANEL
            transpose(logits, 0, PANEL, index, i, PANEL, one, features, at, PANEL)


@inner(REDUCTION)
def normalise(exponentials, n, total, importance):
    """From exponentials to weights, and add up the squares of those of a key."""
    inverse = 1 / total
    for i in range(n):
        row, square = exponentials[i * PANEL : (i + 1) * PANEL], total.dtype.type(0)
        for q in range(inverse.size):
            row[q] *= inverse[q]
            square += row[q] * row[q]
        importance[i] += square


@inner(STRICT)
def exponents(importance, squares, balance, index, h):
    """Write h of the candidates; return t and the largest h of all keys.

    importance, squares : of all keys, overwritten
    balance : the exponential kernel's trace beside that of the sampled queries' attention

    h is half the logarithm of exp(2 t) importance + exp(|x|^2); the largest takes one for all keys.
    """
    dtype = squares.dtype.type
    largest = squares[0]
    for j in range(squares.size):
        largest = max(largest, squares[j])
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
