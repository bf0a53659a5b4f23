"""Values of the Stein kernel in a tile, in the registers of a block's threads.

A point's scores are in the columns behind its own. The points are read twice: first for their
distances, then, beside the scores, for the rest, which is added up with what follows from the
distances. So a thread holds two numbers a value, and no more than for a sum of kernels.
"""

from __future__ import annotations

from math import sqrt
from typing import Any

from thinformer.cuda.jit import cuda, device_function
from thinformer.cuda.tiles import DEPTH, LANES, LOG2_LANES, PANEL, PATCH
from thinformer.halving.problem import CONSTANT, DEGREE, WEIGHT

SQUARE = PATCH * PATCH
HALF = DEPTH // 2  # columns that are staged at once, where scores are too


def make_stein(dtype: type, stage: Any, tile_rows: int) -> Any:
    """Return the function that writes a thread's patch of kernel values, as `make_tabulate` does.

    The steps are those of `thinformer.kernels.phi.stein_of`, where q is known before its products.
    """
    ZERO, ONE = dtype(0), dtype(1)

    @device_function
    def tabulate(
        patch, other, rows, panel, window, place, other_window, other_place, positions, tile,
        begin, factor, other_factor, parameters, scales,
    ):  # fmt: skip
        row = PATCH * (cuda.threadIdx.x >> LOG2_LANES)
        point = PATCH * (cuda.threadIdx.x & (LANES - 1))
        dim = place[3]
        constant, degree = parameters[0, CONSTANT], parameters[0, DEGREE]
        largest = divergence = ZERO
        for d in range(dim):
            largest = max(largest, scales[0, d])
            divergence += scales[0, d] * scales[0, d]
        for i in range(SQUARE):
            patch[i] = other[i] = ZERO
        for column in range(0, dim, DEPTH):
            depth = min(DEPTH, dim - column)
            stage(rows, tile_rows, window, place, positions, tile, column, depth, ONE)
            stage(panel, PANEL, window, place, positions, begin, column, depth, ONE)
            cuda.syncthreads()  # staged before it is read
            add_both(patch, other, rows, panel, row, point, depth, scales[0, column:], largest)
            cuda.syncthreads()  # read before it is staged anew
        for i in range(SQUARE):
            q = constant / (constant + patch[i])
            other[i] = q * (divergence - degree * other[i] * q)
            patch[i] = q
        for column in range(0, dim, HALF):
            depth = min(HALF, dim - column)
            stage(rows, tile_rows, window, place, positions, tile, column, depth, ONE)
            stage(panel, PANEL, window, place, positions, begin, column, depth, ONE)
            stage(rows[HALF:], tile_rows, window, place, positions, tile, dim + column, depth, ONE)
            stage(panel[HALF:], PANEL, window, place, positions, begin, dim + column, depth, ONE)
            cuda.syncthreads()  # staged before it is read
            add_scores(other, patch, rows, panel, row, point, depth, scales[0, column:])
            cuda.syncthreads()  # read before it is staged anew
        for i in range(SQUARE):
            patch[i] = parameters[0, WEIGHT] * sqrt(patch[i]) * other[i]

    return tabulate


@device_function
def add_both(distance, spread, rows, panel, row, point, depth, scales, largest):
    """Add the squared differences of `depth` staged columns to patches (SQUARE,): two sums."""
    for d in range(depth):
        scale, share = scales[d], scales[d] / largest
        share *= share
        for i in range(PATCH):
            for j in range(PATCH):
                difference = scale * (rows[d, row + i] - panel[d, point + j])
                square = difference * difference
                distance[PATCH * i + j] += square
                spread[PATCH * i + j] += share * square


@device_function
def add_scores(total, q, rows, panel, row, point, depth, scales):
    """Add products of scores, and q times those of differences, of `depth` staged columns."""
    for d in range(depth):
        inverse = scales[d] * scales[d]
        for i in range(PATCH):
            x, s = rows[d, row + i], rows[HALF + d, row + i]
            for j in range(PATCH):
                t = panel[HALF + d, point + j]
                between = inverse * (x - panel[d, point + j]) * (s - t)
                total[PATCH * i + j] += s * t + q[PATCH * i + j] * between
