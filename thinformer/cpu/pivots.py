"""Landmarks among the keys of a head, by randomly pivoted Cholesky of exp(<x, x'>).

On scaled keys x, the kernel is N(j, j') = exp(<x_j, x_j'> - h_j - h_j') with h = |x|^2 / 2, so its
diagonal is 1. Candidates lie in panels, PANEL of them side by side; so do the rows of the Cholesky
factor, which grows by a row a pivot. The residual of a row of N is the row minus one product with
the factor. BLOCK residual rows are computed at once: a single row would read all panels for one
product, from memory that is slower than the arithmetic.
"""

from __future__ import annotations

import math

import numpy as np

from thinformer.cpu.jit import ELEMENTWISE, STRICT, inner
from thinformer.cpu.products import tile_of_products
from thinformer.cpu.simd import PANEL
from thinformer.cpu.tiles import exp

BLOCK = 16  # proposals at a time, a multiple of ROWS


@inner(STRICT)
def choose_pivots(x, E, h, L, uniforms, n_out, nugget, free):
    """Return the pivots (n_out,), numbers of candidates, in the order in which they were chosen.

    x : panels (E, PANEL) of the candidates' keys
    h : the candidates' exponents, of whole panels
    L : the number of candidates, without those that fill the last panel
    uniforms : (proposals, 2)
    nugget : added to the diagonal of N
    free : memory to work in

    When no proposal is left, or nothing of the diagonal, the first candidates that are not pivots
    become pivots.
    """
    padded, rows = h.size, n_out + BLOCK
    factor, free = free[: padded * rows], free[padded * rows :]
    block, free = free[: padded * BLOCK], free[padded * BLOCK :]
    diagonal, free = free[:padded], free[padded:]
    few_x, free = free[: PANEL * E], free[PANEL * E :]
    few, free = free[: PANEL * rows], free[PANEL * rows :]
    few_h, combine = free[:PANEL], free[PANEL : PANEL + BLOCK * PANEL]
    diagonal[:L], diagonal[L:] = 1, 0
    weight, cumulative, top = np.empty(L), np.empty(L), float(h.max())
    for j in range(L):
        weight[j] = math.exp(2 * (float(h[j]) - top))
    chosen, taken, count = np.empty(n_out, np.int64), np.zeros(L, np.bool_), 0
    proposed, accept = np.empty(BLOCK, np.int64), np.empty(BLOCK)
    between, made_of, start, left = np.empty((BLOCK, BLOCK)), np.empty((BLOCK, BLOCK)), 0, 0
    while count < n_out:
        total = 0.0
        for j in range(L):
            total += diagonal[j] * weight[j]
            cumulative[j] = total
        of_block, at_random = 0, start < uniforms.shape[0] and total > 0
        if at_random:
            of_block = min(BLOCK, uniforms.shape[0] - start)
            propose(uniforms[start : start + of_block], cumulative, diagonal, proposed, accept)
            start += of_block
        else:
            while of_block < BLOCK and left < L:
                if not taken[left]:
                    proposed[of_block], accept[of_block] = left, -np.inf
                    of_block += 1
                left += 1
        proposed[of_block:] = proposed[of_block - 1]
        gather(proposed, x, E, E, 1, few_x)
        gather(proposed, factor, rows, count, -1, few)
        for b in range(BLOCK):
            few_h[b] = h[proposed[b]]
        residuals(x, E, factor, rows, count, h, few_x, few, few_h, block)
        for b in range(BLOCK):
            block[place(proposed[b], BLOCK) + b * PANEL] += nugget
        for a in range(BLOCK):
            for b in range(BLOCK):
                between[a, b] = block[place(proposed[b], BLOCK) + a * PANEL]
                made_of[a, b] = a == b
        before = count
        combine[:] = 0
        for b in range(of_block):
            j = proposed[b]
            if count < n_out and not taken[j] and (not at_random or accept[b] < between[b, b]):
                residual = max(between[b, b], nugget / 2)  # which of a key that is left may be less
                eliminate(between, made_of, b, residual)
                for a in range(BLOCK):
                    combine[a * PANEL + count - before] = made_of[b, a] / math.sqrt(residual)
                chosen[count], taken[j] = j, True
                count += 1
        append(block, combine, factor, rows, before, diagonal)
        for i in range(before, count):
            diagonal[chosen[i]] = 0
    return chosen


