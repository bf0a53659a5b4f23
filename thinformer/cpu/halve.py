"""Kernel halving of many buckets on the CPU.

A bucket of S points is halved panel by panel, PANEL points at a time. For the points x of a panel,
the walk's inner products <psi, k(x, .)> = sum_j eta_j (k(x_2j, x) - k(x_2j+1, x)) are summed over
all pairs decided before the panel, a tile of kernel values at a time. Then the panel's own pairs
are decided in turn. So half of the Gram matrix is computed, each value once, and one tile of it
exists at a time: the memory is that of the bucket's points.

The sums run strictly in the order of the pairs, so they do not depend on the tiles.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.jit import STRICT, bind, inner, kernel
from thinformer.cpu.simd import PANEL, padded_size
from thinformer.cpu.subnormals import cleared
from thinformer.cpu.tiles import TILE_ROWS, columns, load, tabulate
from thinformer.halving import steps

simple_factor = bind(steps.simple_factor, STRICT)
adaptive_factor = bind(steps.adaptive_factor, STRICT)
pair_distance = bind(steps.pair_distance, STRICT)
simple_threshold = bind(steps.simple_threshold, STRICT)
adaptive_threshold = bind(steps.adaptive_threshold, STRICT)
next_variance = bind(steps.next_variance, STRICT)
swaps = bind(steps.swaps, STRICT)


def workspace(largest_bucket: int, dims: int, dtype: np.dtype) -> NDArray:
    """Return the memory that one thread works in: for a bucket's points, a panel and two tiles."""
    rows = padded_size(largest_bucket)
    return cleared(rows * (dims + 1) + PANEL * (2 * TILE_ROWS + dims + 2) + 1, dtype)


