"""The Numba body: kernel halving of many buckets on the CPU.

A bucket of S points is halved panel by panel, PANEL points at a time. For the points x of a panel
the walk's inner products <psi, k(x, .)> = sum_j eta_j (k(x_2j, x) - k(x_2j+1, x)) are summed over
all pairs decided before it, a tile of kernel values at a time; then the panel's own pairs are
decided in turn. So every kernel value is computed once, half of the Gram matrix in all, and only
one tile of it ever exists: memory is that of the bucket's points.

The sums run strictly in the order of the pairs, so they do not depend on the tiling.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from thinformer.cpu.jit import ELEMENTWISE, STRICT, bind, inner, kernel
from thinformer.cpu.simd import BYTES, raise_to_magnitudes, transpose
from thinformer.cpu.tiles import PANEL, TILE_ROWS, add, columns, load, tabulate
from thinformer.halving import draws, steps

SCANNED = 8  # rows that are looked at a vector of columns at a time, while they are in cache

simple_factor = bind(steps.simple_factor, STRICT)
adaptive_factor = bind(steps.adaptive_factor, STRICT)
pair_distance = bind(steps.pair_distance, STRICT)
simple_threshold = bind(steps.simple_threshold, STRICT)
adaptive_threshold = bind(steps.adaptive_threshold, STRICT)
next_variance = bind(steps.next_variance, STRICT)
swaps = bind(steps.swaps, STRICT)
mix = bind(draws.mix, STRICT)
unit = bind(draws.unit, STRICT)


def workspace(largest_bucket: int, dims: int, dtype: np.dtype) -> NDArray:
    """Return the memory that one thread works in: a bucket's points, a panel and two tiles."""
    rows = -(-largest_bucket // PANEL) * PANEL
    return np.empty(rows * (dims + 1) + PANEL * (2 * TILE_ROWS + dims + 2) + 1, dtype)


def herding_workspace(points: int, dims: int, dtype: np.dtype) -> NDArray:
    """Return the memory that one thread of `herd` works in: a Gram matrix and three rows more."""
    padded = -(-points // PANEL) * PANEL
    return np.empty(padded * (padded + 3) + workspace(points, dims, dtype).size, dtype)


@kernel
def halve_buckets(
    first_unit, last_unit, first_point, last_point, problem, round_, adaptive, index, kept,
    uniforms, uniform_row, coins, coin_row, work,
):  # fmt: skip
    """Halve buckets first_unit .. last_unit-1 of a round, counted over all problems.

    first_point, last_point : which points of a bucket to decide now, from a multiple of PANEL on;
        one long bucket may be halved by several calls, in order and with the same work
    problem : Products or Points
    round_ : Round
    adaptive : whether thresholds are adaptive, or simplified
    index : (problems, 2 * pairs) int64, the points that are left
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

    Writes their signs, +1 for the point kept and -1 for the other. The state that goes from pair to
    pair is max b, or the variance of adaptive thresholds; returns it. No threshold depends on a
    sign, so they come first and the walk itself is short: 10 ns a pair for 34.
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
    """sums[x] += sum_j eta_j (tile[2j, x] - tile[2j+1, x]), in the order of the pairs.

    Two pairs a step: the sums are loaded and stored half as often, 0.1 ns an entry for 0.3.
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
    """Halve problems first .. last-1, each an (S, S) Gram matrix; an odd last point is left out.

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


@kernel
def herd(first, last, problem, index, kept, work):
    """Keep the points of problems first .. last-1 whose mean in the Hilbert space is that of all.

    Point by point the best of all that are left; then each is given back once, in the order they
    came, for the best.

    problem : Products or Points
    index : (problems, S) int64, the points
    kept : (problems, n_out) int64, written, increasing
    work : see `herding_workspace`
    """
    points, size = index.shape[1], kept.shape[1]
    padded = -(-points // PANEL) * PANEL
    gram, work = work[: padded * padded].reshape(padded, padded), work[padded * padded :]
    scores, mean, bars = work[:padded], work[padded : 2 * padded], work[2 * padded : 3 * padded]
    work = work[3 * padded :]
    far = np.finfo(work.dtype).max / 4  # the bar of a point that is kept, or of none
    lanes, chosen = np.empty(PANEL, work.dtype), np.empty(size, np.int64)
    positions = np.arange(TILE_ROWS)
    for p in range(first, last):
        fill_gram(problem, p, index[p], positions, gram, work)
        mean[:] = 0
        for i in range(points):
            add(gram[i], mean)
        mean /= points
        # a score is the sum of kernel values with those kept, and half of its own, less their means
        for i in range(points):
            scores[i] = gram[i, i] / 2 - mean[i]
        bars[:points], bars[points:], scores[points:], mean[points:] = 0, far, 0, 0
        low = step(scores, mean, mean, bars, lanes)  # moves nothing: the first least
        for turn in range(2 * size):
            best = 0
            while best < points - 1 and scores[best] + bars[best] != low:
                best += 1
            chosen[turn % size], bars[best] = best, far
            if turn < size - 1:
                low = step(scores, gram[best], mean, bars, lanes)
            elif turn < 2 * size - 1:
                back = chosen[turn - size + 1]
                bars[back] = 0
                low = step(scores, gram[best], gram[back], bars, lanes)
        chosen.sort()
        for i in range(size):
            kept[p, i] = index[p, chosen[i]]


@inner(STRICT)
def fill_gram(problem, p, index, positions, gram, work):
    """Kernel values of some points of a problem, in whole panels: half of them, and mirrored.

    positions : the numbers from 0 on, below TILE_ROWS
    """
    points, size, apart = index.size, TILE_ROWS * PANEL, gram.shape[1]
    tile, other, free = work[:size], work[size : 2 * size], work[2 * size :]
    loaded, rest = load(problem, p, index, free)
    flat, one, width = gram.ravel(), work.dtype.type(1), BYTES // work.itemsize
    for start in range(0, points, PANEL):
        stop = min(start + PANEL, points)
        panel = columns(problem, loaded, start, rest)
        row = 0
        while row < start:
            end = min(row + TILE_ROWS, start)
            tabulate(problem, p, loaded, row, end, start, panel, tile, other)
            for i in range(row, end):
                for c in range(PANEL):
                    gram[i, start + c] = tile[(i - row) * PANEL + c]
            for i in range(row, end, width):
                at = start * apart + i
                transpose(tile, 0, PANEL, positions, i - row, PANEL, one, flat, at, apart)
            row = end
        tabulate(problem, p, loaded, start, stop, start, panel, tile, other)
        for i in range(start, stop):
            for j in range(i, stop):
                gram[i, j] = gram[j, i] = tile[(i - start) * PANEL + j - start]
    gram[:points, points:] = 0  # or scores of no point could be the least


@inner(ELEMENTWISE)
def step(scores, gain, loss, bars, lanes):
    """Add one row to the scores and take away another; return the least score and its bar.

    Compared side by side, in as many lanes as a panel has points.
    """
    for c in range(lanes.size):
        scores[c] += gain[c] - loss[c]
        lanes[c] = scores[c] + bars[c]
    for start in range(PANEL, scores.size, PANEL):
        score, of_bar = scores[start : start + PANEL], bars[start : start + PANEL]
        more, less = gain[start : start + PANEL], loss[start : start + PANEL]
        for c in range(lanes.size):
            moved = score[c] + (more[c] - less[c])
            score[c] = moved
            lanes[c] = min(lanes[c], moved + of_bar[c])
    low = lanes[0]
    for c in range(1, lanes.size):
        low = min(low, lanes[c])
    return low


@kernel
def scan(first, last, factor, index, largest):
    """Find the largest magnitude among the rows in index of problems first .. last-1.

    It is NaN where one of the entries is. 5 to 6 ns a row of 64 numbers in float32, where a
    plain loop takes 12.

    factor : Factor
    index : (problems, n) int64, or (1, n) where all problems share the rows
    largest : (problems,), written
    """
    width = BYTES // factor.window.itemsize
    whole = factor.dim // width * width if factor.column == 1 else 0
    magnitudes = np.empty(width, factor.window.dtype)
    for problem in range(first, last):
        positions, corner = index[problem % index.shape[0]], factor.first[problem]
        magnitudes[:] = 0
        for i in range(0, positions.size, SCANNED):
            count = min(SCANNED, positions.size - i)
            for c in range(0, whole, width):
                raise_to_magnitudes(
                    magnitudes, factor.window, corner + c, factor.row, positions, i, count
                )
        top = np.max(magnitudes)
        if whole < factor.dim:
            for i in range(positions.size):
                row = corner + positions[i] * factor.row
                for c in range(whole, factor.dim):
                    entry = abs(factor.window[row + c * factor.column])
                    if entry > top or entry != entry:  # nothing is above NaN, which stays
                        top = entry
        largest[problem] = top


@kernel
def stratify(n_points, uniforms, positions):
    """Write positions (heads, length), increasing: one of each of as many strata around a ring.

    uniforms : (heads, length + 1) float64, where the ring begins and where in its stratum each is
    """
    (heads, length), rotated = positions.shape, np.empty(positions.shape[1], np.int64)
    for head in range(heads):
        start = np.int64(uniforms[head, 0] * n_points)
        low, beyond = 0, 0
        for i in range(length):
            high = (i + 1) * n_points // length
            rotated[i] = start + low + np.int64(uniforms[head, i + 1] * (high - low))
            beyond += rotated[i] >= n_points
            low = high
        for i in range(length):  # those beyond the end come first
            last = i >= length - beyond
            to = i - length + beyond if last else i + beyond
            positions[head, to] = rotated[i] - n_points if last else rotated[i]


@kernel
def unit_numbers(keys, stream, out):
    """Write numbers in [0, 1) of a numbered stream of every head's key, as `draws` defines them.

    keys : (heads,) uint64; out : (heads, size) float64
    """
    for head in range(keys.size):
        start = mix(keys[head] + np.uint64(stream))
        for i in range(out.shape[1]):
            out[head, i] = unit(mix(start + np.uint64(i + 1) * np.uint64(draws.GOLDEN)))
