"""Softmax attention of many queries over few keys, on NumPy arrays.

A thread works on QUERIES queries of one head at a time: their logits with all keys, a tile of KEYS
keys after another, the exponentials, then the weighted sum of the values. What it holds is those
logits; the weights of all queries exist only if they are asked for. Products are BLAS's, cut to
what it runs on the calling thread (see `thinformer.tiles`).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer import _pool
from thinformer._jit import ELEMENTWISE, REDUCTION, STRICT, bind, inner, kernel
from thinformer.problem import SCALE, Factor
from thinformer.tiles import BLAS_SERIAL, exp

QUERIES = 64
KEYS = 64


def softmax_attention(
    query: Factor, key: NDArray, value: NDArray, output: NDArray, weights: NDArray | None
) -> None:
    """Write softmax(scale q k^T) v of every head, and the weights if there is a place for them.

    Parameters
    ----------
    query : Factor
        The queries of each head, whose SCALE is the softmax scale.
    key, value : (B * H, n, E) and (B * H, n, D) arrays
    output : (B, T, H, D) array, contiguous, written
    weights : (B * H, T, n) array, written, or None
    """
    problems, n, E = key.shape
    B, T, H, _ = output.shape
    D = value.shape[-1]
    tiles = -(-n // KEYS)
    columns = np.zeros((problems, tiles * KEYS, E), key.dtype)
    columns[:, :n] = key
    columns = np.ascontiguousarray(columns.reshape(problems, tiles, KEYS, E).swapaxes(2, 3))
    rows = np.zeros((problems, tiles * KEYS, D), value.dtype)
    rows[:, :n] = value
    place = (np.arange(B)[:, None] * T * H * D + np.arange(H) * D).ravel()
    every = np.empty((0, 0, 0), value.dtype) if weights is None else weights
    blocks = -(-T // QUERIES)

    def attend(first: int, last: int) -> None:
        work = workspace(E, D, tiles, value.dtype)
        attend_blocks(
            first, last, T, query, columns, rows, n, output.ravel(), place, H * D, every, work
        )

    _pool.run(attend, problems * blocks, 2.0 * problems * _padded(T) * n * (E + D))


def workspace(E: int, D: int, tiles: int, dtype: np.dtype) -> NDArray:
    """Return the memory that one thread works in."""
    return np.empty(QUERIES * (E + 2 * D + (tiles + 1) * KEYS + 2), dtype)


def _padded(count):
    """Rows that are computed for a number of queries: whole vectors of them."""
    return -(-count // 16) * 16


padded = bind(_padded, STRICT)


@kernel
def attend_blocks(
    first, last, n_queries, query, columns, rows, n, output, place, stride, weights, work
):  # fmt: skip
    """Attend from the blocks of queries first .. last-1, counted over all problems.

    columns : (problems, tiles, E, KEYS), the keys; those beyond n are padding
    rows : (problems, tiles * KEYS, D), the values, zero beyond n
    output : flat, written; a problem's query t is at place[problem] + t * stride
    weights : (problems, n_queries, n), written, or empty
    work : memory of the thread
    """
    tiles, dim, width = columns.shape[1], columns.shape[2], rows.shape[2]
    blocks = -(-n_queries // QUERIES)
    size = QUERIES * KEYS
    block, work = work[: QUERIES * dim].reshape(QUERIES, dim), work[QUERIES * dim :]
    whole_spread, work = work[:size], work[size:]
    logits, work = work[: tiles * size], work[tiles * size :]
    top, work = work[:QUERIES], work[QUERIES:]
    total, work = work[:QUERIES], work[QUERIES:]
    for unit in range(first, last):
        problem, start = unit // blocks, unit % blocks * QUERIES
        count = min(QUERIES, n_queries - start)
        used = min(QUERIES, padded(count))
        queries, spread = block[:used], whole_spread[: used * KEYS]
        sums, part = work[: used * width], work[used * width : 2 * used * width]
        gather(query, problem, start, count, queries)
        for t in range(tiles):
            tile = logits[t * size : t * size + used * KEYS]
            product(queries, columns[problem, t], tile)
            if t == tiles - 1:
                hide(tile, n - t * KEYS)
            if t == 0:
                spread[:] = tile
            else:
                raise_to(spread, tile)
        row_maxima(spread, top)
        spread[:] = 0
        sums[:] = 0
        for t in range(tiles):
            tile = logits[t * size : t * size + used * KEYS]
            exponentials(tile, top)
            add(spread, tile)
            product(tile.reshape(used, KEYS), rows[problem, t * KEYS : (t + 1) * KEYS], part)
            add(sums, part)
        row_sums(spread, total)
        for r in range(count):
            at = place[problem] + (start + r) * stride
            divide(sums[r * width : (r + 1) * width], total[r], output[at : at + width])
            if weights.size > 0:
                row = weights[problem, start + r]
                for t in range(tiles):
                    out = row[t * KEYS : (t + 1) * KEYS]
                    divide(logits[t * size + r * KEYS :], total[r], out)


@inner(STRICT)
def gather(query, problem, start, count, out):
    """Copy some queries, times the softmax scale; the rest of the block is zero."""
    scale = query.parameters[problem, SCALE]
    for r in range(count):
        place = query.first[problem] + (start + r) * query.row
        for c in range(query.dim):
            out[r, c] = query.window[place + c * query.column] * scale
    out[count:] = 0


@inner(STRICT)
def product(a, b, out):
    """A @ b into flat memory, a few rows at a time."""
    width = b.shape[1]
    step = max(1, BLAS_SERIAL // b.size)
    for row in range(0, a.shape[0], step):
        rows = a[row : row + step]
        at = out[row * width : (row + rows.shape[0]) * width]
        np.dot(rows, b, at.reshape(rows.shape[0], width))


@inner(STRICT)
def hide(tile, width):
    """Give the padding, columns from width on, no weight."""
    for r in range(tile.size // KEYS):
        tile[r * KEYS + width : (r + 1) * KEYS] = -np.inf


@inner(ELEMENTWISE)
def raise_to(out, tile):
    """Take the larger of two, entry by entry."""
    for i in range(out.size):
        out[i] = max(out[i], tile[i])


@inner(ELEMENTWISE)
def add(out, tile):
    """Out += tile."""
    for i in range(out.size):
        out[i] += tile[i]


@inner(STRICT)
def row_maxima(tile, out):
    """Largest entry of every row."""
    for r in range(tile.size // KEYS):
        largest = tile[r * KEYS]
        for c in range(1, KEYS):
            largest = max(largest, tile[r * KEYS + c])
        out[r] = largest


@inner(REDUCTION)
def row_sums(tile, out):
    """Sum of every row."""
    for r in range(tile.size // KEYS):
        total = tile[r * KEYS]
        for c in range(1, KEYS):
            total += tile[r * KEYS + c]
        out[r] = total


@inner(ELEMENTWISE)
def exponentials(tile, top):
    """exp(logit - largest logit of the row)."""
    for r in range(tile.size // KEYS):
        row, largest = tile[r * KEYS : (r + 1) * KEYS], top[r]
        for c in range(KEYS):
            row[c] = exp(row[c] - largest)


@inner(ELEMENTWISE)
def divide(row, total, out):
    """Out = row / total, as far as out goes."""
    for c in range(out.size):
        out[c] = row[c] / total
