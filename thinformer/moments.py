"""What landmarks need to know of a head's tokens before any is chosen: means, norms, ranges."""

from __future__ import annotations

import math

import numpy as np

from thinformer._jit import ELEMENTWISE, REDUCTION, STRICT, inner, kernel


@kernel
def measure(first, last, query, key, value, queries, keys, mean, norms, low, high, sums):
    """Measure problems first .. last-1.

    query, key, value : Factor; queries, keys : tokens of each problem
    mean : (problems, E), written: of the keys
    norms : (problems, 2), written: the largest of the queries, and of the keys less their mean
    low, high : (problems, D), written: the range of the values
    sums : (problems,) float64, written: not finite if any token is not
    """
    q, k = np.empty(query.dim, mean.dtype), np.empty(key.dim, mean.dtype)
    v = np.empty(value.dim, mean.dtype)
    of_keys, of_values = np.empty(key.dim), np.empty(value.dim)
    for p in range(first, last):
        largest, total = 0.0, 0.0
        for i in range(queries):
            copy_row(query, p, i, q)
            square = squared_norm(q)
            largest = max(largest, square)
            total += square
        norms[p, 0] = math.sqrt(largest)
        of_keys[:] = 0
        for i in range(keys):
            copy_row(key, p, i, k)
            add_row(k, of_keys)
        for d in range(key.dim):
            mean[p, d] = of_keys[d] / keys
            total += of_keys[d]
        largest = 0.0
        for i in range(keys):
            copy_row(key, p, i, k)
            largest = max(largest, squared_distance(k, mean[p]))
        norms[p, 1] = math.sqrt(largest)
        of_values[:] = 0
        low[p], high[p] = np.inf, -np.inf
        for i in range(keys):
            copy_row(value, p, i, v)
            add_row(v, of_values)
            widen(v, low[p], high[p])
        for d in range(value.dim):
            total += of_values[d]
        sums[p] = total


@inner(STRICT)
def copy_row(factor, p, i, row):
    """Copy row i of problem p."""
    start = factor.first[p] + i * factor.row
    if factor.column == 1:
        row[:] = factor.window[start : start + row.size]
    else:
        for d in range(row.size):
            row[d] = factor.window[start + d * factor.column]


@inner(REDUCTION)
def squared_norm(row):
    """|x|^2, in float64, where it cannot overflow what holds the row."""
    total = 0.0
    for d in range(row.size):
        x = float(row[d])
        total += x * x
    return total


@inner(REDUCTION)
def squared_distance(row, other):
    """|x - y|^2, in float64."""
    total = 0.0
    for d in range(row.size):
        x = float(row[d]) - float(other[d])
        total += x * x
    return total


@inner(ELEMENTWISE)
def add_row(row, total):
    """Add a row."""
    for d in range(row.size):
        total[d] += row[d]


@inner(ELEMENTWISE)
def widen(row, low, high):
    """Widen a range by a row."""
    for d in range(row.size):
        low[d] = min(low[d], row[d])
        high[d] = max(high[d], row[d])
