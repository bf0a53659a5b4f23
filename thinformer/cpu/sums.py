"""Sums of kernel values over point sets, and swaps of points that make the MMD smaller.

Values are computed a tile at a time in the points' dtype, and summed in float64. The order of a sum
does not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.jit import REDUCTION, STRICT, inner, kernel
from thinformer.cpu.rows import copy_row, fill
from thinformer.cpu.simd import PANEL
from thinformer.cpu.subnormals import cleared
from thinformer.cpu.tiles import TILE_ROWS, columns, load, tabulate_rows

WIDE = 16 * PANEL  # points that one row meets at once: to begin costs as much as some 100 values


def workspace(dim: int, dtype: np.dtype) -> NDArray:
    """Return the memory that one thread works in: a tile's points, two panels, and two tiles."""
    return cleared(TILE_ROWS * dim + 2 * PANEL * dim + 2 * TILE_ROWS * PANEL, dtype)


@inner(STRICT)
def two_tiles(work):
    """Return two tiles of a thread's memory, and the memory still free."""
    size = TILE_ROWS * PANEL
    return work[:size], work[size : 2 * size], work[2 * size :]


@kernel
def embed(first, last, problem, at, index, weights, out, sums, work):
    """Write sum_j w_j k(x, y_j) for the points x of panels first .. last-1, over points y_j.

    at : (n,) int64, the points x, PANEL points a panel; out : (n,) float64, written
    index : (m,) int64, the points y_j; weights : (m,) float64
    sums : (PANEL,) float64, to work in
    work : see `workspace`
    """
    tile, other, free = two_tiles(work)
    for unit in range(first, last):
        positions = at[unit * PANEL : (unit + 1) * PANEL]
        rows, rest = load(problem, 0, positions, free)
        panel = columns(problem, rows, 0, rest)
        rest = rest[panel.size :]
        fill(sums, 0)
        for row in range(0, index.size, TILE_ROWS):
            chosen = index[row : row + TILE_ROWS]
            rows, _ = load(problem, 0, chosen, rest)
            tabulate_rows(problem, rows[: chosen.size], panel, tile, other)
            add_weighted_rows(tile, weights[row : row + TILE_ROWS], sums)
        copy_row(sums, out[unit * PANEL : (unit + 1) * PANEL])


@inner(STRICT)
def add_weighted_rows(tile, weights, sums):
    """Add sum_j w_j tile[j, x] to sums (PANEL,), for weights (rows,)."""
    for row in range(weights.size):
        values, weight = tile[row * PANEL :], weights[row]
        for c in range(sums.size):
            sums[c] += weight * values[c]


