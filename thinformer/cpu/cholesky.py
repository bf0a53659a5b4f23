"""The Cholesky factor of a positive matrix, and its solves, PANEL rows at a time.

The matrix N, and then its factor R, N = R^T R, lie in panels (n, PANEL) of their columns; only the
blocks on and above the diagonal count. Products of blocks are held in registers
(`thinformer.cpu.products`); only the diagonal blocks are factorised entry by entry.
"""

from __future__ import annotations

import numpy as np

from thinformer.cpu.jit import ELEMENTWISE, STRICT, inner
from thinformer.cpu.products import tile_of_products
from thinformer.cpu.rows import copy_row, multiply, subtract
from thinformer.cpu.simd import PANEL


@inner(STRICT)
def factorise(R, n, inverses, free):
    """Replace N (n, n) by its Cholesky factor, N = R^T R, PANEL rows at a time.

    R : panels (n, PANEL) of the columns of N, overwritten by those of the factor
    inverses : the inverses of the factor's diagonal blocks, rows of PANEL numbers, written
    """
    square = PANEL * PANEL
    product, free = free[:square], free[square:]
    for start in range(0, n, PANEL):
        count = min(PANEL, n - start)
        inverse = inverses[start * PANEL : start * PANEL + square]
        for panel in range(start, n, PANEL):
            block = R[panel * n + start * PANEL : panel * n + (start + count) * PANEL]
            if start > 0:
                tile_of_products(R, start * n, R, panel * n, start, count, product, 0)
                subtract(block, 1, product)
            if panel == start:
                cholesky(block, count)
                invert(block, count, inverse)
            else:
                tile_of_products(inverse, 0, block, 0, count, count, product, 0)
                copy_row(product, block)


@inner(STRICT)
def cholesky(tile, n):
    """Replace a symmetric block (n, n) by its upper triangular factor, in rows of PANEL numbers."""
    for i in range(n):
        row = tile[i * PANEL : (i + 1) * PANEL]
        subtract_rows(row, tile, 0, i, tile[i:], PANEL)
        multiply(row, 1 / np.sqrt(row[i]))
        row[:i] = 0


@inner(STRICT)
def substitute_forward(R, inverses, n, y, free):
    """Replace y, panels (n, PANEL), by R^-T y, PANEL rows at a time.

    Each step is two products: the rows that are solved already with rows of R, then the remainder
    with the inverse of R's diagonal block.
    """
    tile = free[: PANEL * PANEL]
    for start in range(0, n, PANEL):
        count = min(PANEL, n - start)
        for panel in range(0, y.size, n * PANEL):
            block = y[panel + start * PANEL : panel + (start + count) * PANEL]
            if start > 0:
                tile_of_products(R, start * n, y, panel, start, count, tile, 0)
                subtract(block, 1, tile)
            tile_of_products(inverses, start * PANEL, block, 0, count, count, tile, 0)
            copy_row(tile, block)


@inner(STRICT)
def substitute_backward(R, inverses, n, y, free):
    """Replace y, panels (n, PANEL), by R^-1 y, PANEL rows at a time."""
    square = PANEL * PANEL
    of_rows, free = free[: n * PANEL], free[n * PANEL :]
    transposed, tile = free[:square], free[square : 2 * square]
    for start in range((n - 1) // PANEL * PANEL, -1, -PANEL):
        count = min(PANEL, n - start)
        end, inverse = start + count, inverses[start * PANEL : start * PANEL + square]
        for k in range(end, n):
            from_panel = R[k // PANEL * PANEL * n + start * PANEL + k % PANEL :]
            for c in range(count):
                of_rows[(k - end) * PANEL + c] = from_panel[c * PANEL]
        for i in range(PANEL):
            for k in range(PANEL):
                transposed[i * PANEL + k] = inverse[k * PANEL + i]
        for panel in range(0, y.size, n * PANEL):
            block = y[panel + start * PANEL : panel + end * PANEL]
            if end < n:
                tile_of_products(of_rows, 0, y, panel + end * PANEL, n - end, count, tile, 0)
                subtract(block, 1, tile)
            tile_of_products(transposed, 0, block, 0, count, count, tile, 0)
            copy_row(tile, block)


@inner(STRICT)
def invert(R, n, inverse):
    """Write the inverse of an upper triangular block (n, n), in rows of PANEL numbers."""
    inverse[:] = 0
    for i in range(n - 1, -1, -1):
        row = inverse[i * PANEL : (i + 1) * PANEL]
        row[i] = 1
        subtract_rows(row, inverse, i + 1, n, R[i * PANEL :], 1)
        multiply(row, 1 / R[i * PANEL + i])


@inner(ELEMENTWISE)
def subtract_rows(row, rows, first, last, factors, apart):
    """Subtract rows first .. last-1 from a row, each times its factor: row k's is at k * apart.

    Two rows a step: `row` is loaded and stored half as often, and a block takes 2 microseconds
    instead of 4.
    """
    for k in range(first, last - 1, 2):
        a, b = rows[k * PANEL :], rows[(k + 1) * PANEL :]
        of_a, of_b = factors[k * apart], factors[(k + 1) * apart]
        for d in range(PANEL):
            row[d] -= of_a * a[d] + of_b * b[d]
    if (last - first) % 2 == 1:
        a, of_a = rows[(last - 1) * PANEL :], factors[(last - 1) * apart]
        for d in range(PANEL):
            row[d] -= of_a * a[d]
