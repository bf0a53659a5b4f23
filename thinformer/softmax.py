"""Softmax attention of many queries over few keys, on NumPy arrays.

A thread works on PANEL queries of one head at a time: their logits with all keys kept, the
exponentials, then the weighted sums of the values. Logits lie key by key, a row of queries each, so
maxima and sums run over rows, and a row is what `inner_products` takes as the columns of the second
product. What a thread holds is the head's keys and values and those logits; the weights of all
queries exist only if they are asked for.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer import _pool
from thinformer._jit import ELEMENTWISE, STRICT, inner, kernel
from thinformer._simd import BYTES, PANEL, ROWS, inner_products
from thinformer.problem import Factor
from thinformer.tiles import exp, gather_factor


def softmax_attention(
    query: Factor,
    key: Factor,
    value: Factor,
    indices: NDArray,
    output: NDArray,
    weights: NDArray | None,
) -> None:
    """Write softmax(scale q k^T) v of every head, and the weights if there is a place for them.

    Parameters
    ----------
    query, key, value : Factor
        Those of each head; the queries' SCALE is the softmax scale.
    indices : (B * H, n) int64 array
        The keys that the queries of each head attend to.
    output : (B, T, H, D) array, contiguous, written
    weights : (B * H, T, n) array, written, or None
    """
    B, T, H, D = output.shape
    problems, n = indices.shape
    place = (np.arange(B)[:, None] * T * H * D + np.arange(H) * D).ravel()
    every = np.empty((0, 0, 0), output.dtype) if weights is None else weights
    blocks = -(-T // PANEL)
    positions = np.arange(T)

    def attend(first: int, last: int) -> None:
        work = workspace(n, query.dim, D, output.dtype)
        attend_blocks(
            first, last, positions, query, key, value, indices, output.ravel(), place, H * D,
            every, work,
        )  # fmt: skip

    _pool.run(attend, problems * blocks, 2.0 * problems * T * n * (query.dim + D))


def workspace(n: int, E: int, D: int, dtype: np.dtype) -> NDArray:
    """Return the memory that one thread works in."""
    keys, columns = -(-n // PANEL) * PANEL, -(-D // PANEL) * PANEL
    return np.empty(keys * E + n * columns + PANEL * (E + keys + PANEL + 3), dtype)


@kernel
def attend_blocks(
    first, last, positions, query, key, value, indices, output, place, stride, weights, work
):  # fmt: skip
    """Attend from the blocks of queries first .. last-1, counted over all problems.

    positions : 0 .. T-1
    indices : (problems, n) int64
    output : flat, written; a problem's query t is at place[problem] + t * stride
    weights : (problems, T, n), written, or empty
    work : memory of the thread
    """
    n, width = indices.shape[1], BYTES // work.itemsize
    blocks = -(-positions.size // PANEL)
    padded = -(-n // PANEL) * PANEL
    top, total, work = work[:PANEL], work[PANEL : 2 * PANEL], work[2 * PANEL :]
    logits, work = work[: padded * PANEL], work[padded * PANEL :]
    sums, work = work[: PANEL * PANEL], work[PANEL * PANEL :]
    loaded = -1
    for unit in range(first, last):
        problem, start = unit // blocks, unit % blocks * PANEL
        if problem != loaded:
            keys, _, rest = gather_factor(key, problem, indices[problem], work)
            values, free = gather_columns(value, problem, indices[problem], rest)
            loaded = problem
        chosen = positions[start : start + PANEL]
        queries, _, _ = gather_factor(query, problem, chosen, free)
        for row in range(0, n, ROWS):
            at = row // PANEL * PANEL * query.dim + row % PANEL
            for column in range(0, PANEL, width):
                inner_products(keys, at, queries, column, query.dim, logits, row * PANEL + column)
        row_maxima(logits, n, top)
        exponentials(logits, n, top, total)
        for start_column in range(0, value.dim, PANEL):
            panel, end = start_column * n, min(PANEL, value.dim - start_column)
            for row in range(0, end, ROWS):
                for column in range(0, PANEL, width):
                    inner_products(
                        values, panel + row, logits, column, n, sums, row * PANEL + column
                    )
            at = place[problem] + start * stride + start_column
            for q in range(chosen.size):
                divide(sums[q:], total[q], output[at + q * stride : at + q * stride + end])
        if weights.size > 0:
            for q in range(chosen.size):
                divide(logits[q:], total[q], weights[problem, start + q])


@inner(STRICT)
def gather_columns(factor, problem, positions, free):
    """Gather the points of one factor, PANEL of their columns after another.

    Returns panels (points, PANEL), the last filled up with zeros, and the memory still free.
    """
    points, dim = positions.size, factor.dim
    padded = -(-dim // PANEL) * PANEL
    panels = free[: points * padded]
    for start in range(0, dim, PANEL):
        for i in range(points):
            row = panels[start * points + i * PANEL : start * points + (i + 1) * PANEL]
            corner = factor.first[problem] + positions[i] * factor.row + start * factor.column
            end = min(PANEL, dim - start)
            for c in range(end):
                row[c] = factor.window[corner + c * factor.column]
            row[end:] = 0
    return panels, free[points * padded :]


@inner(ELEMENTWISE)
def row_maxima(logits, n, top):
    """Largest logit of every query."""
    top[:] = logits[:PANEL]
    for i in range(1, n):
        row = logits[i * PANEL : (i + 1) * PANEL]
        for q in range(top.size):
            top[q] = max(top[q], row[q])


@inner(ELEMENTWISE)
def exponentials(logits, n, top, total):
    """exp(logit - largest logit of the query), and their sum."""
    total[:] = 0
    for i in range(n):
        row = logits[i * PANEL : (i + 1) * PANEL]
        for q in range(top.size):
            row[q] = exp(row[q] - top[q])
            total[q] += row[q]


@inner(ELEMENTWISE)
def divide(column, total, out):
    """Out = a column of entries PANEL apart, / total."""
    for i in range(out.size):
        out[i] = column[i * PANEL] / total
