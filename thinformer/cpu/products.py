"""Tiles of inner products, from blocks that are held in registers."""

from __future__ import annotations

from thinformer.cpu.jit import STRICT, inner
from thinformer.cpu.simd import PANEL, ROWS, WIDTH, inner_products

DEPTH = 64  # dimensions at a time, so that both panels' parts and the tile fit in 24 kB


@inner(STRICT)
def tile_of_products(rows, row, columns, column, dim, count, tile, at):
    """Write <x_i, y_j> for `count` points x_i of a panel and all points y_j of another.

    rows, row : flat memory of panels (dim, PANEL), and where x_0 is in it
    columns, column : the same of the other panel
    tile, at : flat memory, and where the tile (count in whole blocks, PANEL) goes
    """
    width = WIDTH // tile.itemsize
    for start in range(0, dim, DEPTH):
        deep, later = min(DEPTH, dim - start), start > 0
        x, y = row + start * PANEL, column + start * PANEL
        for i in range(0, count, ROWS):
            for c in range(0, PANEL, width):
                inner_products(rows, x + i, columns, y + c, deep, later, tile, at + i * PANEL + c)
