"""Greedy choice: each point in turn is the one that makes the MMD of the set least.

For a Stein kernel this is Stein thinning, for the mean embedding of a sample kernel herding.
"""

from __future__ import annotations

import numpy as np

from thinformer.cpu.jit import ELEMENTWISE, inner, kernel
from thinformer.cpu.rows import fill
from thinformer.cpu.simd import PANEL
from thinformer.cpu.sums import WIDE, two_tiles, wide_panel, wide_panels
from thinformer.cpu.tiles import load, tabulate_rows


@kernel
def extend(first, last, problem, candidates, mean, potential, chosen, unique, memory, work):
    """Choose the points first .. last-1 of a set, one after the other; of equal ones the first.

    With y as its t-th point beside x_1, ..., x_{t-1}, the squared MMD depends on y by
    2 (k(y, y) / 2 + sum_i k(x_i, y) - t m(y)) / t^2, where m is the target's mean embedding.

    candidates : (n,) int64, points that may enter the set
    mean : (n in whole panels,) float64, m
    potential : (n in whole panels,) float64, k(y, y) / 2 + sum_i k(x_i, y) - t m(y) over the points
        but the last that were chosen; infinite where there is no point, or one that is taken;
        updated
    chosen : (size,) int64, places in `candidates`; the first of them known, the others written
    unique : whether a candidate may be taken only once
    memory : twice the size of n points in whole panels
    work : see `sums.workspace`

    Returns the sum of the least potentials, which is not finite where a value of the kernel is not.
    """
    tile, other, _ = two_tiles(work)
    rows, rest = load(problem, 0, candidates, memory)
    panels = wide_panels(rows, rest)
    lanes = np.empty(PANEL, np.float64)
    total = 0.0
    for t in range(first, last):
        fill(lanes, np.inf)
        for start in range(0, potential.size, WIDE):
            part = potential[start : start + WIDE]
            if t > 0:
                row, panel = rows[chosen[t - 1]], wide_panel(panels, problem.dim, start)
                tabulate_rows(problem, row.reshape(1, row.size), panel, tile, other)
                add_column(tile, mean[start : start + WIDE], part)
            keep_least(part, lanes)
        low = lanes.min()
        total += low
        best = 0
        while best < candidates.size - 1 and potential[best] != low:
            best += 1
        chosen[t] = best
        if unique:
            potential[best] = np.inf
    return total


@inner(ELEMENTWISE)
def add_column(values, mean, potential):
    """Add kernel values, minus the mean embedding, to the potential of a panel."""
    for c in range(potential.size):
        potential[c] += values[c] - mean[c]


@inner(ELEMENTWISE)
def keep_least(potential, lanes):
    """Replace lanes by smaller numbers of a panel."""
    for start in range(0, potential.size, PANEL):
        part = potential[start : start + PANEL]
        for c in range(lanes.size):
            lanes[c] = min(lanes[c], part[c])