@inner(STRICT)
def propose(uniforms, cumulative, diagonal, proposed, accept):
    """Write a proposal for each row of uniforms (m, 2), and the threshold of its residual.

    cumulative : (L,), sums of the candidates' weights times what is left of their diagonal (L,)
    proposed, accept : (BLOCK,), the first m numbers of each are written
    """
    L = cumulative.size
    for b in range(uniforms.shape[0]):
        number = uniforms[b, 0] * cumulative[L - 1]
        proposed[b] = min(np.searchsorted(cumulative, number, side="right"), L - 1)
        accept[b] = uniforms[b, 1] * diagonal[proposed[b]]


@inner(STRICT)
def place(j, rows):
    """Return where row 0 of candidate j is, in panels (rows, PANEL)."""
    return j // PANEL * PANEL * rows + j % PANEL


@inner(STRICT)
def gather(proposed, panels, rows, used, sign, few):
    """Write the first `used` rows of the proposed candidates to a panel, times a sign."""
    for b in range(proposed.size):
        start = place(proposed[b], rows)
        for i in range(used):
            few[i * PANEL + b] = sign * panels[start + i * PANEL]


@inner(STRICT)
def residuals(x, E, factor, rows, used, h, few_x, few, few_h, block):
    """Write what the pivots leave of N in the rows of a block: tiles (BLOCK, PANEL), one a panel.

    x, factor : panels (E, PANEL) of keys and (rows, PANEL) of the factor, of which `used` rows are
        filled
    few_x, few, few_h : a panel of each, and the exponents, of the block's candidates
    block : written
    """
    products = np.empty(BLOCK * PANEL, x.dtype)
    for start in range(0, h.size, PANEL):
        tile = block[start * BLOCK : (start + PANEL) * BLOCK]
        tile_of_products(few_x, 0, x, start * E, E, BLOCK, tile, 0)
        if used > 0:
            tile_of_products(few, 0, factor, start * rows, used, BLOCK, products, 0)
        to_exponentials(tile, few_h[:BLOCK], h[start : start + PANEL])
        if used > 0:
            for i in range(tile.size):
                tile[i] += products[i]


@inner(ELEMENTWISE)
def to_exponentials(tile, h_rows, h):
    """Replace <x, y> by exp(<x, y> - h_x - h_y); only rounding makes an exponent positive."""
    zero = tile.dtype.type(0)
    for i in range(h_rows.size):
        row, h_i = tile[i * PANEL : (i + 1) * PANEL], h_rows[i]
        for c in range(h.size):
            row[c] = exp(min(row[c] - h_i - h[c], zero))


@inner(STRICT)
def eliminate(between, made_of, b, residual):
    """Subtract from the rows of a block after b what row b, a pivot, accounts for.

    between : (BLOCK, BLOCK), the block's rows at the proposals' own columns
    made_of : (BLOCK, BLOCK), each row as a combination of the block's rows before the round
    """
    for c in range(b + 1, BLOCK):
        factor = between[b, c] / residual
        for d in range(BLOCK):
            between[c, d] -= factor * between[b, d]
            made_of[c, d] -= factor * made_of[b, d]


@inner(STRICT)
def append(block, combine, factor, rows, at, diagonal):
    """Write rows of the factor from row `at` on, and what they leave of the diagonal.

    combine : (BLOCK, PANEL) flat; column i has the block's coefficients in the i-th new row
    """
    for start in range(0, diagonal.size, PANEL):
        to = start * rows + at * PANEL
        tile_of_products(combine, 0, block, start * BLOCK, BLOCK, BLOCK, factor, to)
        subtract_squares(factor[to : to + BLOCK * PANEL], diagonal[start : start + PANEL])


@inner(ELEMENTWISE)
def subtract_squares(factor, diagonal):
    """Subtract from the diagonal (PANEL,) the squares of the factor's rows; it stays at least 0."""
    zero = diagonal.dtype.type(0)
    for start in range(0, factor.size, PANEL):
        row = factor[start : start + PANEL]
        for c in range(diagonal.size):
            diagonal[c] = max(diagonal[c] - row[c] * row[c], zero)
