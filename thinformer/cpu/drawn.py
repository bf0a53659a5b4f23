"""Landmarks drawn by the attention weights of sampled queries.

The importance of key j, e^{2 h_j}, is the sum of the squared weights that the sampled queries give
to it, plus exp(|x_j|^2), each term over its sum over all keys (`reference.landmarks.exponents`).
Landmarks are drawn in proportion to e^{h_j}.
"""

from __future__ import annotations

import math

import numpy as np

from thinformer.cpu.jit import ELEMENTWISE, REDUCTION, STRICT, inner
from thinformer.cpu.products import tile_of_products
from thinformer.cpu.simd import BYTES, PANEL, padded_size, transpose
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
        for row in range(0, n, PANEL):
            count = min(PANEL, n - row)
            tile_of_products(x, row * E, queries, first * E, E, count, logits, row * PANEL)
        row_maxima(logits, n, of_top)
        exponentials(logits, n, of_top, of_total)
        of_total[m - first :] = np.inf  # so that weights are 0 where there is no query
        for start in range(0, D, PANEL):
            tile_of_products(values, start * n, logits, 0, n, min(PANEL, D - start), sums, 0)
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
    """Replace sums of squared weights (n,) by exp(h_j - largest h).

    squares : (n,), |x_j|^2
    balance : the trace of the exponential kernel, as a multiple of that of the sampled queries
    """
    # log 0 is infinite
    least = importance.dtype.type(math.sqrt(TINY_32 if importance.itemsize == 4 else TINY_64))
    of_all, most, largest = 0.0, least, squares[0]
    for j in range(importance.size):
        importance[j] = max(importance[j], least)
        of_all += importance[j]
        most, largest = max(most, importance[j]), max(largest, squares[j])
    total = sum_of_exponentials(squares, largest)
    twice_t = largest + math.log(total) - math.log(balance) - math.log(of_all)
    shift = max(float(largest), math.log(most) + twice_t)
    dtype = squares.dtype.type
    combine(squares, importance, dtype(shift), dtype(math.exp(twice_t - shift)))


@inner(REDUCTION)
def sum_of_exponentials(row, shift):
    """Return the sum of exp(x - shift) over a row."""
    total = 0.0
    for j in range(row.size):
        total += exp(row[j] - shift)
    return total


@inner(ELEMENTWISE)
def combine(squares, importance, shift, factor):
    """Replace importances i (n,) by sqrt(w / max w), w = exp(|x|^2 - shift) + factor i."""
    largest = importance.dtype.type(0)
    for j in range(squares.size):
        importance[j] = exp(squares[j] - shift) + factor * importance[j]
    for j in range(squares.size):
        largest = max(largest, importance[j])
    for j in range(squares.size):
        importance[j] = np.sqrt(importance[j] / largest)


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