@kernel
def square(first, last, problem, sets, weights, out, sums, twice, work):
    """Write the parts of sum_ij w_i w_j k(x_i, x_j) of panels first .. last-1, for several sets.

    A panel contributes its own block once, and its block with all earlier points twice, by
    symmetry.

    sets : (sets, n) int64; weights : (n,) float64
    out : (sets, panels) float64, written; panels are counted over all sets
    sums, twice : (PANEL,) float64, to work in
    work : see `workspace`
    """
    tile, other, free = two_tiles(work)
    panels = out.shape[1]
    for unit in range(first, last):
        index, start = sets[unit // panels], unit % panels * PANEL
        positions = index[start : start + PANEL]
        rows, rest = load(problem, 0, positions, free)
        panel = columns(problem, rows, 0, rest)
        rest = rest[panel.size :]
        fill(sums, 0)
        fill(twice, 0)
        tabulate_rows(problem, rows[: positions.size], panel, tile, other)
        add_weighted_rows(tile, weights[start : start + PANEL], sums)
        for row in range(0, start, TILE_ROWS):
            chosen = index[row : min(row + TILE_ROWS, start)]
            rows, _ = load(problem, 0, chosen, rest)
            tabulate_rows(problem, rows[: chosen.size], panel, tile, other)
            add_weighted_rows(tile, weights[row : row + chosen.size], twice)
        total = 0.0
        for c in range(positions.size):
            total += weights[start + c] * (sums[c] + 2 * twice[c])
        out[unit // panels, start // PANEL] = total


@kernel
def diagonal(first, last, problem, at, out, work):
    """Write k(x, x) for the points x of panels first .. last-1.

    at : (n,) int64, the points x; out : (n,) float64, written
    work : see `workspace`
    """
    tile, other, free = two_tiles(work)
    for unit in range(first, last):
        positions = at[unit * PANEL : (unit + 1) * PANEL]
        rows, rest = load(problem, 0, positions, free)
        panel = columns(problem, rows, 0, rest)
        tabulate_rows(problem, rows, panel, tile, other)
        for c in range(positions.size):
            out[unit * PANEL + c] = tile[c * PANEL + c]


@kernel
def swap(problem, candidates, potential, coreset, unique, passes, memory, work):
    """Replace each point of a coreset in turn by the candidate that makes the MMD least.

    Let y replace one of the s points, and let x_i be the others. The squared MMD then depends on y
    by ((k(y, y) + 2 sum_i k(x_i, y)) / s - 2 m(y)) / s, where m is the target's mean embedding.

    candidates : (n,) int64, points that may enter the coreset
    potential : (n,) float64, k(y, y) / s + 2 sum_i k(x_i, y) / s - 2 m(y) over all points x_i of
        the coreset; updated
    coreset : (s,) int64, places in `candidates`; overwritten
    unique : whether a candidate may be taken only once
    passes : stop after so many passes over the coreset, or after a pass without a change
    memory : twice the size of n points in whole panels

    Returns the number of changes.
    """
    size, n = coreset.size, candidates.size
    tile, other, _ = two_tiles(work)
    rows, rest = load(problem, 0, candidates, memory)
    panels = wide_panels(rows, rest)
    leaving = np.empty(rows.shape[0], np.float64)
    coming = np.empty(rows.shape[0], np.float64)
    taken = np.zeros(n, np.uint8)
    for place in coreset:
        taken[place] += unique
    changes = 0
    for _ in range(passes):
        before = changes
        for i in range(size):
            old = coreset[i]
            column(problem, rows[old : old + 1], panels, tile, other, leaving)
            new = best(potential, leaving, 2 / size, taken, old)
            if new == old:
                continue
            column(problem, rows[new : new + 1], panels, tile, other, coming)
            for y in range(n):
                potential[y] += 2 / size * (coming[y] - leaving[y])
            taken[old] -= unique
            taken[new] += unique
            coreset[i] = new
            changes += 1
        if changes == before:
            break
    return changes


@inner(STRICT)
def wide_panels(rows, free):
    """Copy points (n, dim) into free memory as panels (dim, WIDE); the last may be narrower."""
    (n, dim), panels = rows.shape, free[: rows.size]
    for start in range(0, n, WIDE):
        panel = wide_panel(panels, dim, start)
        for d in range(dim):
            for c in range(panel.shape[1]):
                panel[d, c] = rows[start + c, d]
    return panels


@inner(STRICT)
def wide_panel(panels, dim, start):
    """Return the panel of `wide_panels` whose first point is `start`."""
    panel = panels[start * dim : (start + WIDE) * dim]
    return panel.reshape(dim, panel.size // dim)


@inner(STRICT)
def column(problem, row, panels, tile, other, out):
    """Write the kernel values of one point and all candidates to out (n in whole panels,)."""
    for start in range(0, out.size, WIDE):
        tabulate_rows(problem, row, wide_panel(panels, row.shape[1], start), tile, other)
        copy_row(tile, out[start : start + WIDE])


@inner(REDUCTION)
def best(potential, leaving, factor, taken, old):
    """Return the candidate of least potential without point `old`; `old` itself if none is less."""
    least, place = potential[old] - factor * leaving[old], old
    for y in range(potential.size):
        value = potential[y] - factor * leaving[y]
        if value < least and taken[y] == 0:
            least, place = value, y
    return place
