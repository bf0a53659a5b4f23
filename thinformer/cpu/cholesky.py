"""The Cholesky factor of the kernel N between landmarks, and its solves, PANEL rows at a time.

The factor R, N = R^T R, lies in panels (n, PANEL) of its columns. Products of blocks are held in
registers (`thinformer.cpu.simd`); only the diagonal blocks are factorised entry by entry.
"""

from __future__ import annotations

import numpy as np

from thinformer.cpu.jit import ELEMENTWISE, STRICT, inner
from thinformer.cpu.pivots import to_exponentials
from thinformer.cpu.rows import copy_row, multiply, subtract
from thinformer.cpu.simd import BYTES, PANEL, ROWS, inner_products


@inner(STRICT)
def factorise(x, E, f, queries, h, n, nugget, R, inverses, free):
    """Write the Cholesky factor of N between n landmarks, N = R^T R, PANEL rows at a time.

    x, f : panels (E, PANEL) of scaled keys, and (queries, PANEL) of features
    h : the landmarks' exponents, in whole panels
    nugget : added to the diagonal of N
    R : panels (n, PANEL) of the factor's columns, written
    inverses : the inverses of the factor's diagonal blocks, rows of PANEL numbers, written
    """
    square = PANEL * PANEL
    tile, product, free = free[:square], free[square : 2 * square], free[2 * square :]
    for start in range(0, n, PANEL):
        count = min(PANEL, n - start)
        inverse = inverses[start * PANEL : start * PANEL + square]
        for panel in range(start, n, PANEL):
            product_of_panels(x[start * E :], E, x, panel * E, count, tile)
            to_exponentials(tile, h[start : start + count], h[panel : panel + PANEL])
            if queries > 0:
                product_of_panels(f[start * queries :], queries, f, panel * queries, count, product)
                subtract(tile, -1, product)
            if start > 0:
                product_of_panels(R[start * n :], start, R, panel * n, count, product)
                subtract(tile, 1, product)
            rows = R[panel * n + start * PANEL : panel * n + (start + count) * PANEL]
            if panel == start:
                for i in range(count):
                    tile[i * PANEL + i] += nugget
                cholesky(tile, count)
                copy_row(tile, rows)
                invert(tile, count, inverse)
            else:
                product_of_panels(inverse, count, tile, 0, count, product)
                copy_row(product, rows)


@inner(STRICT)
def cholesky(tile, n):
    """Replace a symmetric block (n, n) by its upper triangular factor, in rows of PANEL numbers."""
    for i in range(n):
        row = tile[i * PANEL : (i + 1) * PANEL]
        subtract_rows(row, tile, 0, i, tile[i:], PANEL)
        multiply(row, 1 / np.sqrt(row[i]))
        row[:i] = 0


@inner(STRICT)
def substitute(R, inverses, n, y, free):
    """Replace y, panels (n, PANEL), by R^-1 R^-T y, PANEL rows at a time.

    Each step is two products: the rows that are solved already with rows of R, then the remainder
    with the inverse of R's diagonal block.
    """
    square = PANEL * PANEL
    of_rows, free = free[: n * PANEL], free[n * PANEL :]
    transposed, tile = free[:square], free[square : 2 * square]
    for start in range(0, n, PANEL):
        count = min(PANEL, n - start)
        for panel in range(0, y.size, n * PANEL):
            block = y[panel + start * PANEL : panel + (start + count) * PANEL]
            if start > 0:
                product_of_panels(R[start * n :], start, y, panel, count, tile)
                subtract(block, 1, tile)
            product_of_panels(inverses[start * PANEL :], count, block, 0, count, tile)
            copy_row(tile, block)
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
                product_of_panels(of_rows, n - end, y, panel + end * PANEL, count, tile)
                subtract(block, 1, tile)
            product_of_panels(transposed, count, block, 0, count, tile)
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


@inner(STRICT)
def product_of_panels(rows, dim, columns, at, count, tile):
    """Write the products of `count` points of one panel with all points of another.

    rows, columns, at : panels (dim, PANEL), and where the second one is
    tile : (count, PANEL), written
    """
    for row in range(0, count, ROWS):
        for column in range(0, PANEL, BYTES // tile.itemsize):
            inner_products(rows, row, columns, at + column, dim, tile, row * PANEL + column)