@kernel
def halve_buckets(
    first_unit, last_unit, first_point, last_point, problem, round_, adaptive, index, kept,
    uniforms, uniform_row, coins, coin_row, work,
):  # fmt: skip
    """Halve buckets first_unit .. last_unit-1 of a round, counted over all problems.

    first_point, last_point : which points of a bucket to decide now, from a multiple of PANEL on;
        one long bucket may be halved by several calls, in order and with the same `work`
    problem : Products or Points
    round_ : Round
    adaptive : True for adaptive thresholds, False for simplified ones
    index : (problems, 2 * pairs) int64, the points before the round
    kept : (problems, pairs) int64, written
    uniforms : (any, pairs) in the points' dtype; uniform_row (problems,) says which row
    coins, coin_row : likewise, (any, buckets) bool
    work : see `workspace`
    """
    pairs, buckets, delta = round_.pairs, round_.buckets, round_.delta
    size = TILE_ROWS * PANEL
    tile, other = work[:size], work[size : 2 * size]
    sums, free = work[2 * size : 2 * size + PANEL], work[2 * size + PANEL :]
    thresholds, free = free[: PANEL // 2], free[PANEL // 2 :]
    memory, free = free[:1], free[1:]
    for unit in range(first_unit, last_unit):
        p, bucket = unit // buckets, unit % buckets
        first, last = bucket * pairs // buckets, (bucket + 1) * pairs // buckets
        points = 2 * (last - first)
        positions = index[p, 2 * first : 2 * last]
        signs, rest = free[:points], free[points:]
        loaded, rest = load(problem, p, positions, rest)
        factor = adaptive_factor(points, delta) if adaptive else simple_factor(points, delta)
        factor = work.dtype.type(factor)
        state = memory[0] if first_point > 0 else work.dtype.type(0)
        for start in range(first_point, min(points, last_point), PANEL):
            stop = min(start + PANEL, points)
            panel = columns(problem, loaded, start, rest)
            sums[:] = 0
            row = 0
            while row < stop:
                # tiles of the pairs decided before, then the panel's own
                end = min(row + TILE_ROWS, start) if row < start else stop
                tabulate(problem, p, loaded, row, end, start, panel, tile, other)
                if row < start:
                    add_signed(tile, signs[row:end], sums)
                row = end
            uniform = uniforms[uniform_row[p], first + start // 2 : first + stop // 2]
            state = decide(tile, start, sums, signs, state, factor, adaptive, uniform, thresholds)
        memory[0] = state
        if last_point < points:
            continue
        coin = coins[coin_row[p], bucket]
        for pair in range(last - first):
            second = (signs[2 * pair] < 0) != coin
            kept[p, first + pair] = positions[2 * pair + second]


@inner(STRICT)
def decide(tile, start, sums, signs, state, factor, adaptive, uniform, thresholds):
    """Decide the pairs of a panel in turn, from its own tile and the sums before it.

    Writes signs (points,): +1 for the point kept and -1 for the other one. Returns the state that
    goes from pair to pair: max b, or the variance of adaptive thresholds. No threshold depends on a
    sign, so all thresholds are computed first and the walk itself is short: a pair takes 10 ns
    instead of 34.

    tile : the panel's rows, at least (points, PANEL); sums : (PANEL,), updated
    uniform, thresholds : (pairs,), the latter written
    """
    for pair in range(uniform.size):
        i, j = 2 * pair, 2 * pair + 1
        row_i, row_j = tile[i * PANEL :], tile[j * PANEL :]
        b = pair_distance(row_i[i], row_i[j], row_j[i], row_j[j])
        if adaptive:
            thresholds[pair] = adaptive_threshold(b, state, factor)
            state = next_variance(state, b, thresholds[pair])
        else:
            state = max(state, b)
            thresholds[pair] = simple_threshold(b, state, factor)
    for pair in range(uniform.size):
        i, j = 2 * pair, 2 * pair + 1
        row_i, row_j = tile[i * PANEL :], tile[j * PANEL :]
        # KH's pair 0 has nothing to balance and keeps its first point; KT-SPLIT's is drawn
        drawn = adaptive or start + pair > 0
        swap = drawn and swaps(uniform[pair], thresholds[pair], sums[i] - sums[j])
        sign = signs.dtype.type(-1 if swap else 1)
        signs[start + i], signs[start + j] = sign, -sign
        for x in range(sums.size):
            sums[x] += sign * (row_i[x] - row_j[x])
    return state


@inner(STRICT)
def add_signed(tile, signs, sums):
    """Add sum_j eta_j (tile[2j, x] - tile[2j+1, x]) to sums (PANEL,), in the order of the pairs.

    Two pairs a step: the sums are loaded and stored half as often, and an entry takes 0.1 ns
    instead of 0.3.
    """
    row = 0
    while row + 4 <= signs.size:
        a, b = tile[row * PANEL :], tile[(row + 1) * PANEL :]
        c, d = tile[(row + 2) * PANEL :], tile[(row + 3) * PANEL :]
        first, second = signs[row], signs[row + 2]
        for x in range(PANEL):
            sums[x] = (sums[x] + first * (a[x] - b[x])) + second * (c[x] - d[x])
        row += 4
    if row < signs.size:
        a, b, first = tile[row * PANEL :], tile[(row + 1) * PANEL :], signs[row]
        for x in range(PANEL):
            sums[x] += first * (a[x] - b[x])


@kernel
def halve_gram(first, last, gram, delta, kept, uniforms, uniform_row, coins, coin_row, work):
    """Halve problems first .. last-1, (S, S) Gram matrices each; an odd last point is left out.

    gram : Factor whose rows are those of the matrix
    kept : (problems, S // 2) int64, written
    work : S entries of memory, the thread's own
    """
    points = 2 * kept.shape[1]
    factor = work.dtype.type(simple_factor(points, delta))
    for problem in range(first, last):
        corner = gram.first[problem]
        coin = coins[coin_row[problem], 0]
        sums = work[:points]
        sums[:] = 0
        b_max = work.dtype.type(0)
        for pair in range(points // 2):
            i, j = 2 * pair, 2 * pair + 1
            row_i, row_j = corner + i * gram.row, corner + j * gram.row
            ci, cj = i * gram.column, j * gram.column
            w = gram.window
            b = pair_distance(w[row_i + ci], w[row_i + cj], w[row_j + ci], w[row_j + cj])
            b_max = max(b_max, b)
            uniform = uniforms[uniform_row[problem], pair]
            a = simple_threshold(b, b_max, factor)
            swap = pair > 0 and swaps(uniform, a, sums[i] - sums[j])
            kept[problem, pair] = j if swap != coin else i
            for c in range(j + 1, points):
                step = w[row_i + c * gram.column] - w[row_j + c * gram.column]
                sums[c] += -step if swap else step
