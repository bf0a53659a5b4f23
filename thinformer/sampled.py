"""What sampled queries make of candidates: the attention they pay, and the kernel that follows.

A query's weights p_j of key j are features, f_j = p_j exp(t - h_j), of the kernel's first term. Of
the second, exp(<x_j, x_j'>), they need to know only how much it counts beside them: t balances the
two, and h makes the diagonal 1 (`reference.landmarks.kernel`).
"""

from __future__ import annotations

import math

import numpy as np

from thinformer._jit import ELEMENTWISE, STRICT, inner
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
    importance : (candidates,), written: the sum of the squared weights of a key
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
        for i in range(0, index.size, width):
            at = i // PANEL * PANEL * rows + first * PANEL + i % PANEL
            transpose(logits, 0, PANEL, index, i, PANEL, one, features, at, PANEL)
        for start in range(0, index.size, PANEL):
            of_block = features[
                start * rows + first * PANEL : start * rows + (first + PANEL) * PANEL
            ]
            normalise(of_block, total, importance[start : start + PANEL])


@inner(ELEMENTWISE)
def normalise(rows, total, importance):
    """From exponentials, a row a query, to weights, and add up the squares of those of a key."""
    for q in range(total.size):
        row, inverse = rows[q * PANEL : (q + 1) * PANEL], 1 / total[q]
        for c in range(importance.size):
            row[c] *= inverse
            importance[c] += row[c] * row[c]


@inner(STRICT)
def exponents(importance, squares, balance, h):
    """Write h of candidates, half the logarithm of exp(2 t) importance + exp(|x|^2); return t.

    balance : the exponential kernel's trace beside that of the sampled queries' attention
    """
    # where no sampled query sees a key, f may not be 0 times infinity
    least = math.sqrt(TINY_32 if h.itemsize == 4 else TINY_64)
    of_all, largest, total = 0.0, float(squares[0]), 0.0
    for c in range(h.size):
        importance[c] = max(importance[c], least)
        of_all += importance[c]
        largest = max(largest, float(squares[c]))
    for c in range(h.size):
        total += math.exp(squares[c] - largest)
    t = (largest + math.log(total) - math.log(balance) - math.log(of_all)) / 2
    for c in range(h.size):
        a, b = math.log(importance[c]) + 2 * t, float(squares[c])
        h[c] = (max(a, b) + math.log1p(math.exp(-abs(a - b)))) / 2
    return h.dtype.type(t)


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
