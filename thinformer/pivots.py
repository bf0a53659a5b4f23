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

from thinformer._jit import ELEMENTWISE, STRICT, inner
from thinformer._simd import BYTES, PANEL, ROWS, inner_products
from thinformer.tiles import exp

BLOCK = 16  # proposals at a time, a multiple of ROWS


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
