"""Landmarks drawn by the attention weights of sampled queries.

The kernel N between keys has two terms. The first term is the inner product of features,
f_j = p_j exp(t - h_j), where p_j are the attention weights that the sampled queries give to key j.
The second term is exp(<x_j, x_j'> - h_j - h_j'). The number t balances the two, and h makes the
diagonal 1 (`reference.landmarks.kernel`). Landmarks are drawn in proportion to exp(h_j).
"""

from __future__ import annotations

import math

import numpy as np

from thinformer.cpu.jit import ELEMENTWISE, REDUCTION, STRICT, inner
from thinformer.cpu.simd import BYTES, PANEL, ROWS, inner_products, padded_size, transpose
from thinformer.cpu.softmax import divide, exponentials, row_maxima
from thinformer.cpu.tiles import exp

FLOOR = 1e-12  # the least weight of a key; the largest is 1
TINY_32, TINY_64 = (float(np.finfo(dtype).tiny) for dtype in (np.float32, np.float64))


@inner(STRICT)
def attend_sampled(
    x, n, E, queries, m, values, D, positions, top, total, importance, outputs, free
):
    """Write the exact attention of sampled queries, PANEL queries at a time.

    x : panels (E, PANEL) of the n keys
    queries : panels (E, PANEL) of the m queries, whose products with keys are logits; 0 where the
        last panel has no query
    values : panels (n, PANEL) of the values' D dimensions
    positions : (at least PANEL,), the numbers from 0 on
    top, total : (m in whole panels,), written: a query's largest logit, and the sum of
        exp(logit - largest); infinite where there is no query
    importance : (n,), written: a key's sum of squared weights
    outputs : panels (m in whole panels, PANEL) of the outputs' D dimensions, written
    """
    width, one = BYTES // x.itemsize, x.dtype.type(1)
    size = padded_size(n) * PANEL
    logits, sums = free[:size], free[size : size + PANEL * PANEL]
    importance[:] = 0
    for first in range(0, m, PANEL):
        of_top, of_total = top[first : first + PANEL], total[first : first + PANEL]
        for row in range(0, n, ROWS):
            at = row // PANEL * PANEL * E + row % PANEL
            for column in range(0, PANEL, width):
                inner_products(x, at, queries, first * E + column, E, logits, row * PANEL + column)
        row_maxima(logits, n, of_top)
        exponentials(logits, n, of_top, of_total)
        of_total[m - first :] = np.inf  # so that weights are 0 where there is no query
        for start in range(0, D, PANEL):
            for row in range(0, min(PANEL, D - start), ROWS):
                for column in range(0, PANEL, width):
                    at = start * n + row
                    inner_products(values, at, logits, column, n, sums, row * PANEL + column)
            divide(sums, of_total)
            for i in range(0, PANEL, width):
                at = start * top.size + first * PANEL + i
                transpose(sums, 0, PANEL, positions, i, PANEL, one, outputs, at, PANEL)
        add_squares(logits, n, of_total, importance)


@inner(REDUCTION)
def add_squares(exponentials, n, total, importance):
    """Add the squares of the weights of n keys to their importance (n,).

    exponentials : (n, PANEL), a row a key; total : (PANEL,), their sum for each query
    """
    inverse = 1 / total
    for i in range(n):
        row, square = exponentials[i * PANEL : (i + 1) * PANEL], total.dtype.type(0)
        for q in range(inverse.size):
            weight = row[q] * inverse[q]
            square += weight * weight
        importance[i] += square


@inner(STRICT)
def weigh_keys(importance, squares, balance):
    """Replace importances (n,) by exp(h_j - largest h); return t and the largest h.

    h_j is half the logarithm of exp(2 t) importance_j + exp(|x_j|^2).

    squares : (n,), |x_j|^2
    balance : the trace of the exponential kernel, as a multiple of the trace of the other term
    """
    # the features of a key that no sampled query gives weight to may not be 0 times infinity
    least = importance.dtype.type(math.sqrt(TINY_32 if importance.itemsize == 4 else TINY_64))
    of_all, most, largest = 0.0, least, squares[0]
    for j in range(importance.size):
        importance[j] = max(importance[j], least)
        of_all += importance[j]
        most, largest = max(most, importance[j]), max(largest, squares[j])
    total = sum_of_exponentials(squares, largest)
    t = (largest + math.log(total) - math.log(balance) - math.log(of_all)) / 2
    shift = max(float(largest), math.log(most) + 2 * t)
    dtype = squares.dtype.type
    highest = combine(squares, importance, dtype(shift), dtype(math.exp(2 * t - shift)))
    return t, (shift + math.log(highest)) / 2


@inner(REDUCTION)
def sum_of_exponentials(row, shift):
    """Return the sum of exp(x - shift) over a row."""
    total = 0.0
    for j in range(row.size):
        total += exp(row[j] - shift)
    return total


@inner(ELEMENTWISE)
def combine(squares, importance, shift, factor):
    """Replace importances i (n,) by sqrt(w / max w), w = exp(|x|^2 - shift) + factor i.

    Returns max w.
    """
    largest = importance.dtype.type(0)
    for j in range(squares.size):
        importance[j] = exp(squares[j] - shift) + factor * importance[j]
    for j in range(squares.size):
        largest = max(largest, importance[j])
    for j in range(squares.size):
        importance[j] = np.sqrt(importance[j] / largest)
    return largest


@inner(STRICT)
def draw_landmarks(weight, n_out, u, chosen):
    """Write the landmarks, in key order, drawn by systematic sampling in proportion to weights.

    weight : (n,), the largest is 1; u : one random number
    chosen : (n_out,) int64, written
    """
    n, probability, sure = weight.size, np.empty(weight.size), 0
    for j in range(n):
        probability[j] = max(float(weight[j]), FLOOR)
    found = True
    while found:  # keys whose probability would be above 1 are taken for sure
        total, found = 0.0, False
        for j in range(n):
            if probability[j] < np.inf:
                total += probability[j]
        factor = (n_out - sure) / max(total, FLOOR)
        for j in range(n):
            if probability[j] < np.inf and probability[j] * factor > 1:
                probability[j], found = np.inf, True
                sure += 1
    total, count = 0.0, 0
    for j in range(n):
        total += min(probability[j] * factor, 1.0)
        left = n - j == n_out - count  # rounding may have lost the last one
        if count < n_out and (total > count + u or left):
            chosen[count] = j
            count += 1


@inner(STRICT)
def features(few, E, queries, m, top, total, h, t, out):
    """Write the features p exp(t - h) of a panel of landmarks, (m in whole panels, PANEL).

    few, h : a panel (E, PANEL) of landmarks, and their h (PANEL,)
    queries, m, top, total : as `attend_sampled` has them
    """
    width = BYTES // few.itemsize
    for first in range(0, m, PANEL):
        tile = out[first * PANEL : (first + PANEL) * PANEL]
        for row in range(0, PANEL, ROWS):
            for column in range(0, PANEL, width):
                inner_products(queries, first * E + row, few, column, E, tile, row * PANEL + column)
        to_features(tile, top[first : first + PANEL], total[first : first + PANEL], h, t)


@inner(ELEMENTWISE)
def to_features(tile, top, total, h, t):
    """Replace logits, a row a query, by weights times exp(t - h)."""
    factor = np.empty(h.size, tile.dtype)
    for c in range(h.size):
        factor[c] = exp(t - h[c])
    for q in range(top.size):
        row, shift, inverse = tile[q * PANEL : (q + 1) * PANEL], top[q], 1 / total[q]
        for c in range(factor.size):
            row[c] = exp(row[c] - shift) * inverse * factor[c]
