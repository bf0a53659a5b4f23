"""Landmarks among the keys of a head, by randomly pivoted Cholesky of a kernel on them.

The kernel is N(j, j') = <f_j, f_j'> + exp(<x_j, x_j'> - h_j - h_j'), of scaled keys x and of what
sampled queries make of a key, f; `thinformer.landmarks` says why. Its diagonal is 1.

Candidates lie in panels, PANEL of them side by side, which hold f and, below, the rows of the
Cholesky factor as they come. What the pivots so far leave of a row of N is then one product, with
the factor's sign changed, and BLOCK rows are made at once: one by one, each would read all panels
for a single product, from memory that is slower than the arithmetic.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from thinformer._jit import ELEMENTWISE, REDUCTION, STRICT, inner, kernel
from thinformer._simd import BYTES, PANEL, ROWS, inner_products
from thinformer.tiles import exp, gather_factor

BLOCK = 16  # proposals at a time, a multiple of ROWS
TINY_32, TINY_64 = (float(np.finfo(dtype).tiny) for dtype in (np.float32, np.float64))


def workspace(
    n: int, candidates: int, n_out: int, queries: int, E: int, dtype: np.dtype
) -> NDArray:
    """Return the memory that one thread works in."""
    padded = -(-candidates // PANEL) * PANEL
    rows = queries + n_out + E
    return np.empty(padded * (rows + BLOCK + 2) + 2 * n + PANEL * (rows + 2 * BLOCK + 1), dtype)


@kernel
def choose_pivots(
    first, last, keys, attention, candidates, candidate_row, uniforms, uniform_row, kept,
    exponents, constants, balance, nugget, work,
):  # fmt: skip
    """Choose the landmarks of problems first .. last-1.

    keys : Factor on centred keys, whose SCALE makes them x
    attention : (problems, queries, n), the weights of sampled queries; queries may be 0
    candidates, candidate_row : (rows, L) int64, and which row a problem has
    uniforms, uniform_row : (rows, proposals, 2) float64, likewise
    kept : (problems, n_out) int64, written, increasing
    exponents : (problems, n_out), written: h of those
    constants : (problems, 2), written: t, with f_j = p_j exp(t - h_j), and the largest h of all
    balance : the exponential kernel's trace beside that of the sampled queries' attention
    nugget : added to the diagonal of N
    work : memory of the thread
    """
    queries, n, E = attention.shape[1], attention.shape[2], keys.dim
    n_out, L = kept.shape[1], candidates.shape[1]
    padded = -(-L // PANEL) * PANEL
    rows = queries + n_out
    for p in range(first, last):
        h, squares = work[:n], work[n : 2 * n]
        t = exponents_of_all(keys, p, attention[p], balance, h, squares)
        top = h[0]
        for j in range(n):
            top = max(top, h[j])
        index = candidates[candidate_row[p]]
        free = work[2 * n :]
        x, _, free = gather_factor(keys, p, index, free)
        features, free = free[: padded * rows], free[padded * rows :]
        of_candidates, free = free[:padded], free[padded:]
        for c in range(padded):
            of_candidates[c] = h[index[min(c, L - 1)]]
        for start in range(0, padded, PANEL):
            panel = features[start * rows : (start + PANEL) * rows]
            for i in range(queries):
                for c in range(PANEL):
                    panel[i * PANEL + c] = attention[p, i, index[min(start + c, L - 1)]]
            scale_columns(panel, of_candidates[start : start + PANEL], queries, t)
        chosen = factorise(
            x, E, features, queries, rows, of_candidates, top, L, uniforms[uniform_row[p]], n_out,
            nugget, free,
        )  # fmt: skip
        chosen.sort()
        for i in range(n_out):
            kept[p, i] = index[chosen[i]]
            exponents[p, i] = of_candidates[chosen[i]]
        constants[p, 0], constants[p, 1] = t, top


@inner(STRICT)
def exponents_of_all(keys, p, attention, balance, h, squares):
    """Write h of all keys; return t."""
    n, scale = h.size, keys.parameters[p, 0]
    for j in range(n):
        start = keys.first[p] + j * keys.row
        squares[j] = scale * scale * squared_norm(keys.window, start, keys.column, keys.dim)
    if attention.shape[0] == 0:
        for j in range(n):
            h[j] = squares[j] / 2
        return squares.dtype.type(0)
    h[:] = 0
    least = squares.dtype.type(math.sqrt(TINY_32 if squares.itemsize == 4 else TINY_64))
    for i in range(attention.shape[0]):
        add_squares(attention[i], h)
    largest, total, importance = squares[0], 0.0, 0.0
    for j in range(n):
        h[j] = max(h[j], least)  # where no sampled query sees a key, f may not be 0 times infinity
        largest = max(largest, squares[j])
        importance += h[j]
    for j in range(n):
        total += math.exp(squares[j] - largest)
    t = (largest + math.log(total) - math.log(balance) - math.log(importance)) / 2
    for j in range(n):  # half the logarithm of exp(2 t) importance + exp(|x|^2)
        a, b = math.log(h[j]) + 2 * t, float(squares[j])
        h[j] = (max(a, b) + math.log1p(math.exp(-abs(a - b)))) / 2
    return squares.dtype.type(t)


@inner(REDUCTION)
def squared_norm(window, start, column, dim):
    """The squared norm of one key."""
    total = window.dtype.type(0)
    for d in range(dim):
        total += window[start + d * column] * window[start + d * column]
    return total


@inner(ELEMENTWISE)
def add_squares(row, total):
    """Add the squares of a row."""
    for j in range(row.size):
        total[j] += row[j] * row[j]


@inner(ELEMENTWISE)
def scale_columns(panel, h, queries, t):
    """From attention weights p_j to features p_j exp(t - h_j)."""
    for i in range(queries):
        row = panel[i * PANEL : (i + 1) * PANEL]
        for c in range(h.size):
            row[c] *= exp(t - h[c])


@inner(STRICT)
def factorise(x, E, features, queries, rows, h, top, L, uniforms, n_out, nugget, free):
    """Return the pivots, numbers of candidates, in the order they were chosen.

    x : panels (E, PANEL) of the candidates' keys
    features : panels (rows, PANEL): their f, and room for the factor below
    h, top : the candidates' exponents, and the largest of all keys
    uniforms : (proposals, 2)
    """
    padded = h.size
    block, free = free[: padded * BLOCK], free[padded * BLOCK :]
    diagonal, free = free[:padded], free[padded:]
    few_x, free = free[: PANEL * E], free[PANEL * E :]
    few, free = free[: PANEL * rows], free[PANEL * rows :]
    few_h, free = free[:PANEL], free[PANEL:]
    diagonal[:L], diagonal[L:] = 1, 0
    one = x.dtype.type(1)
    weight, cumulative = np.empty(L), np.empty(L)
    for j in range(L):
        weight[j] = math.exp(2 * (float(h[j]) - float(top)))
    chosen, taken, count = np.empty(n_out, np.int64), np.zeros(L, np.bool_), 0
    proposed, then = np.empty(BLOCK, np.int64), np.empty(BLOCK, x.dtype)
    for start in range(0, uniforms.shape[0], BLOCK):
        total = 0.0
        for j in range(L):
            total += diagonal[j] * weight[j]
            cumulative[j] = total
        if count == n_out or not total > 0:
            break
        of_block = min(BLOCK, uniforms.shape[0] - start)
        for b in range(BLOCK):
            u = uniforms[start + min(b, of_block - 1), 0]
            j = min(np.searchsorted(cumulative, u * total, side="right"), L - 1)
            proposed[b], then[b] = j, diagonal[j]
            at, from_x = j // PANEL * PANEL * rows + j % PANEL, j // PANEL * PANEL * E + j % PANEL
            for i in range(queries + count):
                value = features[at + i * PANEL]
                few[i * PANEL + b] = value if i < queries else -value
            for d in range(E):
                few_x[d * PANEL + b] = x[from_x + d * PANEL]
            few_h[b] = h[j]
        residuals(x, E, features, rows, queries + count, h, few_x, few, few_h, block)
        for b in range(BLOCK):
            j = proposed[b]
            place = j // PANEL * PANEL * BLOCK + b * PANEL + j % PANEL
            block[place] += nugget
        before = count
        for b in range(of_block):
            j = proposed[b]
            panel, column = j // PANEL * PANEL, j % PANEL
            eliminate(features, rows, queries + before, queries + count, panel, column, block, b)
            residual = block[panel * BLOCK + b * PANEL + column]
            if count < n_out and diagonal[j] > 0 and uniforms[start + b, 1] * then[b] < residual:
                append(block, b, one / np.sqrt(residual), features, rows, queries + count, diagonal)
                diagonal[j] = 0
                chosen[count], taken[j] = j, True
                count += 1
    for j in range(L):
        if count < n_out and not taken[j]:
            chosen[count] = j
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
