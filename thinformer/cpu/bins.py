"""Mean embeddings of bins of points."""

from __future__ import annotations

from thinformer.cpu.jit import kernel
from thinformer.cpu.rows import copy_row, fill
from thinformer.cpu.simd import PANEL
from thinformer.cpu.sums import add_weighted_rows, two_tiles, workspace
from thinformer.cpu.tiles import TILE_ROWS, columns, load, tabulate_rows

__all__ = ["PANEL", "embed_bins", "workspace"]


@kernel
def embed_bins(first, last, problem, at, index, weights, starts, out, sums, work):
    """Write sum_{j in bin} w_j k(x, y_j) for every bin and the points x of panels first .. last-1.

    at : (n,) int64, the points x, PANEL points a panel
    index : (m,) int64, the points y_j, bin after bin; weights : (m,) float64
    starts : (bins + 1,) int64, where each bin begins in `index`
    out : (bins, n) float64, written
    sums : (PANEL,) float64, to work in
    work : see `workspace`
    """
    tile, other, free = two_tiles(work)
    for unit in range(first, last):
        rows, rest = load(problem, 0, at[unit * PANEL : (unit + 1) * PANEL], free)
        panel = columns(problem, rows, 0, rest)
        rest = rest[panel.size :]
        for b in range(starts.size - 1):
            fill(sums, 0)
            for row in range(starts[b], starts[b + 1], TILE_ROWS):
                end = min(row + TILE_ROWS, starts[b + 1])
                rows, _ = load(problem, 0, index[row:end], rest)
                tabulate_rows(problem, rows[: end - row], panel, tile, other)
                add_weighted_rows(tile, weights[row:end], sums)
            copy_row(sums, out[b, unit * PANEL : (unit + 1) * PANEL])
